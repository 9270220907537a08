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
    likely = logits.detach().flatten(1).float().sigmoid().sort(dim=1, descending=True).values
    marked = torch.arange(1, likely.shape[1] + 1, device=logits.device)
    expected = 2 * likely.cumsum(dim=1) / (marked + likely.sum(dim=1, keepdim=True))
    return (expected.amax(dim=1) / 2).clamp(LEAST_PROBABILITY, 0.5).logit()
