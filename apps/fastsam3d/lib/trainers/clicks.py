"""Simulated clicks: where a user who sees target and prediction would click next.

A target gives the share of each cell of the ROI that belongs to the structure, from 0 to 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.networks import FastSAM3D, mask_threshold

Generators = torch.Generator | Sequence[torch.Generator]
"""Generators: one for the batch, or one per ROI; clicks then do not depend on the batch."""


def next_clicks(
    logits: Tensor, targets: Tensor, generator: Generators, cell: int
) -> tuple[Tensor, Tensor]:
    """Draw one click on an error of each prediction.

    logits, targets: (B, c, c, c). A cell is predicted if its logit is positive, and part of the
    target if its share is at least one half. cell: ROI voxels along the side of a cell.
    Return points_roi (B, 1, 3) float, and labels (B, 1) int64: 1 on a missed cell, 0 on a wrongly
    added one. Half of the users click anywhere in the error. The others click deep inside the
    missed or the added cells, whichever are more. Without an error, users click where the
    probability differs most from the target.
    """
    numbers = _random_numbers(generator, len(logits)).to(logits.device)
    error = torch.where((logits > 0) != (targets >= 0.5), 1.0, 0.0)
    deep = _larger_kind(error, targets) * depth(error) ** 2
    clicks_deep = numbers[:, 0, None, None, None] < 0.5
    weights = torch.where(clicks_deep, deep, error)
    is_perfect = error.sum(dim=(1, 2, 3), keepdim=True) == 0
    weights = torch.where(is_perfect, (logits.sigmoid() - targets).abs() + 1e-6, weights)

    chosen = draw_cells(weights, numbers[:, 1])
    places = torch.stack(torch.unravel_index(chosen, weights.shape[1:]), dim=-1)
    within = (numbers[:, 2:] * cell).long()
    labels = (targets.flatten(1).gather(1, chosen[:, None]) >= 0.5).long()
    return (places * cell + within).float()[:, None], labels


def first_clicks(click_roi: Tensor) -> tuple[Tensor, Tensor]:
    """Start a series with a foreground click on each ROI, (B, 3): points_roi and labels."""
    points_roi = click_roi[:, None]
    return points_roi, torch.ones_like(points_roi[..., 0], dtype=torch.long)


def append_clicks(
    points_roi: Tensor,
    labels: Tensor,
    logits: Tensor,
    targets: Tensor,
    generator: Generators,
    cell: int,
) -> tuple[Tensor, Tensor]:
    """Append `next_clicks` to each series: points_roi (B, N + 1, 3), labels (B, N + 1)."""
    point, label = next_clicks(logits, targets, generator, cell)
    return torch.cat([points_roi, point], dim=1), torch.cat([labels, label], dim=1)


def _random_numbers(generator: Generators, count: int) -> Tensor:
    """Return (count, 5) numbers in [0, 1), float64.

    Each call draws equally many, so a generator's state does not depend on the predictions.
    """
    if isinstance(generator, torch.Generator):
        return torch.rand(count, 5, generator=generator, dtype=torch.float64)
    rows = [torch.rand(5, generator=each, dtype=torch.float64) for each in generator]
    return torch.stack(rows)


def roi_generators(keys: Sequence[str], seed: int) -> list[torch.Generator]:
    """Return a generator for each ROI, which depends on its key and the seed alone."""
    digests = [hashlib.sha256(f"{seed} {key}".encode()).digest()[:8] for key in keys]
    return [torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1) for digest in digests]


def draw_cells(weights: Tensor, numbers: Tensor) -> Tensor:
    """Draw one cell per ROI, in proportion to its weight; return flat indices (B,).

    weights: (B, c, c, c), not negative. numbers: (B,) random numbers in [0, 1), float64.
    """
    cumulative = weights.flatten(1).double().cumsum(dim=1)
    level = numbers[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, level, right=True)[:, 0].clamp(
        max=cumulative.shape[1] - 1
    )


def depth(mask: Tensor, levels: int = 6) -> Tensor:
    """Return the chessboard distance transform of a mask (B, c, c, c) of 0 and 1.

    The distance to the mask's edge in cells, at most `levels`, is computed by repeated erosion; it
    is 0 outside of the mask.
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
    """Return the missed cells of each error or the wrongly added ones, whichever are more.

    error, targets and result: (B, c, c, c).
    """
    missed = error * (targets >= 0.5)
    added = error - missed
    more_missed = missed.sum(dim=(1, 2, 3), keepdim=True) >= added.sum(dim=(1, 2, 3), keepdim=True)
    return torch.where(more_missed, missed, added)


class ClickSeries:
    """The logits of a network for a growing series of clicks on each ROI of a batch.

    Clicks are decoded as in serving: each mask is an input of the next click. No gradient flows
    from one click to another. embedding: [B, C, g, g, g].
    """

    def __init__(self, network: FastSAM3D, embedding: Tensor) -> None:
        self._network = network
        self._prepared = network.prepare(embedding)
        self._threshold = embedding.new_zeros(len(embedding))
        # the networks were trained with zeros, not with "no mask", in the first step
        size = network.config.low_res_size
        self._previous = embedding.new_zeros(len(embedding), 1, size, size, size)

    def decode(self, points_roi: Tensor, labels: Tensor) -> Tensor:
        """Decode all clicks so far, (B, N, 3) and (B, N): low-resolution logits (B, s, s, s)."""
        if self._network.policy.click_history == "newest":
            points_roi, labels = points_roi[:, -1:], labels[:, -1:]
        logits, _ = self._network.decode(self._prepared, points_roi, labels, self._previous)
        self._previous = logits.detach()
        self._threshold = mask_threshold(logits, self._network.policy.mask_threshold)
        return logits[:, 0]

    def shifted(self, logits: Tensor) -> Tensor:
        """Shift the last logits, on any cells (B, c, c, c), to be positive inside the mask."""
        return logits.detach() - self._threshold[:, None, None, None]


def on_cells(logits: Tensor, cells: int) -> Tensor:
    """Resize low-resolution logits (B, s, s, s) to (B, cells, cells, cells), as `Roi.paste`."""
    resized = F.interpolate(logits[:, None], size=(cells,) * 3, mode="trilinear")
    return resized[:, 0]
