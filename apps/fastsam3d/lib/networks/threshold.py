"""Where a mask is cut out of its logits."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import MaskThreshold

LEAST_PROBABILITY = 0.1
"""Of what is marked at all. Where nothing was found, the rule would mark what is least unlikely."""


def mask_threshold(logits: Tensor, kind: MaskThreshold) -> Tensor:
    """The logit above which a voxel is marked, of each of the masks [B, ...]: [B] float32.

    ``zero``: 0. ``expected_dice``: what gives the mask with the largest expected Dice, if the
    logits are right about how likely each voxel is: half of that Dice as a probability (Lipton et
    al., Optimal Thresholding of Classifiers to Maximize F1 Measure, arXiv 1402.1892). It is low
    after one click, when much is possible, and close to 0 when the object is clear.
    """
    if kind == "zero":
        return torch.zeros(len(logits), device=logits.device)
    cuts = [_best_cut(likely) for likely in logits.detach().flatten(1).float().sigmoid()]
    return torch.stack(cuts).logit()


def _best_cut(likely: Tensor) -> Tensor:
    """The probability (,) at which to cut those of a mask's voxels (N,).

    Only those above the least one are sorted, which most are not: the best mask ends at half of its
    expected Dice, so were it to hold others, it would be cut at the least one anyway.
    """
    marked = likely[likely > LEAST_PROBABILITY].sort(descending=True).values
    count = torch.arange(1, len(marked) + 1, device=likely.device)
    expected = 2 * marked.cumsum(dim=0) / (count + likely.sum())
    best = torch.cat([expected.new_zeros(1), expected]).amax()
    return (best / 2).clamp(LEAST_PROBABILITY, 0.5)
