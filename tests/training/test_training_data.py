"""Only data for training is read; samples are reproducible, aligned, and clicked inside targets."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from training.data import (
    LESION,
    ClickSamples,
    SampleOptions,
    crop_labels,
    merged,
    place,
)
from training.sources import Case, load_cases, may_train

from lib.errors import InputError
from lib.imaging.roi import Roi

SMALL = SampleOptions(roi_size=32, scenes=2)
PLAIN = SampleOptions(
    roi_size=32, scene=0, synthetic=0, lesion=0, merge=0, field_of_view=0, spacings_mm=(2, 2)
)


@pytest.mark.parametrize(
    ("part", "licence", "allowed"),
    [
        ("train", "Apache-2.0 (repo)", True),
        ("labelmaps", "CC0 1.0", True),
        ("train", "CC BY 3.0", True),
        ("eval", "CC0 1.0", False),
        ("dicom", "MIT", False),
        ("train", "CC BY-NC 3.0", False),
        ("train", "CC BY-SA 4.0", False),
        ("train", "", False),
        ("labelmaps", "MIT/GPL? (no LICENSE file)", False),
        ("train", "Apache-2.0 (repo; data origin not stated)", False),
    ],
)
def test_part_and_licence_decide_on_training(part: str, licence: str, allowed: bool) -> None:
    assert may_train({"part": part, "licence": licence}) is allowed


def write_manifest(folder: Path, rows: list[dict[str, str]]) -> None:
    with open(folder / "manifest.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["part", "case", "licence", "image", "label"])
        writer.writeheader()
        writer.writerows(rows)


def test_cases_are_cropped_and_numbered_and_eval_is_not_read(tmp_path: Path) -> None:
    labels = np.zeros((12, 14, 16), dtype=np.int16)
    labels[3:9, 2:12, 5:15], labels[3:5, 2:12, 5:15] = 300, 7
    affine_mm = np.diag([1.0, -2.0, 3.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(labels, affine_mm), tmp_path / "map.nii.gz")
    clean = {"case": "map", "licence": "MIT", "image": "", "label": "map.nii.gz"}
    absent = {**clean, "part": "eval", "label": "absent.nii.gz"}
    write_manifest(tmp_path, [{**clean, "part": "labelmaps"}, absent])
    (case,) = load_cases(tmp_path)
    assert case.labels.shape == (6, 10, 10) and case.image is None
    assert set(case.boxes) == {1, 2}  # 7 and 300, in this order
    np.testing.assert_array_equal(np.unique(case.labels[:2]), [1])
    np.testing.assert_allclose(case.affine_mm[:3, 3], [3, -4, 15])


def test_nothing_to_train_on_is_an_error(tmp_path: Path) -> None:
    write_manifest(tmp_path, [{"part": "eval", "case": "a", "licence": "MIT"}])
    with pytest.raises(InputError, match="manifest.csv"):
        load_cases(tmp_path)


def test_the_shared_data_gives_no_case_for_measuring(shared_dir: Path) -> None:
    with open(shared_dir / "data" / "manifest.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    taken = [row for row in rows if may_train(row)]
    assert len(taken) > 20
    assert {row["part"] for row in taken} == {"train", "labelmaps"}
    assert not any("NC" in row["licence"] or "SA" in row["licence"] for row in taken)
    assert all(json.loads(row["voxels_at_1p5mm"]) for row in taken)


def test_structures_are_limited(make_case: Callable[..., Case]) -> None:
    case = make_case()
    assert case.labels.dtype == np.uint8 and set(np.unique(case.labels)) == {0, 1, 2}
    with pytest.raises(InputError, match="0 structures"):
        Case.from_labels("empty", np.zeros((4, 5, 6), dtype=int), np.eye(4))


def test_the_roi_is_centred_on_the_structure_and_labels_fit_the_image(
    make_case: Callable[..., Case],
) -> None:
    case = make_case()
    spacings, axes = set(), set()
    for seed in range(30):
        roi = place(case, 2, PLAIN, np.random.default_rng(seed))
        inside = crop_labels(roi, case.labels) == 2
        assert inside[16, 16, 16]
        # linear interpolation keeps at least half of the nearest voxel along each axis
        interpolated = roi.crop(np.float32(case.labels == 2))
        assert interpolated[inside].min() >= 0.124
        assert interpolated[~inside].max() <= 0.501
        spacings.add(roi.steps)
        axes.add(roi.axes)
    assert len(spacings) == 30 and len(axes) > 3


def test_the_roi_is_drawn_for_the_structure(make_case: Callable[..., Case]) -> None:
    case = make_case()
    wide = replace(SMALL, spacings_mm=(0.1, 100.0))
    rois = [place(case, 1, wide, np.random.default_rng(seed)) for seed in range(60)]
    # the longest side of 12 voxels of 2 mm keeps about its length in every sample
    shares = np.array([24 / (roi.size * roi.spacing_mm) for roi in rois])
    assert 0.07 < shares.min() < 0.15 and 0.7 < shares.max() < 1.4
    assert np.median(shares) == pytest.approx(0.1**0.5, rel=0.4)

    narrow = replace(SMALL, spacings_mm=(1.0, 2.0))
    spacings = {place(case, 1, narrow, np.random.default_rng(n)).spacing_mm for n in range(60)}
    assert min(spacings) == 1 and max(spacings) == 2 and len(spacings) > 10


def test_a_painted_image_is_not_finer_than_its_label_map(make_case: Callable[..., Case]) -> None:
    case = make_case(with_image=False)
    options = replace(SMALL, scene=0, lesion=0, field_of_view=0, spacings_mm=(0.4, 0.4))
    samples = ClickSamples([case], options, seed=0)
    image, _, labels, _ = samples.draw_roi(np.random.default_rng(1))
    edge = np.abs(np.diff(labels.astype(int), axis=2)) > 0
    step = np.abs(np.diff(image, axis=2))[edge]
    assert step.max() < 0.5 * np.ptp(image)


def test_labels_are_cropped_as_images_are() -> None:
    labels = np.arange(6 * 7 * 8).reshape(6, 7, 8).astype(np.uint8)
    affine_mm = np.array([[0, 0, 1.5, 0], [-1.5, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1.0]])
    roi = Roi.place(labels.shape, affine_mm, np.array([[2, 3, 4]]), size=12)
    np.testing.assert_array_equal(crop_labels(roi, labels), roi.crop(labels))


def test_samples_depend_on_seed_and_number_alone(make_case: Callable[..., Case]) -> None:
    samples = ClickSamples([make_case(), make_case(with_image=False)], SMALL, seed=1)
    later, first = samples[5], samples[0]
    again = ClickSamples(samples.cases, SMALL, seed=1)[5]
    other = ClickSamples(samples.cases, SMALL, seed=2)[5]
    assert all(torch.equal(later[name], again[name]) for name in later)
    assert not torch.equal(later["image"], first["image"])
    assert not torch.equal(later["image"], other["image"])


def test_samples_have_the_shapes_of_the_networks_input(
    make_case: Callable[..., Case],
) -> None:
    samples = ClickSamples([make_case(), make_case(with_image=False)], SMALL, seed=0)
    for number in range(25):
        sample = samples[number]
        assert sample["image"].shape == (1, 32, 32, 32)
        assert sample["targets"].shape == (4, 16, 16, 16)
        assert sample["clicks_roi"].shape == (4, 3)
        assert sample["is_same"].shape == (*sample["anchors"].shape, *sample["others"].shape)
        assert sample["image"].dtype == sample["targets"].dtype == torch.float32
        assert torch.isfinite(sample["image"]).all()
        assert sample["clicks_roi"][0].tolist() == [16, 16, 16]
        for target, click in zip(sample["targets"], sample["clicks_roi"], strict=True):
            assert target[tuple((click // 2).long())] > 0
            assert 0 < target.sum() * 8 < 32**3


def test_a_lesion_becomes_the_first_target(make_case: Callable[..., Case]) -> None:
    options = SampleOptions(roi_size=32, scene=0, synthetic=0, lesion=1, field_of_view=0)
    with_lesion = ClickSamples([make_case()], options, seed=0)[0]
    without = ClickSamples([make_case()], PLAIN, seed=0)[0]
    assert LESION > 250
    assert with_lesion["targets"][0].sum() != without["targets"][0].sum()
    assert with_lesion["targets"][0, 8, 8, 8] > 0


def test_only_structures_that_touch_are_merged() -> None:
    labels = np.zeros((20, 16, 12), dtype=np.uint8)
    labels[2:8, 2:8, 2:8], labels[8:12, 2:8, 2:8], labels[16:20, 2:8, 2:8] = 1, 2, 3
    rng = np.random.default_rng(0)
    assert sorted(merged(labels, 1, 1.0, rng)) == [1, 2]
    assert merged(labels, 3, 1.0, rng) == [3]
    assert merged(labels, 1, 0.0, rng) == [1]
