"""Losses of distillation and of interactive training, and the overlap of masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

GROUND_SHARE = 0.05
"""GROUND_SHARE: share of the ROI that is added to the target's volume, by which sums over cells are
divided. Small structures then count about as much as large ones, and a structure of a few cells
does not make the loss explode at the start."""


def pair_losses(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the norm of Eq. 1 (arXiv 2403.09827) for each pair of block outputs: [k], float32.

    student, teacher: k tensors [B, i, j, k, W] each. The L2 norm of the difference at each token,
    over its W channels, is divided by √W and averaged over tokens and batch. A value of 1 means
    that the channels differ by 1 (root mean square), whatever the width and the grid. Eq. 1 is the
    mean of the first k values.
    """
    return torch.stack(
        [
            feature_error(student_output, teacher_output)
            for student_output, teacher_output in zip(student, teacher, strict=True)
        ]
    )


def feature_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the norm of `pair_losses` for one pair of features, channels last: a scalar."""
    difference = student.float() - teacher.float()
    return torch.linalg.vector_norm(difference, dim=-1).mean() / difference.shape[-1] ** 0.5


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the binary Kullback-Leibler divergence of the masks, teacher to student: (B,).

    Both arguments are (B, c, c, c). The divergence is summed over the cells and divided by the
    volume of the teacher's mask (`GROUND_SHARE`). It is 0 if both agree. Its gradient is that of
    the cross-entropy to the teacher's probabilities.
    """
    student_logits, teacher_logits = student_logits.float(), teacher_logits.float()
    probabilities = teacher_logits.sigmoid()
    teacher_entropy = F.binary_cross_entropy_with_logits(
        teacher_logits, probabilities, reduction="none"
    )
    entropy = F.binary_cross_entropy_with_logits(student_logits, probabilities, reduction="none")
    return (entropy - teacher_entropy).flatten(1).sum(dim=1) / _weight(probabilities)


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return Dice loss plus cross-entropy: (B,).

    logits, targets in [0, 1]: (B, c, c, c).
    """
    return dice_loss(logits, targets) + cross_entropy(logits, targets)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return 1 - soft Dice: (B,). logits, targets in [0, 1]: (B, c, c, c)."""
    probabilities, target_cells = logits.float().sigmoid().flatten(1), targets.flatten(1)
    overlap = (probabilities * target_cells).sum(dim=1)
    return 1 - (2 * overlap + 1) / (probabilities.sum(dim=1) + target_cells.sum(dim=1) + 1)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy, summed and divided by the target's volume (`GROUND_SHARE`): (B,).

    logits, targets in [0, 1]: (B, c, c, c).
    """
    entropy = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    return entropy.flatten(1).sum(dim=1) / _weight(targets)


def _weight(targets: Tensor) -> Tensor:
    """Return the targets' volumes in cells, plus `GROUND_SHARE` of the ROI: (B,)."""
    cells = targets.flatten(1)
    return cells.sum(dim=1) + GROUND_SHARE * cells.shape[1]


@torch.no_grad()
def overlaps(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and Dice of the masks: (B,) each; both are 1 for two empty masks.

    logits, targets: (B, c, c, c). A cell is predicted if its logit is positive, and part of the
    target if its share is at least one half.
    """
    predicted, target_cells = (logits > 0).flatten(1), (targets >= 0.5).flatten(1)
    both = (predicted & target_cells).sum(dim=1)
    sizes = predicted.sum(dim=1) + target_cells.sum(dim=1)
    is_empty = sizes == 0
    iou = torch.where(is_empty, 1.0, both / (sizes - both).clamp(min=1))
    return iou, torch.where(is_empty, 1.0, 2 * both / sizes.clamp(min=1))
