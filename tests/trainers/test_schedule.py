"""Layer pairs and Eq. 2, as tables."""

import pytest

from lib.errors import InputError
from lib.trainers.schedule import active_pairs, layer_pairs


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
