"""The protocol: where clicks go, what is scored, how scores are averaged."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from training.evaluate import (
    BallModel,
    NetworkModel,
    Score,
    click_series,
    select_rows,
    structures,
    summarise,
)
from training.publish import measured
from training.sources import Case

from lib.networks import FastSAM3D
from lib.volume import Volume


@pytest.fixture
def volume(make_case: Callable[..., Case]) -> Volume:
    case = make_case()
    return Volume(case.image, case.affine_mm, is_ct=False)


def test_a_perfect_model_scores_1_and_clicks_start_inside(make_case: Callable[..., Case]) -> None:
    target = make_case().labels == 1

    def perfect(clicks_ijk: np.ndarray, labels: np.ndarray) -> np.ndarray:
        assert target[tuple(clicks_ijk[0])] and labels.all()
        return target

    assert click_series(perfect, target, np.random.default_rng(0)) == (1, 1, 1, 1)


def test_clicks_lie_in_the_error_and_say_which_kind(make_case: Callable[..., Case]) -> None:
    target = make_case().labels == 1
    wrong = make_case().labels == 2
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def mistaken(clicks_ijk: np.ndarray, labels: np.ndarray) -> np.ndarray:
        seen.append((clicks_ijk, labels))
        return wrong

    assert click_series(mistaken, target, np.random.default_rng(0)) == (0, 0, 0, 0)
    clicks_ijk, labels = seen[-1]
    assert [len(known) for _, known in seen] == list(range(1, 11))
    at = tuple(clicks_ijk.T)
    np.testing.assert_array_equal(target[at], labels == 1)
    np.testing.assert_array_equal(wrong[at], labels == 0)
    assert 0 < labels.sum() < 10


def test_a_ball_is_round_in_millimetres_and_the_last_click_wins(volume: Volume) -> None:
    model = BallModel(volume, radius_mm=6)
    mask = model(np.array([[14, 11, 9]]), np.array([1]))
    i, j, k = (np.unique(places) for places in np.nonzero(mask))
    assert (len(i), len(j), len(k)) == (9, 7, 5)  # 1.5, 2 and 3 mm voxels
    cut = model(np.array([[14, 11, 9], [14, 11, 11]]), np.array([1, 0]))
    assert cut.sum() < mask.sum() and not cut[14, 11, 11] and cut[14, 11, 8]


def test_replaying_clicks_gives_what_going_on_gives(
    tiny_network: FastSAM3D, volume: Volume
) -> None:
    clicks, labels = np.array([[10, 8, 6], [12, 9, 7], [14, 11, 9]]), np.array([1, 1, 0])
    on_going = NetworkModel(tiny_network, volume)
    for count in (1, 2, 3):
        mask = on_going(clicks[:count], labels[:count])
    np.testing.assert_array_equal(mask, NetworkModel(tiny_network, volume)(clicks, labels))
    assert mask.shape == volume.shape_ijk and mask.dtype == bool
    far = np.array([[10, 8, 6], [29, 23, 17]])
    moved = on_going(far, labels[:2])
    np.testing.assert_array_equal(moved, NetworkModel(tiny_network, volume)(far, labels[:2]))


def test_small_structures_are_left_out() -> None:
    labels = np.zeros((20, 24, 28), dtype=np.int16)
    labels[:11, :11, :14], labels[12:, :11, :14] = 3, 4
    volume = Volume(labels, np.diag([1.0, 1.0, -1.0, 1.0]), is_ct=False)
    assert list(structures(volume)) == [3]  # 1694 mm³; the other has 1232


def test_sources_count_alike_however_many_structures_they_have() -> None:
    scores = [Score("a", f"{n}", 1, (0.2, 0.2, 0.2, 0.4)) for n in range(9)]
    scores += [Score("b", "x", 1, (0.6, 0.6, 0.6, 0.8))]
    summary = summarise(scores)
    assert summary["macro"] == {"1": 0.4, "3": 0.4, "5": 0.4, "10": 0.6}
    assert summary["sources"]["a"]["structures"] == 9
    text = measured({"models": {"fastsam3d": summary}})
    assert text.startswith("0.400, 0.400, 0.400, 0.600 after 1/3/5/10 clicks")
    assert "a (9 structures), b (1 structures)" in text


def test_rows_are_capped_and_need_an_image_and_structures(tmp_path: Path) -> None:
    (tmp_path / "image.nii").touch()
    rows = [
        {"part": part, "source": source, "image": image, "voxels_at_1p5mm": json.dumps(voxels)}
        for part, source, image, voxels in [
            ("eval", "a", "image.nii", {"x": 9}),
            ("eval", "a", "image.nii", {"x": 8}),
            ("eval", "a", "image.nii", {"x": 7}),
            ("eval", "b", "", {"x": 6}),
            ("eval", "b", "image.nii", {}),
            ("eval", "b", "image.nii", {"x": 5}),
            ("train", "c", "image.nii", {"x": 4}),
        ]
    ]
    with open(tmp_path / "manifest.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    chosen = select_rows(tmp_path, "eval", per_source=2)
    assert [json.loads(row["voxels_at_1p5mm"])["x"] for row in chosen] == [9, 8, 5]
