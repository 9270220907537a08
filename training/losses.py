"""What interactive training minimises, per target."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

GROUND_SHARE = 0.05
"""Cross-entropy is divided by the target's volume plus this share of the ROI, so that structures
of a few cells count about as much as large ones without exploding at the start."""

STEP = 0.7
INTENSITIES = tuple(STEP * n for n in range(-3, 4))
"""Of a normalised image, told apart by the auxiliary channels."""


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss plus cross-entropy of logits and targets in [0, 1], both (B, c, c, c): (B,)."""
    predicted, wanted = logits.sigmoid().flatten(1), targets.flatten(1)
    overlap = (predicted * wanted).sum(dim=1)
    dice = 1 - (2 * overlap + 1) / (predicted.sum(dim=1) + wanted.sum(dim=1) + 1)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    weight = wanted.sum(dim=1) + GROUND_SHARE * wanted.shape[1]
    return dice + entropy.flatten(1).sum(dim=1) / weight


def intensity_loss(upscaled: Tensor, image: Tensor) -> Tensor:
    """How badly the decoder's upscaled image shows what the ROI looks like, as one number.

    upscaled: (B, C, c, c, c), of which channels 1, 2, … are wanted to be 1 where the normalised
    image (B, 1, S, S, S) has about the intensity `INTENSITIES`[0], [1], … and to fall to 0 beside.
    A mask is then a choice among channels, which a click can make from what it sees. Raises
    ValueError where there are too few channels.
    """
    if upscaled.shape[1] <= len(INTENSITIES):
        raise ValueError(
            f"{upscaled.shape[1]} upscaled channels; more than {len(INTENSITIES)} are needed"
        )
    shown = upscaled[:, 1 : 1 + len(INTENSITIES)]
    cells = F.adaptive_avg_pool3d(image, upscaled.shape[2:])
    centres = torch.tensor(INTENSITIES, device=image.device)[:, None, None, None]
    wanted = (1 - (cells.clamp(INTENSITIES[0], INTENSITIES[-1]) - centres).abs() / STEP).clamp(0)
    return F.mse_loss(shown, wanted)


@torch.no_grad()
def overlaps(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and Dice (B,) of the masks where logits are positive and targets at least one half."""
    predicted, wanted = (logits > 0).flatten(1), (targets >= 0.5).flatten(1)
    both = (predicted & wanted).sum(dim=1)
    sizes = predicted.sum(dim=1) + wanted.sum(dim=1)
    return both / (sizes - both).clamp(min=1), 2 * both / sizes.clamp(min=1)
