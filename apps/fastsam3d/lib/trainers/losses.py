"""What distillation and interactive training minimise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

GROUND_SHARE = 0.05
"""Sums over cells are divided by the target's volume plus this share of the ROI, so that structures
of a few cells count about as much as large ones without exploding at the start."""


def pair_losses(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The norms of Eq. 1 (arXiv 2403.09827), one per pair of block outputs: [k], float32.

    student, teacher: k tensors [B, i, j, k, W] each. The L2 norm is taken of the difference at each
    token, over its W channels, divided by √W, and averaged over tokens and batch: 1 means that the
    channels are off by 1 (root mean square), whatever the width and the size of the grid. Eq. 1 is
    the mean of the first k of these.
    """
    return torch.stack(
        [feature_error(ours, theirs) for ours, theirs in zip(student, teacher, strict=True)]
    )


def feature_error(student: Tensor, teacher: Tensor) -> Tensor:
    """One number: the norm of `pair_losses` for one pair of features, channels last."""
    difference = student.float() - teacher.float()
    return torch.linalg.vector_norm(difference, dim=-1).mean() / difference.shape[-1] ** 0.5


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Binary Kullback-Leibler divergence of the student's from the teacher's mask: (B,).

    Both (B, c, c, c). The sum over cells, divided by what the teacher marks (`GROUND_SHARE`); it is
    0 where both agree, and its gradient is that of the cross-entropy to the teacher's
    probabilities.
    """
    student_logits, teacher_logits = student_logits.float(), teacher_logits.float()
    probabilities = teacher_logits.sigmoid()
    uncertainty = F.binary_cross_entropy_with_logits(
        teacher_logits, probabilities, reduction="none"
    )
    entropy = F.binary_cross_entropy_with_logits(student_logits, probabilities, reduction="none")
    return (entropy - uncertainty).flatten(1).sum(dim=1) / _weight(probabilities)


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss plus cross-entropy of logits and targets in [0, 1], both (B, c, c, c): (B,)."""
    return dice_loss(logits, targets) + cross_entropy(logits, targets)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - the soft Dice of logits and targets in [0, 1], both (B, c, c, c): (B,)."""
    predicted, wanted = logits.float().sigmoid().flatten(1), targets.flatten(1)
    overlap = (predicted * wanted).sum(dim=1)
    return 1 - (2 * overlap + 1) / (predicted.sum(dim=1) + wanted.sum(dim=1) + 1)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The cells' cross-entropy over the target's volume (`GROUND_SHARE`), of (B, c, c, c): (B,)."""
    entropy = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    return entropy.flatten(1).sum(dim=1) / _weight(targets)


def _weight(targets: Tensor) -> Tensor:
    wanted = targets.flatten(1)
    return wanted.sum(dim=1) + GROUND_SHARE * wanted.shape[1]


@torch.no_grad()
def overlaps(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and Dice (B,) of the masks where logits are positive and targets at least one half."""
    predicted, wanted = (logits > 0).flatten(1), (targets >= 0.5).flatten(1)
    both = (predicted & wanted).sum(dim=1)
    sizes = predicted.sum(dim=1) + wanted.sum(dim=1)
    return both / (sizes - both).clamp(min=1), 2 * both / sizes.clamp(min=1)
