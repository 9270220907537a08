"""A NIfTI scan and its mask lie where ITK shows the scan, whatever the header's frames say."""

import gzip
import itertools
import logging
import struct

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import from_matvec

from lib.errors import InputError
from lib.imaging.mask import BoxMask
from lib.imaging.mask_file import MaskForm, mask_body
from lib.imaging.nifti_file import ImageMetadata, write_scan
from lib.imaging.volume import read_volume

SHAPE = (9, 12, 16)
BOX_IJK = ((2, 7), (3, 8), (4, 15))
TURN = nibabel.eulerangles.euler2mat(0.3, -0.2, 0.4)
SFORM = from_matvec(TURN @ np.diag([-0.7, 1.25, 2.5]), (12, -31, 88))
QFORM = from_matvec(TURN.T @ np.diag([0.7, 1.25, 2.5]), (72, 29, -40))
SHEARED = SFORM.copy()
SHEARED[:3, 1] += 0.3 * SFORM[:3, 0]


def scan():
    return np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)


def write(path, sform=SFORM, qform=QFORM, codes=(1, 1), unit="mm", **fields):
    """Write a scan whose sform and qform have these codes. fields: raw values of the header."""
    image = nibabel.Nifti1Image(scan(), SFORM)
    image.header.set_xyzt_units(unit)
    image.set_sform(sform, 1)
    image.set_qform(qform, 1)
    image.header["sform_code"], image.header["qform_code"] = codes
    image.header["vox_offset"] = 352
    for name, value in fields.items():
        image.header[name] = value
    content = image.header.binaryblock + bytes(4) + scan().tobytes(order="F")
    path.write_bytes(gzip.compress(content) if path.name.endswith("gz") else content)
    return path


def corners_mm(image):
    """Return where ITK puts the corners of an image: (8, 3) LPS."""
    lengths = np.array(image.GetSize()[:3]) - 1
    indices = [tuple((lengths * corner).tolist()) for corner in np.ndindex(2, 2, 2)]
    return np.array([image.TransformIndexToPhysicalPoint(index) for index in indices])


def assert_mask_lies_on(path, tmp_path):
    """Compare the mask in each form with the image, both as ITK reads them."""
    volume, image = read_volume(path), sitk.ReadImage(str(path))
    assert np.array_equal(sitk.GetArrayFromImage(image).transpose(), volume.array)
    values = np.random.default_rng(1).integers(0, 2, (5, 5, 11), dtype=np.uint8)
    mask = BoxMask(values, BOX_IJK, volume.shape_ijk, volume.affine_mm)
    for form in (MaskForm(".nii.gz"), MaskForm(".nii"), MaskForm(".nrrd"), MaskForm(".mha")):
        reply = tmp_path / f"mask{form.extension}"
        reply.write_bytes(b"".join(mask_body(mask, form).chunks))
        read = sitk.ReadImage(str(reply))
        assert np.array_equal(sitk.GetArrayFromImage(read).transpose(), mask.whole())
        smallest_mm = min(image.GetSpacing())
        assert np.abs(corners_mm(read) - corners_mm(image)).max() < 0.01 * smallest_mm
        again = read_volume(reply)  # as a training reads a saved label
        assert again.affine_mm == pytest.approx(volume.affine_mm, abs=1e-3 * smallest_mm)


@pytest.mark.parametrize("codes", list(itertools.product((0, 1, 2, 4, 5), (0, 1, 2, 5))))
def test_the_mask_lies_on_the_scan_for_all_form_codes(tmp_path, codes):
    assert_mask_lies_on(write(tmp_path / "scan.nii.gz", codes=codes), tmp_path)


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 1), (2, 1)])
@pytest.mark.parametrize(("unit", "scale"), [("meter", 1000), ("micron", 0.001), ("mm", 1)])
def test_units_of_length(tmp_path, codes, unit, scale):
    sform, qform = SFORM.copy(), QFORM.copy()
    sform[:3] /= scale
    qform[:3] /= scale
    path = write(tmp_path / "scan.nii", sform, qform, codes, unit)
    assert_mask_lies_on(path, tmp_path)
    assert np.linalg.norm(read_volume(path).affine_mm[:3, :3], axis=0) == pytest.approx(
        [0.7, 1.25, 2.5], rel=1e-4
    )


@pytest.mark.parametrize("code", [4, 5, 6, 7, 10, 255])
def test_units_that_nobody_knows_are_millimetres(tmp_path, code):
    path = write(tmp_path / "scan.nii")
    content = bytearray(path.read_bytes())
    content[123] = code
    path.write_bytes(content)
    assert_mask_lies_on(path, tmp_path)


@pytest.mark.parametrize("codes", [(1, 1), (2, 1), (4, 2)])
def test_a_sheared_sform_beside_an_upright_qform(tmp_path, codes):
    assert_mask_lies_on(write(tmp_path / "scan.nii.gz", SHEARED, codes=codes), tmp_path)


@pytest.mark.parametrize("code", [1, 2, 4])
def test_a_sheared_sform_alone_is_refused(tmp_path, code):
    path = write(tmp_path / "scan.nii.gz", SHEARED, codes=(code, 0))
    with pytest.raises(RuntimeError):
        sitk.ReadImage(str(path))
    with pytest.raises(InputError, match="is sheared: its axes .* resample it"):
        read_volume(path)


@pytest.mark.parametrize("codes", [(0, 1), (0, 0), (1, 0)])
@pytest.mark.parametrize("pixdim", [3.0, 0.2])
def test_spacings_that_only_one_frame_has(tmp_path, codes, pixdim):
    path = write(tmp_path / "scan.nii", codes=codes, pixdim=[1, pixdim, 1.25, 2.5, 0, 0, 0, 0])
    assert_mask_lies_on(path, tmp_path)


@pytest.mark.parametrize("code", [0, 1])
def test_a_quaternion_a_little_too_long(tmp_path, code):
    path = write(
        tmp_path / "scan.nii.gz",
        codes=(0, code),
        **{"quatern_b": 1 + 3e-7, "quatern_c": 0, "quatern_d": 0},
    )
    assert_mask_lies_on(path, tmp_path)


@pytest.mark.parametrize("vector", [(5, 0, 0), (np.nan, 0, 0)])
def test_a_quaternion_that_is_no_rotation(tmp_path, vector):
    fields = dict(zip(("quatern_b", "quatern_c", "quatern_d"), vector, strict=True))
    with pytest.raises(InputError, match="damaged"):
        read_volume(write(tmp_path / "scan.nii", codes=(0, 1), **fields))


@pytest.mark.parametrize(
    ("pixdim", "shown"), [(0, "0"), (-0.7, "-0.7"), (np.nan, "nan"), (np.inf, "inf")]
)
def test_spacings_that_itk_would_replace(tmp_path, pixdim, shown):
    path = write(tmp_path / "scan.nii", pixdim=[1, pixdim, 1.25, 2.5, 0, 0, 0, 0])
    with pytest.raises(InputError, match=f"has a voxel spacing of {shown} × 1.25 × 2.5 mm; repair"):
        read_volume(path)


def test_an_origin_that_is_no_number(tmp_path):
    path = write(tmp_path / "scan.nii", codes=(1, 0), srow_x=[np.nan, 0, 0, 1])
    with pytest.raises(InputError, match="is sheared|NaN or infinity"):
        read_volume(path)


def test_frames_that_disagree_are_logged_once(tmp_path, caplog):
    path = write(tmp_path / "disagreeing once.nii", codes=(2, 1))
    with caplog.at_level(logging.WARNING):
        read_volume(path), read_volume(path)
    (record,) = caplog.records
    assert "its sform puts it 1" in record.message and "masks follow ITK" in record.message
    caplog.clear()
    read_volume(write(tmp_path / "agreeing.nii", SFORM, SFORM, (2, 1)))
    assert not caplog.records


# Names that do not fit


def test_a_plain_file_named_gz_is_read(tmp_path):
    path = write(tmp_path / "scan.nii").rename(tmp_path / "scan.nii.gz")
    assert_mask_lies_on(path, tmp_path)


@pytest.mark.parametrize("rubbish", [b"garbage!" * 4, b"x", bytes(100), b"\n"])
@pytest.mark.parametrize("members", [1, 2])
def test_bytes_after_the_compressed_data_do_no_harm(tmp_path, rubbish, members):
    path = write(tmp_path / "scan.nii")
    content = path.read_bytes()
    parts = [content] if members == 1 else [content[:500], content[500:]]
    packed = b"".join(gzip.compress(part) for part in parts)
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(packed + rubbish)
    assert np.array_equal(read_volume(path).array, scan())
    path.write_bytes(packed[:-3] + rubbish)
    with pytest.raises(InputError, match="damaged"):
        read_volume(path)


@pytest.mark.parametrize("name", ["scan.nii", "SCAN.NII"])
def test_a_compressed_file_named_nii_is_to_be_renamed(tmp_path, name):
    path = write(tmp_path / "scan.nii.gz").rename(tmp_path / name)
    with pytest.raises(InputError, match=f"is compressed, which its .*; rename it to {name}.gz"):
        read_volume(path)


@pytest.mark.parametrize("offset", [0, 100, 348, -8, 2**28, np.nan, np.inf])
def test_voxels_that_begin_inside_the_header(tmp_path, offset):
    with pytest.raises(InputError, match="damaged"):
        read_volume(write(tmp_path / "scan.nii", vox_offset=offset))


def test_an_analyze_file_is_no_nifti(tmp_path):
    path = write(tmp_path / "scan.nii")
    content = bytearray(path.read_bytes())
    struct.pack_into("4s", content, 344, b"")
    path.write_bytes(content)
    with pytest.raises(InputError, match="not in the format"):
        read_volume(path)


def test_much_more_data_than_the_header_says(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.imaging.nifti_file.MAX_EXTRA_BYTES", 2**21)
    path = write(tmp_path / "scan.nii")
    content = path.read_bytes()
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(content + bytes(2**20)))
    read_volume(path)
    path.write_bytes(gzip.compress(content + bytes(2**22)))
    with pytest.raises(InputError, match="damaged"):
        read_volume(path)


def test_a_long_axis_of_nifti_2(tmp_path):
    array = np.random.default_rng(0).integers(0, 9, (40000, 4, 5)).astype(np.uint8)
    image = nibabel.Nifti2Image(array, SFORM)
    nibabel.save(image, tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    assert np.array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine_mm, SFORM, atol=1e-4)


# What is kept of a DICOM series


@pytest.mark.parametrize(("modality", "is_ct"), [("CT", True), ("MR", False), ("OT", False)])
@pytest.mark.parametrize("low", [-1000, 0])
def test_the_modality_decides_what_is_a_ct(tmp_path, modality, is_ct, low):
    path = tmp_path / "scan.nii.gz"
    array = np.random.default_rng(0).integers(low, 900, SHAPE).astype(np.int16)
    image = sitk.GetImageFromArray(array.transpose())
    image.SetSpacing((0.7, 1.25, 2.5))
    image.SetDirection((TURN @ np.diag([1, 1, -1])).ravel().tolist())
    image.SetOrigin((12, -31, 88))
    sitk.WriteImage(image, str(path))
    assert read_volume(path).is_ct is (low < 0)
    write_scan(image, path, ImageMetadata(modality, ("ä warning",)))
    volume = read_volume(path)
    assert volume.is_ct is is_ct and volume.warnings == ("ä warning",)
    assert np.array_equal(volume.array, array) and volume.array.dtype == np.int16
    np.testing.assert_allclose(corners_mm(sitk.ReadImage(str(path))), corners_mm(image), atol=1e-4)
    assert list(tmp_path.iterdir()) == [path]
