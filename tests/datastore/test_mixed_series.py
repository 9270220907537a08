"""Series with mixed slices on a DICOM server: the same voxels, or refusal, as from a folder."""

import re

import numpy as np
import pydicom
import pytest
import requests
import SimpleITK as sitk
from nibabel.affines import from_matvec

from ct_series import write_ct_series
from lib.errors import InputError
from lib.imaging.volume import read_volume
from lookup_table import add_lookup_table
from pacs import delete_series

SHAPE_IJK = (30, 25, 12)
AFFINE_MM = from_matvec(np.diag([-1.9, -2.3, 3.5]), [25, 30, -20])
CLICK_IJK = (17, 11, 4)


def hounsfield():
    return np.random.default_rng(3).integers(-1000, 1500, SHAPE_IJK).astype(np.int16)


def edit(path, change):
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


def each(change):
    return lambda paths: [edit(path, change) for path in paths]


def first_two(change):
    return lambda paths: [edit(path, change) for path in paths[:2]]


def fifth(change):
    return lambda paths: edit(paths[4], change)


def at(tag, value):
    return lambda dataset: setattr(dataset, tag, value)


def store_with(intercept, is_signed=False):
    """Return a change that stores the same Hounsfield units with another intercept."""

    def change(dataset):
        values = dataset.pixel_array.astype(np.int64) + int(dataset.RescaleIntercept)
        values = values.clip(0 if intercept == 0 and not is_signed else -1000) - intercept
        dataset.BitsStored, dataset.HighBit = 16, 15
        dataset.PixelRepresentation = int(is_signed)
        dataset.PixelData = values.astype(np.int16 if is_signed else np.uint16).tobytes()
        dataset.RescaleIntercept = str(intercept)

    return change


def store_plain(dataset):
    store_with(0, is_signed=True)(dataset)
    del dataset.RescaleIntercept, dataset.RescaleSlope


def crop(dataset):
    stored = dataset.pixel_array[:-2]
    dataset.Rows, dataset.PixelData = stored.shape[0], stored.tobytes()


def own_frame(dataset):
    dataset.FrameOfReferenceUID = f"1.2.826.{dataset.InstanceNumber}"


def repeat(change):
    """Return a change of a series that adds a changed copy of each of the last slices."""

    def change_all(paths):
        for number, path in enumerate(paths[-6:]):
            copy = path.with_name(f"copy-{number}.dcm")
            copy.write_bytes(path.read_bytes())
            edit(copy, lambda dataset, n=number: (rename(dataset, n), change(dataset)))

    return change_all


def rename(dataset, number):
    uid = f"{dataset.SeriesInstanceUID}.{number}"[-60:]
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid


def another_volume(tag, value):
    def change(dataset):
        dataset.PixelData = (4000 - dataset.pixel_array).astype(np.uint16).tobytes()
        setattr(dataset, tag, value)

    return repeat(change)


def shift(by_mm, axis):
    def change(dataset):
        position = [float(value) for value in dataset.ImagePositionPatient]
        position[axis] += by_mm
        dataset.ImagePositionPatient = position

    return change


SIX = r"6 of 18 slices at the position of another one, .*; it holds 2 volumes, told apart by "
READ = {
    "intercepts": (first_two(store_with(0)), ""),
    "signs": (first_two(store_with(0, is_signed=True)), ""),
    "no rescale tags in some": (first_two(store_plain), "2 of 12 slices have no RescaleIntercept"),
    "table of values": (fifth(add_lookup_table), "ModalityLUTSequence, which is not applied"),
    "no rescale tags": (each(store_plain), "the CT has no RescaleIntercept"),
    "frames of reference": (each(own_frame), "no common FrameOfReferenceUID"),
    "no frame of reference": (
        fifth(lambda dataset: delattr(dataset, "FrameOfReferenceUID")),
        "no common FrameOfReferenceUID",
    ),
    "exact copies": (repeat(lambda dataset: None), "left out of the series, as exact copies"),
    "all inverted": (each(at("PhotometricInterpretation", "MONOCHROME1")), "as MONOCHROME1"),
}
"""READ: change of a series that is read rightly, and its warning."""

REFUSED = {
    "one inverted": (
        fifth(at("PhotometricInterpretation", "MONOCHROME1")),
        "stores 1 of 12 slices as MONOCHROME1",
    ),
    "sizes": (fifth(crop), "mixes slices of 30 × 23, 30 × 25 pixels"),
    "orientations": (
        fifth(at("ImageOrientationPatient", [1, 0, 0, 0, 0, 1])),
        "different ImageOrientationPatient",
    ),
    "spacings": (fifth(at("PixelSpacing", [2.3, 1.2])), "different PixelSpacing"),
    "missing slice": (lambda paths: paths[4].unlink(), "lacks slices"),
    "uneven": (fifth(shift(1.5, 2)), "uneven steps"),
    "shifted sideways": (fifth(shift(9, 1)), "is tilted"),
    "no position": (
        fifth(lambda dataset: delattr(dataset, "ImagePositionPatient")),
        "lacks a valid ImagePositionPatient in 1 of 12",
    ),
    "slope of two values": (each(at("RescaleSlope", ["1", "1"])), "RescaleSlope that is not one"),
    "slope of 0": (fifth(at("RescaleSlope", "0")), "RescaleSlope of 0"),
    "colour": (fifth(at("SamplesPerPixel", 3)), "holds colour images"),
    "acquisitions": (another_volume("AcquisitionNumber", 2), SIX + "AcquisitionNumber"),
    "b-values": (another_volume("DiffusionBValue", 800.0), SIX + "DiffusionBValue"),
    "echoes": (another_volume("EchoTime", "80"), SIX + "EchoTime"),
}
"""REFUSED: change of a series that is refused, and the reason."""


def without_names(text):
    """Return a text without the names of slices' files, which the server chooses itself."""
    return re.sub(r"\S+\.dcm(, \S+\.dcm)*", "FILES", text)


@pytest.fixture
def stored(pacs, tmp_path, request):
    """Store a changed series on the DICOM server; yield a folder with it, named as its UID."""
    (name,) = request.node.callspec.params.values()
    paths = write_ct_series(hounsfield(), AFFINE_MM, tmp_path / "new", description=f"mixed {name}")
    uid = str(pydicom.dcmread(paths[0]).SeriesInstanceUID)
    (READ | REFUSED)[name][0](paths)
    folder = paths[0].parent.rename(tmp_path / uid)
    pacs.upload(folder)
    yield folder
    delete_series(pacs, uid)


def click(server, folder):
    return server.infer("fastsam3d", folder.name, {"foreground": [CLICK_IJK]})


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_has_the_same_reason(dicom_server, stored, name):
    with pytest.raises(InputError, match=REFUSED[name][1]) as caught:
        read_volume(stored)
    reply = click(dicom_server, stored)
    assert reply.status_code == 400
    assert without_names(reply.json()["detail"]) == without_names(str(caught.value))
    assert not list((dicom_server.folder / "cache").rglob(f"{stored.name}*")), "it is kept"


@pytest.mark.parametrize("name", READ)
def test_the_voxels_and_the_warnings_are_the_same(dicom_server, stored, name):
    expected = read_volume(stored)
    assert READ[name][1] in " ".join(expected.warnings)
    assert bool(expected.warnings) == bool(READ[name][1])
    reply = click(dicom_server, stored)
    assert reply.status_code == 200, reply.text
    warnings = without_names("; ".join(expected.warnings))
    assert without_names(reply.headers.get("X-Warning", "")) == warnings
    query = {"image": stored.name}
    image = requests.get(f"{dicom_server.url}/datastore/image", query, timeout=60)
    kept = stored.with_name("kept.nii.gz")
    kept.write_bytes(image.content)
    volume = read_volume(kept)
    np.testing.assert_array_equal(volume.array, expected.array)
    np.testing.assert_allclose(volume.affine_mm, expected.affine_mm, atol=1e-4)
    assert volume.is_ct == expected.is_ct
    mask = dicom_server.mask("fastsam3d", stored.name, {"foreground": [CLICK_IJK]})
    assert mask.GetSize() == SHAPE_IJK and mask[CLICK_IJK] == 1
    if name != "all inverted":
        np.testing.assert_array_equal(volume.array[:, :, 2:], hounsfield()[:, :, 2:])
        assert volume.array.min() == -1000 and sitk.GetArrayViewFromImage(mask).mean() < 0.5
