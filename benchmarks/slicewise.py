"""2D networks on a 3D structure: each axial slice that it crosses is segmented alone.

Every such slice gets its own simulated clicks, as in the 2D rows of FastSAM3D's Table 2: "10
clicks" are 10 clicks on every slice. Dice is that of the stacked slices. The structure itself tells
which slices to segment, so these rows get more help than the 3D rows.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from typing import Protocol as Interface

import numpy as np
import torch
from nibabel.orientations import io_orientation
from torch import Tensor
from torch.nn import functional as F

from lib.errors import AppError, InputError
from lib.imaging.mask import dice
from lib.imaging.volume import Volume

from .display import SOFT_TISSUE_HU
from .protocols import Protocol, Scan, Series, surface_dice

PERCENTILES = (0.5, 99.5)
"""PERCENTILES: intensity window of scans other than CT."""


class Segmenter(Interface):
    """The 2D networks of `sam2d.build`."""

    size: int

    def normalise(self, images: Tensor) -> Tensor: ...

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(
        self, features: Tensor, points: Tensor, labels: Tensor, mask: Tensor | None = None
    ) -> Tensor: ...


class Slicewise:
    """A 2D network that segments a scan slice by slice."""

    def __init__(self, network: Segmenter) -> None:
        self._network = network

    @classmethod
    def load(cls, name: str, weights: str) -> Slicewise:
        """Load a network; raises InputError if the weights are missing or do not fit it."""
        from .sam2d import build

        try:
            return cls(build(name, weights))
        except (AppError, ImportError) as error:
            raise InputError(f"{name}: {error}") from error

    def __call__(
        self,
        scan: Scan,
        target: np.ndarray,
        protocol: Protocol,
        key: str,
        replayed: Series | None = None,
    ) -> Series:
        if replayed is not None:
            raise InputError("--replay: a slicewise model clicks slice by slice; leave it out")
        axis = int(np.argmax(io_orientation(scan.volume.affine_mm)[:, 0] == 2))
        low, high = _window(scan.volume)
        masks = np.zeros((len(protocol.counts), *target.shape), dtype=bool)
        clicks: list[tuple[int, ...]] = []
        labels: list[int] = []
        seconds: list[float] = []
        others = tuple(n for n in range(3) if n != axis)
        for number in np.flatnonzero(target.any(axis=others)):
            cut = tuple(int(number) if n == axis else slice(None) for n in range(3))
            image = np.clip((scan.volume.array[cut] - low) / (high - low), 0, 1) * 255
            start = time.perf_counter()
            slice_masks, places, kinds = self._click(
                image, target[cut], protocol, f"{key}/{number}"
            )
            seconds.append((time.perf_counter() - start) / protocol.counts[-1])
            masks[(slice(None), *cut)] = slice_masks
            clicks += [tuple(np.insert(place, axis, number).tolist()) for place in places]
            labels += kinds
        dices = tuple(dice(mask, target) for mask in masks)
        pairs = zip(masks, dices, strict=True) if protocol.has_surfaces else ()
        nsd = tuple(surface_dice(mask, target, scan.spacing_mm, value) for mask, value in pairs)
        return Series(dices, nsd, np.array(clicks), np.array(labels), masks[-1], tuple(seconds))

    @torch.inference_mode()
    def _click(
        self, image: np.ndarray, target: np.ndarray, protocol: Protocol, key: str
    ) -> tuple[np.ndarray, list[tuple[int, ...]], list[int]]:
        """Return a slice's masks after each of the counts, its clicks and their labels."""
        scale = self._network.size / max(image.shape)
        features = self._network.encode(self._network.normalise(_square(image, self._network.size)))
        mask, logits = np.zeros_like(target), None
        masks: list[np.ndarray] = []
        clicks: list[tuple[int, ...]] = []
        labels: list[int] = []
        for count in range(1, protocol.counts[-1] + 1):
            error = mask != target
            if error.any():
                clicks.append(protocol.click(error, (zlib.crc32(key.encode()), count)))
                labels.append(int(target[clicks[-1]]))
                # (x, y) in the network's pixels; the slice's first axis runs along its rows
                points = (np.array(clicks)[:, ::-1] + 0.5) * scale - 0.5
                logits = self._network.decode(
                    features, torch.tensor(points)[None].float(), torch.tensor(labels)[None], logits
                )
                mask = _on_slice(logits, self._network.size, image.shape)
            if count in protocol.counts:
                masks.append(mask)
        return np.stack(masks), clicks, labels


def _window(volume: Volume) -> tuple[float, float]:
    """Return the lowest and highest intensity of the network's input."""
    if volume.is_ct:
        return SOFT_TISSUE_HU
    low, high = np.percentile(volume.array, PERCENTILES)
    return float(low), max(float(high), float(low) + 1e-6)


def _square(image: np.ndarray, size: int) -> Tensor:
    """Scale an image (H, W) to [1, 3, size, size]; 0 fills the rest of the shorter side."""
    shape = _scaled(image.shape, size)
    pixels = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None, None]
    pixels = F.interpolate(pixels, shape, mode="bilinear", align_corners=False)
    padded = F.pad(pixels, (0, size - shape[1], 0, size - shape[0]))
    return padded.expand(1, 3, size, size)


def _on_slice(logits: Tensor, size: int, shape: Sequence[int]) -> np.ndarray:
    """Return the mask (H, W) bool of logits [1, 1, s, s] on the network's square."""
    full = F.interpolate(logits.float(), (size, size), mode="bilinear", align_corners=False)
    rows, columns = _scaled(shape, size)
    part = F.interpolate(
        full[..., :rows, :columns], tuple(shape), mode="bilinear", align_corners=False
    )
    return (part[0, 0] > 0).numpy()


def _scaled(shape: Sequence[int], size: int) -> tuple[int, int]:
    """Return the shape (H, W) scaled so that its longer side is `size`."""
    scale = size / max(shape)
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
