"""A student is published only if the lower bound of its gain over studies is high enough."""

import sys
from pathlib import Path

import numpy as np
import pytest

from lib.trainers.verdict import FEWEST_STUDIES, decide, lower_bound

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from training.simulate_verdicts import GAINS, published_share  # noqa: E402

SERVED = [0.5, 0.62, 0.41, 0.7, 0.55, 0.6]


def test_a_clear_gain_is_published() -> None:
    verdict = decide([value + 0.1 for value in SERVED], SERVED, 0.005)
    assert verdict.answer == "publish" and verdict.gain == pytest.approx(0.1)
    assert verdict.lower == pytest.approx(0.1)
    assert (
        "on 6 studies that took no part, a gain of 0.100, with 97.5% confidence" in verdict.reason
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
    lower = lower_bound(gains)
    assert 0 < lower < gains.mean()
    served = np.array(SERVED)
    assert decide(served + gains, served, lower - 1e-6).answer == "publish"
    assert decide(served + gains, served, lower + 1e-6).answer == "keep"


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


@pytest.mark.parametrize("studies", [4, 6, 12])
@pytest.mark.parametrize("name", GAINS)
def test_at_most_one_in_twenty_students_that_are_no_better_is_published(
    name: str, studies: int
) -> None:
    # few studies do not show rare large losses
    most = 0.09 if name == "large losses" and studies < 12 else 0.05
    assert published_share(GAINS[name], studies, 400, 0.005, seed=1) <= most


def test_most_students_that_are_clearly_better_are_published() -> None:
    share = published_share(
        lambda generator, count: generator.normal(0.1, 0.03, count), 6, 100, 0.005, seed=0
    )
    assert share > 0.9
