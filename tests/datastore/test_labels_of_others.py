"""Labels on a DICOM server take part in a training, or are named; saved ones are not offered."""

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
import requests
import SimpleITK as sitk
from pydicom.uid import generate_uid

from ct_series import write_ct_series
from lib.datastore.dicom_seg import write_segmentation
from lib.datastore.dicomweb import CheckedDICOMWebDatastore
from lib.errors import InputError, NotFoundError
from lib.imaging.dicom_series import read_series
from lib.imaging.volume import read_volume
from lib.trainers.data import examine, find_studies

SHAPE_IJK = (40, 36, 22)
AFFINE_MM = np.array([[-2.0, 0, 0, 5], [0, -1.5, 0, 7], [0, 0, 3, -30], [0, 0, 0, 1.0]])


def scan():
    """Return a body in air with a bright box."""
    array = np.full(SHAPE_IJK, -1000.0)
    array[6:34, 6:30, 2:20] = 40
    array[10:20, 10:20, 5:15] = 200
    array += np.random.default_rng(0).normal(0, 10, SHAPE_IJK)
    return array.clip(-1024, 3000).astype(np.int16)


def box(value=1):
    array = np.zeros(SHAPE_IJK, np.uint16)
    array[10:20, 10:20, 5:15] = value
    return array


SEARCHED = ("StudyInstanceUID", "SeriesInstanceUID", "Modality")


class Client:
    """A DICOM server in memory: its series by their UIDs."""

    base_url = "http://pacs.example"
    _session = requests.Session()

    def __init__(self):
        self.series = {}
        self.searches = 0

    def set_http_retry_params(self, **limits):
        pass

    def add(self, *instances):
        self.series[str(instances[0].SeriesInstanceUID)] = list(instances)
        return str(instances[0].SeriesInstanceUID)

    def search_for_series(self, search_filters, offset=None):
        self.searches += 1
        matches = []
        for uid, instances in self.series.items():
            header = pydicom.Dataset()
            for tag in (*SEARCHED, "StudyDate", "SeriesDescription"):
                setattr(header, tag, instances[0].get(tag))
            header.SeriesDate = instances[0].get("SeriesDate") or ""
            if all(header.get(tag) == wanted for tag, wanted in search_filters.items()):
                matches.append((uid, header))
        return [header.to_json_dict() for _, header in matches[offset or 0 :]]

    def retrieve_series(self, study_uid, series_uid, media_types=None):
        return self.series[series_uid]

    def retrieve_series_metadata(self, study_uid, series_uid):
        headers = []
        for instance in self.series[series_uid]:
            header = pydicom.Dataset()
            header.ReferencedSeriesSequence = instance.get("ReferencedSeriesSequence") or []
            headers.append(header.to_json_dict())
        return headers


@pytest.fixture
def client(tmp_path):
    return Client()


@pytest.fixture
def datastore(client, tmp_path, monkeypatch):
    folder = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    made = CheckedDICOMWebDatastore(client, {"Modality": "CT"}, str(tmp_path / "cache"))
    yield made
    made._observer.stop()
    made._observer.join()


@pytest.fixture
def add_scan(client, tmp_path):
    def add(name, modality="CT", **tags):
        hu = scan() + len(list(tmp_path.iterdir()))  # no scan is a copy of another one
        paths = write_ct_series(hu, AFFINE_MM, tmp_path / name, description=name)
        slices = [pydicom.dcmread(path) for path in paths]
        for dataset in slices:
            dataset.Modality = modality
            for tag, stored in tags.items():
                setattr(dataset, tag, stored)
        return client.add(*slices)

    return add


@pytest.fixture
def add_label(client, tmp_path):
    def add(name, array, date="20240101", **tags):
        """Store a label of the scan of this name as DICOM-SEG."""
        image = tmp_path / f"{name}.nii.gz"
        sitk.WriteImage(read_series(tmp_path / name).image, str(image))
        label = sitk.GetImageFromArray(array.transpose())
        label.CopyInformation(sitk.ReadImage(str(image)))
        sitk.WriteImage(label, str(tmp_path / "label.nii.gz"))
        path = write_segmentation(str(image), str(tmp_path / "label.nii.gz"), [])
        dataset = pydicom.dcmread(path)
        os.unlink(path)
        dataset.SeriesInstanceUID, dataset.SeriesDate = generate_uid(), date
        for tag, stored in tags.items():
            setattr(dataset, tag, stored)
        return client.add(dataset)

    return add


def structures(datastore):
    studies, skipped = find_studies(datastore)
    usable, unusable = examine(studies)
    assert not unusable
    return {study.name: set(study.structures) for study in usable}, skipped


@pytest.mark.usefixtures("datastore")
def test_labels_of_others_take_part_and_what_is_none_is_named(datastore, add_scan, add_label):
    first, second, third = (add_scan(name) for name in ("first", "second", "third"))
    add_label("first", box(300))
    overlapping = add_label("second", box(2), SegmentationType="FRACTIONAL")
    nameless = add_label("third", box(4), ReferencedSeriesSequence=[])
    found, skipped = structures(datastore)
    assert found == {first: {300}, second: set(), third: set()}
    assert set(skipped) == {f"label {overlapping}", f"label {nameless}"}
    assert "fractional" in skipped[f"label {overlapping}"]
    assert "does not name the series" in skipped[f"label {nameless}"]


@pytest.mark.usefixtures("datastore")
def test_the_newest_label_that_can_be_read_counts(datastore, add_scan, add_label):
    name = add_scan("first")
    add_label("first", box(1), "20200101")
    add_label("first", box(5), "20240101")
    newest = add_label("first", box(9), "20250101", SegmentationType="OTHER")
    found, skipped = structures(datastore)
    assert found == {name: {5}} and set(skipped) == {f"label {newest}"}


def test_a_label_of_others_is_found_for_one_image(datastore, client, add_scan, add_label):
    first, second = add_scan("first"), add_scan("second")
    add_label("first", box(1), "20200101")
    add_label("first", box(5), "20240101")
    add_label("second", box(7), StudyInstanceUID=generate_uid())
    path = datastore.find_label(first, "final")
    assert read_volume(path).array.max() == 5
    assert datastore.find_label(first, "draft") == ""
    assert datastore.find_label("unknown", "final") == ""
    searches = client.searches
    assert datastore.find_label(first, "final") == path
    assert client.searches == searches  # it is here now
    assert datastore.find_label(second, "final") == ""  # only its own study is searched
    third = add_scan("third")
    add_label("third", box(2), SegmentationType="FRACTIONAL")
    datastore._lists.clear()
    with pytest.raises(InputError, match="no label of the DICOM server can be used .*fractional"):
        datastore.find_label(third, "final")


@pytest.mark.usefixtures("datastore")
def test_a_server_that_fails_meanwhile_ends_no_training(datastore, client, add_scan, monkeypatch):
    name = add_scan("first")
    datastore.get_image_uri(name)
    datastore.list_images()
    real = client.search_for_series

    def search(search_filters, offset=None):
        if search_filters == {"Modality": "SEG"}:
            raise requests.ConnectionError("gone")
        return real(search_filters, offset)

    monkeypatch.setattr(client, "search_for_series", search)
    found, skipped = structures(datastore)
    assert found == {name: set()} and skipped == {"labels of the DICOM server": "gone"}


def test_a_series_that_was_just_labelled_is_not_offered_again(datastore, add_scan, tmp_path):
    first, second = add_scan("first"), add_scan("second")
    assert set(datastore.get_unlabeled_images()) == {first, second}
    image = sitk.ReadImage(datastore.get_image_uri(first))
    label = sitk.GetImageFromArray(box().transpose())
    label.CopyInformation(image)
    sitk.WriteImage(label, str(tmp_path / "label.nii.gz"))
    sent = []
    datastore._send_segmentation = lambda *arguments: sent.append(arguments) or "1.2.3"
    datastore.save_label(first, str(tmp_path / "label.nii.gz"), "final", {})
    assert sent and datastore.get_unlabeled_images() == [second]
    assert first in datastore.get_labeled_images()


def test_many_threads_search_once(datastore, client, add_scan, monkeypatch):
    name = add_scan("first")
    real = client.search_for_series

    def slowly(*arguments, **keywords):
        time.sleep(0.05)
        return real(*arguments, **keywords)

    monkeypatch.setattr(client, "search_for_series", slowly)
    ready = threading.Barrier(8)

    def ask(_):
        ready.wait()
        return datastore.list_images()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [[name]] * 8
    assert client.searches == 4  # CT twice, as the last page is empty; MR and PT


def test_a_server_that_ignores_filters(datastore, client, add_scan, add_label, monkeypatch):
    name = add_scan("first")
    label = add_label("first", box(2))
    real = client.search_for_series
    monkeypatch.setattr(
        client, "search_for_series", lambda search_filters, offset: real({}, offset)
    )
    assert datastore.list_images() == [name]
    assert datastore.get_labeled_images() == [name]
    assert datastore._pacs.find_series(label).Modality == "SEG"


@pytest.mark.parametrize(("modality", "is_ct"), [("CT", True), ("MR", False)])
def test_the_modality_of_a_series_is_that_of_its_file(datastore, add_scan, modality, is_ct):
    name = add_scan("first", modality, RescaleIntercept="-1024")
    volume = read_volume(datastore.get_image_uri(name))
    assert volume.is_ct is is_ct and not volume.warnings
    assert volume.array.min() < -900


def test_the_warnings_of_a_series_are_those_of_its_file(datastore, add_scan):
    name = add_scan("first", FrameOfReferenceUID="")
    assert "no common FrameOfReferenceUID" in read_volume(datastore.get_image_uri(name)).warnings[0]


def test_each_segmentation_of_a_series_is_listed_and_read_without_a_copy(
    datastore, add_scan, add_label
):
    first, second = add_scan("first"), add_scan("second")
    old = add_label("first", box(3), "20200101", SeriesDescription="old one")
    new = add_label("first", box(5), "20240101")
    add_label("first", box(6), ReferencedSeriesSequence=[])
    add_label("second", box(7))
    segmentations = datastore.segmentations()
    assert [each.series_uid for each in segmentations.of(first)] == [new, old]
    assert segmentations.of(first)[1].description == "old one"
    assert segmentations.of("unknown") == []
    image = sitk.ReadImage(datastore.get_image_uri(first))
    labels, named = segmentations.read(first, old, image)
    np.testing.assert_array_equal(labels, box(3))
    assert named == [{"name": "label 3", "idx": 3}]
    assert datastore.get_label_uri(first, "final") == ""
    for image_id, series_uid in ((second, old), (first, "1.2.3")):
        with pytest.raises(NotFoundError, match="has no DICOM-SEG"):
            segmentations.read(image_id, series_uid, image)
