"""Mask files have the geometry of their image, whatever the format and the orientation."""

import re

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from lib.imaging.mask import BoxMask
from lib.imaging.mask_file import EXTENSIONS, MaskForm, mask_body, own_extension, write_mask

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.1) @ np.diag([-0.7, 0.9, 2.5]), [10, -20, 30]
)
BOX_IJK = ((3, 11), (2, 9), (5, 20))
SHAPE_IJK = (13, 11, 23)


def box_mask(affine_mm=OBLIQUE):
    values = np.random.default_rng(0).integers(0, 2, (8, 7, 15), dtype=np.uint8)
    return BoxMask(values, BOX_IJK, SHAPE_IJK, affine_mm)


def assert_same_place(image, affine_mm, shape_ijk):
    """Compare the corners of an ITK image (LPS) with an affine (RAS)."""
    i, j, k = (length - 1 for length in shape_ijk)
    for index in ((0, 0, 0), (i, 0, 0), (0, j, 0), (0, 0, k)):
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        ras = nib.affines.apply_affine(affine_mm, index)
        np.testing.assert_allclose(lps * [-1, -1, 1], ras, atol=1e-4)


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("compress", [False, True])
def test_voxels_and_geometry(tmp_path, extension, compress):
    mask = np.asfortranarray(np.random.default_rng(0).integers(0, 2, (4, 6, 9), dtype=np.uint8))
    path = tmp_path / f"mask{extension}"
    write_mask(mask, OBLIQUE, path, compress)
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(), mask)
    assert_same_place(image, OBLIQUE, mask.shape)


def test_uncompressed_nrrd_ends_in_the_raw_voxels_in_file_order(tmp_path):
    mask = np.asfortranarray(np.arange(4 * 6 * 9, dtype=np.uint8).reshape(4, 6, 9))
    write_mask(mask, np.eye(4), tmp_path / "mask.nrrd")
    content = (tmp_path / "mask.nrrd").read_bytes()
    assert content.endswith(b"\n\n" + mask.tobytes(order="F"))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/ct.nii.gz", ".nii.gz"),
        ("CT.NRRD", ".nrrd"),
        ("x.seg.nrrd", ".nrrd"),
        ("dicom_folder", ".nrrd"),
        ("ct.nii", ".nii"),
    ],
)
def test_own_extension(path, expected):
    assert own_extension(path) == expected


@pytest.mark.parametrize("compress", [None, False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_the_body_is_a_file_with_the_mask(tmp_path, extension, dtype, compress):
    body = mask_body(box_mask(), MaskForm(extension, dtype, compress))
    content = b"".join(body.chunks)
    assert len(content) == body.length
    path = tmp_path / f"mask{extension}"
    path.write_bytes(content)
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(), box_mask().whole())
    assert_same_place(image, OBLIQUE, SHAPE_IJK)
    assert image.GetPixelIDTypeAsString().startswith(
        {"uint8": "8-bit unsigned", "int16": "16-bit signed", "float32": "32-bit float"}[dtype]
    )


@pytest.mark.parametrize("affine_mm", [OBLIQUE, np.diag([-0.8, -0.8, 1.25, 1])])
def test_the_nrrd_body_is_what_itk_writes(tmp_path, affine_mm):
    mask = box_mask(affine_mm)
    write_mask(mask.whole(), affine_mm, tmp_path / "itk.nrrd")
    body = b"".join(mask_body(mask, MaskForm(".nrrd")).chunks)
    (header, voxels), (expected, expected_voxels) = (
        content.split(b"\n\n", 1) for content in (body, (tmp_path / "itk.nrrd").read_bytes())
    )
    assert voxels == expected_voxels
    number = rb"-?\d+(?:\.\d+)?(?:e-?\d+)?"
    assert re.sub(number, b"", header) == re.sub(number, b"", expected)
    numbers = [np.array(re.findall(number, each), float) for each in (header, expected)]
    np.testing.assert_allclose(*numbers, rtol=1e-14)


def test_no_temporary_file_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mask_body(box_mask(), MaskForm(".nii.gz"))
    with pytest.raises(TypeError):
        mask_body(box_mask(), MaskForm(".nrrd", "no type"))
    assert not list(tmp_path.iterdir())
