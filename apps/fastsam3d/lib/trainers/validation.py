"""Validation on held-out ROIs with simulated clicks, which selects the best student of a run.

It does not judge that student: :mod:`lib.trainers.served_judge` does, on other studies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lib.networks import FastSAM3D

from .clicks import ClickSeries, append_clicks, first_clicks, on_cells, roi_generators
from .losses import overlaps, pair_losses
from .schedule import LayerPairs
from .stages import Batch, teacher_goal, to_device
from .teacher import TeacherFeatures

CLICKS = (1, 3, 5, 10)
"""CLICKS: numbers of clicks after which Dice is measured."""


@dataclass(frozen=True)
class Validation:
    """Dice after each number of clicks.

    dice: number of clicks -> mean over the ROIs. mean: mean of these, the key metric. per_roi:
    (ROIs, numbers of clicks). labelled: number of ROIs measured against a label; the others are
    measured against the teacher's masks.
    """

    dice: dict[int, float]
    mean: float
    per_roi: Tensor
    labelled: int

    @property
    def rois(self) -> int:
        return len(self.per_roi)


@torch.no_grad()
def validate(
    network: FastSAM3D,
    samples: Dataset,
    features: TeacherFeatures | None = None,
    clicks: Sequence[int] = CLICKS,
    seed: int = 0,
    batch_size: int = 4,
) -> Validation:
    """Measure Dice after simulated clicks on the errors of `network`.

    The first click is the ROI's own. The next ones lie on errors against the label or, without a
    label, against the teacher's mask for the same clicks. Random numbers depend on the seed and the
    ROI alone, so they are the same for all networks. Dice is taken on the cells of the target.
    samples: ROIs as in `RoiPool`. Raise ValueError for a ROI without a label if there is no
    teacher.
    """
    dice, labelled = [], 0
    for batch in _batches(samples, network, batch_size):
        if features is None and not batch["has_label"].all():
            raise ValueError("a ROI without a label can be measured only against a teacher")
        dice.append(_click_dice(network, batch, features, clicks, seed))
        labelled += int(batch["has_label"].sum())
    per_roi = torch.cat(dice)
    means = per_roi.mean(dim=0).tolist()
    return Validation(
        dict(zip(clicks, means, strict=True)), sum(means) / len(means), per_roi, labelled
    )


def _click_dice(
    network: FastSAM3D,
    batch: Batch,
    features: TeacherFeatures | None,
    clicks: Sequence[int],
    seed: int,
) -> Tensor:
    """Return Dice (B, numbers of clicks) float32, on the CPU."""
    goal = batch["target"]
    cells = goal.shape[-1]
    cell = batch["image"].shape[-1] // cells
    series, teacher = _series(network, batch, features)
    generators = roi_generators(batch["key"], seed)
    points_roi, labels = first_clicks(batch["click_roi"])
    dice = []
    for count in range(1, max(clicks) + 1):
        logits = series.shifted(on_cells(series.decode(points_roi, labels), cells))
        if teacher is not None and not batch["has_label"].all():
            _, goal = teacher_goal(teacher, points_roi, labels, batch)
        if count in clicks:
            dice.append(overlaps(logits, goal)[1].cpu())
        points_roi, labels = append_clicks(points_roi, labels, logits, goal, generators, cell)
    return torch.stack(dice, dim=1)


def _series(
    network: FastSAM3D, batch: Batch, features: TeacherFeatures | None
) -> tuple[ClickSeries, ClickSeries | None]:
    """Return the series of the network and, if there is one, of the teacher."""
    if features is None:
        return ClickSeries(network, network.encode(batch["image"])), None
    _, teacher_embedding = features.get(batch["key"], batch["image"])
    is_teacher = network is features.teacher
    embedding = teacher_embedding if is_teacher else network.encode(batch["image"])
    return ClickSeries(network, embedding), ClickSeries(features.teacher, teacher_embedding)


@torch.no_grad()
def pair_errors(
    student: FastSAM3D,
    features: TeacherFeatures,
    pairs: LayerPairs,
    samples: Dataset,
    batch_size: int = 4,
) -> list[float]:
    """Return the error of each pair (`lib.trainers.losses.pair_losses`), means over the ROIs."""
    total, count = torch.zeros(len(pairs)), 0
    for batch in _batches(samples, student, batch_size):
        teacher_outputs, _ = features.get(batch["key"], batch["image"])
        _, outputs = student.image_encoder.forward_intermediates(
            batch["image"], [block for _, block in pairs]
        )
        errors = pair_losses(
            [outputs[block] for _, block in pairs], [teacher_outputs[block] for block, _ in pairs]
        )
        total += errors.cpu() * len(batch["key"])
        count += len(batch["key"])
    return (total / count).tolist()


def _batches(samples: Dataset, network: FastSAM3D, batch_size: int) -> Iterator[Batch]:
    device = next(network.parameters()).device
    for batch in DataLoader(samples, batch_size=batch_size):
        yield to_device(batch, device)
