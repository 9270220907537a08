"""The losses of the two training stages: layer-wise distillation, then training on masks.

A batch comes from a DataLoader over `lib.trainers.data.roi_pool.RoiPool`. Each stage is a module
whose only submodule is the student, so its state_dict holds the student's weights alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lib.networks import FastSAM3D

from .clicks import ClickSeries, append_clicks, first_clicks, on_cells, roi_generators
from .losses import (
    cross_entropy,
    dice_loss,
    distillation_loss,
    feature_error,
    overlaps,
    pair_losses,
)
from .schedule import LayerPairs
from .teacher import TeacherFeatures

Batch = dict[str, Any]
"""Batch: name -> tensor, and "key" -> the ROIs' keys; see `RoiPool`.

It may have the student's "embedding" instead of the "image", for a student with a frozen encoder.
"""


class Stage1(nn.Module):
    """Layer-wise progressive distillation: the student's blocks learn the teacher's, Eq. 1."""

    def __init__(self, student: FastSAM3D, features: TeacherFeatures, pairs: LayerPairs) -> None:
        super().__init__()
        self.student = student
        self.pairs = pairs
        self._features = (features,)  # the tuple keeps the teacher out of this module's weights

    def trained(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that this stage trains: the encoder's blocks and neck.

        The patch embedding is left out; it is the teacher's. Each token sums thousands of voxels,
        and Adam at 5e-3 moves every weight alike, so training it would ruin the tokens.
        """
        encoder = self.student.image_encoder
        yield from encoder.blocks.parameters()
        yield from encoder.neck.parameters()

    def forward(self, batch: Batch, k: int) -> dict[str, Tensor]:
        """Return the loss of the first k pairs, and its parts.

        loss: the mean error of the pairs; with all pairs, plus the error of the embedding after the
        neck. pair_losses: [k], detached. embedding_loss: detached, with all pairs only.
        """
        image = batch["image"]
        teacher_outputs, teacher_embedding = self._features[0].get(batch["key"], image)
        pairs = self.pairs[:k]
        encoder = self.student.image_encoder
        with torch.no_grad():
            tokens = encoder.embed(image)
        outputs = list(islice(encoder.block_outputs(tokens), pairs[-1][1] + 1))
        errors = pair_losses(
            [outputs[block] for _, block in pairs], [teacher_outputs[block] for block, _ in pairs]
        )
        parts = {"loss": errors.mean(), "pair_losses": errors.detach()}
        if k == len(self.pairs):
            embedding = encoder.neck(outputs[-1].movedim(-1, 1))
            error = embedding_error(embedding, teacher_embedding)
            parts["loss"] = parts["loss"] + error
            parts["embedding_loss"] = error.detach()
        return parts


def embedding_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the error of the student's embedding after the neck: a scalar.

    student, teacher: [B, C, g, g, g]. One of them may have further channels (image detail), which
    are ignored.
    """
    channels = min(student.shape[1], teacher.shape[1])
    return feature_error(student[:, :channels].movedim(1, -1), teacher[:, :channels].movedim(1, -1))


@dataclass(frozen=True)
class Stage2Options:
    """The length of a series of clicks.

    clicks: maximum length; a series has 2 to this many clicks. graded: number of clicks in the loss
    (the first one and random later ones); the other clicks only lead to the next one.
    """

    clicks: int = 10
    graded: int = 2


@dataclass(frozen=True)
class SameEncoder:
    """A teacher with the student's own frozen encoder, which shares its embeddings."""

    teacher: FastSAM3D


class Stage2(nn.Module):
    """Logit-level distillation over clicks; without a teacher, training on labels alone."""

    def __init__(
        self,
        student: FastSAM3D,
        features: TeacherFeatures | SameEncoder | None,
        options: Stage2Options | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.options = options or Stage2Options()
        self._features = (features,)

    def trained(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that this stage trains: all of the student."""
        return self.student.parameters()

    def forward(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        """Return the loss over a series of clicks on each ROI, and its parts, as batch means.

        Both networks decode the same clicks, each with its own embedding and previous mask. Users
        click on errors of the student: against the label, or without a label against the teacher.

        loss: kl + dice + ce. kl: divergence from the teacher's masks, 0 without a teacher. dice,
        ce: losses against the labels; a ROI without a label counts 0. dice_score: Dice of the
        student's last masks. seed: seed of the clicks, which differs in each update and is the same
        in every process.
        """
        target = batch["target"]
        cells = target.shape[-1]
        cell = self.student.config.roi_size // cells
        clicks, graded = self._draw_series(seed)
        generators = roi_generators(batch["key"], seed)
        embedding = batch.get("embedding")
        if embedding is None:
            embedding = self.student.encode(batch["image"])
        student = ClickSeries(self.student, embedding)
        teacher = self._teacher_series(batch)
        points_roi, labels = first_clicks(batch["click_roi"])
        steps = []
        for click in range(clicks):
            teacher_logits, goal = None, target
            if teacher is not None:
                teacher_logits, goal = teacher_goal(teacher, points_roi, labels, batch)
            with torch.set_grad_enabled(torch.is_grad_enabled() and click in graded):
                logits = student.decode(points_roi, labels)
                cell_logits = on_cells(logits, cells)
                if click in graded:
                    steps.append(_parts(logits, teacher_logits, cell_logits, batch))
            mask_logits = student.shifted(cell_logits)
            if click + 1 < clicks:
                points_roi, labels = append_clicks(
                    points_roi, labels, mask_logits, goal, generators, cell
                )
        kl, dice, ce = torch.stack(steps).mean(dim=0)
        return {
            "loss": kl + dice + ce,
            "kl": kl.detach(),
            "dice": dice.detach(),
            "ce": ce.detach(),
            "dice_score": overlaps(mask_logits, goal)[1].mean(),
        }

    def _draw_series(self, seed: int) -> tuple[int, set[int]]:
        """Draw the number of clicks, and which of them, counted from 0, are graded."""
        generator = torch.Generator().manual_seed(seed)
        clicks = int(torch.randint(2, max(2, self.options.clicks) + 1, (), generator=generator))
        later = torch.randperm(clicks - 1, generator=generator)[: self.options.graded - 1] + 1
        return clicks, {0, *later.tolist()}

    def _teacher_series(self, batch: Batch) -> ClickSeries | None:
        (features,) = self._features
        if features is None:
            return None
        if isinstance(features, SameEncoder):
            embedding = batch["embedding"]
        else:
            _, embedding = features.get(batch["key"], batch["image"])
        with torch.no_grad():
            return ClickSeries(features.teacher, embedding)


@torch.no_grad()
def teacher_goal(
    teacher: ClickSeries, points_roi: Tensor, labels: Tensor, batch: Batch
) -> tuple[Tensor, Tensor]:
    """Decode the clicks with the teacher; return its logits and the goal of the student's masks.

    logits: low resolution, (B, s, s, s). goal: the target of a labelled ROI, else the teacher's
    probabilities, (B, c, c, c).
    """
    target, has_label = batch["target"], batch["has_label"]
    logits = teacher.decode(points_roi, labels)
    probabilities = teacher.shifted(on_cells(logits, target.shape[-1])).sigmoid()
    return logits, torch.where(has_label[:, None, None, None], target, probabilities)


def _parts(
    logits: Tensor, teacher_logits: Tensor | None, cell_logits: Tensor, batch: Batch
) -> Tensor:
    """Return kl, dice and ce of one click, means over the batch: [3].

    logits, teacher_logits: low resolution. cell_logits: the student's, on the target's cells.
    """
    target, has_label = batch["target"], batch["has_label"]
    kl = logits.new_zeros(())
    if teacher_logits is not None:
        kl = distillation_loss(logits, teacher_logits).mean()
    dice = torch.where(has_label, dice_loss(cell_logits, target), 0).mean()
    ce = torch.where(has_label, cross_entropy(cell_logits, target), 0).mean()
    return torch.stack([kl, dice, ce])


def step_seed(seed: int, update: int) -> int:
    """Return the seed of stage 2's clicks in one update of a run."""
    return (seed * 1_000_003 + update) % (1 << 62)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its tensors on a device; the keys stay strings."""
    return {
        name: x.to(device, non_blocking=True) if isinstance(x, Tensor) else x
        for name, x in batch.items()
    }
