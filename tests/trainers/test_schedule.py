"""Layer pairs, Eq. 2 and the learning rates of a run, as tables."""

import dataclasses

import pytest

from lib.errors import InputError
from lib.trainers.schedule import Schedule, active_pairs, layer_pairs
from lib.trainers.train_options import TrainOptions


def test_every_second_block_of_twelve_teaches_one_of_six() -> None:
    assert layer_pairs(12, 6) == ((1, 0), (3, 1), (5, 2), (7, 3), (9, 4), (11, 5))


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [(4, 2, ((1, 0), (3, 1))), (6, 2, ((2, 0), (5, 1))), (3, 3, ((0, 0), (1, 1), (2, 2)))],
)
def test_other_depths_that_divide(teacher: int, student: int, expected: tuple) -> None:
    assert layer_pairs(teacher, student) == expected


@pytest.mark.parametrize(("teacher", "student"), [(12, 5), (3, 6), (6, 0)])
def test_depths_that_do_not_divide_are_refused(teacher: int, student: int) -> None:
    with pytest.raises(InputError, match=f"{teacher} blocks and the student {student}.*stage 1"):
        layer_pairs(teacher, student)


def test_the_papers_schedule() -> None:
    expected = [k for k in range(1, 7) for _ in range(6)]
    assert [active_pairs(current, 36, 6) for current in range(1, 37)] == expected


@pytest.mark.parametrize(
    ("total", "pairs", "expected"),
    [(4, 6, [2, 3, 5, 6]), (1, 6, [6]), (7, 3, [1, 1, 2, 2, 3, 3, 3]), (10, 1, [1] * 10)],
)
def test_ceil_where_the_total_does_not_divide(total: int, pairs: int, expected: list[int]) -> None:
    assert [active_pairs(current, total, pairs) for current in range(1, total + 1)] == expected


def test_k_stays_between_one_and_all() -> None:
    assert active_pairs(0, 36, 6) == 1
    assert active_pairs(50, 36, 6) == 6
    with pytest.raises(ValueError, match="0 units"):
        active_pairs(1, 0, 6)


@pytest.mark.parametrize("unit", ["epoch", "iteration"])
def test_a_run_follows_eq_2(unit: str) -> None:
    options = TrainOptions.from_request({"schedule_unit": unit, "max_epochs": 48})
    schedule = Schedule(options, pairs=6)
    per_epoch = options.iterations_per_epoch
    for epoch in range(36):
        first, last = epoch * per_epoch, (epoch + 1) * per_epoch - 1
        assert schedule.stage(last) == 1
        assert schedule.k(last) == active_pairs(epoch + 1, 36, 6), "the same at an epoch's end"
        if unit == "epoch":
            assert schedule.k(first) == schedule.k(last)
    assert schedule.stage(36 * per_epoch) == 2
    assert [schedule.k(n * per_epoch - 1) for n in (1, 6, 7, 12, 30, 31, 36)] == [
        1, 1, 2, 2, 5, 6, 6,
    ]  # fmt: skip


def test_learning_rates_rise_stay_and_fall_in_each_stage() -> None:
    schedule = Schedule(TrainOptions.from_request({"warm_up": 0.1}), pairs=6)
    rates = [schedule.rate(update) for update in range(schedule.updates)]
    first, second = rates[: schedule.stage1_updates], rates[schedule.stage1_updates :]
    for stage, peak in ((first, 5e-3), (second, 5e-5)):
        assert max(stage) == pytest.approx(peak)
        assert 0 < stage[0] < peak and 0 < stage[-1] < peak / 4
        assert sum(rate == pytest.approx(peak) for rate in stage) > len(stage) / 2


def test_validations_come_at_intervals_and_at_the_end_of_each_stage() -> None:
    options = TrainOptions.from_request({"max_epochs": 10, "val_interval": 4})  # stage 1: 8 epochs
    schedule = Schedule(dataclasses.replace(options, stage1_fraction=0.7), pairs=6)
    assert [epoch for epoch in range(1, 11) if schedule.is_validated(epoch)] == [4, 7, 8, 10]
