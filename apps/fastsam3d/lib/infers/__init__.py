"""The interactive models as MONAI Label infer tasks: from a click to a mask.

A request passes these files in this order:

fastsam3d.py      the whole path, step by step; start reading here
request.py        check the options, the form of the reply and the device
transforms.py     the steps before and after the network
prompts.py        parse the clicks and the box
predictor.py      encode the ROI, decode each click
random_walker.py  give the mask its edges

These files serve the predictor:

device_queue.py   one FIFO queue for each device
precision.py      the number type to compute in, checked on the network
cuda_graphs.py    replay recorded GPU work
stopwatch.py      the times of the stages
allocator.py      settings of the C library's memory allocator
"""

from .fastsam3d import Caches, FastSAM3DInfer

__all__ = ["Caches", "FastSAM3DInfer"]
