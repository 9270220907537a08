"""The threshold that separates the inside of a mask from the outside."""

from __future__ import annotations

import torch
from torch import Tensor

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
    cuts = [_best_cut(probability) for probability in logits.detach().flatten(1).float().sigmoid()]
    return torch.stack(cuts).logit()


def _best_cut(probability: Tensor) -> Tensor:
    """Return the best threshold (,) for the probabilities (N,) of a mask's voxels.

    Only probabilities above the least one are sorted, which are few: the best threshold is half of
    the expected Dice, so a mask that held less likely voxels would get the least threshold anyway.
    """
    marked = probability[probability > LEAST_PROBABILITY].sort(descending=True).values
    count = torch.arange(1, len(marked) + 1, device=probability.device)
    expected = 2 * marked.cumsum(dim=0) / (count + probability.sum())
    best = torch.cat([expected.new_zeros(1), expected]).amax()
    return (best / 2).clamp(LEAST_PROBABILITY, 0.5)
