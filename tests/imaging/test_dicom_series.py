"""A DICOM series lies where its headers say, or is rejected with the reason."""

import re
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    RLELossless,
)

from ct_series import write_ct_series
from lib.errors import InputError
from lib.imaging.dicom_series import read_series
from lib.imaging.volume import read_volume
from lookup_table import add_lookup_table

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
    image = read_series(tmp_path / "series").image
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
    image = read_series(folder).image
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
    path = paths[2].with_name("copy.dcm")
    path.write_bytes(paths[2].read_bytes())
    return path


def invert(dataset):
    dataset.PixelData = (~dataset.pixel_array).tobytes()


def shorten(dataset):
    """Leave half of the voxels; ITK would take what it finds for the others."""
    dataset.PixelData = dataset.PixelData[: len(dataset.PixelData) // 4 * 2]


def rename_transfer_syntax(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.8\0"))


MPEG4 = "1.2.840.10008.1.2.4.102"

# ERRORS: damage to a series of nine axial slices 2.5 mm apart, and a part of the error message
ERRORS = {
    "gap": (lambda paths: paths[4].unlink(), r"lacks slices: those at -22\.50 and -17\.50 mm"),
    "last of a pair": (lambda paths: [path.unlink() for path in paths[1:]], "only one slice"),
    "another at one place": (
        lambda paths: edit(copy_slice(paths), invert),
        r"1 of 10 slices at the position of another one, such as -25\.00 mm",
    ),
    "uneven": (fourth(lambda d: move(d, 2, 1.0)), r"uneven steps between slices, 1\.50 to 3\.50"),
    "tilt": (lambda paths: tilt(paths, 12), r"tilted by 12\.0° .* sideways by up to 4\.3 mm"),
    "orientations": (fourth(turn), "different ImageOrientationPatient"),
    "spacings": (fourth(at("PixelSpacing", [0.9, 0.7])), "different PixelSpacing"),
    "no spacing": (each(at("PixelSpacing", [0, 0])), r"PixelSpacing \[0\.0, 0\.0\] mm"),
    "sizes": (fourth(crop), "22 × 16, 22 × 17 pixels"),
    "series": (fourth(another("SeriesInstanceUID")), "2 values of SeriesInstanceUID"),
    "modalities": (fourth(at("Modality", "MR")), "mixes slices of the Modality CT, MR; split"),
    "multi-frame": (each(at("NumberOfFrames", 5)), "several slices in one file"),
    "skew": (each(at("ImageOrientationPatient", [1, 0, 0, 0.5, 0.8, 0])), "not two unit vectors"),
    "text": (fourth(at("ImagePositionPatient", [1, 2])), "ImagePositionPatient that is not 3"),
    "cut off": (lambda paths: cut_off(paths[3]), r"lacks 300 bytes of voxels in slice-0003\.dcm"),
    "short": (fourth(shorten), r"lacks \d+ bytes of voxels in slice-0003\.dcm"),
    "inverted": (
        fourth(at("PhotometricInterpretation", "MONOCHROME1")),
        r"stores 1 of 9 slices as MONOCHROME1 \(low is bright\) and the others not",
    ),
    "shifted bits": (fourth(at("BitsStored", 10)), "a HighBit of 11 for 10 BitsStored"),
    "MPEG-4": (
        each(encapsulated_as(MPEG4)),
        r"MPEG-4 AVC.* \(1\.2.*102\), which cannot be decoded",
    ),
    "unknown": (lambda paths: rename_transfer_syntax(paths[3]), r"stored as 1\.2\.840.*1\.2\.8"),
} | {
    tag: (fourth(without(tag)), f"lacks a valid {tag} in 1 of 9 slices")
    for tag in (
        "SOPInstanceUID",
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


@pytest.mark.parametrize("plane", AFFINES_MM)
def test_a_page_in_place_of_a_slice_is_a_hole_that_is_filled(tmp_path, plane):
    whole = read_series(write(tmp_path / "whole", AFFINES_MM[plane])[0].parent)
    for path in write(tmp_path / "series", AFFINES_MM[plane])[4:7:2]:
        path.write_text("<html>error</html>")
    series = read_series(tmp_path / "series")
    for get in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(series.image, get)(), getattr(whole.image, get)())
    array, expected = (sitk.GetArrayFromImage(each.image) for each in (series, whole))
    holes = [k for k in range(SHAPE_IJK[2]) if not np.array_equal(array[k], expected[k])]
    assert len(holes) == 2
    for k in holes:
        mean = (expected[k - 1].astype(float) + expected[k + 1]) / 2
        np.testing.assert_array_equal(array[k], np.rint(mean))
    assert re.search(r"left out .* as no DICOM image: \S+, \S+", series.warnings[0])
    numbers = ", ".join(str(k + 1) for k in holes)
    assert f"slice {numbers} of the stack is missing" in series.warnings[-1]


def test_a_refusal_names_the_files_that_were_left_out(tmp_path):
    paths = write(tmp_path / "series")
    paths[4].write_text("<html>error</html>")
    paths[5].unlink()
    with pytest.raises(
        InputError, match=f"lacks slices: .*; left out .* DICOM image: {paths[4].name}"
    ):
        read_series(tmp_path / "series")


# --- values ---------------------------------------------------------------------------------------


def rescale_each(paths, intercepts):
    """Store the same Hounsfield units with another intercept in each slice; None: without tags."""
    for path, intercept in zip(paths, intercepts, strict=True):
        edit(path, lambda dataset, value=intercept: store_with(dataset, value))


def store_with(dataset, intercept):
    values = dataset.pixel_array.astype(np.int64) + int(dataset.RescaleIntercept)
    values = np.clip(values, -1000, 2000) - (intercept or 0)
    is_signed = bool(values.min() < 0)
    dataset.BitsStored, dataset.HighBit = 16, 15
    dataset.PixelRepresentation = int(is_signed)
    dataset.PixelData = values.astype(np.int16 if is_signed else np.uint16).tobytes()
    if intercept is None:
        del dataset.RescaleIntercept, dataset.RescaleSlope
    else:
        dataset.RescaleIntercept = str(intercept)


@pytest.mark.parametrize(
    "intercepts",
    [
        (0, 0, -1024, -1024, -1024, -1024, -1024, -1024, -1024),
        (-1024, -1024, 0, 0, -2000, -1000, -1024, 0, -40000),
        (None, None, -1024, None, None, -1024, -1024, -1024, -1024),
    ],
)
def test_each_slice_is_rescaled_by_its_own_tags(tmp_path, intercepts):
    rescale_each(write(tmp_path / "series"), intercepts)
    volume = read_volume(tmp_path / "series")
    np.testing.assert_array_equal(volume.array, hounsfield())
    assert volume.array.min() == -1000 and volume.is_ct
    lacking = intercepts.count(None)
    assert volume.warnings == (
        (
            f"{lacking} of 9 slices have no RescaleIntercept, which the others have; "
            "their values are used as stored",
        )
        if lacking
        else ()
    )


def test_a_fraction_in_one_slice_makes_all_float32(tmp_path):
    paths = write(tmp_path / "series")
    edit(paths[5], at("RescaleIntercept", "-1024.5"))
    volume = read_volume(tmp_path / "series")
    expected = hounsfield().astype(np.float32)
    expected[:, :, 5] -= 0.5
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, expected)


def invalid(tag, text):
    """Store text that is no value of the tag's type."""

    def change(dataset):
        dataset[tag] = pydicom.DataElement(pydicom.datadict.tag_for_keyword(tag), "LO", text)

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (at("RescaleSlope", ["1", "1"]), r"RescaleSlope that is not one number: \[1, 1\]"),
        (at("RescaleIntercept", ["1", "2"]), "RescaleIntercept that is not one number"),
        (invalid("RescaleSlope", "one"), "RescaleSlope that is not one number"),
        (at("RescaleSlope", "0"), "RescaleSlope of 0"),
        (invalid("NumberOfFrames", "many"), "NumberOfFrames that is not one number"),
        (at("NumberOfFrames", "0"), "NumberOfFrames of 0"),
        (invalid("Rows", "many"), "DICOM series"),
        (at("SamplesPerPixel", 3), "holds colour images"),
    ],
)
@pytest.mark.parametrize("which", [each, fourth])
def test_tags_that_are_no_numbers_are_refused(tmp_path, change, expected, which):
    which(change)(write(tmp_path / "series"))
    with pytest.raises(InputError, match=expected):
        read_series(tmp_path / "series")


def test_monochrome1_is_no_hounsfield_scale(tmp_path):
    each(at("PhotometricInterpretation", "MONOCHROME1"))(write(tmp_path / "series"))
    volume = read_volume(tmp_path / "series")
    assert not volume.is_ct
    assert "stored as MONOCHROME1" in volume.warnings[0]


@pytest.mark.parametrize("intercept", [0, -1024])
def test_a_ct_without_a_scale_is_known_by_its_values(tmp_path, intercept):
    """It may hold Hounsfield units all the same, if it has negative values."""

    def change(dataset):
        store_with(dataset, intercept)
        del dataset.RescaleIntercept, dataset.RescaleSlope

    each(change)(write(tmp_path / "series"))
    volume = read_volume(tmp_path / "series")
    np.testing.assert_array_equal(volume.array, hounsfield() - intercept)
    assert volume.is_ct == (intercept == 0)
    assert "the CT has no RescaleIntercept" in volume.warnings[0]


def look_up(dataset):
    """Store a table instead of slope and intercept."""
    add_lookup_table(dataset)
    del dataset.RescaleSlope, dataset.RescaleIntercept


@pytest.mark.parametrize("which", [each, fourth])
def test_a_table_of_values_is_no_hounsfield_scale(tmp_path, which):
    which(look_up)(write(tmp_path / "series"))
    volume = read_volume(tmp_path / "series")
    assert not volume.is_ct
    assert any("has a ModalityLUTSequence, which is not applied" in w for w in volume.warnings)


@pytest.mark.parametrize(("modality", "is_ct"), [("CT", True), ("MR", False), ("PT", False)])
@pytest.mark.parametrize("by", [0, 1024])
def test_dicom_says_what_is_a_ct(tmp_path, modality, is_ct, by):
    def change(dataset):
        dataset.Modality = modality
        dataset.RescaleIntercept = str(int(dataset.RescaleIntercept) + by)

    each(change)(write(tmp_path / "series"))
    assert read_volume(tmp_path / "series").is_ct is is_ct


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zzz.dcm", "000.dcm", "error"])
@pytest.mark.parametrize("content", [b"", b"<html>error</html>", bytes(300)])
def test_a_file_that_is_no_dicom_is_left_out_and_named(tmp_path, name, content):
    write(tmp_path / "series")
    (tmp_path / "series" / name).write_bytes(content)
    (tmp_path / "series" / "._a.dcm").write_bytes(bytes(200))
    volume = read_volume(tmp_path / "series")
    np.testing.assert_array_equal(volume.array, hounsfield())
    assert volume.warnings == (f"left out of the series, as no DICOM image: {name}",)


def test_a_report_in_the_folder_is_left_out_and_named(tmp_path):
    paths = write(tmp_path / "series")
    report = paths[0].with_name("report.dcm")
    report.write_bytes(paths[0].read_bytes())
    edit(report, lambda d: [d.__delattr__(t) for t in ("Rows", "Columns", "PixelData")])
    volume = read_volume(tmp_path / "series")
    np.testing.assert_array_equal(volume.array, hounsfield())
    assert "no DICOM image: report.dcm" in volume.warnings[0]


def another_frame_in_each(paths):
    for number, path in enumerate(paths):
        edit(path, at("FrameOfReferenceUID", f"1.2.{number}"))


@pytest.mark.parametrize(
    "change",
    [
        another_frame_in_each,
        each(without("FrameOfReferenceUID")),
        fourth(at("FrameOfReferenceUID", "")),
    ],
)
def test_slices_without_a_common_frame_of_reference_are_read_with_a_warning(tmp_path, change):
    change(write(tmp_path / "series"))
    volume = read_volume(tmp_path / "series")
    np.testing.assert_array_equal(volume.array, hounsfield())
    assert "have no common FrameOfReferenceUID" in volume.warnings[0]


@pytest.mark.parametrize("uid", ["1.2.3", None])
def test_copies_of_slices_are_dropped_with_a_warning(tmp_path, uid):
    paths = write(tmp_path / "series")
    for number in (2, 7):
        copy = paths[number].with_name(f"copy{number}.dcm")
        copy.write_bytes(paths[number].read_bytes())
        if uid:
            edit(copy, at("SOPInstanceUID", f"{uid}.{number}"))
    volume = read_volume(tmp_path / "series")
    np.testing.assert_array_equal(volume.array, hounsfield())
    (warning,) = volume.warnings
    assert re.search(r"left out .* exact copies: slices (\S+), (\S+)$", warning)


@pytest.mark.parametrize(
    ("tag", "values"),
    [
        ("AcquisitionNumber", (1, 2)),
        ("DiffusionBValue", (0.0, 800.0)),
        ("EchoTime", ("12", "80")),
        ("TemporalPositionIdentifier", (1, 2)),
        ("ImageType", (["ORIGINAL", "PRIMARY"], ["DERIVED", "SECONDARY"])),
    ],
)
def test_two_volumes_in_one_series_are_told_apart(tmp_path, tag, values):
    paths = write(tmp_path / "series")
    for path in paths:
        edit(path, at(tag, values[0]))
        second = path.with_name(f"second-{path.name}")
        second.write_bytes(path.read_bytes())
        edit(second, lambda d: (invert(d), setattr(d, tag, values[1])))
    expected = rf"holds 2 volumes, told apart by {tag}: .* \(9 slices\), .* \(9 slices\); viewers"
    with pytest.raises(InputError, match=expected):
        read_series(tmp_path / "series")


# --- enhanced multi-frame objects -----------------------------------------------------------------


def sequence(**tags):
    item = Dataset()
    for tag, stored in tags.items():
        setattr(item, tag, stored)
    return [item]


def enhance(paths, target, sop_class, slopes=(1,), compress=False):
    """Store single slices as one multi-frame object, in an order of its own."""
    paths = [paths[index] for index in np.random.default_rng(3).permutation(len(paths))]
    slices = [pydicom.dcmread(path) for path in paths]
    made = pydicom.dcmread(paths[0])
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = sop_class
    groups = []
    for number, stored in enumerate(slices):
        slope = slopes[number % len(slopes)]
        transformation = sequence(RescaleSlope=slope, RescaleIntercept=stored.RescaleIntercept)
        position = sequence(ImagePositionPatient=stored.ImagePositionPatient)
        tags = {"PlanePositionSequence": position, "FrameContentSequence": sequence(StackID="1")}
        groups += sequence(**tags, PixelValueTransformationSequence=transformation)
    made.PerFrameFunctionalGroupsSequence = groups
    made.SharedFunctionalGroupsSequence = sequence(
        PixelMeasuresSequence=sequence(PixelSpacing=made.PixelSpacing),
        PlaneOrientationSequence=sequence(ImageOrientationPatient=made.ImageOrientationPatient),
    )
    for tag in ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"):
        delattr(made, tag)
    del made.RescaleSlope, made.RescaleIntercept
    made.NumberOfFrames = len(slices)
    made.PixelData = b"".join(stored.PixelData for stored in slices)
    if compress:
        made.compress(RLELossless)
    target.parent.mkdir(exist_ok=True)
    made.save_as(target)
    return slopes


@pytest.mark.parametrize("sop_class", [EnhancedCTImageStorage, EnhancedMRImageStorage])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("plane", AFFINES_MM)
def test_an_enhanced_multi_frame_object_is_read(tmp_path, sop_class, compress, plane):
    paths = write(tmp_path / "slices", AFFINES_MM[plane])
    enhance(paths, tmp_path / "series" / "one.dcm", sop_class, compress=compress)
    one_each = read_volume(tmp_path / "slices")
    for source in (tmp_path / "series", tmp_path / "series" / "one.dcm"):
        volume = read_volume(source)
        np.testing.assert_array_equal(volume.array, one_each.array)
        np.testing.assert_allclose(volume.affine_mm, one_each.affine_mm)
        assert volume.is_ct and not volume.warnings


def test_each_frame_has_a_scale_of_its_own(tmp_path):
    paths = write(tmp_path / "slices")
    enhance(paths, tmp_path / "series" / "one.dcm", EnhancedMRImageStorage, slopes=(1, 2, 0.5))
    order = np.random.default_rng(3).permutation(9)
    slopes = np.empty(9)
    slopes[order] = np.resize([1, 2, 0.5], 9)
    expected = (hounsfield() + 1024.0) * slopes - 1024
    np.testing.assert_allclose(read_volume(tmp_path / "series").array, expected)


def test_enhanced_objects_with_one_frame_each_are_read(tmp_path):
    paths = write(tmp_path / "slices")
    for number, path in enumerate(paths):
        enhance([path], tmp_path / "series" / f"{number}.dcm", EnhancedCTImageStorage)
    np.testing.assert_array_equal(read_volume(tmp_path / "series").array, hounsfield())


def test_frames_that_are_not_all_described(tmp_path):
    paths = write(tmp_path / "slices")
    enhance(paths, tmp_path / "series" / "one.dcm", EnhancedCTImageStorage)
    edit(tmp_path / "series" / "one.dcm", at("NumberOfFrames", 8))
    with pytest.raises(InputError, match="has 8 frames in one.dcm, but describes 9"):
        read_series(tmp_path / "series")


def test_more_voxels_than_allowed_are_refused_before_any_is_decoded(tmp_path, monkeypatch):
    write(tmp_path / "series")
    monkeypatch.setattr("lib.imaging.dicom_series.sitk", None)
    with pytest.raises(InputError, match="22 × 17 × 9 voxels, 3,366 in all; .* up to 3,365"):
        read_volume(tmp_path / "series", max_voxels=3365)


def deflate(path, behind=b""):
    """Store a slice deflated, with bytes behind its voxels."""
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset[0xFFFCFFFC] = pydicom.DataElement(0xFFFCFFFC, "OB", behind)  # padding (PS3.10)
    dataset.save_as(path)


def test_a_deflated_file_is_measured_before_it_is_inflated(tmp_path, monkeypatch):
    paths = write(tmp_path / "series")
    for path in paths:
        deflate(path)
    np.testing.assert_array_equal(read_volume(tmp_path / "series").array, hounsfield())
    deflate(paths[3], bytes(2 * 10**6))
    assert paths[3].stat().st_size < 10**4
    read_volume(tmp_path / "series")
    monkeypatch.setattr("lib.imaging.dicom_frames.default_voxel_limit", lambda: 10**6)
    monkeypatch.setattr("pydicom.dcmread", refuse_inflating)
    with pytest.raises(InputError, match=r"more than 2,000,000 bytes in slice-0003\.dcm"):
        read_volume(tmp_path / "series")


def refuse_inflating(file, **options):
    assert "slice-0003" not in file.name, "it is inflated"
    return DCMREAD(file, **options)


DCMREAD = pydicom.dcmread


def test_sequences_nested_without_end_are_no_image(tmp_path):
    paths = write(tmp_path / "series")
    nested = bytes.fromhex("08004011 53510000 ffffffff feff00e0 ffffffff")
    content = paths[0].read_bytes()
    start = content[: content.index(b"\x08\0")]
    (tmp_path / "series" / "nested.dcm").write_bytes(start + nested * 9000)
    volume = read_volume(tmp_path / "series")
    np.testing.assert_array_equal(volume.array, hounsfield())
    assert "as no DICOM image: nested.dcm" in volume.warnings[0]


def test_a_large_scale_overflows_no_type(tmp_path):
    paths = write(tmp_path / "slices")
    enhance(paths, tmp_path / "series" / "one.dcm", EnhancedCTImageStorage, slopes=(2000000,))
    expected = (hounsfield().astype(np.int64) + 1024) * 2000000 - 1024
    np.testing.assert_array_equal(read_volume(tmp_path / "series").array, expected)


def test_rounded_axes_are_put_at_right_angles(tmp_path):
    each(at("ImageOrientationPatient", [0.9995, 0.0305, 0, -0.0297, 0.9996, 0]))(
        write(tmp_path / "series")
    )
    volume = read_volume(tmp_path / "series")
    axes = volume.affine_mm[:3, :3] / (0.8, 0.9, 2.5)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(volume.affine_mm, AFFINES_MM["axial"], atol=0.06)


@pytest.mark.parametrize("unsigned", [(0, 1), (7, 8), (4,)])
def test_air_stays_air_beside_slices_that_cannot_store_it(tmp_path, unsigned):
    """Slices of soft tissue alone are unsigned; in their type -1000 would become 64,536."""
    paths = write(tmp_path / "series")
    for index in unsigned:
        edit(paths[index], store_unsigned)
    volume = read_volume(tmp_path / "series")
    expected = hounsfield()
    expected[:, :, list(unsigned)] = expected[:, :, list(unsigned)].clip(0)
    np.testing.assert_array_equal(volume.array, expected)


def store_unsigned(dataset):
    values = dataset.pixel_array.astype(np.int64) + int(dataset.RescaleIntercept)
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 15, 0
    dataset.RescaleIntercept = "0"
    dataset.PixelData = values.clip(0).astype(np.uint16).tobytes()
