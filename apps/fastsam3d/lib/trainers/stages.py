"""One step of training: a batch of ROIs in, the loss and its parts out.

A batch is what a DataLoader makes of `lib.trainers.samples.RoiPool`. The stages are modules whose
only submodule is the student, so that DistributedDataParallel can wrap them; a checkpoint is the
student's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lib.networks import FastSAM3D

from .clicks import ClickSeries, next_clicks, on_cells, roi_generators
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


class Stage1(nn.Module):
    """Layer-wise progressive distillation: the student's blocks follow the teacher's, Eq. 1."""

    def __init__(self, student: FastSAM3D, features: TeacherFeatures, pairs: LayerPairs) -> None:
        super().__init__()
        self.student = student
        self.pairs = pairs
        self._features = (features,)  # in a tuple, so that the teacher is no part of this module

    def trained(self) -> Iterator[nn.Parameter]:
        """What this stage trains: the encoder's blocks and neck.

        Not the patch embedding, which starts as the teacher's: each token sums thousands of voxels,
        so that Adam at 5e-3, which moves every weight alike, would throw it far off.
        """
        encoder = self.student.image_encoder
        yield from encoder.blocks.parameters()
        yield from encoder.neck.parameters()

    def forward(self, batch: Batch, k: int) -> dict[str, Tensor]:
        """The loss of the first k pairs, and its parts.

        loss: the mean of the pairs' errors and, from the moment all take part, the error of the
        embedding after the neck on top. pair_losses: [k], detached. embedding_loss: detached, only
        where k is all.
        """
        image = batch["image"]
        outputs, embedding = self._features[0].get(batch["key"], image)
        pairs = self.pairs[:k]
        encoder = self.student.image_encoder
        with torch.no_grad():
            tokens = encoder.embed(image)
        ours = list(islice(encoder.block_outputs(tokens), pairs[-1][1] + 1))
        errors = pair_losses(
            [ours[block] for _, block in pairs], [outputs[block] for block, _ in pairs]
        )
        parts = {"loss": errors.mean(), "pair_losses": errors.detach()}
        if k == len(self.pairs):
            error = embedding_error(encoder.neck(ours[-1].movedim(-1, 1)), embedding)
            parts["loss"] = parts["loss"] + error
            parts["embedding_loss"] = error.detach()
        return parts


def embedding_error(student: Tensor, teacher: Tensor) -> Tensor:
    """The error of what the neck gives, [B, C, g, g, g] and maybe more channels of detail."""
    channels = min(student.shape[1], teacher.shape[1])
    return feature_error(student[:, :channels].movedim(1, -1), teacher[:, :channels].movedim(1, -1))


@dataclass(frozen=True)
class Stage2Options:
    """clicks: the most in a series, which has 2 to this many. graded: of them, the first and some
    later ones; the others only lead to the next click.
    """

    clicks: int = 10
    graded: int = 2


class Stage2(nn.Module):
    """Logit-level distillation over clicks; without a teacher, training on labels alone."""

    def __init__(
        self,
        student: FastSAM3D,
        features: TeacherFeatures | None,
        options: Stage2Options | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.options = options or Stage2Options()
        self._features = (features,)

    def trained(self) -> Iterator[nn.Parameter]:
        """What this stage trains: everything."""
        return self.student.parameters()

    def forward(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        """The loss over a series of clicks on each ROI, and its parts, means over the batch.

        Both networks answer the same clicks, each from its own embedding and with its own previous
        mask. A user clicks on what the student got wrong: against the label, or where there is none
        against the teacher's answer.

        loss: kl + dice + ce. kl: from the teacher's masks, 0 without a teacher. dice, ce: with the
        labels; a ROI without one counts 0. dice_score: Dice of the student's last masks with what
        was wanted, label or teacher's mask. seed: of the clicks; another one in each step, the same
        in every process.
        """
        image, labelled = batch["image"], batch["has_label"]
        clicks, graded = self._draw_series(seed)
        generators = roi_generators(batch["key"], seed)
        student = ClickSeries(self.student, self.student.encode(image))
        teacher = self._teacher(batch)
        points_roi = batch["click_roi"][:, None]
        labels = torch.ones_like(points_roi[..., 0], dtype=torch.long)
        wanted = target = batch["target"]
        cells = target.shape[-1]
        steps = []
        for click in range(clicks):
            answer = None
            if teacher is not None:
                with torch.no_grad():
                    answer = teacher.answer(points_roi, labels)
                theirs = teacher.cut(on_cells(answer, cells)).sigmoid()
                wanted = torch.where(labelled[:, None, None, None], target, theirs)
            with torch.set_grad_enabled(torch.is_grad_enabled() and click in graded):
                logits = student.answer(points_roi, labels)
                shown = on_cells(logits, cells)
                if click in graded:
                    steps.append(_parts(logits, answer, shown, target, labelled))
            if click + 1 < clicks:
                cell = image.shape[-1] // cells
                point, label = next_clicks(student.cut(shown), wanted, generators, cell)
                points_roi = torch.cat([points_roi, point], dim=1)
                labels = torch.cat([labels, label], dim=1)
        kl, dice, ce = torch.stack(steps).mean(dim=0)
        return {
            "loss": kl + dice + ce,
            "kl": kl.detach(),
            "dice": dice.detach(),
            "ce": ce.detach(),
            "dice_score": overlaps(student.cut(shown), wanted)[1].mean(),
        }

    def _draw_series(self, seed: int) -> tuple[int, set[int]]:
        """How many clicks, and which of them, from 0, are graded."""
        generator = torch.Generator().manual_seed(seed)
        clicks = int(torch.randint(2, max(2, self.options.clicks) + 1, (), generator=generator))
        later = torch.randperm(clicks - 1, generator=generator)[: self.options.graded - 1] + 1
        return clicks, {0, *later.tolist()}

    def _teacher(self, batch: Batch) -> ClickSeries | None:
        (features,) = self._features
        if features is None:
            return None
        _, embedding = features.get(batch["key"], batch["image"])
        with torch.no_grad():
            return ClickSeries(features.teacher, embedding)


def _parts(
    logits: Tensor, answer: Tensor | None, shown: Tensor, target: Tensor, labelled: Tensor
) -> Tensor:
    """kl, dice and ce of one click, means over the batch: [3]."""
    kl = logits.new_zeros(()) if answer is None else distillation_loss(logits, answer).mean()
    dice = torch.where(labelled, dice_loss(shown, target), 0).mean()
    return torch.stack([kl, dice, torch.where(labelled, cross_entropy(shown, target), 0).mean()])


def step_seed(seed: int, iteration: int) -> int:
    """The seed of stage 2's clicks in one iteration of a run."""
    return (seed * 1_000_003 + iteration) % (1 << 62)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device; the keys stay text."""
    return {
        name: x.to(device, non_blocking=True) if isinstance(x, Tensor) else x
        for name, x in batch.items()
    }
