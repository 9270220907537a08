"""Calls that are recorded once for each shape of their inputs and then replayed: CUDA graphs.

One click of the decoder is some hundred small kernels, and launching them takes longer than they
run. A graph launches them all at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from lib.networks.fastsam3d import FastSAM3D
from lib.networks.prepared import DecoderConstants, PreparedImage

Function = Callable[..., tuple[Tensor, ...]]

WARM_UP = 3
"""Calls before recording, in which libraries choose their kernels and take their memory."""


class Captured:
    """A function of tensors, replayed from a graph for inputs of shapes that it has seen before.

    On a CPU it is the function itself. It returns tensors of its own, which a later call leaves
    alone. Not for several threads at a time. limit: graphs that are kept; the one that was not used
    for longest goes first.
    """

    def __init__(self, function: Function, limit: int = 16) -> None:
        self._function = function
        self._limit = limit
        self._graphs: OrderedDict[tuple, _Recorded] = OrderedDict()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if inputs[0].device.type != "cuda":
            return self._function(*inputs)
        key = tuple((x.shape, x.dtype, x.device) for x in inputs)
        if key not in self._graphs:
            self._graphs[key] = _Recorded(self._function, inputs)
        self._graphs.move_to_end(key)
        while len(self._graphs) > self._limit:
            self._graphs.popitem(last=False)
        return self._graphs[key](inputs)


class _Recorded:
    """One graph, with the tensors that it reads and writes at each replay."""

    def __init__(self, function: Function, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(x.clone() for x in inputs)
        stream = torch.cuda.Stream(inputs[0].device)
        stream.wait_stream(torch.cuda.current_stream(inputs[0].device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                function(*self._inputs)
        torch.cuda.current_stream(inputs[0].device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = function(*self._inputs)

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for ours, given in zip(self._inputs, inputs, strict=True):
            ours.copy_(given, non_blocking=True)
        self._graph.replay()
        return tuple(x.clone() for x in self._outputs)


class CapturedNetwork:
    """What a server asks of a network whose weights do not change any more.

    decode takes a prepared image, points, labels and a mask, each of them given, and gives the one
    mask. All in inference mode.
    """

    def __init__(self, network: FastSAM3D) -> None:
        self.network = network
        self.config = network.config
        self.policy = network.policy
        self._encode = Captured(lambda volume: (network.encode(volume),))
        self._decode = Captured(self._decode_tensors)

    @torch.inference_mode()
    def encode(self, volume: Tensor) -> Tensor:
        """As :meth:`FastSAM3D.encode`."""
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
        """As :meth:`FastSAM3D.decode` without ``multimask``."""
        logits, iou = self._decode(points, labels, mask, *prepared.tensors())
        return logits, iou

    @torch.inference_mode()
    def _decode_tensors(
        self, points: Tensor, labels: Tensor, mask: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        return self.network.decode(PreparedImage.of(tensors), points, labels, mask)
