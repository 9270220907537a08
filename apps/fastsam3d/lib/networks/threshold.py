"""The threshold that separates the inside of a mask from the outside."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .policy import MaskThreshold

LEAST_PROBABILITY = 0.1
"""LEAST_PROBABILITY: lower bound of the threshold. Without it, the rule would mark the least
unlikely voxels where the network finds nothing."""


def mask_threshold(logits: Tensor, kind: MaskThreshold) -> Tensor:
    """Return the logit above which a voxel is inside, for each mask of [B, ...]: [B] float32.

    ``zero``: 0. ``expected_dice``: the threshold with the largest expected Dice, if the logits are
    right about the probability of each voxel. As a probability it is half of that Dice (Lipton et
    al., Optimal Thresholding of Classifiers to Maximize F1 Measure, arXiv 1402.1892). It is low
    after one click, when many masks are possible, and close to 0 when the object is clear.
    """
    if kind == "zero":
        return torch.zeros(len(logits), device=logits.device)
    probabilities = logits.detach().flatten(1).float().sigmoid()
    if logits.is_cuda:  # sorts all rows at once; to select voxels would wait for the device
        return _best_cuts(probabilities, probabilities.sum(dim=1)).logit()
    cuts = [_best_cuts(row[row > LEAST_PROBABILITY][None], row.sum()) for row in probabilities]
    return torch.cat(cuts).logit()


def _best_cuts(marked: Tensor, sums: Tensor) -> Tensor:
    """Return the best thresholds (B,) for masks within the voxels ``marked`` (B, N).

    Voxels up to the least probability may be left out, to sort fewer: the best threshold is half
    of the expected Dice, so a mask that held them would get the least threshold anyway.

    marked: probabilities in any order. sums: (B,) or (,), over all voxels of each mask.
    """
    marked = marked.sort(dim=1, descending=True).values
    count = torch.arange(1, marked.shape[1] + 1, device=marked.device)
    expected = 2 * marked.cumsum(dim=1) / (count + sums[..., None])
    best = F.pad(expected, (0, 1)).amax(dim=1)
    return (best / 2).clamp(LEAST_PROBABILITY, 0.5)
