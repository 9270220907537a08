"""How good a student or its teacher is, on ROIs held out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lib.networks import FastSAM3D

from .clicks import ClickSeries, next_clicks, on_cells, roi_generators
from .losses import overlaps, pair_losses
from .schedule import LayerPairs
from .stages import Batch, to_device
from .teacher import TeacherFeatures

CLICKS = (1, 3, 5, 10)


@dataclass(frozen=True)
class Validation:
    """Dice after each number of clicks.

    dice: the means over the ROIs. mean: of them, the key metric. per_roi: (rois, numbers of
    clicks). labelled: ROIs that were measured by their label; the others by the teacher's masks.
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
    """Let simulated users click on what `network` gets wrong in each ROI.

    The first click is the ROI's own, the next ones lie on errors against the label or, where there
    is none, against what the teacher answers to the same clicks; the teacher itself agrees with
    itself. Their random numbers depend on the seed and the ROI alone, so student, teacher and
    candidates meet the same. Dice is taken on the cells of the target. samples: as RoiPool. Raises
    ValueError for a ROI without a label where there is no teacher.
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
    """(B, numbers of clicks) float32 on the CPU."""
    image, target, labelled = batch["image"], batch["target"], batch["has_label"]
    cells = target.shape[-1]
    ours, teacher = _series(network, batch, features)
    generators = roi_generators(batch["key"], seed)
    points_roi = batch["click_roi"][:, None]
    labels = torch.ones_like(points_roi[..., 0], dtype=torch.long)
    dice = []
    for count in range(1, max(clicks) + 1):
        shown, wanted = ours.cut(on_cells(ours.answer(points_roi, labels), cells)), target
        if teacher is not None and not labelled.all():
            answer = teacher.cut(on_cells(teacher.answer(points_roi, labels), cells))
            wanted = torch.where(labelled[:, None, None, None], target, answer.sigmoid())
        if count in clicks:
            dice.append(dice_of(shown, wanted).cpu())
        point, label = next_clicks(shown, wanted, generators, image.shape[-1] // cells)
        points_roi = torch.cat([points_roi, point], dim=1)
        labels = torch.cat([labels, label], dim=1)
    return torch.stack(dice, dim=1)


def _series(
    network: FastSAM3D, batch: Batch, features: TeacherFeatures | None
) -> tuple[ClickSeries, ClickSeries | None]:
    """The network's and, where there is one, the teacher's."""
    if features is None:
        return ClickSeries(network, network.encode(batch["image"])), None
    _, theirs = features.get(batch["key"], batch["image"])
    ours = theirs if network is features.teacher else network.encode(batch["image"])
    return ClickSeries(network, ours), ClickSeries(features.teacher, theirs)


def dice_of(logits: Tensor, wanted: Tensor) -> Tensor:
    """Dice (B,) of the masks; 1 where both are empty."""
    _, dice = overlaps(logits, wanted)
    is_empty = ~((logits > 0) | (wanted >= 0.5)).flatten(1).any(dim=1)
    return torch.where(is_empty, 1.0, dice)


@torch.no_grad()
def pair_errors(
    student: FastSAM3D,
    features: TeacherFeatures,
    pairs: LayerPairs,
    samples: Dataset,
    batch_size: int = 4,
) -> list[float]:
    """The errors of `lib.trainers.losses.pair_losses` of each pair, means over the samples."""
    total, count = torch.zeros(len(pairs)), 0
    for batch in _batches(samples, student, batch_size):
        outputs, _ = features.get(batch["key"], batch["image"])
        _, ours = student.image_encoder.forward_intermediates(
            batch["image"], [block for _, block in pairs]
        )
        errors = pair_losses(
            [ours[block] for _, block in pairs], [outputs[block] for block, _ in pairs]
        )
        total += errors.cpu() * len(batch["key"])
        count += len(batch["key"])
    return (total / count).tolist()


def _batches(samples: Dataset, network: FastSAM3D, batch_size: int) -> Iterator[Batch]:
    device = next(network.parameters()).device
    for batch in DataLoader(samples, batch_size=batch_size):
        yield to_device(batch, device)


@dataclass(frozen=True)
class Verdict:
    """reason: for the user, with the numbers."""

    is_better: bool
    reason: str


def judge(candidate: Tensor, served: Tensor, min_gain: float) -> Verdict:
    """Is a student measurably better?

    candidate, served: (ROIs, numbers of clicks) Dice with the same clicks. The mean must rise by
    ``min_gain``, and by more than the standard error of the rise over the ROIs, which chance gives.
    """
    gains = (candidate - served).mean(dim=1)
    gain, count = float(gains.mean()), len(gains)
    error = float(gains.std(correction=1) / count**0.5) if count > 1 else 0.0
    numbers = (
        f"mean Dice {float(candidate.mean()):.3f} against {float(served.mean()):.3f} of the served "
        f"student on {count} held-out ROIs, a gain of {gain:.3f} ± {error:.3f}"
    )
    if gain < min_gain:
        return Verdict(False, f"{numbers}, but {min_gain:g} is needed")
    if gain <= error:
        return Verdict(False, f"{numbers}, which may be chance; more val_rois would tell")
    return Verdict(True, numbers)
