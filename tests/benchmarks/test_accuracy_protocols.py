"""Places of simulated clicks, scores, and the masks of the baselines."""

import numpy as np
import pytest
from benchmarks.baselines import Ball, RandomWalker, RegionGrowing
from benchmarks.protocols import (
    area,
    click_series,
    deepest_voxel,
    largest_part,
    make_protocol,
    share_of_harm,
    surface_dice,
)
from scipy.ndimage import binary_dilation, binary_erosion

from lib.errors import InputError
from lib.imaging.mask import dice
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
    """A model that always returns one mask and records its calls."""

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = mask
        self.calls: list[tuple[list, list]] = []

    def __call__(self, clicks_ijk: np.ndarray, labels: np.ndarray) -> np.ndarray:
        self.calls.append((clicks_ijk.tolist(), labels.tolist()))
        return self.mask


@pytest.mark.parametrize("protocol", [RANDOM, CENTRES])
def test_the_user_stops_at_a_perfect_mask(target: np.ndarray, protocol) -> None:
    model = Recorder(target)
    series = click_series(model, target, protocol, "a/1", SPACING_MM)
    assert series.dice == (1.0,) * len(protocol.counts)
    assert len(model.calls) == 1
    (click,), (label,) = model.calls[0]
    assert target[tuple(click)] and label == 1
    assert series.nsd == ((1.0,) * 5 if protocol is CENTRES else ())


@pytest.mark.parametrize("protocol", [RANDOM, CENTRES])
def test_clicks_lie_in_the_error_with_the_right_label(target, wrong, protocol) -> None:
    model = Recorder(wrong)
    series = click_series(model, target, protocol, "a/1", SPACING_MM)
    assert [len(labels) for _, labels in model.calls] == list(range(1, protocol.counts[-1] + 1))
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


def test_the_challenge_clicks_the_centre_of_the_largest_error(target: np.ndarray) -> None:
    error = target.copy()
    error[25:28, 20:23, 15:18] = True
    part = largest_part(error)
    np.testing.assert_array_equal(part, target)
    i, j, k = deepest_voxel(part)
    assert k in (6, 7) and 8 <= i < 18 and 7 <= j < 15
    edge = np.zeros((9, 9, 9), dtype=bool)
    edge[:5] = True  # the image's border counts as an edge of the error
    assert deepest_voxel(edge) == (2, 2, 2)


def test_a_refused_click_keeps_the_mask(target: np.ndarray) -> None:
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


def test_scores_follow_their_definitions(target: np.ndarray) -> None:
    half = target.copy()
    half[13:] = False
    empty = np.zeros_like(target)
    assert dice(half, target) == pytest.approx(2 / 3)
    assert (dice(empty, target), dice(empty, empty)) == (0, 1)
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


@pytest.fixture
def bright_box(target: np.ndarray) -> Volume:
    return Volume((100 + 100 * target).astype(np.float32), AFFINE_MM, False)


def test_region_growing_returns_a_bright_box(target: np.ndarray, bright_box: Volume) -> None:
    model = RegionGrowing(bright_box, sigma_mm=0.0)
    np.testing.assert_array_equal(model(np.array([[12, 10, 7]]), np.array([1])), target)
    less = model(np.array([[12, 10, 7], [12, 10, 8]]), np.array([1, 0]))
    assert not less[12, 10, 8] and less.sum() < target.sum()


def test_the_random_walker_stops_at_the_edges_of_a_box(
    target: np.ndarray, bright_box: Volume
) -> None:
    model = RandomWalker(bright_box, spacing_mm=1.5)
    mask = model(np.array([[12, 10, 7]]), np.array([1]))
    assert mask[binary_erosion(target)].all()
    assert not mask[~binary_dilation(target, iterations=2)].any()
    less = model(np.array([[12, 10, 7], [12, 10, 9]]), np.array([1, 0]))
    assert not less[12, 10, 9] and less.sum() < mask.sum()


@pytest.mark.parametrize("make", [RegionGrowing, RandomWalker])
def test_baselines_work_without_contrast_and_at_the_border(make) -> None:
    volume = Volume(np.full((20, 18, 16), 7.0, np.float32), AFFINE_MM, False)
    mask = make(volume)(np.array([[0, 17, 15]]), np.array([1]))
    assert mask[0, 17, 15]


def test_the_share_of_harm_counts_corrections_only() -> None:
    assert share_of_harm([0.1, 0.5, 0.47, 0.46, 0.2]) == 0.5
    assert share_of_harm([0.4]) == share_of_harm([]) == 0


def test_a_drawing_comes_before_all_clicks(target: np.ndarray, wrong: np.ndarray) -> None:
    model = Recorder(wrong)
    protocol = make_protocol("random", (1, 3))
    series = click_series(model, target, protocol, "a", SPACING_MM, has_drawing=True)
    assert [len(clicks) for clicks, _ in model.calls] == [0, 1, 2]
    assert len(series.clicks_ijk) == 2 and len(series.seconds) == 3
    again = Recorder(target)
    click_series(again, target, make_protocol("random", (3,)), "a", SPACING_MM, replayed=series)
    assert [len(clicks) for clicks, _ in again.calls] == [1, 2]
    assert again.calls[1] == (series.clicks_ijk.tolist(), series.labels.tolist())
