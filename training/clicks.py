"""Simulated clicks: where a user who sees target and prediction would click next.

Targets are given as the share of each cell of the ROI that belongs to the target.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def next_clicks(
    logits: Tensor, targets: Tensor, generator: torch.Generator, cell: int
) -> tuple[Tensor, Tensor]:
    """A click on an error of each prediction.

    logits, targets: (B, c, c, c); a cell is predicted where its logit is positive and wanted where
    the target is at least one half. cell: ROI voxels along the side of a cell.
    -> points_roi (B, 1, 3) float, labels (B, 1) int64: 1 on a missed, 0 on a wrongly added cell.
    Half of the users click anywhere in the error, the others deep inside the larger kind of it.
    Where there is no error they click where prediction and target differ most.
    """
    error = torch.where((logits > 0) != (targets >= 0.5), 1.0, 0.0)
    deep = _larger_kind(error, targets) * depth(error) ** 2
    carefully = torch.rand(len(error), generator=generator) < 0.5
    weights = torch.where(carefully[:, None, None, None].to(error.device), deep, error)
    faultless = error.sum(dim=(1, 2, 3), keepdim=True) == 0
    weights = torch.where(faultless, (logits.sigmoid() - targets).abs() + 1e-6, weights)

    chosen = draw_cells(weights, generator)
    places = torch.stack(torch.unravel_index(chosen, weights.shape[1:]), dim=-1)
    within = torch.randint(cell, (len(places), 3), generator=generator).to(places.device)
    labels = (targets.flatten(1).gather(1, chosen[:, None]) >= 0.5).long()
    return (places * cell + within).float()[:, None], labels


def draw_cells(weights: Tensor, generator: torch.Generator) -> Tensor:
    """The flat index (B,) of a cell for each of the non-negative weights (B, c, c, c)."""
    cumulative = weights.flatten(1).double().cumsum(dim=1)
    level = torch.rand(len(weights), 1, generator=generator, dtype=torch.float64)
    level = level.to(weights.device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, level, right=True)[:, 0].clamp(
        max=cumulative.shape[1] - 1
    )


def depth(mask: Tensor, levels: int = 6) -> Tensor:
    """Cells to the edge of a mask (B, c, c, c) of 0 and 1, up to `levels`; 0 outside.

    The chessboard distance transform, by repeated erosion.
    """
    total = mask.clone()
    for _ in range(levels - 1):
        mask = -F.max_pool3d(-mask, kernel_size=3, stride=1, padding=1)
        total += mask
    return total


def _larger_kind(error: Tensor, targets: Tensor) -> Tensor:
    """The missed cells (B, c, c, c) of an error, or the wrongly added ones where they are more."""
    missed = error * (targets >= 0.5)
    added = error - missed
    more_missed = missed.sum(dim=(1, 2, 3), keepdim=True) >= added.sum(dim=(1, 2, 3), keepdim=True)
    return torch.where(more_missed, missed, added)
