"""Prompts in mm give the same mask in space, in whatever order of axes the scan is stored.

The small weights draw a ball at each click. The walk and the priors of the drawings use the image,
so each of them and the ROI must follow the patient's axes. So must the scale that is chosen.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from ball_task import ball_task, spatial, whole_mask
from lib.cache import ByteCache
from lib.imaging.affine import RAS_TO_LPS
from lib.imaging.mask import dice
from lib.imaging.volume import Volume
from lib.infers import FastSAM3DInfer
from lib.infers.request import INITIAL_MASK
from lib.infers.scale import RoiScale
from selftest import ORIENTATIONS

SHAPE_IJK = (46, 60, 34)
AFFINE_MM = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, -0.1, 0.15) @ np.diag([-2.0, -1.6, 3.0]), [40, 50, -30]
)
CENTRE_IJK, RADII_IJK = np.array([16, 39, 21]), np.array([9, 12, 5])

BOX = [[6.7, 26.4, 15.3], [25.2, 51.3, 26.6]]
LASSO = [[8, 39, 21], [12, 48, 21], [20, 49, 21], [25, 41, 21], [22, 30, 21], [13, 29, 21]]
DRAWINGS_IJK = {
    "point": ("point", [18.3, 37.2, 22.4]),
    "box": ("bounding_box", BOX),
    "box_in_plane": ("bounding_box", [[16, *corner[1:]] for corner in BOX]),
    "lasso": ("lasso", LASSO),
    "scribble": ("scribble", [[13, 32, 20], [15, 39, 21], [20, 44, 23]]),
}
"""DRAWINGS_IJK: prompts on the ellipsoid, stored indices of the canonical scan. A box in a plane is
oblique to the patient's axes as the scan is; its corners have one index in common."""

BACKGROUND_IJK = [27.2, 44.3, 22.8]

LEAST_DICE = 0.999
"""LEAST_DICE: a few voxels on the border may change with the rounding of the ROI's places."""


def scan_ijk() -> np.ndarray:
    """Return a scan with a bright ellipsoid off the centre, in noise."""
    away = (np.moveaxis(np.indices(SHAPE_IJK), 0, -1) - CENTRE_IJK) / RADII_IJK
    noise = np.random.default_rng(0).normal(0, 15, SHAPE_IJK)
    return (np.where((away**2).sum(axis=-1) < 1, 160, 60) + noise).astype(np.int16)


@pytest.fixture(scope="module")
def task() -> FastSAM3DInfer:
    return ball_task()


def prompt(kind: str) -> list[dict]:
    """Return a prompt of a kind, and a click on the background, in LPS mm with few digits."""
    subtype, places_ijk = DRAWINGS_IJK[kind]
    entries = ((subtype, places_ijk, 1), ("point", BACKGROUND_IJK, 0))
    return [spatial(subtype, to_lps(places_ijk), number) for subtype, places_ijk, number in entries]


def to_lps(places_ijk) -> list:
    return np.round(nib.affines.apply_affine(AFFINE_MM, places_ijk) @ RAS_TO_LPS, 3).tolist()


def mask_in_canonical_order(task, kind, orientation, folder: Path, start=False) -> np.ndarray:
    """Return the mask for the scan stored in an order of its axes, in the canonical order."""
    affine_mm = AFFINE_MM @ inv_ornt_aff(orientation, SHAPE_IJK)
    path = folder / "scan.nii.gz"
    nib.save(nib.Nifti1Image(apply_orientation(scan_ijk(), orientation), affine_mm), path)
    request = {"prompts": prompt(kind), "coordinates": "lps_mm"}
    if start:
        given = np.zeros(SHAPE_IJK, np.uint8)
        given[10:16, 30:44, 17:24] = 1
        given = apply_orientation(given, orientation)
        nib.save(nib.Nifti1Image(given, affine_mm), folder / "start.nii.gz")
        request[INITIAL_MASK] = str(folder / "start.nii.gz")
    values = whole_mask(task, path, request)
    back = nib.orientations.ornt_transform(
        nib.io_orientation(affine_mm), nib.io_orientation(AFFINE_MM)
    )
    return apply_orientation(values, back)


@pytest.fixture(scope="module")
def canonical(task, tmp_path_factory):
    """Return the mask of each kind of prompt on the canonical scan."""
    folder = tmp_path_factory.mktemp("canonical")
    return {
        (kind, start): mask_in_canonical_order(task, kind, ORIENTATIONS[0], folder, start)
        for kind, start in (*((kind, False) for kind in DRAWINGS_IJK), ("point", True))
    }


def test_the_masks_are_not_symmetric(canonical):
    """A flip or a swap of axes would change each of them, and the kinds differ."""
    for kind, mask in canonical.items():
        assert mask.any(), kind
        for axis in range(3):
            assert dice(mask > 0, np.flip(mask, axis) > 0) < 0.9, (kind, axis)
    masks = [mask.tobytes() for mask in canonical.values()]
    assert len(set(masks)) == len(masks)


def orientations():
    """Yield all 48 orders; the fast suite takes every fourth."""
    for number, orientation in enumerate(ORIENTATIONS):
        marks = [pytest.mark.slow] if number % 4 != 1 else []
        yield pytest.param(orientation, marks=marks, id=str(orientation.astype(int).tolist()))


@pytest.mark.parametrize("orientation", orientations())
def test_same_mask_in_space(task, canonical, tmp_path, orientation):
    for kind, start in canonical:
        mask = mask_in_canonical_order(task, kind, orientation, tmp_path, start)
        expected = canonical[kind, start]
        assert dice(mask > 0, expected > 0) >= LEAST_DICE, (kind, start)


def test_same_scale_in_space():
    first_ijk = np.array([DRAWINGS_IJK["point"][1]])
    chosen_mm = []
    for orientation in ORIENTATIONS:
        to_canonical = inv_ornt_aff(orientation, SHAPE_IJK)
        volume = Volume(
            apply_orientation(scan_ijk(), orientation), AFFINE_MM @ to_canonical, is_ct=False
        )
        click_ijk = nib.affines.apply_affine(np.linalg.inv(to_canonical), first_ijk)
        scale = RoiScale(64, 1.5, True, ByteCache(9, lambda _: 1))
        chosen_mm.append(scale.spacing_mm(volume, "scan", click_ijk[0], 0))
    np.testing.assert_allclose(chosen_mm, chosen_mm[0], rtol=1e-3)
    assert chosen_mm[0] != 1.5
