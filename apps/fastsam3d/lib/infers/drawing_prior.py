"""The probability of each cell of the ROI for a drawing, before the random walk.

A logistic regression on the terms of the `Drawing` and on the intensity: how much likelier
the cell's brightness is in the drawing than around it, from two histograms, as in GrabCut (Rother
et al., ACM Transactions on Graphics 23, 2004, doi 10.1145/1015706.1015720).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from lib.infers.drawings import Drawing
from lib.infers.roi_cells import on_cells

BINS = 32
"""BINS: bins of the histograms; each holds as many of the cells that have a weight."""

SAMPLE = 4
"""SAMPLE: the bins are those of every SAMPLE-th cell, which is fast and about the same."""

SMOOTHING = 1.5
"""SMOOTHING: standard deviation of the Gaussian over a histogram, in bins."""

RARE = 0.02
"""RARE: probability that is spread over all bins, so that none is empty."""

STRONGEST = 4.0
"""STRONGEST: limit of the intensity's absolute logits."""

IMPOSSIBLE = -9.0
"""IMPOSSIBLE: logit of the cells where the structure cannot be."""

STRONGEST_NETWORK = 8.0
"""STRONGEST_NETWORK: limit of the network's absolute logits."""

NETWORK_KINDS = frozenset({"scribble"})
"""NETWORK_KINDS: drawings whose prior uses the network's logits. For the others they add nothing.
"""

NETWORK_SHARE = {"box": 0.0, "flat_box": 0.25, "lasso": 0.25, "scribble": 0.25}
"""NETWORK_SHARE: share of the network's logits in the prior of a click after a drawing. After a box
they do harm."""

TRUST = {"box": 0.02, "flat_box": 0.01, "lasso": 0.01, "scribble": 0.01}
"""TRUST: g of the random walk's cells for each kind of drawing."""

# Logistic regressions, fitted by training/fit_drawings.py on one drawing of each kind on 40
# structures, each source with the same weight. The constant, the terms of the drawing, the
# intensity, and the network where it is used.
COEFFICIENTS: dict[str, np.ndarray] = {
    "box": np.array([1.68, -3.04, -0.91, 0.95]),
    "flat_box": np.array([2.30, -3.35, -2.86, -0.50, 1.63, -0.20, 1.15]),
    "lasso": np.array([3.04, -4.38, -3.60, 0.48, 1.83, 0.63]),
    "scribble": np.array([0.77, -0.97, -0.56, 0.33, 0.45]),
}


def prior_logits(
    drawing: Drawing, guide: np.ndarray, network_logits: np.ndarray | None = None
) -> np.ndarray:
    """Return the logits of the regression, (CELLS,)*3 float32, IMPOSSIBLE where not near.

    Arguments and errors: see `regression_terms`.
    """
    first, *others = COEFFICIENTS[drawing.kind].astype(np.float32)
    logits = np.full(guide.shape, first, dtype=np.float32)
    terms = regression_terms(drawing, guide, network_logits)
    for factor, term in zip(others, terms, strict=True):
        logits += factor * term
    return np.where(drawing.near, logits, np.float32(IMPOSSIBLE))


def regression_terms(
    drawing: Drawing, guide: np.ndarray, network_logits: np.ndarray | None = None
) -> list[np.ndarray]:
    """Return the inputs of the regression after the constant, each (CELLS,)*3 float32.

    guide: image of :func:`~lib.infers.random_walker.make_guide`. network_logits: (s, s, s) float32
    for the drawing's clicks, without a previous mask. Kinds in NETWORK_KINDS need them, the others
    ignore them. Raises ValueError if they are missing.
    """
    terms = [*drawing.terms, intensity(drawing, guide)]
    if drawing.kind in NETWORK_KINDS:
        if network_logits is None:
            raise ValueError(f"the prior of a {drawing.kind} needs the network's logits")
        terms.append(on_cells(network_logits).clip(-STRONGEST_NETWORK, STRONGEST_NETWORK))
    return terms


def with_network(logits: np.ndarray, kind: str, network_logits: np.ndarray) -> np.ndarray:
    """Return the prior after a click that follows a drawing, (CELLS,)*3 float32.

    logits: of :func:`prior_logits`. kind: of the drawing. network_logits: (s, s, s) float32 of the
    network for the click.
    """
    share = np.float32(NETWORK_SHARE[kind])
    network = on_cells(network_logits).clip(-STRONGEST_NETWORK, STRONGEST_NETWORK)
    return np.asarray(logits + share * (network - logits))


def previous_mask(values: np.ndarray, threshold: float, low_res_size: int) -> np.ndarray:
    """Return a mask as the network takes its previous one: (s, s, s) float32 logits.

    values: (CELLS,)*3 logits; the mask is where they are above the threshold. low_res_size: s,
    which divides CELLS.
    """
    shifted = torch.from_numpy(values)[None, None] - threshold
    low_res = F.adaptive_avg_pool3d(shifted, low_res_size)[0, 0]
    return low_res.clamp(-STRONGEST_NETWORK, STRONGEST_NETWORK).numpy()


def intensity(drawing: Drawing, guide: np.ndarray) -> np.ndarray:
    """Return log p(brightness | inside) - log p(brightness | outside), (CELLS,)*3 float32.

    The logits are 0 if one of the two regions is empty.
    """
    if not (drawing.inside.any() and drawing.outside.any()):
        return np.zeros_like(guide)
    weighted = guide[drawing.near | (drawing.outside > 0)][::SAMPLE]
    edges = np.quantile(weighted, np.linspace(0, 1, BINS + 1))
    edges = np.unique(edges)  # a value that many cells share would fill several bins
    count = max(len(edges) - 1, 1)
    ranks = np.interp(guide, edges, np.arange(len(edges)))
    bins = np.minimum(ranks.astype(np.intp), count - 1).ravel()
    inside, outside = (
        _density(bins, weight, count) for weight in (drawing.inside, drawing.outside)
    )
    logits = np.clip(np.log(inside / outside), -STRONGEST, STRONGEST)
    return np.interp(ranks - 0.5, np.arange(count), logits).astype(np.float32)


def _density(bins: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """Return the smoothed share of the weights in each bin, (count,)."""
    sums = np.bincount(bins, weights.ravel(), minlength=count)
    smooth = ndimage.gaussian_filter1d(sums, SMOOTHING, mode="nearest")
    return np.asarray(smooth / smooth.sum() + RARE / count)
