"""Where the simulated user clicks, and what the baselines make of it."""

import numpy as np
import pytest
from benchmarks.baselines import Ball, RandomWalker, RegionGrowing
from benchmarks.protocols import (
    area,
    click_series,
    deepest_voxel,
    dice_of,
    largest_part,
    make_protocol,
    surface_dice,
)

from lib.errors import InputError
from lib.imaging.volume import Volume

SPACING_MM = (1.5, 2.0, 3.0)
AFFINE_MM = np.array([[0, 2.0, 0, -7], [-1.5, 0, 0, 4], [0, 0, 3.0, 11], [0, 0, 0, 1]])
RANDOM = make_protocol("random", (1, 3, 5, 10))
CENTRES = make_protocol("cvpr2025", ())


@pytest.fixture
def target() -> np.ndarray:
    mask = np.zeros((30, 24, 18), dtype=bool)
    mask[6:20, 5:17, 4:10] = True
    return mask


@pytest.fixture
def wrong() -> np.ndarray:
    mask = np.zeros((30, 24, 18), dtype=bool)
    mask[8:24, 5:17, 10:14] = True
    return mask


class Recorder:
    """Answers one mask, and keeps what it was asked."""

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = mask
        self.asked: list[tuple[list, list]] = []

    def __call__(self, clicks_ijk: np.ndarray, labels: np.ndarray) -> np.ndarray:
        self.asked.append((clicks_ijk.tolist(), labels.tolist()))
        return self.mask


@pytest.mark.parametrize("protocol", [RANDOM, CENTRES])
def test_who_sees_a_perfect_mask_stops(target: np.ndarray, protocol) -> None:
    model = Recorder(target)
    series = click_series(model, target, protocol, "a/1", SPACING_MM)
    assert series.dice == (1.0,) * len(protocol.counts)
    assert len(model.asked) == 1
    (click,), (label,) = model.asked[0]
    assert target[tuple(click)] and label == 1
    assert series.nsd == ((1.0,) * 5 if protocol is CENTRES else ())


@pytest.mark.parametrize("protocol", [RANDOM, CENTRES])
def test_clicks_lie_in_the_error_and_say_which_kind(target, wrong, protocol) -> None:
    model = Recorder(wrong)
    series = click_series(model, target, protocol, "a/1", SPACING_MM)
    assert [len(labels) for _, labels in model.asked] == list(range(1, protocol.counts[-1] + 1))
    at = tuple(series.clicks_ijk[1:].T)
    np.testing.assert_array_equal(target[at], series.labels[1:] == 1)
    np.testing.assert_array_equal(wrong[at], series.labels[1:] == 0)
    assert series.dice == (0.0,) * len(protocol.counts)
    if protocol is RANDOM:
        assert 0 < series.labels.sum() < 10


def test_random_clicks_depend_on_seed_case_and_number_alone(target, wrong) -> None:
    def clicks(key: str, seed: int = 0, mask: np.ndarray = wrong) -> list:
        protocol = make_protocol("random", (5,), seed)
        return click_series(Recorder(mask), target, protocol, key, SPACING_MM).clicks_ijk.tolist()

    assert clicks("a/1") == clicks("a/1")
    assert clicks("a/1") != clicks("b/1") and clicks("a/1") != clicks("a/1", seed=1)
    other = wrong.copy()
    other[0, 0, 0] = True
    assert clicks("a/1")[0] == clicks("a/1", mask=other)[0]


def test_the_challenge_clicks_the_middle_of_the_largest_error(target: np.ndarray) -> None:
    error = target.copy()
    error[25:28, 20:23, 15:18] = True
    part = largest_part(error)
    np.testing.assert_array_equal(part, target)
    i, j, k = deepest_voxel(part)
    assert k in (6, 7) and 8 <= i < 18 and 7 <= j < 15
    edge = np.zeros((9, 9, 9), dtype=bool)
    edge[:5] = True  # the border of the image counts as an edge of the error
    assert deepest_voxel(edge) == (2, 2, 2)


def test_a_refused_click_leaves_the_mask(target: np.ndarray) -> None:
    def refusing(clicks_ijk: np.ndarray, labels: np.ndarray) -> np.ndarray:
        if len(labels) == 2:
            raise InputError("no contrast")
        return Ball(Volume(target, AFFINE_MM, False), 4)(clicks_ijk, labels)

    series = click_series(refusing, target, make_protocol("random", (1, 2, 3)), "a", SPACING_MM)
    assert series.refused == 1 and series.dice[0] == series.dice[1] > 0


@pytest.mark.parametrize(("name", "counts"), [("box", (1,)), ("random", ()), ("random", (0, 3))])
def test_unknown_protocols_and_counts_are_refused(name: str, counts: tuple) -> None:
    with pytest.raises(InputError, match="protocol 'box'|cannot be made"):
        make_protocol(name, counts)


def test_scores_are_what_they_are_called(target: np.ndarray) -> None:
    half = target.copy()
    half[13:] = False
    assert dice_of(half, target) == pytest.approx(2 / 3)
    shifted = np.roll(target, 1, axis=0)  # 1.5 mm: within the tolerance of 2 mm
    assert surface_dice(shifted, target, SPACING_MM, 0.9) == 1
    far = np.roll(target, 2, axis=0)
    assert 0.5 < surface_dice(far, target, SPACING_MM, 0.9) < 1
    assert surface_dice(shifted, target, SPACING_MM, 0.2) == 0
    assert area([0.5] * 5) == 2 and area([1.0] * 5) == 4


def test_a_ball_is_round_in_millimetres_and_the_last_click_wins(target: np.ndarray) -> None:
    model = Ball(Volume(target.astype(np.float32), AFFINE_MM, False), radius_mm=6)
    mask = model(np.array([[14, 11, 9]]), np.array([1]))
    lengths = [len(np.unique(places)) for places in np.nonzero(mask)]
    assert lengths == [9, 7, 5]  # 1.5, 2 and 3 mm voxels
    cut = model(np.array([[14, 11, 9], [14, 11, 11]]), np.array([1, 0]))
    assert cut.sum() < mask.sum() and not cut[14, 11, 11] and cut[14, 11, 8]
    assert model(np.array([[0, 23, 17]]), np.array([1]))[0, 23, 17]  # at the border


@pytest.mark.parametrize("make", [RegionGrowing, RandomWalker])
def test_baselines_find_a_bright_box(target: np.ndarray, make) -> None:
    noise = np.random.default_rng(0).normal(0, 5, target.shape)
    volume = Volume((100 + 100 * target + noise).astype(np.float32), AFFINE_MM, False)
    options = {"sigma_mm": 0.0, "spread": 3.0} if make is RegionGrowing else {"spacing_mm": 1.5}
    model = make(volume, **options)
    mask = model(np.array([[12, 10, 7]]), np.array([1]))
    assert mask.shape == target.shape and dice_of(mask, target) > 0.8
    less = model(np.array([[12, 10, 7], [12, 10, 8]]), np.array([1, 0]))
    assert not less[12, 10, 8] and less.sum() < mask.sum()


@pytest.mark.parametrize("make", [RegionGrowing, RandomWalker])
def test_baselines_answer_without_contrast_and_at_the_border(make) -> None:
    volume = Volume(np.full((20, 18, 16), 7.0, np.float32), AFFINE_MM, False)
    mask = make(volume)(np.array([[0, 17, 15]]), np.array([1]))
    assert mask[0, 17, 15]
