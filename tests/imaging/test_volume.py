"""Every format gives the same voxels in the same place; bad files give a clear error."""

import gzip
import re
import struct

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from nibabel.affines import from_matvec
from pydicom.pixel_data_handlers.util import apply_modality_lut

from lib.errors import InputError
from lib.imaging import image_checks, itk_file, nifti_file
from lib.imaging.volume import read_label_map, read_volume

SHAPE = (10, 14, 19)
LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])


def orthogonal_affine():
    """Return an affine that is oblique, left-handed and anisotropic."""
    skew = np.array([[-0.7, 0.1, 0.3], [0.1, 1.2, -0.4], [0.2, 0.3, 2.5]])
    axes, _ = np.linalg.qr(skew)
    axes[:, 0] *= -np.sign(np.linalg.det(axes))
    return from_matvec(axes * (0.7, 1.25, 2.5), (12, -31, 88))


AFFINE_MM = orthogonal_affine()


def random_array(dtype=np.int16, shape=SHAPE, low=0):
    return np.random.default_rng(0).integers(low, 900, shape).astype(dtype)


def write_nifti(path, array, affine_mm=AFFINE_MM, image_class=nibabel.Nifti1Image):
    image_class(array, affine_mm, dtype=array.dtype).to_filename(path)
    return path


def write_sitk(path, array, affine_mm, **options):
    """Write (I, J, K) `array` with an affine whose axes are orthogonal."""
    image = sitk.GetImageFromArray(array.transpose())
    affine_lps = LPS_TO_RAS @ affine_mm
    spacing_mm = np.linalg.norm(affine_lps[:3, :3], axis=0)
    image.SetSpacing(spacing_mm.tolist())
    image.SetDirection((affine_lps[:3, :3] / spacing_mm).ravel().tolist())
    image.SetOrigin(affine_lps[:3, 3].tolist())
    sitk.WriteImage(image, str(path), **options)
    return path


def refusal(path):
    """Return the error message for a file, which must never name the folder."""
    with pytest.raises(InputError) as caught:
        read_volume(path)
    assert str(path.parent) not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


# Files that are read


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "SCAN.NII.GZ"])
@pytest.mark.parametrize("image_class", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_nifti(tmp_path, name, image_class):
    array = random_array()
    volume = read_volume(write_nifti(tmp_path / name, array, image_class=image_class))
    assert np.array_equal(volume.array, array)
    assert volume.array.dtype == np.int16
    assert volume.affine_mm == pytest.approx(AFFINE_MM, abs=1e-5)
    assert volume.affine_mm.dtype == np.float64
    assert volume.shape_ijk == SHAPE
    assert volume.nbytes == array.size * 2


@pytest.mark.parametrize("name", ["scan.nrrd", "SCAN.NRRD", "scan.mha", "scan.gipl"])
def test_other_formats(tmp_path, name):
    if name.endswith("gipl"):  # knows no direction
        affine_mm = LPS_TO_RAS @ np.diag([0.75, 1.25, 2.5, 1])
    else:
        affine_mm = orthogonal_affine()
        assert np.linalg.det(affine_mm[:3, :3]) < 0
    array = random_array()
    volume = read_volume(write_sitk(tmp_path / name, array, affine_mm))
    assert np.array_equal(volume.array, array)
    assert volume.array.dtype == np.int16
    assert volume.affine_mm == pytest.approx(affine_mm, abs=1e-5)


def test_nifti_and_nrrd_of_one_scan_agree(tmp_path):
    array, affine_mm = random_array(), orthogonal_affine()
    nifti = read_volume(write_sitk(tmp_path / "scan.nii.gz", array, affine_mm))
    nrrd = read_volume(write_sitk(tmp_path / "scan.nrrd", array, affine_mm))
    assert np.array_equal(nifti.array, nrrd.array)
    assert nifti.affine_mm == pytest.approx(nrrd.affine_mm, abs=1e-4)


def write_series(folder, array, series="1.2.3"):
    """Write a DICOM series of axial slices, 0.75 × 1.25 × 2.5 mm, with file names in reverse z."""
    folder.mkdir(exist_ok=True)
    for k in range(array.shape[2]):
        image = sitk.GetImageFromArray(array[:, :, k].transpose())
        image.SetSpacing((0.75, 1.25))
        image.SetMetaData("0008|0060", "CT")
        image.SetMetaData("0020|000e", series)
        image.SetMetaData("0020|0013", str(k))
        image.SetMetaData("0020|0032", f"5\\6\\{7 + 2.5 * k}")
        image.SetMetaData("0020|0037", "1\\0\\0\\0\\1\\0")
        image.SetMetaData("0020|0052", "1.2.3")
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{series}-{99 - k}.dcm"))
        writer.Execute(image)
    return folder


def test_a_dicom_folder(tmp_path):
    array = random_array(low=-1024)
    volume = read_volume(write_series(tmp_path / "series", array))
    expected_mm = np.diag([-0.75, -1.25, 2.5, 1])
    expected_mm[:3, 3] = (-5, -6, 7)
    assert np.array_equal(volume.array, array)
    assert volume.affine_mm == pytest.approx(expected_mm)
    assert volume.is_ct


@pytest.mark.parametrize("series", ["STS_003_dicom_CT/image", "ProstateX-0000_t2w_dicom"])
def test_a_real_series_lies_where_its_slices_say(shared_dir, series):
    folder = shared_dir / "data" / "dicom" / series
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    volume = read_volume(folder)
    assert volume.is_ct == ("CT" in series)
    slices = [pydicom.dcmread(path) for path in folder.glob("*.dcm")]
    slices.sort(key=lambda s: np.dot(s.ImagePositionPatient, volume.affine_mm[:3, 2] * (-1, -1, 1)))
    for k, stored in enumerate(slices):
        pixels = apply_modality_lut(stored.pixel_array, stored)
        assert np.array_equal(volume.array[:, :, k], pixels.transpose())
        corner_mm = volume.affine_mm @ (0, 0, k, 1) @ LPS_TO_RAS
        assert corner_mm[:3] == pytest.approx(np.array(stored.ImagePositionPatient), abs=0.01)
    assert len(slices) == volume.shape_ijk[2]


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii", "scan.nrrd"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_integers_stay_and_floats_are_float32(tmp_path, name, dtype):
    array = random_array(dtype)
    write = write_sitk if name.endswith("nrrd") else write_nifti
    volume = read_volume(write(tmp_path / name, array, orthogonal_affine()))
    assert volume.array.dtype == ("float32" if dtype == "float64" else dtype)
    assert np.array_equal(volume.array, array)


def test_a_big_endian_file_becomes_native(tmp_path):
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    path = tmp_path / "scan.nii"
    nibabel.Nifti1Image(random_array(">i2"), AFFINE_MM, header).to_filename(path)
    assert path.read_bytes()[:4] == struct.pack(">i", 348)
    volume = read_volume(path)
    assert volume.array.dtype.isnative and volume.array.dtype == np.int16
    assert np.array_equal(volume.array, random_array())


@pytest.mark.parametrize(("slope", "inter"), [(2.0, -1000.0), (1.0, -1000.0), (0.5, 0.0)])
def test_a_scale_is_applied_in_float32(tmp_path, slope, inter):
    array = random_array()
    path = tmp_path / "scan.nii"
    image = nibabel.Nifti1Image(array, AFFINE_MM)
    image.header.set_slope_inter(slope, inter)
    content = bytearray(image.to_bytes())
    content[112:120] = struct.pack("<2f", slope, inter)
    content[352:] = array.tobytes(order="F")
    path.write_bytes(content)
    volume = read_volume(path)
    assert volume.array.dtype == np.float32
    assert volume.array == pytest.approx(array * slope + inter)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.nrrd"])
def test_the_array_is_in_memory_read_only_and_runs_fastest_along_i(tmp_path, name):
    write = write_sitk if name.endswith("nrrd") else write_nifti
    array = read_volume(write(tmp_path / name, random_array(), orthogonal_affine())).array
    assert array.flags.f_contiguous and not array.flags.writeable
    assert not isinstance(array, np.memmap)


@pytest.mark.parametrize("shape", [(*SHAPE, 1), (*SHAPE, 1, 1)])
def test_trailing_axes_of_length_one_are_dropped(tmp_path, shape):
    array = random_array(shape=shape)
    volume = read_volume(write_nifti(tmp_path / "scan.nii", array))
    assert np.array_equal(volume.array, array.reshape(SHAPE))


def test_a_series_of_one_volume_is_3d(tmp_path):
    image = sitk.JoinSeries([sitk.GetImageFromArray(random_array().transpose())])
    image.SetOrigin((1, 2, 3, 4))
    sitk.WriteImage(image, str(tmp_path / "scan.mha"))
    volume = read_volume(tmp_path / "scan.mha")
    assert np.array_equal(volume.array, random_array())
    assert volume.affine_mm[:3, 3] == pytest.approx([-1, -2, 3])


@pytest.mark.parametrize(("low", "is_ct"), [(-1024, True), (0, False)])
def test_a_ct_is_known(tmp_path, low, is_ct):
    assert read_volume(write_nifti(tmp_path / "scan.nii", random_array(low=low))).is_ct is is_ct


# Files that are rejected


def test_a_missing_file(tmp_path):
    assert refusal(tmp_path / "gone.nii.gz") == (
        'image "gone.nii.gz" does not exist; check its name and that it was not moved'
    )


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.nrrd", "scan.txt"])
@pytest.mark.parametrize("content", [b"", b"hello", bytes(400)], ids=["empty", "text", "zeros"])
def test_files_that_are_no_image(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") and content else content)
    assert "cannot be read: it is damaged, truncated, or not in the format" in refusal(path)


@pytest.mark.parametrize("stop", [200, -2000, -9, -8, -4, -1])
@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii"])
def test_a_truncated_nifti(tmp_path, name, stop):
    path = write_nifti(tmp_path / name, random_array())
    path.write_bytes(path.read_bytes()[:stop])
    assert "cannot be read: it is damaged, truncated" in refusal(path)


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mha"])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_truncated_file_of_another_format(tmp_path, name, compressed):
    path = write_sitk(
        tmp_path / name, random_array(), orthogonal_affine(), useCompression=compressed
    )
    path.write_bytes(path.read_bytes()[:-40])
    assert "cannot be read: it is damaged, truncated" in refusal(path)


@pytest.mark.parametrize("length", [1, 200])
def test_a_damaged_gzip(tmp_path, length):
    array = np.sort(random_array(), axis=0)  # some structure, so that it is compressed
    path = write_nifti(tmp_path / "scan.nii.gz", array)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + length] = (255 - byte for byte in content[middle : middle + length])
    path.write_bytes(content)
    assert "cannot be read: it is damaged" in refusal(path)


@pytest.mark.parametrize(
    ("format", "offset", "value"),
    [("<h", 70, 9999), ("<f", 256, 5.0), ("<h", 40, 9), ("<f", 108, -8.0)],
    ids=["unknown type", "impossible rotation", "nine dimensions", "voxels before the header"],
)
def test_a_damaged_header(tmp_path, format, offset, value):
    path = write_nifti(tmp_path / "scan.nii", random_array())
    content = bytearray(path.read_bytes())
    struct.pack_into("<2h", content, 252, 1, 0)  # the qform counts, not the sform
    struct.pack_into(format, content, offset, value)
    path.write_bytes(content)
    assert "cannot be read: it is damaged" in refusal(path)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "does not fit into the memory of the server; crop or resample it"),
        (PermissionError(), "may not be read by the server; change its permissions"),
    ],
)
def test_errors_of_the_server_are_not_blamed_on_the_file(tmp_path, monkeypatch, error, expected):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(nifti_file, "_unpacked", fail)
    path = write_nifti(tmp_path / "scan.nii", random_array())
    assert refusal(path) == f'image "scan.nii" {expected}'


def test_a_header_that_claims_more_than_there_is_memory(tmp_path):
    path = write_nifti(tmp_path / "scan.nii", random_array())
    content = bytearray(path.read_bytes())
    content[40:48] = struct.pack("<4h", 3, 32000, 32000, 32000)
    path.write_bytes(content)
    assert refusal(path).startswith('image "scan.nii" ')


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 6), "has 2 dimensions (5 × 6), not 3; give the whole scan, not one slice"),
        ((5, 6, 7, 2), "has 4 dimensions (5 × 6 × 7 × 2), not 3; export one volume of it"),
        ((5, 6, 7, 1, 3), "has 5 dimensions (5 × 6 × 7 × 1 × 3), not 3; export one volume of it"),
        ((50, 60, 1), "has only 50 × 60 × 1 voxels; a 3D scan needs at least 4 along each axis"),
        ((3, 60, 70), "has only 3 × 60 × 70 voxels; a 3D scan needs at least 4 along each axis"),
        ((5, 0, 6), "has only 5 × 0 × 6 voxels; a 3D scan needs at least 4 along each axis"),
    ],
)
def test_other_shapes(tmp_path, shape, expected):
    path = write_nifti(tmp_path / "scan.nii", random_array(shape=shape))
    assert refusal(path) == f'image "scan.nii" {expected}'


def test_four_voxels_along_an_axis_are_enough(tmp_path):
    path = write_nifti(tmp_path / "scan.nii", random_array(shape=(4, 6, 5)))
    assert read_volume(path).shape_ijk == (4, 6, 5)


def sheared_affine(cosine):
    affine_mm = AFFINE_MM.copy()
    affine_mm[:3, 1] += cosine * 1.25 / 0.7 * affine_mm[:3, 0]
    return affine_mm


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mha"])
def test_a_sheared_grid(tmp_path, name):
    write_sitk(tmp_path / name, random_array(), sheared_affine(1e-4))
    assert read_volume(tmp_path / name).affine_mm == pytest.approx(sheared_affine(1e-4), abs=1e-3)
    write_sitk(tmp_path / name, random_array(), sheared_affine(0.1))
    assert re.search(r"is sheared by 5\.\d°: its axes .* resample it", refusal(tmp_path / name))


def detached_header(folder, name):
    """Write a header and, beside it, the voxels that it points to."""
    image = sitk.GetImageFromArray(random_array().transpose())
    sitk.WriteImage(image, str(folder / name))
    return folder / name


@pytest.mark.parametrize("name", ["scan.nhdr", "scan.mhd"])
@pytest.mark.parametrize("renamed", ["scan.nrrd", "scan.mha", "scan", "scan.SEG.NRRD", None])
def test_a_header_that_points_to_another_file(tmp_path, monkeypatch, name, renamed):
    path = detached_header(tmp_path, name)
    if renamed:
        path = path.rename(tmp_path / renamed)
    monkeypatch.setattr(itk_file, "sitk", None)  # no reader sees it
    assert "is a header whose voxels are in another file; save it as one file" in refusal(path)


@pytest.mark.parametrize(
    "line",
    [
        "data file: x.raw",
        "Data File: x.raw",
        "datafile: x.raw",
        " data file : x.raw",
        "\tDATA FILE:x.raw",
        "type: uint8\rdata file: x.raw",
        "data file: LIST",
    ],
)
def test_each_spelling_of_a_nrrd_that_points_elsewhere(tmp_path, line):
    path = write_sitk(tmp_path / "scan.nrrd", random_array(), AFFINE_MM)
    head, end, voxels = path.read_bytes().partition(b"\n\n")
    path.write_bytes(head + b"\n" + line.encode() + end + voxels)
    assert "is a header whose voxels are in another file" in refusal(path)
    harmless = b"\n# data file: in a comment\ndata file:=a key of the user"
    path.write_bytes(head + harmless + end + voxels)
    assert read_volume(path).shape_ijk == SHAPE


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.nrrd", "scan.mha"])
def test_more_voxels_than_allowed_are_refused_by_the_header(tmp_path, monkeypatch, name):
    write = write_nifti if ".nii" in name else write_sitk
    path = write(tmp_path / name, random_array(), AFFINE_MM)
    assert read_volume(path, max_voxels=2660).shape_ijk == SHAPE
    monkeypatch.setattr(nifti_file, "ArrayProxy", None)
    monkeypatch.setattr(sitk.ImageFileReader, "Execute", None)
    with pytest.raises(InputError, match=r"2,660 in all; .* up to 2,659; crop"):
        read_volume(path, max_voxels=2659)


def test_the_limit_follows_from_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(image_checks, "CGROUP_LIMIT", tmp_path / "limit")
    machine = image_checks.default_voxel_limit()
    (tmp_path / "limit").write_text("max\n")
    assert image_checks.default_voxel_limit() == machine
    (tmp_path / "limit").write_text("16000\n")
    assert image_checks.default_voxel_limit() == 2000
    path = write_nifti(tmp_path / "scan.nii", random_array())
    assert "2,660 in all; this server reads up to 2,000" in refusal(path)


def test_a_small_file_that_claims_much_takes_no_memory(tmp_path, monkeypatch):
    head = nibabel.Nifti1Image(np.zeros((1, 1, 1), np.int16), AFFINE_MM).to_bytes()[:352]
    content = bytearray(head)
    struct.pack_into("<4h", content, 40, 3, 2000, 2000, 1500)
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(bytes(content) + bytes(10**5)))
    monkeypatch.setattr(nifti_file, "ArrayProxy", None)
    with pytest.raises(InputError, match="damaged, truncated"):
        read_volume(path, max_voxels=10**11)


def test_nan_around_the_patient_is_0_and_a_warning_says_so(tmp_path):
    array = random_array(np.float32, low=100)
    array[:2] = np.nan
    volume = read_volume(write_nifti(tmp_path / "scan.nii.gz", array))
    assert np.array_equal(volume.array, np.nan_to_num(array))
    assert not volume.array.flags.writeable
    assert volume.warnings == (
        '532 of 2660 voxels of image "scan.nii.gz" are NaN; they are taken as 0',
    )
    array[:] = np.nan
    assert "is empty: every voxel is 0" in refusal(write_nifti(tmp_path / "scan.nii.gz", array))


@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.uint64, np.float64])
def test_a_warning_says_that_numbers_are_rounded(tmp_path, dtype):
    """Masks are computed in float32, which counts in steps of 256 at three thousand millions."""
    offset = 3_000_000_000
    array = random_array(dtype) + dtype(offset)
    (warning,) = read_volume(write_nifti(tmp_path / "scan.nii.gz", array)).warnings
    assert (
        'the values of image "scan.nii.gz", 3e+09 to 3e+09, are rounded to steps of 256' in warning
    )
    assert read_volume(write_nifti(tmp_path / "scan.nii", array - dtype(offset))).warnings == ()


def test_a_warning_says_that_a_scale_rounds(tmp_path):
    path = write_nifti(tmp_path / "scan.nii", random_array())
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([1, 3e9], "<f4").tobytes()
    path.write_bytes(content)
    assert "are rounded to steps of 256" in read_volume(path).warnings[0]


@pytest.mark.parametrize("background", [0, -1024, 7.5])
@pytest.mark.parametrize(("count", "is_said"), [(1, True), (58, True), (59, False)])
def test_a_warning_says_that_an_image_is_nearly_blank(tmp_path, background, count, is_said):
    array = np.full((40, 47, 31), background, np.float32)
    array.reshape(-1)[31::997][:count] = 1  # 0.1 % of the voxels are 58.3
    array[0, 0, 0] = background
    volume = read_volume(write_nifti(tmp_path / "scan.nii.gz", array))
    said = f'only {count} of 58280 voxels of image "scan.nii.gz" have another value than'
    assert [said in warning for warning in volume.warnings] == [True] * is_said


@pytest.mark.parametrize(("scale", "is_said"), [(1, False), (1e-4, True), (1e3, True)])
def test_voxels_of_an_unlikely_size(tmp_path, scale, is_said):
    affine_mm = AFFINE_MM @ np.diag([scale, scale, scale, 1])
    volume = read_volume(write_nifti(tmp_path / "scan.nii.gz", random_array(), affine_mm))
    assert bool(volume.warnings) is is_said
    if is_said:
        sizes = " × ".join(f"{scale * mm:.3g}" for mm in (0.7, 1.25, 2.5))
        assert f'the voxels of image "scan.nii.gz" are {sizes} mm; if they are not' in str(volume)


@pytest.mark.parametrize(
    ("units", "shown"),
    [
        ('space units: "mm" "mm" "mm"', ""),
        ('space units: "" "Millimeter" "mm"', ""),
        ('space units: "cm" "cm" "cm"', "cm"),
        ('Space Units: "m" "m" "mm"', "m"),
        ('space units: "um" "m" "microns"', "m, microns, um"),
        ('units:="cm" is a comment', ""),
    ],
)
def test_lengths_of_a_nrrd_in_another_unit(tmp_path, units, shown):
    path = write_sitk(tmp_path / "scan.nrrd", random_array(), AFFINE_MM)
    header, _, voxels = path.read_bytes().partition(b"\n\n")
    path.write_bytes(header + b"\n" + units.encode() + b"\n\n" + voxels)
    warnings = read_volume(path).warnings
    said = f'the header of image "scan.nrrd" gives lengths in {shown}; they are taken as mm, as 3D'
    assert [warning.startswith(said) for warning in warnings] == [True] * bool(shown)


def test_padding_does_not_make_an_mr_a_ct(tmp_path):
    array = random_array(low=1)
    array[:3, :3] = -2000
    assert not read_volume(write_nifti(tmp_path / "scan.nii", array)).is_ct


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.nrrd", "scan.mha"])
def test_the_target_of_a_link_needs_no_extension(tmp_path, name):
    write = write_nifti if ".nii" in name else write_sitk
    stored = tmp_path / "store" / "0123abcd"
    stored.parent.mkdir()
    write(tmp_path / name, random_array(), AFFINE_MM).rename(stored)
    (tmp_path / name).symlink_to("store/0123abcd")
    for path in (tmp_path / name, stored):
        volume = read_volume(path)
        assert np.array_equal(volume.array, random_array())
        assert volume.affine_mm == pytest.approx(AFFINE_MM, abs=1e-5)


# Label maps


@pytest.mark.parametrize("name", ["label.nii.gz", "label.nrrd"])
@pytest.mark.parametrize(
    ("values", "dtype"),
    [((1, 2), np.uint8), ((1, 300), np.int16), ((7, 255), np.int64), ((4, 65535), np.uint16)],
)
def test_label_values_are_kept(tmp_path, name, values, dtype):
    array = np.zeros(SHAPE, dtype)
    array[2:4], array[6:9] = values
    write = write_nifti if ".nii" in name else write_sitk
    label = read_label_map(write(tmp_path / name, array, AFFINE_MM))
    assert np.array_equal(label.array, array)
    assert label.array.dtype == (np.uint8 if max(values) < 256 else np.uint16)
    assert label.array.flags.f_contiguous


def test_more_than_255_labels_are_kept(tmp_path):
    array = (np.arange(np.prod(SHAPE)) % 700).reshape(SHAPE).astype(np.int32)
    label = read_label_map(write_nifti(tmp_path / "label.nii", array))
    assert np.array_equal(label.array, array)


def test_a_label_map_may_be_empty(tmp_path):
    path = write_nifti(tmp_path / "label.nii.gz", np.zeros(SHAPE, np.uint8))
    assert not read_label_map(path).array.any()


@pytest.mark.parametrize(("off", "is_read"), [(4.58e-5, True), (0.049, True), (0.06, False)])
def test_label_values_that_a_scale_put_off(tmp_path, off, is_read):
    array = np.zeros(SHAPE, np.float32)
    array[2:5], array[6:9] = 3 + off, 6 - off
    path = write_nifti(tmp_path / "label.nii", array)
    if is_read:
        assert set(np.unique(read_label_map(path).array)) == {0, 3, 6}
    else:
        with pytest.raises(InputError, match='label "label.nii" holds fractions; save it as int'):
            read_label_map(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"hello", 'label "label.nii.gz" cannot be read: it is damaged'),
        (None, 'label "label.nii.gz" does not exist'),
    ],
)
def test_a_label_map_that_cannot_be_read_is_called_a_label(tmp_path, content, expected):
    path = tmp_path / "label.nii.gz"
    if content:
        path.write_bytes(content)
    with pytest.raises(InputError, match=expected):
        read_label_map(path)


@pytest.mark.parametrize("value", [-1, 65536])
def test_label_values_out_of_range(tmp_path, value):
    array = np.full(SHAPE, value, np.int32)
    with pytest.raises(InputError, match=f"holds values from {value} to {value}; save it with"):
        read_label_map(write_nifti(tmp_path / "label.nii", array))


# Files of other shapes


def test_a_2d_picture(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(random_array(np.uint8)[0]), str(tmp_path / "scan.png"))
    assert "has 2 dimensions (19 × 14), not 3" in refusal(tmp_path / "scan.png")


def test_several_volumes_in_another_format(tmp_path):
    volumes = [sitk.GetImageFromArray(random_array().transpose())] * 2
    sitk.WriteImage(sitk.JoinSeries(volumes), str(tmp_path / "scan.mha"))
    assert "has 4 dimensions (10 × 14 × 19 × 2), not 3" in refusal(tmp_path / "scan.mha")


@pytest.mark.parametrize("dtype", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_nifti_voxels_that_are_no_real_numbers(tmp_path, dtype):
    path = write_nifti(tmp_path / "scan.nii", np.zeros(SHAPE, dtype=dtype))
    assert "complex, colour or vector voxels; export it with one real number" in refusal(path)


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mha"])
@pytest.mark.parametrize(("dtype", "is_vector"), [(np.complex64, False), (np.uint8, True)])
def test_other_voxels_that_are_no_real_numbers(tmp_path, name, dtype, is_vector):
    array = np.zeros((*SHAPE, 3) if is_vector else SHAPE, dtype=dtype)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=is_vector), str(tmp_path / name))
    assert "complex, colour or vector voxels" in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nrrd"])
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_values_that_are_not_finite(tmp_path, name, value):
    array = random_array(np.float32)
    array[2, 3, 4:7] = value
    write = write_sitk if name.endswith("nrrd") else write_nifti
    assert refusal(write(tmp_path / name, array, orthogonal_affine())) == (
        f'3 of {array.size} voxels of image "{name}" are infinite; '
        "replace them by the background value"
    )


def test_values_beyond_float32(tmp_path):
    array = random_array(np.float64)
    array[2, 3, 4] = 1e300
    assert "1 of 2660 voxels" in refusal(write_nifti(tmp_path / "scan.nii", array))


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_one_value_only(tmp_path, dtype):
    path = write_nifti(tmp_path / "scan.nii", np.full(SHAPE, -7, dtype=dtype))
    assert refusal(path) == 'image "scan.nii" is empty: every voxel is -7; export it again'


@pytest.mark.parametrize(("qform_code", "sform_code"), [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize(
    ("spacing_mm", "expected"),
    [(0, "has a voxel spacing of 0 × 1.5 × 2 mm; repair"), (np.nan, "spacing of nan × 1.5 × 2 mm")],
)
def test_a_spacing_of_zero_or_nan(tmp_path, qform_code, sform_code, spacing_mm, expected):
    path = write_nifti(tmp_path / "scan.nii", random_array(), np.diag([1, 1.5, 2, 1]))
    header = bytearray(path.read_bytes())
    struct.pack_into("<f", header, 80, spacing_mm)  # pixdim[1]
    struct.pack_into("<2h", header, 252, qform_code, sform_code)
    struct.pack_into("<f", header, 280, spacing_mm)  # srow_x[0]
    path.write_bytes(header)
    assert expected in refusal(path)


def test_a_spacing_of_zero_beside_a_good_sform(tmp_path):
    path = write_nifti(tmp_path / "scan.nii", random_array())
    content = bytearray(path.read_bytes())
    struct.pack_into("<2h", content, 252, 0, 1)
    struct.pack_into("<f", content, 80, 0)
    path.write_bytes(content)
    assert "has a voxel spacing of 0 × 1.25 × 2.5 mm" in refusal(path)  # ITK would show 1 mm


def test_a_spacing_of_zero_in_another_format(tmp_path):
    affine_mm = LPS_TO_RAS @ np.diag([4, 5, 6, 1])
    path = write_sitk(tmp_path / "scan.nrrd", random_array(), affine_mm)
    content = path.read_bytes()
    assert b"(4,0,0)" in content
    path.write_bytes(content.replace(b"(4,0,0)", b"(0,0,0)"))
    assert "has a voxel spacing of 0 mm; repair the geometry" in refusal(path)


@pytest.mark.parametrize("third", [(1, 1, 0), (1, 1, 1e-5)])
def test_axes_in_one_plane(tmp_path, third):
    affine_mm = np.eye(4)
    affine_mm[:3, 2] = third
    path = write_nifti(tmp_path / "scan.nii", random_array(), affine_mm)
    assert "is sheared: its axes are not at right angles" in refusal(path)


def test_folders_without_one_series(tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    assert 'folder "study" holds no DICOM images; give one with a series' in refusal(folder)
    write_series(folder, random_array(), "1.2.3")
    write_series(folder, random_array(), "1.2.4")
    assert "mixes 2 values of SeriesInstanceUID" in refusal(folder)
