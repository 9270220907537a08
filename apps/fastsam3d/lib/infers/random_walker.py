"""The random walker: it moves the edges of a mask to those of the image.

The networks see patches of 24 mm and answer on cells of 6 mm, so their probabilities are more
reliable than their boundaries. The probabilities are therefore the prior of a random walker (Grady,
Multilabel Random Walker Image Segmentation Using Prior Models, CVPR 2005, doi
10.1109/CVPR.2005.239), which returns the probabilities x on the ROI's cells that minimise

    sum over neighbours of w_ij (x_i - x_j)² + sum over cells of g_i (x_i - p_i)²

The weights w are small across edges of the image, p is the network's probability and g the trust in
it. Clicked cells are fixed. So x spreads where the image is uniform and stops at edges. In a coarse
ROI the intensities inside and outside of the mask first correct p (:mod:`intensity_likelihood`).

This is our own code because the random walker of scikit-image takes no prior: it knows seeds only.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lib.infers.intensity_likelihood import COARSE, likelihood_weight, with_intensities

CELLS = 64
"""CELLS: cells along each side of the ROI. A cell of 3 mm keeps the walk below a tenth of a second.
"""

BRIGHTEST = 4.0
"""BRIGHTEST: the normalised image is clamped to ± this many standard deviations."""

EDGE_WEIGHT = 10.0
"""EDGE_WEIGHT: w = exp(-EDGE_WEIGHT d² / m) + LEAST_WEIGHT for a step d of the image.

m is the mean of d² in the box, so that contrast and noise level of a scan cancel out.
"""

LEAST_WEIGHT = 1e-3
"""LEAST_WEIGHT: lower limit of w, so that a walk can cross an edge."""

TRUST = 0.02
"""TRUST: g of all other cells. In a uniform image a click reaches about 1 / √g = 7 cells. A coarse
ROI is trusted less, in proportion to its voxel size, so that a click reaches further."""

TRAINED_MM = 1.5
"""TRAINED_MM: voxel size of the ROIs that the networks were trained with."""

CERTAIN = 1e3
"""CERTAIN: g of clicked cells."""

LIKELY = 0.03
"""LIKELY: the walk is limited to a box around all cells with a larger prior."""

MARGIN = 2
"""MARGIN: width in cells that is added to this box on each side."""

SURE = 1e-4
"""SURE: probabilities are clamped to [SURE, 1 - SURE] before their logits are taken."""

ITERATIONS, RESIDUAL = 60, 1e-3
"""ITERATIONS, RESIDUAL: limits of the conjugate gradient: iterations, squared residual."""


def make_guide(roi_image: np.ndarray) -> np.ndarray:
    """Return the image whose edges :func:`random_walk` follows, (CELLS,)*3 float32.

    roi_image: (S, S, S) float32, normalised.
    """
    image = torch.from_numpy(roi_image)[None, None].clamp(-BRIGHTEST, BRIGHTEST)
    return F.adaptive_avg_pool3d(image, CELLS)[0, 0].numpy()


@torch.inference_mode()
def random_walk(
    logits: np.ndarray,
    guide: np.ndarray,
    points_roi: np.ndarray,
    labels: np.ndarray,
    roi_size: int,
    spacing_mm: float = TRAINED_MM,
    fixed: np.ndarray | None = None,
    drawing_trust: float | None = None,
) -> np.ndarray:
    """Return the logits of the random walker's probabilities on the ROI, (CELLS,)*3 float32.

    logits: (s, s, s) float32 of the network or of a drawing. guide: see :func:`make_guide`.
    points_roi: (N, 3) ROI voxel indices. labels: (N,), 1 foreground, 0 background; the last click
    in a cell counts. roi_size: ROI voxels along each axis. spacing_mm: distance between ROI voxels.
    fixed: (CELLS,)*3 float32, the probabilities, 0 or 1, of the cells that are decided, NaN
    elsewhere; clicks count more. drawing_trust: g of all other cells for a drawing's logits, which
    hold the intensities already; None for the network's.
    """
    low_res, image = torch.from_numpy(logits)[None, None], torch.from_numpy(guide)
    prior = F.interpolate(low_res, size=(CELLS,) * 3, mode="trilinear")[0, 0].sigmoid_()
    trust_of_cells = drawing_trust
    if trust_of_cells is None:
        coarseness = spacing_mm / TRAINED_MM
        weight = likelihood_weight(len(labels), coarseness)
        prior = with_intensities(prior, image, BRIGHTEST, weight)
        trust_of_cells = TRUST / coarseness if coarseness >= COARSE else TRUST
    trust = torch.full_like(prior, trust_of_cells)
    if fixed is not None:
        decided = torch.from_numpy(np.isfinite(fixed))
        prior[decided], trust[decided] = torch.from_numpy(fixed)[decided], CERTAIN
    cells = ((points_roi + 0.5) * CELLS / roi_size).astype(int).clip(0, CELLS - 1)
    for cell, label in zip(cells.tolist(), labels.tolist(), strict=True):
        prior[tuple(cell)], trust[tuple(cell)] = float(label), CERTAIN
    if (prior > LIKELY).any():
        box = _box_around(prior > LIKELY)
        weights = _edge_weights(image[box])
        prior[box] = _minimise(prior[box], trust[box], weights)
    return prior.logit_(eps=SURE).numpy()


def _box_around(cells: Tensor) -> tuple[slice, ...]:
    """Return the index of the box around the true cells, with a margin."""
    places = torch.nonzero(cells)
    low, high = (places.amin(dim=0) - MARGIN).clamp(min=0), places.amax(dim=0) + MARGIN + 1
    return tuple(slice(*bounds) for bounds in zip(low.tolist(), high.tolist(), strict=True))


def _edge_weights(image: Tensor) -> list[Tensor]:
    """Return the weight between neighbours along each axis: one less cell along that axis.

    image: (i, j, k). The weight at an index joins the cell there and the next one along the axis.
    """
    squares = [torch.diff(image, dim=axis).square_() for axis in range(3)]
    mean = torch.cat([square.flatten() for square in squares]).mean()
    scale = -EDGE_WEIGHT / mean.clamp(min=1e-12)
    return [torch.exp(scale * square) + LEAST_WEIGHT for square in squares]


def _minimise(prior: Tensor, trust: Tensor, weights: list[Tensor]) -> Tensor:
    """Return the minimum x by conjugate gradient, scaled so that the diagonal is 1 (Jacobi).

    prior, trust: (i, j, k). weights: see :func:`_edge_weights`.
    """
    squares = trust.clone()
    for axis, weight in enumerate(weights):
        _lower(squares, axis).add_(weight)
        _upper(squares, axis).add_(weight)
    scale = squares.sqrt_()
    weights = [
        weight / (_lower(scale, axis) * _upper(scale, axis)) for axis, weight in enumerate(weights)
    ]
    x = prior * scale
    residual = trust * prior / scale - _apply_matrix(x, weights)
    direction = residual.clone()
    size = _dot(residual, residual)
    for _ in range(ITERATIONS):
        if size < RESIDUAL:
            break
        applied = _apply_matrix(direction, weights)
        step = size / _dot(direction, applied)
        x.addcmul_(direction, step)
        residual.addcmul_(applied, step, value=-1)
        previous, size = size, _dot(residual, residual)
        direction.mul_(size / previous).add_(residual)
    return x / scale


def _apply_matrix(x: Tensor, weights: list[Tensor]) -> Tensor:
    """Return the scaled matrix times x: each cell minus its weighted neighbours."""
    result = x.clone()
    for axis, weight in enumerate(weights):
        _lower(result, axis).addcmul_(weight, _upper(x, axis), value=-1)
        _upper(result, axis).addcmul_(weight, _lower(x, axis), value=-1)
    return result


def _lower(cells: Tensor, axis: int) -> Tensor:
    """Return a view of the lower cell of each pair of neighbours along an axis."""
    return cells.narrow(axis, 0, cells.shape[axis] - 1)


def _upper(cells: Tensor, axis: int) -> Tensor:
    """Return a view of the upper cell of each pair of neighbours along an axis."""
    return cells.narrow(axis, 1, cells.shape[axis] - 1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.flatten(), b.flatten())
