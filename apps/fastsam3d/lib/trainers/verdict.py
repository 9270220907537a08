"""The verdict on a new student: a bootstrap over studies that neither trained nor chose it.

The gain of a study is the mean difference of Dice between the new student and the served one.
Studies of one patient are alike, so their mean counts once. The new student is published if the
lower bound of the mean gain is above the option ``min_gain``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

LEVEL, LEVEL_OF_FEW = 0.975, 0.99
"""LEVEL, LEVEL_OF_FEW: confidence of the one-sided lower bound of the gain, and that with fewer
studies than FEW. Both are more than 95 %, because gains may be skewed to rare large losses, where
the bound of few studies is too high."""

FEW = 8
"""FEW: from so many studies of different patients on the level is LEVEL, unless they judge two
students in halves."""

FEWEST_STUDIES = 4
"""FEWEST_STUDIES: with fewer studies of different patients to judge on, a user decides."""

SAMPLES = 10_000
"""SAMPLES: bootstrap samples."""

Answer = Literal["publish", "keep", "ask", "again"]
"""Answer: serve the new student, keep the served one, ask a user, or judge again, because the
version that is served has changed meanwhile."""


class Verdict(NamedTuple):
    """The comparison of a new student with the served one.

    reason: a sentence for the user, with the numbers. gain: mean gain over the studies, or
    over the patients if some have several. lower: its lower bound; None with fewer than two.
    """

    answer: Answer
    reason: str
    gain: float
    lower: float | None


def level_of(count: int, in_halves: bool = False) -> float:
    """Return the confidence of the lower bound for a number of studies of different patients.

    in_halves: each half of them judges another student, so what is chance in a student is in all
    gains of its half, and the bound is too high.
    """
    return LEVEL_OF_FEW if count < FEW or in_halves else LEVEL


def lower_bound(gains: Sequence[float] | np.ndarray, level: float, seed: int = 0) -> float:
    """Return the one-sided lower bound of the mean of some gains at a level of confidence.

    gains: one for each study, two or more. It is the smaller of two bounds. The first is the
    quantile of the means of bootstrap samples of the studies. The share of the samples below it is
    smaller than 1 - level for few studies, because their bootstrap means vary too little:
    Φ(-√(n / (n - 1)) t) with the quantile t of Student's distribution of n - 1 degrees of freedom
    (Hesterberg, What Teachers Should Know about the Bootstrap, arXiv 1411.5279). The
    second is that of Student's t, because four studies have too few different samples.
    """
    values = np.asarray(gains, dtype=np.float64)
    count = len(values)
    quantile = float(stats.t.ppf(level, count - 1))
    chosen = np.random.default_rng(seed).integers(0, count, (SAMPLES, count))
    share = float(stats.norm.cdf(-np.sqrt(count / (count - 1)) * quantile))
    by_bootstrap = float(np.quantile(values[chosen].mean(axis=1), share))
    by_student = float(values.mean() - quantile * values.std(ddof=1) / np.sqrt(count))
    return min(by_bootstrap, by_student)


def decide(
    candidate: Sequence[float],
    served: Sequence[float],
    min_gain: float,
    is_accepted: bool = False,
    why_few: str = "",
    in_halves: bool = False,
    patients: Sequence[str] = (),
) -> Verdict:
    """Decide whether to publish a new student.

    candidate, served: the mean Dice of each study, with the same first clicks and random numbers.
    patients: whose study each is; by default each one has a patient of its own.
    is_accepted: a user accepts a new student whose gain is above `min_gain`, where there are too
    few studies for a bound. why_few: says why there may be few, for the user. in_halves: see
    `level_of`.
    """
    studies = len(candidate)
    candidate, served = (mean_by_patient(values, patients) for values in (candidate, served))
    count = len(candidate)
    if not count:
        reason = "there is no study to judge on" + (f": {why_few}" if why_few else "")
        if is_accepted:
            return Verdict("publish", f"{reason}; published, as accept is true", 0.0, None)
        return Verdict("ask", f"{reason}; {_how_to_accept()}", 0.0, None)
    gains = np.subtract(candidate, served)
    gain = float(gains.mean())
    level = level_of(count, in_halves)
    lower = lower_bound(gains, level) if count > 1 else None
    numbers = (
        f"mean Dice {np.mean(candidate):.3f} against {np.mean(served):.3f} of the served weights "
        f"on {_described(studies, count)} that took no part, a gain of {gain:.3f}"
    )
    if count >= FEWEST_STUDIES and lower is not None:
        numbers += f", with {level:.1%} confidence at least {lower:.3f}"
        if lower > min_gain:
            return Verdict("publish", numbers, gain, lower)
        wanted = f"it must be more than {min_gain:g} (min_gain)"
        return Verdict("keep", f"{numbers}, but {wanted}", gain, lower)
    if gain <= min_gain:
        reason = f"{numbers}, but more than {min_gain:g} is needed (min_gain)"
        return Verdict("keep", reason, gain, lower)
    if is_accepted:
        return Verdict("publish", f"{numbers}; published, as accept is true", gain, lower)
    what = "patients" if count < studies else "studies"
    needed = f"{FEWEST_STUDIES} {what} are needed to judge" + (
        f", but {why_few}" if why_few else ""
    )
    reason = f"{numbers}; {needed}: {_how_to_accept()}"
    return Verdict("ask", reason, gain, lower)


def mean_by_patient(values: Sequence[float], patients: Sequence[str] = ()) -> list[float]:
    """Return the mean of the values of each patient, in the order of their first studies.

    patients: see `decide`.
    """
    groups: dict[str, list[float]] = {}
    names = patients or [str(number) for number in range(len(values))]
    for name, value in zip(names, values, strict=True):
        groups.setdefault(name, []).append(value)
    return [float(np.mean(group)) for group in groups.values()]


def _described(studies: int, patients: int) -> str:
    if studies == 1:
        return "1 study"
    if studies == patients:
        return f"{studies} studies"
    return f"{studies} studies of {patients} {'patient' if patients == 1 else 'patients'}"


def describe_dice(
    pairs: Sequence[Sequence[float]], by_teacher: int = 0, patients: Sequence[str] = ()
) -> str:
    """Return what was measured on what, for the metadata of a student.

    pairs: the Dice of the new and of the served student in each study that judged. by_teacher: in
    how many of them the target was the teacher's mask. patients: see `decide`.
    """
    if not pairs:
        return "not measured: there was no study to judge on"
    new, served = (mean_by_patient(values, patients) for values in zip(*pairs, strict=True))
    count = f"{_described(len(pairs), len(new))} that took no part"
    targets = f", {by_teacher} of them against the teacher's masks" if by_teacher else ""
    return (
        f"{np.mean(new):.3f}, before {np.mean(served):.3f}: mean after 1/3/5/10 clicks of served "
        f"masks on {count}{targets}"
    )


def _how_to_accept() -> str:
    return "train again with accept true to publish it, which trains nothing anew"
