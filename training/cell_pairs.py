"""Pairs of cells, from which the keys of cells are learned (:mod:`lib.networks.cell_keys`).

The keys of two cells are to be near to each other if one structure contains both, so one ROI
teaches with all of its labels at once, and with many pairs of cells.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import maximum_filter
from torch import Tensor
from torch.nn import functional as F

ANCHORS = 192
"""ANCHORS: cells of a ROI that are compared with twice as many others."""

NEAR_CELLS = 2
"""NEAR_CELLS: width of the rim around the labels from which a quarter of the other cells come."""

SAME = 2.0
"""SAME: squared distance of two keys up to which their cells count as one structure's."""


def pair_loss(keys: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of ``sigmoid(SAME - d²)`` and the share of pairs it gets right.

    d is the distance of two keys. Pairs of one structure and other pairs of a ROI have the same
    weight in sum. ROIs without labels count as 0 in the loss, and not in the share, which is 0.5
    if there are no others.

    keys: [B, K, s, s, s]. batch: the pairs of :func:`draw_pairs`, each with a first axis B.
    """
    flat = keys.float().flatten(2).transpose(1, 2)
    anchors, others = (
        flat.gather(1, batch[name][..., None].expand(-1, -1, flat.shape[2]))
        for name in ("anchors", "others")
    )
    squared = (anchors[:, :, None] - others[:, None]).square().sum(dim=-1)
    is_same = batch["is_same"].float()
    logits = SAME - squared
    shares = [x / x.sum(dim=(1, 2), keepdim=True).clamp(min=1) for x in (is_same, 1 - is_same)]
    weight = sum(shares) / sum(x.sum(dim=(1, 2), keepdim=True) for x in shares)
    has_labels = is_same.amax(dim=(1, 2), keepdim=True)
    weight = weight * has_labels
    loss = F.binary_cross_entropy_with_logits(logits, is_same, weight, reduction="sum")
    right = (weight * ((logits > 0) == (is_same > 0))).sum()
    labelled = has_labels.sum()
    return loss / len(keys), torch.where(labelled > 0, right / labelled.clamp(min=1), 0.5)


def cells_of(labels: np.ndarray, cell: int) -> np.ndarray:
    """Return the label at the centre of each cell of ``cell``³ voxels: (S, S, S) to (s, s, s)."""
    return labels[(slice(cell // 2, None, cell),) * 3]


def draw_pairs(cells: np.ndarray, generator: np.random.Generator) -> dict[str, Tensor]:
    """Draw labelled cells of a ROI, and cells to compare them with; see :func:`pair_loss`.

    anchors: flat indices (A,), A = `ANCHORS`; each structure has the same share of them. others:
    (2 A,); half are drawn the same way, the rest are unlabelled, in equal parts near the labels and
    anywhere, or any cells where there are none. is_same: (A, 2 A) bool, False without labels.
    cells: (s, s, s) labels, 0: none.
    """
    labels = cells.ravel()
    numbers = np.unique(labels[labels != 0])
    places = [np.flatnonzero(labels == number) for number in numbers]

    def balanced() -> np.ndarray:
        if not places:
            return generator.integers(len(labels), size=ANCHORS)
        counts = generator.multinomial(ANCHORS, np.full(len(places), 1 / len(places)))
        return np.concatenate(
            [generator.choice(place, n) for place, n in zip(places, counts, strict=True)]
        )

    rim = maximum_filter(cells != 0, 2 * NEAR_CELLS + 1).ravel() & (labels == 0)
    anchors, others = balanced(), [balanced()]
    for choice in (rim, labels == 0):
        found = np.flatnonzero(choice)
        others.append(generator.choice(found if len(found) else len(labels), ANCHORS // 2))
    compared = np.concatenate(others)
    is_same = (labels[anchors][:, None] == labels[compared]) & (labels[anchors] != 0)[:, None]
    return {
        "anchors": torch.from_numpy(anchors),
        "others": torch.from_numpy(compared),
        "is_same": torch.from_numpy(is_same),
    }
