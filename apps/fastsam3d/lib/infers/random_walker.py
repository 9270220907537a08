"""The edges of a mask, from the image and the clicks.

The networks see patches of 24 mm and answer on cells of 6 mm. How likely a cell belongs
to the object they know better than where exactly it ends. So their answer is taken as the prior of
a random walker (Grady, Multilabel Random Walker Image Segmentation Using Prior Models, CVPR 2005,
doi 10.1109/CVPR.2005.239): of all probabilities x on the ROI's cells the one that minimises

    sum over neighbours of w_ij (x_i - x_j)² + sum over cells of g_i (x_i - p_i)²

where the weights w are small across edges of the image, p is what the network says, and clicked
cells are certain. x spreads where the image is uniform, and stops where it is not.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

CELLS = 64
"""Along each side of the ROI: 3 mm a cell, in less than a tenth of a second."""

BRIGHTEST = 4.0
"""Of a normalised image, in standard deviations: beyond it nothing is an edge."""

EDGE_WEIGHT = 10.0
"""w = exp(-EDGE_WEIGHT d² / m) for a step d of the image, m the mean square of those in the box,
and at least LEAST_WEIGHT: contrast and noise of a scan have no say."""

LEAST_WEIGHT = 1e-3

TRUST = 0.02
"""g: in a uniform image a click reaches about 7 cells far (1 / √g)."""

CERTAIN = 1e3
"""g of clicked cells."""

LIKELY = 0.03
"""The box holds all cells that are likelier, and a margin of MARGIN cells."""

MARGIN = 2

SURE = 1e-4
"""Probabilities are kept so far away from 0 and 1."""

ITERATIONS, RESIDUAL = 60, 1e-3
"""Of the conjugate gradients: at most so many, and the squared residual at which they end."""


def guide_of(roi_image: np.ndarray) -> np.ndarray:
    """What :func:`outline` has to know of a normalised ROI image (S, S, S): (CELLS,)*3 float32."""
    image = torch.from_numpy(roi_image)[None, None].clamp(-BRIGHTEST, BRIGHTEST)
    return F.adaptive_avg_pool3d(image, CELLS)[0, 0].numpy()


@torch.inference_mode()
def outline(
    logits: np.ndarray,
    guide: np.ndarray,
    points_roi: np.ndarray,
    labels: np.ndarray,
    roi_size: int,
) -> np.ndarray:
    """Logits (CELLS,)*3 float32 on the ROI cube, of the probabilities that the walk gives.

    logits: (s, s, s) float32, the network's. guide: of :func:`guide_of`. points_roi: (N, 3)
    ROI voxel indices; labels: (N,), 1 foreground, 0 background; where several lie in a cell, the
    last one counts.
    """
    low_res = torch.from_numpy(logits)[None, None]
    prior = F.interpolate(low_res, size=(CELLS,) * 3, mode="trilinear")[0, 0].sigmoid_()
    trust = torch.full_like(prior, TRUST)
    cells = ((points_roi + 0.5) * CELLS / roi_size).astype(int).clip(0, CELLS - 1)
    for cell, label in zip(cells.tolist(), labels.tolist(), strict=True):
        prior[tuple(cell)], trust[tuple(cell)] = float(label), CERTAIN
    if (prior > LIKELY).any():
        box = _around(prior > LIKELY)
        weights = _edge_weights(torch.from_numpy(guide)[box])
        prior[box] = _walk(prior[box], trust[box], weights)
    return prior.logit_(eps=SURE).numpy()


def _around(cells: Tensor) -> tuple[slice, ...]:
    places = torch.nonzero(cells)
    low, high = (places.amin(dim=0) - MARGIN).clamp(min=0), places.amax(dim=0) + MARGIN + 1
    return tuple(slice(*bounds) for bounds in zip(low.tolist(), high.tolist(), strict=True))


def _edge_weights(image: Tensor) -> list[Tensor]:
    """Along each axis, between neighbours: [i - 1, j, k], [i, j - 1, k] and [i, j, k - 1]."""
    squares = [torch.diff(image, dim=axis).square_() for axis in range(3)]
    mean = torch.cat([square.flatten() for square in squares]).mean()
    scale = -EDGE_WEIGHT / mean.clamp(min=1e-12)
    return [torch.exp(scale * square) + LEAST_WEIGHT for square in squares]


def _walk(prior: Tensor, trust: Tensor, weights: list[Tensor]) -> Tensor:
    """The minimum, by conjugate gradients on the system scaled to a diagonal of ones."""
    squares = trust.clone()
    for axis, weight in enumerate(weights):
        _before(squares, axis).add_(weight)
        _after(squares, axis).add_(weight)
    scale = squares.sqrt_()
    weights = [
        weight / (_before(scale, axis) * _after(scale, axis)) for axis, weight in enumerate(weights)
    ]
    x = prior * scale
    residual = trust * prior / scale - _apply(x, weights)
    direction = residual.clone()
    size = _dot(residual, residual)
    for _ in range(ITERATIONS):
        if size < RESIDUAL:
            break
        applied = _apply(direction, weights)
        step = size / _dot(direction, applied)
        x.addcmul_(direction, step)
        residual.addcmul_(applied, step, value=-1)
        before, size = size, _dot(residual, residual)
        direction.mul_(size / before).add_(residual)
    return x / scale


def _apply(x: Tensor, weights: list[Tensor]) -> Tensor:
    """The scaled Laplacian of the cells: less of each neighbour, by the weight between the two."""
    result = x.clone()
    for axis, weight in enumerate(weights):
        _before(result, axis).addcmul_(weight, _after(x, axis), value=-1)
        _after(result, axis).addcmul_(weight, _before(x, axis), value=-1)
    return result


def _before(cells: Tensor, axis: int) -> Tensor:
    """All cells that have a neighbour further along the axis; :func:`_after` gives those."""
    return cells.narrow(axis, 0, cells.shape[axis] - 1)


def _after(cells: Tensor, axis: int) -> Tensor:
    return cells.narrow(axis, 1, cells.shape[axis] - 1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.flatten(), b.flatten())
