"""ROIs are cut as in serving, have a click and a target, and are the same every time."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch.utils.data import DataLoader, DistributedSampler

from lib.errors import InputError
from lib.imaging.intensity import normalize
from lib.imaging.roi import Roi, crop_labels
from lib.imaging.volume import Volume, read_volume
from lib.trainers.data import RoiOptions, RoiPool, TensorStore, examine
from lib.trainers.data.roi_pool import make_image, voxels_of_cells

PLAIN = RoiOptions.plain(spacing_mm=2.0)
VARIED = RoiOptions(spacing_mm=2.0)


def pool_in(folder: Path, count: int = 12, options: RoiOptions = VARIED, **others) -> RoiPool:
    studies = [
        tiny.make_study(folder, "a", seed=1),
        tiny.make_study(folder, "b", seed=2, labelled=False),
    ]
    usable, skipped = examine(studies)
    assert not skipped
    return RoiPool(usable, count, tiny.STUDENT, options, others.pop("seed", 0), **others)


def test_items_have_the_form_that_the_stages_take(tmp_path: Path) -> None:
    pool = pool_in(tmp_path)
    assert len(pool) == 12
    items = [pool[n] for n in range(12)]
    for item in items:
        assert item["image"].shape == (1, 32, 32, 32) and item["image"].dtype == torch.float32
        assert item["target"].shape == (16, 16, 16) and item["target"].dtype == torch.float32
        assert item["has_label"].dtype == torch.bool and item["click_roi"].shape == (3,)
        assert bool(item["has_label"]) == bool(item["target"].any())
        assert ((item["click_roi"] >= 0) & (item["click_roi"] <= 31)).all()
    assert sum(bool(item["has_label"]) for item in items) == 6  # the studies take turns
    assert len({item["key"] for item in items}) == 12
    with pytest.raises(IndexError):
        pool[12]


def test_a_roi_without_augmentation_is_that_of_serving(tmp_path: Path) -> None:
    pool = pool_in(tmp_path, options=PLAIN)
    label = read_volume(tmp_path / "a_label.nii.gz")
    item = next(item for item in pool if item["has_label"])
    volume = read_volume(tmp_path / "a.nii.gz")
    # the click is at the centre, so the ROI follows from the stored voxel whose ROI fits
    for places in pool.studies[0].structures.values():
        for place_ijk in places:
            roi = Roi.place(volume.shape_ijk, volume.affine_mm, place_ijk, size=32, spacing_mm=2.0)
            image = normalize(roi.crop(volume.array), volume.is_ct)
            if np.allclose(image, item["image"][0].numpy(), atol=2e-3):
                np.testing.assert_allclose(item["click_roi"], roi.to_roi(place_ijk)[0], atol=1e-4)
                value = label.array[tuple(place_ijk)]
                share = voxels_of_cells(crop_labels(roi, label.array) == value) / 8
                np.testing.assert_array_equal(item["target"].numpy(), share.astype(np.float32))
                return
    pytest.fail("no examined voxel gives this ROI")


def test_the_click_lies_on_the_target(tmp_path: Path) -> None:
    pool = pool_in(tmp_path, count=60)
    labelled = [item for item in pool if item["has_label"]]
    on_target = []
    for item in labelled:
        i, j, k = ((item["click_roi"] + 0.5) // 2).long().clamp(max=15).tolist()
        on_target.append(float(item["target"][i, j, k]) > 0)
    assert np.mean(on_target) > 0.9  # stored voxels are up to 3 mm, ROI voxels 2 mm
    sizes = [float(item["target"].sum()) for item in labelled]
    assert min(sizes) > 10


def test_augmentation_mirrors_shifts_and_scales(tmp_path: Path) -> None:
    plain, varied = pool_in(tmp_path, 40, PLAIN), pool_in(tmp_path, 40, VARIED)
    # a first click may be off the centre of a ROI only where it is shifted
    centred = [torch.allclose(item["click_roi"], torch.full((3,), 16.0)) for item in plain]
    assert all(centred)
    clicks = torch.stack([item["click_roi"] for item in varied])
    assert clicks.std(dim=0).min() > 1
    assert (clicks - 16).abs().max() <= 0.15 * 32 + 1e-3
    # mirrored: the box of the body lies before or behind the click
    flipped = dataclasses.replace(PLAIN, flip=1.0)
    item, flipped_item = pool_in(tmp_path, 4, PLAIN)[1], pool_in(tmp_path, 4, flipped)[1]
    mirrored = flipped_item["image"].flip(1, 2, 3).roll((1, 1, 1), dims=(1, 2, 3))
    inner = (0, *(slice(2, 31),) * 3)
    torch.testing.assert_close(mirrored[inner], item["image"][inner], atol=0.05, rtol=0)


def test_augmentation_leaves_voxels_outside_of_a_ct_alone() -> None:
    """They are 0; other values would dominate the normalisation."""
    array = np.full((16, 14, 12), -900, dtype=np.int16)
    array[6:9, 6:9, 5:8] = 10 * np.arange(27).reshape(3, 3, 3) + 30
    volume = Volume(array, np.diag([2.0, 2.0, 2.0, 1.0]), is_ct=True)
    roi = Roi.place(array.shape, volume.affine_mm, np.array([[7, 7, 6]]), size=32, spacing_mm=2.0)
    for seed in range(8):
        image = make_image(roi, volume, VARIED, np.random.default_rng(seed))
        assert np.abs(image).max() < 100, seed


def test_items_depend_on_seed_and_number_alone(tmp_path: Path) -> None:
    pool, again = pool_in(tmp_path), pool_in(tmp_path)
    order = [7, 3, 11]
    for number in order:
        item, same_item = pool[number], again[number]
        assert item["key"] == same_item["key"]
        assert torch.equal(item["image"], same_item["image"])
    other = pool_in(tmp_path, seed=1)
    assert not {pool[n]["key"] for n in range(12)} & {other[n]["key"] for n in range(12)}


def test_a_store_gives_the_same_items_and_needs_no_volumes(tmp_path: Path) -> None:
    fresh = pool_in(tmp_path)
    first = [fresh[n] for n in range(12)]
    stored = RoiPool(
        fresh.studies, 12, tiny.STUDENT, VARIED, 0, store=TensorStore(tmp_path / "rois", 1 << 30)
    )
    items = [stored[n] for n in range(12)]
    for path in tmp_path.glob("*.nii.gz"):
        path.unlink()
    later = RoiPool(
        fresh.studies, 12, tiny.STUDENT, VARIED, 0, store=TensorStore(tmp_path / "rois", 1 << 30)
    )
    for number in range(12):
        again = later[number]
        for name in ("image", "target", "has_label", "click_roi"):
            assert torch.equal(first[number][name], items[number][name])
            assert torch.equal(first[number][name], again[name])


def test_other_options_have_other_keys(tmp_path: Path) -> None:
    keys = {
        pool_in(tmp_path, options=options)[0]["key"]
        for options in (PLAIN, VARIED, dataclasses.replace(VARIED, spacing_mm=1.5))
    }
    assert len(keys) == 3


def test_loaders_and_distributed_samplers_take_a_pool(tmp_path: Path) -> None:
    pool = pool_in(tmp_path, count=8)
    loader = DataLoader(pool, batch_size=4, num_workers=1)
    keys = [key for batch in loader for key in batch["key"]]
    assert keys == [pool[n]["key"] for n in range(8)]
    parts = [
        list(DistributedSampler(pool, num_replicas=2, rank=rank, shuffle=False))
        for rank in range(2)
    ]
    assert sorted(parts[0] + parts[1]) == list(range(8))


def test_a_pool_without_studies_is_an_error() -> None:
    with pytest.raises(InputError, match="no studies"):
        RoiPool([], 4, tiny.STUDENT, PLAIN, 0)


def test_voxels_of_cells_are_counted() -> None:
    mask = np.random.default_rng(0).random((8, 8, 8)) < 0.4
    expected = mask.reshape(4, 2, 4, 2, 4, 2).sum(axis=(1, 3, 5))
    np.testing.assert_array_equal(voxels_of_cells(mask), expected)
