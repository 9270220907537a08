"""The likelihood of the intensities, which corrects the prior of a coarse ROI before its walk.

A structure is often as bright in its missed parts as in those that the network found. The histogram
of the image inside of the mask and the one around it tell how much more likely each intensity is
inside. The logarithm of this ratio is added to the logits of the prior (Bayes' rule, with the cells
as independent observations). The histograms come from the prior itself, so nothing is trained and
clicks are not needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 32
"""BINS: bins of the histograms, which divide the range of the guide image evenly."""

SMOOTHING = (0.25, 0.5, 0.25)
"""SMOOTHING: weights of a bin's neighbours and of itself, so that noise does not make a peak."""

EMPTY_COUNT = 0.5
"""EMPTY_COUNT: cells that are added to each bin, so that an empty bin says little."""

POSSIBLE = 0.02
"""POSSIBLE: only cells with a larger prior are counted: those of the structure and its border."""

LEAST_CELLS = 30
"""LEAST_CELLS: with fewer possible cells the prior stays as it is."""

LARGEST_LOG_RATIO = 3.0
"""LARGEST_LOG_RATIO: limit of the logarithm of the ratio, before it is weighted."""

COARSE = 2.0
"""COARSE: from this ratio of voxel sizes on, the network finds only parts of large structures."""

FIRST_WEIGHT, WEIGHT_PER_CLICK, LARGEST_WEIGHT = 1.0, 0.2, 4.0
"""FIRST_WEIGHT, WEIGHT_PER_CLICK, LARGEST_WEIGHT: weight of the log ratio at the first click, its
growth with each further one, and its limit. The mask that the histograms come from becomes more
reliable with each click."""


def likelihood_weight(clicks: int, coarseness: float) -> float:
    """Return the weight of the log ratio after a number of clicks.

    coarseness: voxel size of the ROI as a share of the one that the network was trained with. Below
    COARSE the weight is 0: there the intensities brought nothing over series of clicks.
    """
    if coarseness < COARSE:
        return 0.0
    weight = FIRST_WEIGHT + WEIGHT_PER_CLICK * max(clicks - 1, 0)
    return min(weight * coarseness, LARGEST_WEIGHT)


def with_intensities(prior: Tensor, guide: Tensor, brightest: float, weight: float) -> Tensor:
    """Return the prior's probabilities after the image was seen, (c, c, c) float32.

    prior: (c, c, c) probabilities. guide: (c, c, c) image, within ± brightest. weight: of the log
    ratio; 0 returns the prior.
    """
    possible = prior > POSSIBLE
    if not weight or int(possible.sum()) < LEAST_CELLS:
        return prior
    bins = ((guide + brightest) * (BINS / (2 * brightest))).long().clamp_(0, BINS - 1)
    inside = prior[possible].double()
    ratio = _histogram(bins[possible], inside) / _histogram(bins[possible], 1 - inside)
    log_ratio = ratio.log().clamp_(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).float()
    return torch.sigmoid(prior.logit(eps=1e-6) + weight * log_ratio[bins])


def _histogram(bins: Tensor, weights: Tensor) -> Tensor:
    """Return the smoothed share of each bin, (BINS,) float64, sum 1."""
    counts = torch.bincount(bins, weights, minlength=BINS)
    kernel = counts.new_tensor(SMOOTHING)
    smooth = torch.nn.functional.conv1d(counts[None, None], kernel[None, None], padding=1)[0, 0]
    return (smooth + EMPTY_COUNT) / (smooth.sum() + EMPTY_COUNT * BINS)
