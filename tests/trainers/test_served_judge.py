"""Dice of served masks: the click path makes them, and users click on their errors."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_site import MASKS, Site

from lib.configs import FastSAM3DModel
from lib.errors import InputError
from lib.imaging.volume import read_label_map, read_volume
from lib.infers.served_masks import ServedMasks, served_mask, small_caches, spatial_prompt
from lib.options import Options
from lib.trainers.data import ExaminedStudy, Study, examine, find_studies
from lib.trainers.served_judge import make_series, mean_dice, next_click, series_dice
from lib.weights.files import file_weights

SHAPE = (44, 36, 22)


@pytest.fixture(scope="module")
def studies(site: Site) -> list[ExaminedStudy]:
    return examine(find_studies(site.datastore)[0])[0]


def box(start: tuple[int, ...], stop: tuple[int, ...], shape: tuple[int, ...] = SHAPE):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(6))
def test_clicks_lie_on_errors_with_the_right_label(seed: int) -> None:
    target = box((10, 8, 4), (20, 30, 12))
    for mask, label in (
        (np.zeros_like(target), 1),
        (box((10, 8, 4), (20, 30, 6)), 1),
        (box((10, 8, 4), (40, 30, 12)), 0),
    ):
        place, drawn = next_click(mask, target, generator(seed))
        assert (mask != target)[tuple(place)] and drawn == label


def test_a_large_error_is_sampled_and_a_thin_one_is_found() -> None:
    target = box((3, 5, 7), (203, 6, 8), (210, 20, 30))
    place, label = next_click(np.zeros_like(target), target, generator())
    assert target[tuple(place)] and label == 1
    plane = box((101, 0, 0), (102, 200, 100), (150, 200, 100))  # between the sampled voxels
    place, _ = next_click(box((100, 0, 0), (101, 1, 1), plane.shape), plane, generator())
    assert plane[tuple(place)] or tuple(place) == (100, 0, 0)


def test_without_an_error_the_click_is_on_the_structure() -> None:
    target = box((10, 8, 4), (20, 30, 12))
    place, label = next_click(target, target, generator())
    assert all(0 <= x < side for x, side in zip(place, SHAPE, strict=True))
    assert label == int(target[tuple(place)])


def test_all_of_many_structures_may_be_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.trainers.served_judge.SERIES", 6)
    places = {value: np.full((1, 3), value) for value in range(1, 41)}
    judged = set()
    for number in range(40):
        study = ExaminedStudy(
            Study("a", Path("a.nii.gz")), f"{number:012x}", "image", None, places, places[1]
        )
        chosen = [series.structure for series in make_series(study, seed=0)]
        assert len(set(chosen)) == 6
        judged.update(chosen)
    assert len(judged) > 35
    few = replace(study, structures={value: places[value] for value in (3, 5)})
    assert sorted(x.structure for x in make_series(few, seed=0)) == [3, 3, 3, 5, 5, 5]


def test_perfect_masks_score_one_and_each_study_counts_once(
    studies: list[ExaminedStudy],
) -> None:
    labelled = [study for study in studies if study.is_labelled]
    asked: list[int] = []

    def perfect(image: Path, clicks_ijk: np.ndarray, labels: np.ndarray) -> np.ndarray:
        asked.append(len(clicks_ijk))
        assert clicks_ijk.shape == (len(labels), 3)
        return truth[image]

    truth = {study.study.image: read_label_map(study.study.label).array == 1 for study in labelled}
    assert mean_dice(perfect, None, labelled, 0) == [1.0] * len(labelled)
    assert asked[:10] == list(range(1, 11)), "ten clicks, one more each time"


def test_a_refused_click_leaves_the_mask(studies: list[ExaminedStudy]) -> None:
    study = next(study for study in studies if study.is_labelled)
    (series,) = make_series(study, 0)

    def refusing(*_: object) -> np.ndarray:
        raise InputError("no contrast")

    assert series_dice(refusing, None, series, 0) == [0.0] * 4


def test_unlabelled_studies_are_judged_against_the_teacher(
    site: Site, studies: list[ExaminedStudy]
) -> None:
    study = next(study for study in studies if not study.is_labelled)
    masks = MASKS.masks(file_weights(site.teacher), "cpu")
    assert mean_dice(masks, masks, [study], 0) == [1.0]
    with pytest.raises(ValueError, match="without a label"):
        mean_dice(masks, None, [study], 0)


def test_the_masks_are_those_of_the_app(site: Site, studies: list[ExaminedStudy]) -> None:
    """The same request to the model of the app gives the same voxels."""
    conf = {"weights": str(site.student), "spacing_mm": "8", "zoom": "auto"}
    config = FastSAM3DModel()
    config.init(
        "fastsam3d",
        str(site.folder / "app"),
        conf,
        None,
        options=Options.from_conf(conf),
        caches=small_caches(),
    )
    clicks_ijk, labels = np.array([[12, 9, 8], [5, 6, 7]]), np.array([1, 0])
    prompts = [spatial_prompt("point", [12, 9, 8], 1), spatial_prompt("point", [5, 6, 7], 0)]
    image = studies[0].study.image
    expected = served_mask(config.infer(), {"image": str(image), "prompts": prompts}).whole(bool)
    masks = ServedMasks(8.0, auto_zoom=True).masks(file_weights(site.student), "cpu")
    assert np.array_equal(masks(image, clicks_ijk, labels), expected)


def test_the_voxel_size_is_that_of_serving(studies: list[ExaminedStudy]) -> None:
    study = studies[0]
    volume, click = read_volume(study.study.image), study.body[0]
    assert ServedMasks(8.0, auto_zoom=False).spacing_mm_at(volume, "k", click, 16) == 8.0
    assert 0.4 <= ServedMasks(1.5, auto_zoom=True).spacing_mm_at(volume, "k", click, 32) <= 4.0
