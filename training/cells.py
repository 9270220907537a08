"""The first stage of the pretraining: the encoder learns which cells belong together.

There are no clicks and no masks yet. The keys of two cells are to be near to each other if one
structure contains both, so one ROI teaches with all of its labels at once, and with many pairs of
cells. Only the image encoder and the cell keys learn.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lib.networks import FastSAM3D
from lib.trainers.decoder_autocast import decoder_autocast

from .data import ClickSamples

REUSE = 8
"""REUSE: samples of each ROI, which are turned and mirrored; to crop a ROI takes longer than to
learn from it."""

WINDOW = 160
"""WINDOW: consecutive ROIs from which a sample is drawn."""

ANCHORS = 192
"""ANCHORS: cells of a ROI that are compared with twice as many others."""

NEAR_CELLS = 2
"""NEAR_CELLS: width of the rim around the labels from which a quarter of the other cells come."""

SAME = 2.0
"""SAME: squared distance of two keys up to which their cells count as one structure's."""


class CellRois(Dataset):
    """Samples 0, 1, …, without end: image (1, S, S, S) float32 and labels of its cells, 0: none.

    cell: side of a cell in voxels; its label (S / cell)³ uint8 is that of its centre. Sample n is a
    pure function of (seed, n).
    """

    def __init__(self, clicks: ClickSamples, cell: int) -> None:
        self.clicks = clicks
        self.cell = cell
        self._roi = lru_cache(maxsize=WINDOW)(self._make_roi)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([self.clicks.seed, 4, number])
        last = number // REUSE
        image, cells = self._roi(int(generator.integers(max(0, last - WINDOW + 1), last + 1)))
        axes = generator.permutation(3)
        mirrored = tuple(np.flatnonzero(generator.random(3) < 0.5))
        image, cells = (np.flip(x.transpose(axes), mirrored) for x in (image, cells))
        gain, offset = np.exp(generator.normal(0, 0.1)), generator.normal(0, 0.1)
        image = image.astype(np.float32) * np.float32(gain) + np.float32(offset)
        return {
            "image": torch.from_numpy(image)[None],
            "cells": torch.from_numpy(np.ascontiguousarray(cells)),
        }

    def _make_roi(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng([self.clicks.seed, 3, number])
        centres = (slice(self.cell // 2, None, self.cell),) * 3
        image, labels, _ = self.clicks.draw_normalised(generator)
        return image.astype(np.float16), labels[centres].copy()


def cell_loss(
    network: FastSAM3D, batch: dict[str, Tensor], generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Return the mean loss over the pairs of cells of each ROI, and the values to log.

    batch: image (B, 1, S, S, S) and cells (B, s, s, s) of :class:`CellRois`. `same` is the
    share of pairs that are on the right side of `SAME`, where pairs of one structure and others
    weigh the same. ROIs without labels count as 0. Raises ValueError for a network without keys.
    """
    image, stem = batch["image"], network.detail_stem
    encoder, cell_keys = network.image_encoder, network.mask_decoder.refiner.cell_keys
    if cell_keys is None:
        raise ValueError("the network has no cell keys: key_channels is 0")
    # patches are embedded in float32, where their convolutions are faster on a CPU
    tokens = encoder.embed(image)
    with torch.no_grad():
        patches = stem.patches(image)
        with decoder_autocast(image.device):
            detail = stem.mix(patches)
    with decoder_autocast(image.device):
        *_, tokens = encoder.block_outputs(tokens)
        embedding = encoder.neck(tokens.movedim(-1, 1))
        keys = cell_keys(embedding, detail).float()
    losses, right = [keys.sum() * 0], []
    for roi_keys, cells in zip(keys.flatten(2), batch["cells"], strict=True):
        if not cells.any():
            continue
        anchors, others = draw_pairs(cells, generator)
        labels = cells.flatten()
        is_same = (labels[anchors][:, None] == labels[others]).float()
        loss, share = pair_loss(roi_keys[:, anchors].T, roi_keys[:, others].T, is_same)
        losses.append(loss)
        right.append(share)
    return torch.stack(losses).sum() / len(keys), {"same": float(np.mean(right or [0.5]))}


def pair_loss(anchors: Tensor, others: Tensor, is_same: Tensor) -> tuple[Tensor, float]:
    """Return the cross-entropy of ``sigmoid(SAME - d²)`` and the share of pairs that it gets right.

    d is the distance of two keys. anchors: (N, K); others: (M, K); is_same: (N, M), 0 or 1. Pairs
    of one structure and other pairs have the same weight in sum.
    """
    squared = (anchors[:, None] - others[None]).square().sum(dim=-1)
    logits = SAME - squared
    weight = is_same / is_same.sum().clamp(min=1) + (1 - is_same) / (1 - is_same).sum().clamp(min=1)
    weight = weight / weight.sum()
    loss = F.binary_cross_entropy_with_logits(logits, is_same, weight, reduction="sum")
    right = ((logits > 0).float() == is_same).float()
    return loss, float((right * weight).sum())


def draw_pairs(cells: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return flat indices of labelled cells (ANCHORS,) and of cells to compare them with.

    Each structure has the same share of the first. Of the others half are drawn the same way, the
    rest are unlabelled, in equal parts near the labels and anywhere, as far as there are such
    cells. cells: (s, s, s) labels, some not 0.
    """
    labels = cells.flatten()
    places = [torch.nonzero(labels == number)[:, 0] for number in labels.unique() if number]

    def balanced() -> Tensor:
        chosen = torch.randint(len(places), (ANCHORS,), generator=generator)
        counts = chosen.bincount(minlength=len(places))
        return torch.cat(
            [_draw(place, int(n), generator) for place, n in zip(places, counts, strict=True)]
        )

    is_label = (cells != 0).float()[None, None]
    rim = F.max_pool3d(is_label, 2 * NEAR_CELLS + 1, 1, NEAR_CELLS).flatten() > 0
    anchors, others = balanced(), [balanced()]
    for choice in (rim & (labels == 0), labels == 0):
        found = torch.nonzero(choice)[:, 0]
        if len(found):
            others.append(_draw(found, ANCHORS // 2, generator))
    return anchors, torch.cat(others)


def _draw(places: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return places[torch.randint(len(places), (count,), generator=generator)]
