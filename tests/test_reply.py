"""Masks are written with their image's geometry, whatever the format and the orientation."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from lib.reply import own_extension, write_mask

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.1) @ np.diag([-0.7, 0.9, 2.5]), [10, -20, 30]
)


@pytest.mark.parametrize("extension", [".nrrd", ".nii.gz", ".nii", ".mha"])
@pytest.mark.parametrize("compress", [False, True])
def test_voxels_and_geometry(tmp_path, extension, compress):
    mask = np.asfortranarray(np.random.default_rng(0).integers(0, 2, (4, 6, 9), dtype=np.uint8))
    path = tmp_path / f"mask{extension}"
    write_mask(mask, OBLIQUE, path, compress)
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(), mask)
    for index in ((0, 0, 0), (3, 0, 0), (0, 5, 0), (0, 0, 8)):
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        ras = nib.affines.apply_affine(OBLIQUE, index)
        np.testing.assert_allclose(lps * [-1, -1, 1], ras, atol=1e-4)


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
