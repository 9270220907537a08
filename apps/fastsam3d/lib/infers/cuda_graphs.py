"""CUDA graphs: calls that are captured once for each shape of their inputs and then replayed.

One click of the decoder launches some hundred small kernels, and launching them takes longer than
running them. A graph launches them all at once.

The thread of the device's queue records and replays all graphs of a device, one at a time. Other
threads use the device meanwhile, for uploads and for checks of other networks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from lib.networks.fastsam3d import FastSAM3D
from lib.networks.prepared import DecoderConstants, PreparedImage

Function = Callable[..., tuple[Tensor, ...]]

WARM_UP = 3
"""WARM_UP: calls before capturing, in which libraries choose kernels and allocate memory."""

ERROR_MODE = "thread_local"
"""ERROR_MODE: a capture fails by unsafe calls of its own thread only, not by those of others."""


@cache
def memory_pool(device: torch.device) -> Any:
    """Return the memory pool that all graphs of a device share.

    Graphs overwrite each other's memory there. They may, because one is replayed at a time and its
    outputs are copied before the next one.
    """
    return torch.cuda.graph_pool_handle()


class CapturedFunction:
    """A function of tensors that is replayed from a CUDA graph when input shapes repeat.

    On a CPU the function itself is called. The results are copies, which later calls do not change.
    Not safe under threads.

    limit: number of graphs to keep; the least recently used one is dropped first.
    """

    def __init__(self, function: Function, limit: int = 16) -> None:
        self._function = function
        self._limit = limit
        self._graphs: OrderedDict[tuple, _Graph] = OrderedDict()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if inputs[0].device.type != "cuda":
            return self._function(*inputs)
        key = tuple((x.shape, x.dtype, x.device) for x in inputs)
        if key not in self._graphs:
            self._graphs[key] = _Graph(self._function, inputs)
        self._graphs.move_to_end(key)
        while len(self._graphs) > self._limit:
            self._graphs.popitem(last=False)
        return self._graphs[key](inputs)


class _Graph:
    """One captured graph, with the tensors that it reads and writes at each replay."""

    def __init__(self, function: Function, inputs: tuple[Tensor, ...]) -> None:
        device = inputs[0].device
        self._inputs = tuple(x.clone() for x in inputs)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                function(*self._inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            self._graph,
            pool=memory_pool(device),
            stream=stream,  # the default one belongs to the first device that captured
            capture_error_mode=ERROR_MODE,
        ):
            self._outputs = function(*self._inputs)

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for static, x in zip(self._inputs, inputs, strict=True):
            static.copy_(x, non_blocking=True)
        self._graph.replay()
        return tuple(x.clone() for x in self._outputs)


class CapturedNetwork:
    """A network with fixed weights for serving: the methods that a predictor calls.

    All methods run in inference mode. Not safe under threads.
    """

    def __init__(self, network: FastSAM3D) -> None:
        self.network = network
        self.config = network.config
        self.policy = network.policy
        self._encode = CapturedFunction(lambda volume: (network.encode(volume),))
        self._decode = CapturedFunction(self._decode_tensors)

    @torch.inference_mode()
    def encode(self, volume: Tensor) -> Tensor:
        """See :meth:`FastSAM3D.encode`."""
        return self._encode(volume)[0]

    @torch.inference_mode()
    def prepare(self, embedding: Tensor) -> PreparedImage:
        """As :meth:`FastSAM3D.prepare`, with constants that all prepared images share."""
        return self.network.prepare(embedding, self._constants)

    @cached_property
    def _constants(self) -> DecoderConstants:
        return self.network.decoder_constants()

    @torch.inference_mode()
    def decode(
        self, prepared: PreparedImage, points: Tensor, labels: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`FastSAM3D.decode`, without ``multimask`` and with all inputs required."""
        logits, iou = self._decode(points, labels, mask, *prepared.tensors())
        return logits, iou

    @torch.inference_mode()
    def _decode_tensors(
        self, points: Tensor, labels: Tensor, mask: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        return self.network.decode(PreparedImage.of(tensors), points, labels, mask)
