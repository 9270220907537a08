"""How long a training will take is estimated from the time of the networks here."""

import pytest
import tiny

from lib.trainers.adapt_options import AdaptOptions
from lib.trainers.duration import Seconds, adaptation_seconds, distillation_seconds
from lib.trainers.train_options import TrainOptions

CPU = {"device": "cpu"}


@pytest.fixture(autouse=True)
def fixed_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each network take the times of the default student on one core of two."""
    monkeypatch.setattr(
        "lib.trainers.duration.measure_seconds", lambda network: Seconds(0.07, 0.065)
    )


def distillation(judged: int = 4, **options: object) -> float:
    parsed = TrainOptions.from_request({**CPU, **options})
    seconds = distillation_seconds(parsed, tiny.student(), tiny.teacher(), judged)
    assert seconds is not None
    return seconds


def adaptation(labelled: int, judged: int) -> float:
    options = AdaptOptions.from_request(CPU)
    seconds = adaptation_seconds(options, tiny.student(), labelled, judged)
    assert seconds is not None
    return seconds


def test_the_defaults_of_a_cpu_end_within_their_time_even_on_one_core() -> None:
    assert distillation() < 30 * 60
    assert adaptation(labelled=7, judged=4) < 10 * 60


def test_more_work_takes_longer() -> None:
    default = distillation()
    for more in ({"max_epochs": 96}, {"train_batch_size": 16}, {"rois": 999}, {"val_rois": 99}):
        assert distillation(**more) > default
    assert distillation(judged=12) > default + 100
    assert distillation(stage1_fraction=0) > default, "a click costs more than an encoding"
    more_labels = adaptation(labelled=100, judged=12) - adaptation(labelled=12, judged=12)
    assert more_labels > 88 * 2, "each label is read, and has ROIs"


def test_nothing_is_measured_for_a_gpu() -> None:
    options = TrainOptions(device="cuda")
    assert distillation_seconds(options, tiny.student(), tiny.teacher(), 4) is None
    assert adaptation_seconds(AdaptOptions(device="cuda"), tiny.student(), 7, 4) is None
