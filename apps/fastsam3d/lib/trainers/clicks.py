"""Simulated clicks: where a user who sees target and prediction would click next.

Targets are given as the share of each cell of the ROI that belongs to the target.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.networks import FastSAM3D, mask_threshold

Generators = torch.Generator | Sequence[torch.Generator]
"""Of a whole batch, or one of each ROI: then its clicks do not depend on the rest of the batch."""


def next_clicks(
    logits: Tensor, targets: Tensor, generator: Generators, cell: int
) -> tuple[Tensor, Tensor]:
    """A click on an error of each prediction.

    logits, targets: (B, c, c, c); a cell is predicted where its logit is positive and wanted where
    the target is at least one half. cell: ROI voxels along the side of a cell.
    -> points_roi (B, 1, 3) float, labels (B, 1) int64: 1 on a missed, 0 on a wrongly added cell.
    Half of the users click anywhere in the error, the others deep inside the larger kind of it.
    Where there is no error they click where prediction and target differ most.
    """
    numbers = _random_numbers(generator, len(logits)).to(logits.device)
    error = torch.where((logits > 0) != (targets >= 0.5), 1.0, 0.0)
    deep = _larger_kind(error, targets) * depth(error) ** 2
    carefully = numbers[:, 0, None, None, None] < 0.5
    weights = torch.where(carefully, deep, error)
    faultless = error.sum(dim=(1, 2, 3), keepdim=True) == 0
    weights = torch.where(faultless, (logits.sigmoid() - targets).abs() + 1e-6, weights)

    chosen = draw_cells(weights, numbers[:, 1])
    places = torch.stack(torch.unravel_index(chosen, weights.shape[1:]), dim=-1)
    within = (numbers[:, 2:] * cell).long()
    labels = (targets.flatten(1).gather(1, chosen[:, None]) >= 0.5).long()
    return (places * cell + within).float()[:, None], labels


def _random_numbers(generator: Generators, count: int) -> Tensor:
    """(count, 5) of at least 0 and below 1, float64; as many whatever the prediction."""
    if isinstance(generator, torch.Generator):
        return torch.rand(count, 5, generator=generator, dtype=torch.float64)
    rows = [torch.rand(5, generator=each, dtype=torch.float64) for each in generator]
    return torch.stack(rows)


def roi_generators(keys: Sequence[str], seed: int) -> list[torch.Generator]:
    """A generator for each ROI, of its key and the seed alone."""
    digests = [hashlib.sha256(f"{seed} {key}".encode()).digest()[:8] for key in keys]
    return [torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1) for digest in digests]


def draw_cells(weights: Tensor, numbers: Tensor) -> Tensor:
    """The flat index (B,) of a cell for each of the non-negative weights (B, c, c, c).

    numbers: (B,) random ones of at least 0 and below 1, float64.
    """
    cumulative = weights.flatten(1).double().cumsum(dim=1)
    level = numbers[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, level, right=True)[:, 0].clamp(
        max=cumulative.shape[1] - 1
    )


def depth(mask: Tensor, levels: int = 6) -> Tensor:
    """Cells to the edge of a mask (B, c, c, c) of 0 and 1, up to `levels`; 0 outside.

    The chessboard distance transform, by repeated erosion.
    """
    total, inside = mask.clone(), mask > 0
    for _ in range(levels - 1):
        for axis in (1, 2, 3):
            last = inside.shape[axis] - 1
            before, after = inside.narrow(axis, 0, last), inside.narrow(axis, 1, last)
            both = before & after
            inside = inside.clone()
            inside.narrow(axis, 0, last).logical_and_(both)
            inside.narrow(axis, 1, last).logical_and_(both)
        total += inside
    return total


def _larger_kind(error: Tensor, targets: Tensor) -> Tensor:
    """The missed cells (B, c, c, c) of an error, or the wrongly added ones where they are more."""
    missed = error * (targets >= 0.5)
    added = error - missed
    more_missed = missed.sum(dim=(1, 2, 3), keepdim=True) >= added.sum(dim=(1, 2, 3), keepdim=True)
    return torch.where(more_missed, missed, added)


class ClickSeries:
    """A network's answers to a growing series of clicks on each ROI of a batch, as served.

    embedding: [B, C, g, g, g] of the ROIs. Each answer is the previous mask of the next one; no
    gradient flows from one to another.
    """

    def __init__(self, network: FastSAM3D, embedding: Tensor) -> None:
        self._network = network
        self._prepared = network.prepare(embedding)
        self._threshold = embedding.new_zeros(len(embedding))
        # the networks were trained with zeros, not with "no mask", in the first step
        size = network.config.low_res_size
        self._previous = embedding.new_zeros(len(embedding), 1, size, size, size)

    def answer(self, points_roi: Tensor, labels: Tensor) -> Tensor:
        """All clicks so far, (B, N, 3) and (B, N), -> low-resolution logits (B, s, s, s)."""
        if self._network.policy.click_history == "newest":
            points_roi, labels = points_roi[:, -1:], labels[:, -1:]
        logits, _ = self._network.decode(self._prepared, points_roi, labels, self._previous)
        self._previous = logits.detach()
        self._threshold = mask_threshold(logits, self._network.policy.mask_threshold)
        return logits[:, 0]

    def cut(self, logits: Tensor) -> Tensor:
        """The last answer on any cells (B, c, c, c), positive inside of the mask that is served."""
        return logits.detach() - self._threshold[:, None, None, None]


def on_cells(logits: Tensor, cells: int) -> Tensor:
    """Low-resolution logits (B, s, s, s) as (B, cells, cells, cells), as `Roi.paste` does."""
    resized = F.interpolate(logits[:, None], size=(cells,) * 3, mode="trilinear")
    return resized[:, 0]
