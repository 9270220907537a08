"""Which studies train the student, which select the best one, and which judge it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Generic, NamedTuple, TypeVar

from lib.errors import InputError

from .studies import ExaminedStudy, Study

JUDGED = 4
"""JUDGED: studies that judge a new student, unless that is more than half of them."""

MOST_JUDGED = 12
"""MOST_JUDGED: more studies are not judged on, because each takes up to half a minute."""

FEWEST_TO_VALIDATE = 3
"""FEWEST_TO_VALIDATE: of fewer studies none is held out for validation."""

AnyStudy = TypeVar("AnyStudy", Study, ExaminedStudy)


class Split(NamedTuple, Generic[AnyStudy]):
    """The studies of a training: they train the student, select the best one, or judge it.

    held_out: the validation split, which selects the best student; the training studies themselves
    if there are too few others. judged: none of the others; empty with a single study.
    """

    train: list[AnyStudy]
    held_out: list[AnyStudy]
    judged: list[AnyStudy]

    def all(self) -> list[AnyStudy]:
        """Return each study once."""
        if self.held_out == self.train:
            return self.train + self.judged
        return self.train + self.held_out + self.judged


def split(
    studies: Sequence[AnyStudy], val_split: float, seed: int, seen: Collection[str] = ()
) -> Split[AnyStudy]:
    """Take about `val_split` of the studies to judge, and of the others for validation.

    At least `JUDGED` studies judge, but no more than half of them, and at most `MOST_JUDGED`. None
    of those named in `seen` does: the served version has learned them. Labels judge before the
    masks of a teacher: unlabelled studies judge only where labelled ones are too few. Of the other
    studies, `val_split` of the labelled and of the unlabelled ones are held out for validation, or
    none of fewer than `FEWEST_TO_VALIDATE`. The split depends on the seed and the names alone.
    Raise InputError if there is no study.
    """
    if not studies:
        raise InputError("there are no studies to train on; add images to the datastore")
    if not 0 < val_split < 1:
        raise InputError(f"val_split is {val_split:g}; give a share between 0 and 1")
    ranked = _shuffled(studies, seed)
    labelled, unlabelled = ([x for x in ranked if x.is_labelled == kind] for kind in (True, False))
    new = [[x for x in group if x.name not in seen] for group in (labelled, unlabelled)]
    judged = new[0][: _judging(len(labelled), val_split)]
    most = _judging(len(unlabelled), val_split) or int(len(labelled) == 1)
    judged += new[1][: min(max(0, JUDGED - len(judged)), most)]
    others = [_without(group, judged) for group in (labelled, unlabelled)]
    held_out = [x for group in others for x in group[: _validating(len(group), val_split)]]
    train = _without([x for group in others for x in group], held_out)
    return Split(train, held_out or train, judged)


def _judging(count: int, val_split: float) -> int:
    """Return how many of `count` studies judge, which leaves at least one for training."""
    if count < 2:
        return 0
    return min(max(JUDGED, round(val_split * count)), MOST_JUDGED, (count + 1) // 2)


def _without(studies: Sequence[AnyStudy], taken: Sequence[AnyStudy]) -> list[AnyStudy]:
    names = {x.name for x in taken}
    return [x for x in studies if x.name not in names]


def _validating(count: int, val_split: float) -> int:
    return max(1, round(val_split * count)) if count >= FEWEST_TO_VALIDATE else 0


def halves(studies: Sequence[AnyStudy], seed: int) -> tuple[list[AnyStudy], list[AnyStudy]]:
    """Cut two or more studies into halves, which depend on the seed and the names alone."""
    ranked = _shuffled(studies, seed)
    return ranked[::2], ranked[1::2]


def _shuffled(studies: Sequence[AnyStudy], seed: int) -> list[AnyStudy]:
    return sorted(studies, key=lambda x: hashlib.sha256(f"{seed} {x.name}".encode()).digest())
