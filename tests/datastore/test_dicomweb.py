"""The studies of a DICOM server: masks and labels lie where the slices are, or are refused."""

import io
import json
import os
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
import SimpleITK as sitk
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from nibabel.affines import apply_affine, from_matvec
from pydicom.uid import MRImageStorage, PositronEmissionTomographyImageStorage

import torso
from ct_series import write_ct_series
from lib.datastore.dicom_seg import describe_segments
from lib.datastore.dicomweb import CheckedDICOMWebDatastore
from lib.errors import InputError, SavingError
from pacs import delete_series, stored_instances
from selftest import ORIENTATIONS, ClickedScan, dice_in_space

SHAPE_IJK, SPACING_MM = (60, 52, 34), (5.0, 5.5, 8.0)
CLICKS = [[44, 30, 17], [37, 26, 20]]
FILTER = "MONAI_LABEL_DICOMWEB_SEARCH_FILTER"
LPS_OF_RAS = [-1, -1, 1]


def scan(axes="LPS", turn_by=(0, 0, 0)):
    """Return the torso on a grid with these axes, turned by Euler angles in radians."""
    affine_mm = torso.centred_affine(SHAPE_IJK, SPACING_MM, axes)
    affine_mm = from_matvec(nib.eulerangles.euler2mat(*turn_by)) @ affine_mm
    return ClickedScan(torso.sample(SHAPE_IJK, affine_mm, seed=1)[0], affine_mm, np.array(CLICKS))


def edit(paths, change):
    for path in paths:
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)


def make_modality(modality, sop_class):
    def change(dataset):
        dataset.Modality = modality
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class

    return change


def compress(paths):
    for path in paths:
        reader, writer = sitk.ImageFileReader(), sitk.ImageFileWriter()
        reader.SetFileName(str(path))
        reader.LoadPrivateTagsOn()
        image = reader.Execute()
        writer.SetImageIO("GDCMImageIO")
        writer.SetFileName(str(path))
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG2000")
        writer.KeepOriginalImageUIDOn()
        writer.Execute(image)


def tilt(paths):
    for k, path in enumerate(paths):
        edit([path], lambda dataset, k=k: shift(dataset, 2.1 * k))


def shift(dataset, by_mm):
    x, y, z = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x, round(float(y) + by_mm, 6), z]


SCANS = {
    "axial": scan(),
    "sagittal": scan("PIR"),
    "coronal": scan("LIP"),
    "oblique MR": scan("LPS", (0.3, -0.2, 0.25)),
    "compressed": scan(),
    "PET": scan(),
    "RT dose": scan(),
    "gap": scan(),
    "tilted": scan(),
}
PREPARED = {
    "oblique MR": lambda paths: edit(paths, make_modality("MR", MRImageStorage)),
    "PET": lambda paths: edit(paths, make_modality("PT", PositronEmissionTomographyImageStorage)),
    "RT dose": lambda paths: edit(paths, lambda dataset: setattr(dataset, "Modality", "OT")),
    "compressed": compress,
    "gap": lambda paths: paths.pop(11).unlink(),
    "tilted": tilt,
}
GOOD = ["axial", "sagittal", "coronal", "oblique MR", "compressed"]


@pytest.fixture(scope="module")
def series(pacs, tmp_path_factory):
    """Store all SCANS in the DICOM server; yield the SeriesInstanceUID of each by its name."""
    folder = tmp_path_factory.mktemp("series")
    uids = {}
    for seed, (name, made) in enumerate(SCANS.items()):
        arguments = {"seed": seed, "description": name}
        paths = write_ct_series(made.array_ijk, made.affine_mm, folder / name, **arguments)
        uids[name] = str(pydicom.dcmread(paths[0]).SeriesInstanceUID)
        PREPARED.get(name, lambda paths: None)(paths)
    pacs.upload(folder)
    yield uids
    for uid in uids.values():
        delete_series(pacs, uid)


@pytest.fixture(scope="module")
def server(dicom_server, series):
    return dicom_server


@pytest.fixture
def remove_labels(pacs):
    """Remove the DICOM-SEG objects that a test stored: a later training would download them."""
    yield
    query = {"Level": "Series", "Query": {"Modality": "SEG"}, "Expand": True}
    for label in requests.post(f"{pacs.url}/tools/find", json=query, timeout=30).json():
        delete_series(pacs, label["MainDicomTags"]["SeriesInstanceUID"])


def cached_image(server, uid):
    return sitk.ReadImage(str(next((server.folder / "cache").rglob(f"{uid}.nii.gz"))))


def voxels(image):
    return sitk.GetArrayFromImage(image).transpose()


def test_the_network_is_not_needed(server):
    assert server.info()["models"]
    assert not (server.folder / "network.log").exists()


def test_ct_mr_and_pet_are_listed(datastore, series):
    listed = set(datastore.list_images())
    assert {name for name, uid in series.items() if uid in listed} == SCANS.keys() - {"RT dose"}


def test_the_datastore_describes_itself(server):
    assert requests.get(f"{server.url}/datastore/?output=all", timeout=60).ok


@pytest.mark.parametrize("name", GOOD)
def test_the_mask_lies_on_the_slices(server, pacs, series, name):
    mask = server.mask("fastsam3d", series[name], {"foreground": CLICKS[:1]})
    for header in stored_instances(pacs, series[name]):
        index = mask.TransformPhysicalPointToContinuousIndex(
            [float(value) for value in header.ImagePositionPatient]
        )
        np.testing.assert_allclose(index, [0, 0, round(index[2])], atol=1e-3)
    click_mm = mask.TransformIndexToPhysicalPoint(CLICKS[0])
    expected_mm = apply_affine(SCANS[name].affine_mm, CLICKS[0]) * LPS_OF_RAS
    np.testing.assert_allclose(click_mm, expected_mm, atol=1e-2)
    assert mask[CLICKS[0]] == 1
    np.testing.assert_array_equal(voxels(cached_image(server, series[name])), SCANS[name].array_ijk)


def test_each_orientation_that_dicom_has(server, pacs, tmp_path):
    shape, spacing_mm = (34, 31, 20), np.array([9.0, 9.5, 13.0])
    affine_mm = torso.centred_affine(shape, spacing_mm, "LPS")
    hu = torso.sample(shape, affine_mm, seed=2)[0]
    original = ClickedScan(hu, affine_mm, np.array([[24, 18, 10], [20, 15, 12]]))
    masks = []
    for number, orientation in enumerate(ORIENTATIONS):
        made = original.reoriented(orientation)
        if np.linalg.det(made.affine_mm) < 0:  # DICOM stacks slices along the right-handed normal
            continue
        folder = tmp_path / str(number)
        paths = write_ct_series(made.array_ijk, made.affine_mm, folder, seed=100 + number)
        pacs.upload(folder)
        uid = str(pydicom.dcmread(paths[0]).SeriesInstanceUID)
        masks.append(server.mask("fastsam3d", uid, {"foreground": made.clicks_ijk.tolist()}))
        delete_series(pacs, uid)
    assert len(masks) == 24
    for mask in masks:
        assert dice_in_space(mask, masks[0]) > 0.95


@pytest.mark.parametrize(
    ("name", "says"), [("gap", "lacks slices"), ("tilted", r"is tilted by 14\.7°")]
)
def test_series_that_would_be_misplaced_are_refused(server, series, name, says):
    reply = server.infer("fastsam3d", series[name], {"foreground": CLICKS})
    assert reply.status_code == 400
    assert says.replace("\\", "") in reply.json()["detail"]
    download = requests.get(f"{server.url}/datastore/image?image={series[name]}", timeout=60)
    assert download.status_code == 400
    assert download.json() == reply.json()


def test_a_series_that_was_repaired_is_read_again(server, pacs, tmp_path):
    made = SCANS["axial"]
    paths = write_ct_series(made.array_ijk, made.affine_mm, tmp_path / "all", seed=52)
    (tmp_path / "first").mkdir()
    late = paths[7].rename(tmp_path / "late.dcm")
    pacs.upload(tmp_path / "all")
    uid = str(pydicom.dcmread(late).SeriesInstanceUID)
    assert server.infer("fastsam3d", uid, {"foreground": CLICKS}).status_code == 400
    (tmp_path / "first").joinpath("late.dcm").write_bytes(late.read_bytes())
    pacs.upload(tmp_path / "first")
    assert server.infer("fastsam3d", uid, {"foreground": CLICKS}).status_code == 200
    delete_series(pacs, uid)


@pytest.mark.parametrize("uid", ["1.2.3.4", "*", "../1.2"])
def test_series_that_are_not_there(server, uid):
    reply = server.infer("fastsam3d", uid, {"foreground": CLICKS})
    assert reply.status_code == 404
    assert f"there is no image '{uid}'" in reply.json()["detail"]


def label_on(image):
    """Return a label of two structures, as image and array; value 2 is unused.

    One structure has two parts with empty slices in between.
    """
    label = np.zeros(SHAPE_IJK, np.uint8)
    label[5:20, 7:31, 3:6] = 1
    label[5:14, 7:31, 11:13] = 1
    label[30:41, 11:17, 5:22] = 3
    made = sitk.GetImageFromArray(label.transpose())
    made.CopyInformation(image)
    return made, label


def save(server, uid, label, names=("liver", "unused", "spleen"), **query):
    label_info = [{"name": name, "idx": value} for value, name in enumerate(names, start=1)]
    path = server.folder / "label.nii.gz"
    sitk.WriteImage(label, str(path))
    with path.open("rb") as file:
        return requests.put(
            f"{server.url}/datastore/label",
            params={"image": uid, **query},
            data={"params": json.dumps({"label_info": label_info})},
            files={"label": ("tmp1a2b3c.nii.gz", file)},
            timeout=120,
        )


def saved_series(server, uid):
    reply = requests.get(
        f"{server.url}/datastore/label/info?label={uid}&tag=final", timeout=30
    ).json()
    return reply["SeriesInstanceUID"]


@pytest.mark.usefixtures("remove_labels")
@pytest.mark.parametrize("name", GOOD)
def test_a_saved_label_reads_back_from_the_dicom_server(server, pacs, series, name):
    server.mask("fastsam3d", series[name], {"foreground": CLICKS})
    label, expected = label_on(cached_image(server, series[name]))
    reply = save(server, series[name], label)
    assert reply.status_code == 200, reply.text
    (segmentation,) = stored_instances(pacs, saved_series(server, series[name]))
    assert segmentation.Modality == "SEG"
    source = {header.SOPInstanceUID: header for header in stored_instances(pacs, series[name])}
    reference = segmentation.ReferencedSeriesSequence[0]
    assert reference.SeriesInstanceUID == series[name]
    assert segmentation.FrameOfReferenceUID == next(iter(source.values())).FrameOfReferenceUID
    segments = {item.SegmentNumber: item.SegmentLabel for item in segmentation.SegmentSequence}
    assert segments == {1: "liver", 2: "spleen"}
    stored = np.zeros_like(expected)
    for frame, groups in zip(
        segmentation.pixel_array, segmentation.PerFrameFunctionalGroupsSequence, strict=True
    ):
        position = [float(v) for v in groups.PlanePositionSequence[0].ImagePositionPatient]
        i, j, k = label.TransformPhysicalPointToIndex(position)
        assert (i, j) == (0, 0)
        value = {1: 1, 2: 3}[groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
        stored[:, :, k][frame.transpose() > 0] = value
    np.testing.assert_array_equal(stored, expected)


def test_a_mask_can_be_asked_for_as_dicom_seg(server, series):
    uid = series["sagittal"]
    params = {"foreground": CLICKS, "label_info": [{"name": "liver"}]}
    reply = server.infer("fastsam3d", uid, params, output="dicom_seg")
    assert reply.status_code == 200, reply.text
    segmentation = pydicom.dcmread(io.BytesIO(reply.content))
    assert segmentation.SegmentSequence[0].SegmentLabel == "liver"
    mask = voxels(server.mask("fastsam3d", uid, {"foreground": CLICKS}))
    assert segmentation.pixel_array.sum() == mask.sum()


@pytest.mark.parametrize("name", ["sagittal", "oblique MR"])
def test_prompts_on_two_structures_become_a_dicom_seg_in_their_place(server, series, name):
    """Each structure is a segment with its name, on the grid of the mask file."""
    places = zip(CLICKS, (1, 5), strict=True)
    prompts = [
        {
            "type": "spatial",
            "subtype": "point",
            "prompt": place,
            "semantic_id_key": {"semantic_id": number},
        }
        for place, number in places
    ]
    label_info = [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 5}]
    params = {"prompts": prompts, "label_info": label_info}
    reply = server.infer("fastsam3d", series[name], params, output="dicom_seg")
    assert reply.status_code == 200, reply.text
    segmentation = pydicom.dcmread(io.BytesIO(reply.content))
    segments = {item.SegmentNumber: item.SegmentLabel for item in segmentation.SegmentSequence}
    assert segments == {1: "liver", 2: "spleen"}
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == series[name]
    mask = server.mask("fastsam3d", series[name], {"prompts": prompts})
    stored = np.zeros_like(voxels(mask))
    for frame, groups in zip(
        segmentation.pixel_array, segmentation.PerFrameFunctionalGroupsSequence, strict=True
    ):
        position = [float(v) for v in groups.PlanePositionSequence[0].ImagePositionPatient]
        *corner, k = mask.TransformPhysicalPointToIndex(position)
        assert corner == [0, 0]
        value = {1: 1, 2: 5}[groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
        stored[:, :, k][frame.transpose() > 0] = value
    assert set(np.unique(stored)) == {0, 1, 5}
    np.testing.assert_array_equal(stored, voxels(mask))


@pytest.mark.usefixtures("remove_labels")
def test_highdicom_reads_the_same(server, pacs, series):
    highdicom = pytest.importorskip("highdicom")
    name = "oblique MR"
    server.mask("fastsam3d", series[name], {"foreground": CLICKS})
    label, expected = label_on(cached_image(server, series[name]))
    assert save(server, series[name], label).ok
    (dataset,) = stored_instances(pacs, saved_series(server, series[name]))
    segmentation = highdicom.seg.Segmentation.from_dataset(dataset)
    slices = sorted(
        stored_instances(pacs, series[name]),
        key=lambda header: label.TransformPhysicalPointToContinuousIndex(
            [float(value) for value in header.ImagePositionPatient]
        )[2],
    )
    kji = segmentation.get_pixels_by_source_instance(
        [header.SOPInstanceUID for header in slices],
        segment_numbers=[1, 2],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
        ignore_spatial_locations=True,  # the writer does not flag them as those of the slices
    )
    numbers = kji.transpose(2, 1, 0)
    np.testing.assert_array_equal(np.array([0, 1, 3])[numbers], expected)


def moved(label):
    label.SetOrigin([value + 40 for value in label.GetOrigin()])
    return label


REFUSED = {
    "another grid": (
        lambda label: label[:-1],
        "the label has 59 × 52 × 34 voxels, its image 60 × 52",
    ),
    "another place": (moved, "the label lies elsewhere than its image"),
}


def final_label(server, uid):
    return next((server.folder / "cache").glob("*/labels/final")) / f"{uid}.nii.gz"


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_label_is_refused_and_the_old_one_kept(server, series, case):
    server.mask("fastsam3d", series["axial"], {"foreground": CLICKS})
    path = final_label(server, series["axial"])
    before = path.read_bytes() if path.exists() else None
    spoil, says = REFUSED[case]
    reply = save(server, series["axial"], spoil(label_on(cached_image(server, series["axial"]))[0]))
    assert reply.status_code == 400
    assert says in reply.json()["detail"]
    assert (path.read_bytes() if path.exists() else None) == before


@pytest.mark.usefixtures("remove_labels")
def test_an_empty_label_is_kept_but_never_replaces_a_full_one(server, series):
    uid = series["coronal"]
    server.mask("fastsam3d", uid, {"foreground": CLICKS})
    label, expected = label_on(cached_image(server, uid))
    assert save(server, uid, label).status_code == 200
    refused = save(server, uid, label * 0)
    assert refused.status_code == 409
    assert "the label is empty, and the one that is there is not" in refused.json()["detail"]
    np.testing.assert_array_equal(voxels(sitk.ReadImage(str(final_label(server, uid)))), expected)
    reply = save(server, uid, label * 0, allow_empty="true")
    assert reply.status_code == 500  # a DICOM-SEG has at least one voxel
    detail = reply.json()["detail"]
    assert "the label is empty" in detail
    kept = detail.removeprefix("the label was kept in ").partition(" on the server")[0]
    assert not voxels(sitk.ReadImage(kept)).any()


def test_the_cache_is_private(server):
    (cache,) = (path for path in (server.folder / "cache").iterdir() if path.is_dir())
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


@pytest.fixture
def open_datastore(pacs):
    """Open datastores in this process; stop MONAI Label's watchers of their caches at the end."""
    opened = []

    def open_one(cache):
        client = DICOMwebClientX(pacs.dicomweb_url)
        opened.append(CheckedDICOMWebDatastore(client, {"Modality": "CT"}, str(cache)))
        return opened[-1]

    yield open_one
    for datastore in opened:
        datastore._observer.stop()
        datastore._observer.join()


@pytest.fixture
def datastore(open_datastore, tmp_path):
    """A datastore with a cache of its own."""
    return open_datastore(tmp_path / "cache")


def test_a_series_is_fetched_once_for_all_who_ask(datastore, series, monkeypatch):
    fetched = []
    real = datastore._client.retrieve_series
    monkeypatch.setattr(
        datastore._client, "retrieve_series", lambda *a, **k: fetched.append(a) or real(*a, **k)
    )
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(datastore.get_image_uri, [series["axial"]] * 4))
    assert len(paths) == len(fetched) == 1


def test_half_a_series_is_refused_and_not_kept(datastore, series, monkeypatch):
    real = datastore._client.retrieve_series
    with monkeypatch.context() as patch:
        patch.setattr(datastore._client, "retrieve_series", lambda *a, **k: real(*a, **k)[:-1])
        with pytest.raises(InputError, match="sent 33 of the 34 slices"):
            datastore.get_image_uri(series["axial"])
    assert not list(Path(datastore._datastore.image_path()).glob(f"*{series['axial']}*"))
    assert sitk.ReadImage(datastore.get_image_uri(series["axial"])).GetSize() == SHAPE_IJK


def test_a_series_that_still_arrives_is_fetched_again(datastore, pacs, tmp_path):
    made = SCANS["axial"]
    paths = write_ct_series(made.array_ijk, made.affine_mm, tmp_path / "all", seed=53)
    uid = str(pydicom.dcmread(paths[0]).SeriesInstanceUID)
    (tmp_path / "late").mkdir()
    late = [path.rename(tmp_path / "late" / path.name) for path in paths[:14]]
    pacs.upload(tmp_path / "all")
    first = datastore.get_image_uri(uid)
    np.testing.assert_array_equal(voxels(sitk.ReadImage(first)), made.array_ijk[:, :, len(late) :])
    before = os.stat(first).st_mtime_ns
    datastore._sizes._sizes.clear()  # a minute later
    assert os.stat(datastore.get_image_uri(uid)).st_mtime_ns == before, "the size is the same"
    pacs.upload(tmp_path / "late")
    assert os.stat(datastore.get_image_uri(uid)).st_mtime_ns == before, "within the minute"
    datastore._sizes._sizes.clear()
    whole = sitk.ReadImage(datastore.get_image_uri(uid))
    np.testing.assert_array_equal(voxels(whole), made.array_ijk)
    delete_series(pacs, uid)
    datastore._sizes._sizes.clear()
    assert sitk.ReadImage(datastore.get_image_uri(uid)).GetSize() == SHAPE_IJK


def test_what_an_unchecked_store_left_in_the_cache_is_made_again(datastore, series):
    path = Path(datastore.get_image_uri(series["axial"]))
    right = path.read_bytes()
    path.write_bytes(b"shifted")
    assert datastore.get_image_uri(series["axial"]) == str(path)
    assert path.read_bytes() == b"shifted", "a checked file is used unchanged"
    datastore.update_image_info(series["axial"], {"series_checked": 1})
    assert datastore.get_image_uri(series["axial"]) == str(path)
    assert path.read_bytes()[20:] == right[20:]  # the gzip header holds the time


def test_the_site_may_list_other_series(datastore, series, monkeypatch):
    monkeypatch.setattr(datastore, "_search_filter", {"Modality": "OT"})
    monkeypatch.setattr(type(settings), "model_fields_set", {FILTER})
    assert datastore.list_images() == [series["RT dose"]]


def break_the_tool(datastore, patch, folder):
    fake = folder / "itkimage2segimage"
    fake.write_text("#!/bin/sh\nexit 3\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def refuse(datastore, patch, folder):
    def store_instances(datasets):
        raise requests.HTTPError("403 Forbidden")

    use_the_tool(patch)
    patch.setattr(datastore._client, "store_instances", store_instances)


def use_the_tool(patch):
    patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


FAILURES = {
    "no tool": (lambda store, patch, folder: patch.setenv("PATH", ""), "itkimage2segimage is mis"),
    "broken tool": (break_the_tool, "itkimage2segimage failed"),
    "refused": (refuse, "403 Forbidden"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_no_failure_loses_a_label(datastore, series, tmp_path, monkeypatch, case):
    fail, says = FAILURES[case]
    image = sitk.ReadImage(datastore.get_image_uri(series["coronal"]))
    label, expected = label_on(image)
    path = tmp_path / "label.nii.gz"
    sitk.WriteImage(label, str(path))
    fail(datastore, monkeypatch, tmp_path)
    with pytest.raises(SavingError, match=says) as failed:
        datastore.save_label(series["coronal"], str(path), "final", {})
    kept = datastore._datastore.label_path("final") + f"/{series['coronal']}.nii.gz"
    assert kept in str(failed.value)
    datastore.datalist()  # a training calls this; the base class would remove the label here
    np.testing.assert_array_equal(voxels(sitk.ReadImage(kept)), expected)


@pytest.mark.usefixtures("remove_labels")
def test_a_label_of_the_dicom_server_comes_back_for_training(
    datastore, open_datastore, series, tmp_path, monkeypatch
):
    use_the_tool(monkeypatch)
    image = sitk.ReadImage(datastore.get_image_uri(series["oblique MR"]))
    label, expected = label_on(image)
    sitk.WriteImage(label, str(tmp_path / "label.nii.gz"))
    datastore.save_label(series["oblique MR"], str(tmp_path / "label.nii.gz"), "final", {})
    another = open_datastore(tmp_path / "another")
    pairs = {Path(pair["image"]).name: pair["label"] for pair in another.datalist()}
    fetched = sitk.ReadImage(pairs[f"{series['oblique MR']}.nii.gz"])
    np.testing.assert_allclose(fetched.GetOrigin(), image.GetOrigin(), atol=1e-3)
    np.testing.assert_array_equal(voxels(fetched), expected)


@pytest.mark.usefixtures("remove_labels")
def test_voxels_without_a_header_get_that_of_the_image(datastore, series, tmp_path, monkeypatch):
    use_the_tool(monkeypatch)
    image = sitk.ReadImage(datastore.get_image_uri(series["sagittal"]))
    label, expected = label_on(image)
    path = tmp_path / "label.bin"
    path.write_bytes(expected.tobytes(order="F"))
    datastore.save_label(series["sagittal"], str(path), "final", {})
    saved = sitk.ReadImage(
        datastore._datastore.label_path("final") + f"/{series['sagittal']}.nii.gz"
    )
    np.testing.assert_array_equal(voxels(saved), expected)
    np.testing.assert_allclose(saved.GetOrigin(), label.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(saved.GetDirection(), label.GetDirection(), atol=1e-5)


def test_names_belong_to_the_values_of_a_label():
    def names(values, label_info):
        return [described.name for described in describe_segments(values, label_info)]

    slicer = [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]
    assert names([2], slicer) == ["spleen"]
    assert names([1, 2], [{"name": "a", "idx": 2}, {"name": "b", "idx": 3}]) == ["a", "b"]
    assert names([2], [{"name": "a"}, {"name": "b"}]) == ["b"]
    assert names([1, 7], []) == ["label 1", "label 7"]
