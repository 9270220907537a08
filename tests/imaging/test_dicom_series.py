"""A DICOM series lies where its headers say, or is rejected with the reason."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from ct_series import write_ct_series
from lib.errors import InputError
from lib.imaging.dicom_series import read_series
from lib.imaging.volume import read_volume

SHAPE_IJK = (22, 17, 9)
OBLIQUE_MM = np.array(
    [[-0.78, 0.12, 0.3, 40], [-0.1, -0.88, 0.2, 55.5], [0.12, -0.08, 2.46, -30], [0, 0, 0, 1]]
)


def orthogonal(affine_mm):
    """Return the affine with orthogonal axes of the same lengths."""
    lengths = np.linalg.norm(affine_mm[:3, :3], axis=0)
    axes, upper = np.linalg.qr(affine_mm[:3, :3] / lengths)
    made = affine_mm.copy()
    made[:3, :3] = axes * np.sign(np.diag(upper)) * lengths
    return made


AFFINES_MM = {
    "axial": np.array([[-0.8, 0, 0, 5], [0, -0.9, 0, 7], [0, 0, 2.5, -30], [0, 0, 0, 1.0]]),
    "sagittal": np.array([[0, 0, 2.5, -30], [-0.8, 0, 0, 5], [0, -0.9, 0, 7], [0, 0, 0, 1.0]]),
    "oblique": orthogonal(OBLIQUE_MM),
}


def hounsfield():
    return np.random.default_rng(1).integers(-1000, 2000, SHAPE_IJK).astype(np.int16)


def write(folder, affine_mm=AFFINES_MM["axial"]):
    return write_ct_series(hounsfield(), affine_mm, folder)


def edit(path, change):
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


@pytest.mark.parametrize("plane", AFFINES_MM)
def test_voxels_lie_where_the_headers_put_them(tmp_path, plane):
    paths = write(tmp_path / "series", AFFINES_MM[plane])
    for path, name in zip(paths, reversed("abcdefghi"), strict=True):
        path.rename(path.with_name(f"{name}.dcm"))  # names run against the slices
    (tmp_path / "series" / "notes.txt").write_text("not DICOM")
    image = read_series(tmp_path / "series")
    array_ijk = sitk.GetArrayFromImage(image).transpose()
    headers = [pydicom.dcmread(path) for path in (tmp_path / "series").glob("*.dcm")]
    assert len(headers) == image.GetDepth() == SHAPE_IJK[2]
    for header in headers:
        index = image.TransformPhysicalPointToContinuousIndex(
            [float(value) for value in header.ImagePositionPatient]
        )
        np.testing.assert_allclose(index, [0, 0, round(index[2])], atol=1e-6)
        values_ij = header.pixel_array.transpose() + float(header.RescaleIntercept)
        np.testing.assert_array_equal(array_ijk[:, :, round(index[2])], values_ij)
        row, column = np.reshape(header.ImageOrientationPatient, (2, 3)).astype(float)
        corner = header.ImagePositionPatient + 21 * 0.8 * row + 16 * 0.9 * column
        if plane != "oblique":
            expected = image.TransformIndexToPhysicalPoint([21, 16, round(index[2])])
            np.testing.assert_allclose(corner, expected, atol=1e-6)


def recompress(compressor):
    def change(path: Path):
        reader, writer = sitk.ImageFileReader(), sitk.ImageFileWriter()
        reader.SetFileName(str(path))
        reader.LoadPrivateTagsOn()
        image = reader.Execute()
        writer.SetImageIO("GDCMImageIO")
        writer.SetFileName(str(path))
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.KeepOriginalImageUIDOn()
        writer.Execute(image)

    return change


COMPRESSIONS = {
    "RLE Lossless": lambda path: edit(path, lambda dataset: dataset.compress(RLELossless)),
    "JPEG 2000": recompress("JPEG2000"),
    "JPEG Lossless": recompress("JPEG"),
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compressed_slices_have_the_same_values(tmp_path, compression):
    for path in write(tmp_path / "series"):
        COMPRESSIONS[compression](path)
        assert compression in pydicom.dcmread(path).file_meta.TransferSyntaxUID.name
    volume = read_volume(tmp_path / "series")
    np.testing.assert_array_equal(volume.array, hounsfield())
    np.testing.assert_allclose(volume.affine_mm, AFFINES_MM["axial"], atol=1e-9)


def test_a_compressed_series_of_a_scanner(shared_dir):
    folder = shared_dir / "data" / "dicom" / "ts_ct_dicom"
    label = sitk.ReadImage(str(folder.with_name("ts_ct_dicom_label.nii.gz")))
    image = read_series(folder)
    assert image.GetSize() == label.GetSize()
    np.testing.assert_allclose(image.GetOrigin(), label.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(image.GetDirection(), label.GetDirection(), atol=1e-5)
    np.testing.assert_allclose(image.GetSpacing(), label.GetSpacing(), atol=1e-5)


def test_a_scale_of_its_own_in_each_slice(tmp_path):
    paths = write(tmp_path / "series")
    for index, path in enumerate(paths):
        edit(path, lambda dataset, slope=1 + 0.25 * index: scale(dataset, slope))
    array = read_volume(tmp_path / "series").array
    expected = (hounsfield() + 1024.0) * (1 + 0.25 * np.arange(9))
    np.testing.assert_allclose(array, expected, rtol=1e-6)


def scale(dataset, slope):
    dataset.RescaleSlope, dataset.RescaleIntercept = slope, 0


def tilt(paths, degrees):
    """Shift each slice sideways, as a tilted gantry does."""
    for k, path in enumerate(paths):
        edit(path, lambda dataset, k=k: move(dataset, 1, k * 2.5 * np.tan(np.radians(degrees))))


def move(dataset, axis, by_mm):
    position = list(dataset.ImagePositionPatient)
    position[axis] = round(float(position[axis]) + by_mm, 6)
    dataset.ImagePositionPatient = position


def turn(dataset):
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, 1]


def crop(dataset):
    stored = dataset.pixel_array[:-1]
    dataset.Rows, dataset.PixelData = stored.shape[0], stored.tobytes()


def another(tag):
    return lambda dataset: setattr(dataset, tag, "1.2.3.4")


def without(tag):
    return lambda dataset: delattr(dataset, tag)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-300])


def each(change):
    return lambda paths: [edit(path, change) for path in paths]


def fourth(change):
    return lambda paths: edit(paths[3], change)


def at(tag, value):
    return lambda dataset: setattr(dataset, tag, value)


def encapsulated_as(transfer_syntax):
    def change(dataset):
        dataset.file_meta.TransferSyntaxUID = transfer_syntax
        dataset.PixelData = encapsulate([dataset.PixelData])

    return change


def copy_slice(paths):
    paths[2].with_name("copy.dcm").write_bytes(paths[2].read_bytes())


def rename_transfer_syntax(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.8\0"))


MPEG4 = "1.2.840.10008.1.2.4.102"

# ERRORS: damage to a series of nine axial slices 2.5 mm apart, and a part of the error message
ERRORS = {
    "gap": (lambda paths: paths[4].unlink(), r"lacks slices: those at -22\.50 and -17\.50 mm"),
    "last of a pair": (lambda paths: [path.unlink() for path in paths[1:]], "only one slice"),
    "copy": (copy_slice, r"1 of 10 slices at the position of another one, such as -25\.00 mm"),
    "uneven": (fourth(lambda d: move(d, 2, 1.0)), r"uneven steps between slices, 1\.50 to 3\.50"),
    "tilt": (lambda paths: tilt(paths, 12), r"tilted by 12\.0° .* sideways by up to 4\.3 mm"),
    "orientations": (fourth(turn), "different ImageOrientationPatient"),
    "spacings": (fourth(at("PixelSpacing", [0.9, 0.7])), "different PixelSpacing"),
    "no spacing": (each(at("PixelSpacing", [0, 0])), r"PixelSpacing \[0\.0, 0\.0\] mm"),
    "sizes": (fourth(crop), "22 × 16, 22 × 17 pixels"),
    "series": (fourth(another("SeriesInstanceUID")), "2 values of SeriesInstanceUID"),
    "frames": (fourth(another("FrameOfReferenceUID")), "2 values of FrameOfReferenceUID"),
    "multi-frame": (each(at("NumberOfFrames", 5)), "several slices in one file"),
    "skew": (each(at("ImageOrientationPatient", [1, 0, 0, 0.5, 0.8, 0])), "not two unit vectors"),
    "text": (fourth(at("ImagePositionPatient", [1, 2])), "ImagePositionPatient that is not 3"),
    "cut off": (lambda paths: cut_off(paths[3]), "cannot be decoded"),
    "MPEG-4": (
        each(encapsulated_as(MPEG4)),
        r"MPEG-4 AVC.* \(1\.2.*102\), which cannot be decoded",
    ),
    "unknown": (lambda paths: rename_transfer_syntax(paths[3]), r"stored as 1\.2\.840.*1\.2\.8"),
} | {
    tag: (fourth(without(tag)), f"lacks a valid {tag} in 1 of 9 slices")
    for tag in (
        "SOPInstanceUID",
        "FrameOfReferenceUID",
        "PixelSpacing",
        "ImageOrientationPatient",
        "ImagePositionPatient",
    )
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_series_that_would_be_misplaced_is_rejected(tmp_path, case):
    damage, message = ERRORS[case]
    damage(write(tmp_path / "series"))
    with pytest.raises(InputError, match=message) as caught:
        read_series(tmp_path / "series")
    assert str(caught.value).startswith('DICOM series "series" ')


def test_positions_that_scanners_round_are_no_gaps(tmp_path):
    rng = np.random.default_rng(2)
    for path in write(tmp_path / "series"):
        edit(path, lambda dataset: move(dataset, 2, rng.uniform(-0.1, 0.1)))
        edit(path, lambda dataset: move(dataset, 0, rng.uniform(-0.1, 0.1)))
    volume = read_volume(tmp_path / "series")
    np.testing.assert_array_equal(volume.array, hounsfield())
    np.testing.assert_allclose(volume.affine_mm, AFFINES_MM["axial"], atol=0.2)
