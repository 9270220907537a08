"""A label comes back from DICOM-SEG as it was; objects of others are read, or named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from ct_series import write_ct_series
from lib.datastore.dicom_seg import Segment, describe_segments, write_segmentation
from lib.datastore.dicom_seg_reader import label_values, read_segmentation
from lib.errors import InputError
from lib.imaging.dicom_series import read_series

SHAPE_IJK = (24, 19, 11)
AFFINE_MM = np.array([[-0.8, 0, 0, 5], [0, -0.9, 0, 7], [0, 0, 2.5, -30], [0, 0, 0, 1.0]])


@pytest.fixture(autouse=True)
def dcmqi_on_path(monkeypatch):
    folder = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def image(tmp_path):
    """Return the path of a series' NIfTI file; its slices lie in the folder beside it."""
    array = np.random.default_rng(0).integers(-1000, 900, SHAPE_IJK).astype(np.int16)
    write_ct_series(array, AFFINE_MM, tmp_path / "series")
    path = tmp_path / "series.nii.gz"
    sitk.WriteImage(read_series(tmp_path / "series").image, str(path))
    return str(path)


def save_label(image, array):
    label = sitk.GetImageFromArray(array.transpose())
    label.CopyInformation(sitk.ReadImage(image))
    path = image.replace("series.nii.gz", "label.nii.gz")
    sitk.WriteImage(label, path)
    return path


def parts(values):
    """Return a label map with a box for each value, so that slices hold several of them."""
    array = np.zeros(SHAPE_IJK, np.uint16)
    for number, value in enumerate(values):
        k, j, i = np.unravel_index(number, (5, 9, 12))
        array[2 * i : 2 * i + 2, 2 * j : 2 * j + 1, 2 * k : 2 * k + 2] = value
    return array


@pytest.mark.parametrize(
    "values", [(1, 300), (2, 3, 7), (5,), (1, 2, 32768, 65535), tuple(range(1, 300)), (255, 256)]
)
def test_label_values_come_back(image, values):
    array = parts(values)
    path = write_segmentation(image, save_label(image, array), [])
    dataset = pydicom.dcmread(path)
    os.unlink(path)
    assert set(label_values(dataset).values()) == set(values)
    labels = read_segmentation([dataset], sitk.ReadImage(image))
    np.testing.assert_array_equal(labels, array)
    assert labels.dtype == (np.uint8 if max(values) < 256 else np.uint16)


def test_frames_keep_the_places_of_their_source_slices(image):
    """highdicom indexes frames by source slices only if the object says so (PS3.3 C.7.6.16.2.6)."""
    slices = {
        str(each.SOPInstanceUID): each.ImagePositionPatient
        for each in map(pydicom.dcmread, Path(image.removesuffix(".nii.gz")).glob("*.dcm"))
    }
    path = write_segmentation(image, save_label(image, parts([1, 2, 70])), [])
    frames = pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    os.unlink(path)
    assert len(frames) > 3
    for frame in frames:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert source.SpatialLocationsPreserved == "YES"
        np.testing.assert_allclose(
            frame.PlanePositionSequence[0].ImagePositionPatient,
            slices[source.ReferencedSOPInstanceUID],
            atol=1e-3,
        )


def test_values_that_a_scale_put_off_are_those_that_were_meant(image):
    array = parts([3, 6])
    off = np.where(array == 3, 3.0000458, np.where(array == 6, 5.99995, 0)).astype(np.float32)
    path = write_segmentation(image, save_label(image, off), [{"name": "a", "idx": 6}])
    dataset = pydicom.dcmread(path)
    os.unlink(path)
    np.testing.assert_array_equal(read_segmentation([dataset], sitk.ReadImage(image)), array)


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("Leber Südflügel", "Leber Südflügel"),
        ("肝臓", "肝臓"),
        ("x" * 64, "x" * 64),
        ("ö" * 65, "ö" * 63 + "…"),
        ("left\\right", "left/right"),
        ("a\nb", "a b"),
        ("lésion n° 3 – «à vérifier»", "lésion n° 3 – «à vérifier»"),
        ("", "label 4"),
        (None, "label 4"),
        (17, "17"),
    ],
)
def test_names_are_kept_or_shortened(image, name, stored):
    info = [{"name": name, "idx": 4, "color": [1.0, 2, 300]}]
    path = write_segmentation(image, save_label(image, parts([4])), info)
    (segment,) = pydicom.dcmread(path).SegmentSequence
    os.unlink(path)
    assert segment.SegmentLabel == stored
    if name and isinstance(name, str):
        assert segment.SegmentDescription == name


@pytest.mark.parametrize(
    "label_info",
    [[None], ["liver"], [{"idx": "2", "color": "red"}], [{"idx": [1]}], [[]], {"a": 1}],
)
def test_label_info_of_another_kind_counts_as_missing(label_info):
    assert [segment.name for segment in describe_segments([2], label_info)] == ["label 2"]


def test_segments_have_their_names_and_colours():
    info = [{"name": "a", "idx": 2, "color": (1, 2, 3, 4)}, {"name": "b", "idx": 9}]
    assert describe_segments([2, 9], info) == [Segment(2, "a", (1, 2, 3)), Segment(9, "b")]


def other_segmentation(image, array, kind="binary"):
    """Return the DICOM-SEG of another program: dcmqi without our tags."""
    attributes = [
        {
            "labelID": int(value),
            "SegmentLabel": f"s{value}",
            "SegmentDescription": f"s{value}",
            "SegmentAlgorithmType": "MANUAL",
            "SegmentedPropertyCategoryCodeSequence": {
                "CodeValue": "123037004",
                "CodingSchemeDesignator": "SCT",
                "CodeMeaning": "Anatomical Structure",
            },
            "SegmentedPropertyTypeCodeSequence": {
                "CodeValue": "85756007",
                "CodingSchemeDesignator": "SCT",
                "CodeMeaning": "Tissue",
            },
        }
        for value in np.unique(array)
        if value
    ]
    folder = Path(image).parent
    described = {"SeriesDescription": "x", "SeriesNumber": "3", "InstanceNumber": "1"}
    (folder / "meta.json").write_text(json.dumps({**described, "segmentAttributes": [attributes]}))
    arguments = {
        "inputImageList": save_label(image, array),
        "inputDICOMDirectory": folder / "series",
        "outputDICOM": folder / "other.dcm",
        "inputMetadata": folder / "meta.json",
        "segmentationType": kind,
    }
    flags = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    subprocess.run(["itkimage2segimage", *flags], check=True, capture_output=True)
    return pydicom.dcmread(folder / "other.dcm")


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_the_segmentation_of_another_program_is_read(image, kind):
    array = parts([3, 7, 9])
    dataset = other_segmentation(image, array, kind)
    numbers = np.zeros(10, int)
    numbers[[3, 7, 9]] = sorted(label_values(dataset))
    labels = read_segmentation([dataset], sitk.ReadImage(image))
    np.testing.assert_array_equal(labels, numbers[array])


def edit_overlap(dataset):
    """Fill all frames, two of which lie on one slice."""
    ones = np.ones(dataset.pixel_array.size, np.uint8)
    dataset.PixelData = np.packbits(ones, bitorder="little").tobytes()


def edit_fractional(dataset):
    """Make probabilities of the pixels."""
    pixels = dataset.pixel_array.astype(np.uint8) * 100
    pixels[0, :3] = 40
    dataset.SegmentationType, dataset.MaximumFractionalValue = "FRACTIONAL", 255
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelData = pixels.tobytes()


def edit_grid(dataset):
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.PixelSpacing = [0.4, 0.4]


def edit_place(dataset):
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        x, y, z = groups.PlanePositionSequence[0].ImagePositionPatient
        groups.PlanePositionSequence[0].ImagePositionPatient = [x, y, z + 250]


def edit_pixels(dataset):
    dataset.PixelData = dataset.PixelData[:-20]


def edit_type(dataset):
    dataset.SegmentationType = "PROBABILITY"


def edit_frames(dataset):
    del dataset.PerFrameFunctionalGroupsSequence[0]


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (edit_overlap, "segments of the DICOM-SEG overlap"),
        (edit_fractional, "is fractional; store it as a binary one"),
        (edit_grid, "lies on another grid"),
        (edit_place, "reaches beyond its series"),
        (edit_pixels, "cannot be decoded"),
        (edit_type, "of the type PROBABILITY"),
        (edit_frames, "frames, but describes"),
    ],
)
def test_what_is_no_label_map_is_refused(image, edit, says):
    dataset = other_segmentation(image, parts([1, 2, 4]))
    edit(dataset)
    with pytest.raises(InputError, match=says):
        read_segmentation([dataset], sitk.ReadImage(image))


def test_a_fractional_one_without_fractions_is_read(image):
    array = parts([1, 2])
    dataset = other_segmentation(image, array)
    pixels = dataset.pixel_array.astype(np.uint8) * 255
    edit_fractional(dataset)
    dataset.PixelData = pixels.tobytes()
    np.testing.assert_array_equal(read_segmentation([dataset], sitk.ReadImage(image)), array)


def test_the_newest_object_of_a_series_counts(image):
    old, new = other_segmentation(image, parts([1])), other_segmentation(image, parts([1, 2]))
    old.ContentDate, new.ContentDate = "20240101", "20250101"
    for instances in ([old, new], [new, old]):
        labels = read_segmentation(instances, sitk.ReadImage(image))
        np.testing.assert_array_equal(labels, parts([1, 2]))
    with pytest.raises(InputError, match="sent no DICOM-SEG"):
        read_segmentation([], sitk.ReadImage(image))


def test_highdicom_reads_names_and_voxels(image):
    highdicom = pytest.importorskip("highdicom")
    array = parts([1, 300])
    info = [{"name": "Übergang", "idx": 300}, {"name": "a", "idx": 1}]
    path = write_segmentation(image, save_label(image, array), info)
    segmentation = highdicom.seg.Segmentation.from_dataset(pydicom.dcmread(path))
    os.unlink(path)
    assert [segmentation.get_segment_description(n).segment_label for n in (1, 2)] == [
        "a",
        "Übergang",
    ]
