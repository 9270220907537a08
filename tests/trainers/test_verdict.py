"""A student is published only if the lower bound of its gain over studies is high enough."""

import sys
from pathlib import Path

import numpy as np
import pytest

from lib.trainers.verdict import FEWEST_STUDIES, decide, describe_dice, lower_bound

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from training.simulate_verdicts import GAINS, published_share  # noqa: E402

VERDICTS = 1000
"""VERDICTS: for each number of studies; the standard error of a share of 5 % is 0.7 %."""

SERVED = [0.5, 0.62, 0.41, 0.7, 0.55, 0.6]


def test_a_clear_gain_is_published() -> None:
    verdict = decide([value + 0.1 for value in SERVED], SERVED, 0.005)
    assert verdict.answer == "publish" and verdict.gain == pytest.approx(0.1)
    assert verdict.lower == pytest.approx(0.1)
    assert (
        "on 6 studies that took no part, a gain of 0.100, with 99.0% confidence" in verdict.reason
    )


@pytest.mark.parametrize(
    "gains",
    [
        [0.0] * 6,
        [-0.1] * 6,
        [0.004] * 6,  # below min_gain
        [0.4, 0, 0, 0, 0, 0],  # one lucky study
        [0.2, -0.1, 0.2, -0.1, 0.15, -0.12],
    ],
)
def test_without_a_certain_gain_the_served_student_stays(gains: list[float]) -> None:
    verdict = decide(np.add(SERVED, gains).tolist(), SERVED, 0.005, is_accepted=True)
    assert verdict.answer == "keep" and "but it must be more than 0.005" in verdict.reason


def test_the_bound_counts_and_not_the_mean() -> None:
    gains = np.array([0.03, 0.05, 0.01, 0.06, 0.04, 0.02])
    lower = lower_bound(gains, level=0.99)  # of six studies
    assert 0 < lower < gains.mean()
    served = np.array(SERVED)
    assert decide(served + gains, served, lower - 1e-6).answer == "publish"
    assert decide(served + gains, served, lower + 1e-6).answer == "keep"


def test_the_studies_of_a_patient_count_once() -> None:
    patients = ["a", "a", "a", "b", "c", "d"]
    served = [0.5] * 6
    better = [0.9, 0.8, 0.7, 0.5, 0.5, 0.51]
    verdict = decide(better, served, 0.005, patients=patients)
    assert verdict.gain == pytest.approx((0.3 + 0 + 0 + 0.01) / 4)
    assert verdict.answer == "keep" and "on 6 studies of 4 patients" in verdict.reason
    alone = decide([0.8, 0.5, 0.5, 0.51], [0.5] * 4, 0.005)
    assert (verdict.gain, verdict.lower) == pytest.approx((alone.gain, alone.lower))
    even = decide([0.6] * 6, served, 0.005, patients=patients[:3] * 2)
    assert even.answer == "ask"
    assert "6 studies of 2 patients" in decide([0.6] * 6, served, 0, patients=list("abbaab")).reason
    assert "4 patients are needed to judge" in even.reason


def test_few_studies_ask_and_a_user_accepts() -> None:
    few = SERVED[: FEWEST_STUDIES - 1]
    better = [value + 0.1 for value in few]
    asked = decide(better, few, 0.005)
    assert asked.answer == "ask" and "train again with accept true" in asked.reason
    assert decide(better, few, 0.005, is_accepted=True).answer == "publish"
    assert decide(few, few, 0.005, is_accepted=True).answer == "keep", "no gain to accept"
    assert decide(better[:1], few[:1], 0.005).answer == "ask"
    assert decide([], [], 0.005).answer == "ask"
    assert "no study to judge on" in decide([], [], 0.005).reason
    assert decide([], [], 0.005, is_accepted=True).answer == "publish"


def test_the_reason_says_why_there_are_few_studies() -> None:
    few, why = SERVED[:2], "of 9 studies 2 are new"
    reason = decide([value + 0.1 for value in few], few, 0.005, why_few=why).reason
    assert "; 4 studies are needed to judge, but of 9 studies 2 are new: train again" in reason
    assert "no study to judge on: of 9 studies 2 are new" in decide([], [], 0, why_few=why).reason


def test_the_metadata_say_what_was_measured_on_what() -> None:
    assert describe_dice([[0.6, 0.5], [0.7, 0.4]], by_teacher=1) == (
        "0.650, before 0.450: mean after 1/3/5/10 clicks of served masks on 2 studies that took no "
        "part, 1 of them against the teacher's masks"
    )
    assert "on 1 study that took no part" in describe_dice([[0.6, 0.5]])
    of_two = describe_dice([[0.6, 0.5], [0.8, 0.5], [0.1, 0.1]], patients=["a", "a", "b"])
    assert "0.400, before 0.300:" in of_two and "on 3 studies of 2 patients" in of_two
    assert describe_dice([]) == "not measured: there was no study to judge on"


@pytest.mark.parametrize("studies", [4, 6, 12])
@pytest.mark.parametrize("name", GAINS)
def test_at_most_one_in_twenty_students_that_are_no_better_is_published(
    name: str, studies: int
) -> None:
    share = published_share(GAINS[name], studies, VERDICTS, 0.005, seed=1)
    assert share <= 0.05 + (0.05 * 0.95 / VERDICTS) ** 0.5


def test_most_students_that_are_clearly_better_are_published() -> None:
    share = published_share(
        lambda generator, count: generator.normal(0.1, 0.03, count), 6, 100, 0.005, seed=0
    )
    assert share > 0.9


@pytest.mark.parametrize("studies", [4, 8, 12])
def test_students_of_two_halves_that_are_no_better_are_seldom_published(studies: int) -> None:
    share = published_share(GAINS["normal"], studies, VERDICTS, 0.005, seed=1, half_spread=0.02)
    assert share <= 0.05 + (0.05 * 0.95 / VERDICTS) ** 0.5


def test_halves_need_more_confidence() -> None:
    served = [0.5] * 12
    candidate = [0.5 + gain for gain in [0.03, -0.004] * 6]
    assert decide(candidate, served, 0.001).answer == "publish"
    in_halves = decide(candidate, served, 0.001, in_halves=True)
    assert in_halves.answer == "keep" and "99.0% confidence" in in_halves.reason
