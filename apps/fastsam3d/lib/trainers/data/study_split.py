"""Which studies train the student, which select the best one, and which judge it.

Series of one patient are alike, so they are never in two parts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Generic, NamedTuple, TypeVar

from lib.errors import InputError

from .studies import ExaminedStudy, Study

JUDGED = 4
"""JUDGED: patients whose studies judge a new student, unless that is more than half of them (of an
odd number, the larger half)."""

MOST_JUDGED = 12
"""MOST_JUDGED: more studies are not judged on, because each takes up to half a minute."""

FEWEST_TO_VALIDATE = 3
"""FEWEST_TO_VALIDATE: of fewer patients none is held out for validation."""

AnyStudy = TypeVar("AnyStudy", Study, ExaminedStudy)


class Split(NamedTuple, Generic[AnyStudy]):
    """The studies of a training: they train the student, select the best one, or judge it.

    held_out: the validation split, which selects the best student; the training studies themselves
    if there are too few others. judged: none of the others; empty with a single patient.
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
    """Take the studies of about `val_split` of the patients to judge, and of others to validate.

    At least `JUDGED` patients judge, but no more than half of them (rounded up), and at most
    `MOST_JUDGED` studies. No patient with a study named in `seen` does: the served version has
    learned it. Labels judge before the masks of a teacher: unlabelled studies judge only where
    labelled ones are too few. Of the other patients, `val_split` of those with labels and of those
    without are held out for validation, or none of fewer than `FEWEST_TO_VALIDATE`. No patient has
    studies in two parts: further studies of one that judges are left out. The split depends on the
    seed, the patients and the names alone. Raise InputError if there is no study.
    """
    if not studies:
        raise InputError("there are no studies to train on; add images to the datastore")
    if not 0 < val_split < 1:
        raise InputError(f"val_split is {val_split:g}; give a share between 0 and 1")
    ranked = _shuffled(studies, seed)
    with_labels = set(_patients([x for x in ranked if x.is_labelled]))
    labelled = [x for x in ranked if x.patient in with_labels]
    unlabelled = [x for x in ranked if x.patient not in with_labels]
    counts = len(with_labels), len(_patients(unlabelled))

    unseen = {x.name for x in unseen_studies(ranked, seen)}
    new = [[x for x in group if x.name in unseen] for group in (labelled, unlabelled)]
    judged = [x for x in _first_patients(new[0], _judging(counts[0], val_split)) if x.is_labelled]
    most = _judging(counts[1], val_split) or int(counts[0] == 1)
    missing = max(0, JUDGED - len(_patients(judged)))
    judged += _first_patients(new[1], min(missing, most))

    others = [_without(group, judged) for group in (labelled, unlabelled)]
    held_out = [
        x
        for group in others
        for x in _first_patients(group, _validating(len(_patients(group)), val_split))
    ]
    train = _without([x for group in others for x in group], held_out)
    return Split(train, held_out or train, judging_studies(judged, MOST_JUDGED))


def unseen_studies(studies: Sequence[AnyStudy], seen: Collection[str]) -> list[AnyStudy]:
    """Return the studies of the patients with no study named in `seen`."""
    return _without(studies, [x for x in studies if x.name in seen])


def judging_studies(studies: Sequence[AnyStudy], most: int) -> list[AnyStudy]:
    """Return at most so many studies of as many patients as possible: one of each in turn."""
    turns: Counter[str] = Counter()
    turn_of = {}
    for study in studies:
        turn_of[study.name] = turns[study.patient]
        turns[study.patient] += 1
    return sorted(studies, key=lambda x: turn_of[x.name])[:most]  # stable


def _patients(studies: Sequence[AnyStudy]) -> list[str]:
    """Return each patient once, in the order of the studies."""
    return list(dict.fromkeys(x.patient for x in studies))


def _first_patients(studies: Sequence[AnyStudy], count: int) -> list[AnyStudy]:
    """Return the studies of the first so many patients."""
    first = set(_patients(studies)[:count])
    return [x for x in studies if x.patient in first]


def _judging(count: int, val_split: float) -> int:
    """Return how many of `count` patients judge, which leaves at least one for training."""
    if count < 2:
        return 0
    return min(max(JUDGED, round(val_split * count)), MOST_JUDGED, (count + 1) // 2)


def _without(studies: Sequence[AnyStudy], taken: Sequence[AnyStudy]) -> list[AnyStudy]:
    """Return the studies of the patients that have none among the taken ones."""
    patients = set(_patients(taken))
    return [x for x in studies if x.patient not in patients]


def _validating(count: int, val_split: float) -> int:
    """Return how many of `count` patients are held out, which leaves at least one for training."""
    if count < FEWEST_TO_VALIDATE:
        return 0
    return min(max(1, round(val_split * count)), count - 1)


def halves(studies: Sequence[AnyStudy], seed: int) -> tuple[list[AnyStudy], list[AnyStudy]]:
    """Cut the studies of two or more patients into halves with other patients.

    They depend on the seed, the patients and the names alone. The second one is empty if all
    studies are of one patient.
    """
    ranked = _shuffled(studies, seed)
    first = set(_patients(ranked)[::2])
    return (
        [x for x in ranked if x.patient in first],
        [x for x in ranked if x.patient not in first],
    )


def _shuffled(studies: Sequence[AnyStudy], seed: int) -> list[AnyStudy]:
    """Return the studies in a random order of the patients, each of them by name."""

    def key(study: AnyStudy) -> tuple[bytes, str]:
        return hashlib.sha256(f"{seed} {study.patient}".encode()).digest(), study.name

    return sorted(studies, key=key)
