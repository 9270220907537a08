"""Data sets in all layouts: pairs of images and labels, and their structures."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from benchmarks.datasets import (
    BenchmarkCase,
    choose_cases,
    find_cases,
    ignored_voxels,
    read_case,
    targets,
    with_one_volume,
)
from benchmarks.protocols import click_series, make_protocol

from lib.errors import InputError

SHAPE_IJK = (20, 18, 16)
AFFINE_MM = np.diag([-1.5, 2.0, 3.0, 1.0])


def write_volume(path: Path, array: np.ndarray, affine_mm: np.ndarray = AFFINE_MM) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine_mm), path)
    return path


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).normal(100, 20, SHAPE_IJK).astype(np.float32)


@pytest.fixture
def labels() -> np.ndarray:
    array = np.zeros(SHAPE_IJK, dtype=np.int16)
    array[2:9, 2:9, 2:9], array[10:18, 10:16, 8:14], array[0, 0, 0] = 1, 2, 3
    return array


@pytest.fixture
def make_pair(image: np.ndarray, labels: np.ndarray) -> Callable[[Path, Path], None]:
    def make(image_path: Path, label_path: Path) -> None:
        write_volume(image_path, image)
        write_volume(label_path, labels)

    return make


def test_nnunet_folders_give_first_channels_names_and_unions(tmp_path: Path, make_pair) -> None:
    folder = tmp_path / "Dataset042_Test"
    for name in ("b", "a"):
        make_pair(folder / f"imagesTr/{name}_0000.nii.gz", folder / f"labelsTr/{name}.nii.gz")
        write_volume(folder / f"imagesTr/{name}_0001.nii.gz", np.zeros(SHAPE_IJK, np.int16))
    description = {
        "name": "Test",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "spleen": 2, "both": [1, 2]},
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    for data in (folder, tmp_path):  # alone, or in a folder of data sets
        cases = find_cases(data)
        assert [(case.source, case.name, case.modality) for case in cases] == [
            ("Test", "a", "CT"),
            ("Test", "b", "CT"),
        ]
        assert cases[0].image.name == "a_0000.nii.gz"
    _, volume = read_case(cases[0])
    masks = dict(targets(cases[0], volume, min_mm3=1000))
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        "liver": 343,
        "spleen": 288,
        "both": 631,
    }  # structure 3 has one voxel


def test_nnunet_1_lists_names_by_value(tmp_path: Path, make_pair) -> None:
    make_pair(tmp_path / "imagesTr/a.nii.gz", tmp_path / "labelsTr/a.nii.gz")
    names = {"0": "background", "1": "liver", "2": "spleen"}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": names}))
    (case,) = find_cases(tmp_path)
    assert case.image.name == "a.nii.gz"
    assert case.structures == {"liver": (1,), "spleen": (2,)}


def test_bids_labels_find_the_image_of_their_session(tmp_path: Path, make_pair) -> None:
    for subject in ("sub-01", "sub-02"):
        for weight in ("T1w", "T2w"):
            write_volume(
                tmp_path / f"{subject}/anat/{subject}_{weight}.nii.gz", np.ones(SHAPE_IJK, np.int16)
            )
    derived = tmp_path / "derivatives" / "labels"
    write_volume(derived / "sub-01/anat/sub-01_T2w_dseg.nii.gz", np.ones(SHAPE_IJK, np.int16))
    write_volume(
        derived / "sub-02/anat/sub-02_T1w_label-GM_mask.nii.gz", np.ones(SHAPE_IJK, np.int16)
    )
    write_volume(derived / "sub-02/anat/sub-02_T1w_preproc.nii.gz", np.ones(SHAPE_IJK, np.int16))
    (derived / "dseg.tsv").write_text("index\tname\n0\tbackground\n1\tcord\n")
    first, second = find_cases(tmp_path)
    assert (first.image.name, second.image.name) == ("sub-01_T2w.nii.gz", "sub-02_T1w.nii.gz")
    assert first.structures == {"cord": (1,)}


def test_datalists_are_relative_to_their_file(tmp_path: Path, make_pair) -> None:
    make_pair(tmp_path / "i/a.nii.gz", tmp_path / "l/a.nii.gz")
    entry = {"image": "i/a.nii.gz", "label": "l/a.nii.gz"}
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps({"training": [entry], "validation": [entry | {"source": "b"}]}))
    assert [case.source for case in find_cases(path)] == [tmp_path.name, "b"]
    assert [case.source for case in find_cases(path, "validation")] == ["b"]
    path.write_text(json.dumps({"training": [entry | {"label": "l/b.nii.gz"}]}))
    (case,) = find_cases(path)
    with pytest.raises(InputError, match='label "b.nii.gz" does not exist'):
        read_case(case)


def test_manifests_select_the_part_eval_by_default(tmp_path: Path, make_pair) -> None:
    make_pair(tmp_path / "x/a_image.nii.gz", tmp_path / "x/a_label.nii.gz")
    (tmp_path / "x/labels.json").write_text('{"1": "liver"}')
    (tmp_path / "manifest.csv").write_text(
        "part,source,case,image,label\n"
        "train,s,t,x/a_image.nii.gz,x/a_label.nii.gz\n"
        "eval,s,e,x/a_image.nii.gz,x/a_label.nii.gz\n"
        "eval,s,missing,x/,x/a_label.nii.gz\n"
    )
    (case,) = find_cases(tmp_path)
    assert (case.name, case.structures) == ("e", {"liver": (1,)})
    assert [case.name for case in find_cases(tmp_path, "train")] == ["t"]
    with pytest.raises(InputError, match="no part 'test'; it has eval, train"):
        find_cases(tmp_path, "test")


@pytest.mark.parametrize("extension", [".nii", ".nrrd", ".mha"])
def test_other_formats_are_read(tmp_path: Path, image, labels, extension: str) -> None:
    paths = (tmp_path / f"imagesTr/a_0000{extension}", tmp_path / f"labelsTr/a{extension}")
    for path, array in zip(paths, (image, labels), strict=True):
        path.parent.mkdir()
        written = sitk.GetImageFromArray(array.transpose())
        written.SetSpacing((1.5, 2.0, 3.0))
        sitk.WriteImage(written, str(path))
    (case,) = find_cases(tmp_path)
    volume, read = read_case(case)
    np.testing.assert_allclose(volume.array, image)
    assert [name for name, _ in targets(case, read, min_mm3=100)] == ["1", "2"]


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_the_error_lists_the_expected_layouts(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="expected a folder with manifest.csv, an nnU-Net folder"):
        find_cases(tmp_path / name)


def test_a_label_without_an_image_is_named_and_the_others_go_on(tmp_path: Path, make_pair) -> None:
    make_pair(tmp_path / "imagesTr/a_0000.nii.gz", tmp_path / "labelsTr/a.nii.gz")
    make_pair(tmp_path / "elsewhere.nii.gz", tmp_path / "labelsTr/b.nii.gz")
    good, bad = find_cases(tmp_path)
    read_case(good)
    with pytest.raises(InputError, match='image "b_0000.nii.gz" does not exist'):
        read_case(bad)


def test_hidden_files_are_no_scans(tmp_path: Path, make_pair) -> None:
    make_pair(tmp_path / "imagesTr/a_0000.nii.gz", tmp_path / "labelsTr/a.nii.gz")
    (tmp_path / "labelsTr/._a.nii.gz").write_bytes(b"\0\5\x16\7" + bytes(200))
    assert [case.name for case in find_cases(tmp_path)] == ["a"]


@pytest.mark.parametrize("layout", ["nnunet", "datalist"])
def test_voxels_to_ignore_are_no_structure_and_not_scored(
    tmp_path: Path, make_pair, layout: str
) -> None:
    make_pair(tmp_path / "imagesTr/a_0000.nii.gz", tmp_path / "labelsTr/a.nii.gz")
    labels = {"background": 0, "liver": 1, "ignore": 2}
    training = [{"image": "imagesTr/a_0000.nii.gz", "label": "labelsTr/a.nii.gz"}]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": labels, "training": training}))
    (case,) = find_cases(tmp_path if layout == "nnunet" else path)
    _, read = read_case(case)
    assert [name for name, _ in targets(case, read, 100)] == ["liver"]
    ignored = ignored_voxels(case, read)
    assert ignored is not None and np.array_equal(ignored, read.array == 2)

    target = read.array == 1
    series = click_series(
        lambda clicks, values: read.array > 0, target, make_protocol("random", [1]), "a", (1, 1, 1)
    )
    assert series.dice[0] < 0.8
    series = click_series(
        lambda clicks, values: (read.array == 1) | (read.array == 2),
        *(target, make_protocol("random", [1]), "a", (1, 1, 1), ignored),
    )
    assert series.dice[0] == 1


@pytest.mark.parametrize("kind", ["dataset.json", "manifest.csv", "dseg.tsv", "datalist.json"])
def test_files_may_begin_with_a_byte_order_mark(tmp_path: Path, make_pair, kind: str) -> None:
    make_pair(tmp_path / "imagesTr/a_0000.nii.gz", tmp_path / "labelsTr/a.nii.gz")
    pair = {"image": "imagesTr/a_0000.nii.gz", "label": "labelsTr/a.nii.gz"}
    texts = {
        "dataset.json": json.dumps({"labels": {"Jörg": 1}}),
        "manifest.csv": "source,case,image,label\ns,a,imagesTr/a_0000.nii.gz,labelsTr/a.nii.gz\n",
        "datalist.json": json.dumps({"training": [pair], "labels": {"1": "Jörg"}}),
        "dseg.tsv": "name\tindex\nJörg\t1\n",
    }
    data = tmp_path
    if kind == "dseg.tsv":
        data = tmp_path / "bids"
        make_pair(data / "sub-1/a/sub-1_T1w.nii.gz", data / "derivatives/sub-1_dseg.nii.gz")
        (data / "derivatives" / kind).write_text(texts[kind], encoding="utf-8-sig")
    else:
        (tmp_path / kind).write_text(texts[kind], encoding="utf-8-sig")
    (case,) = find_cases(tmp_path / kind if kind == "datalist.json" else data)
    assert case.structures == ({} if kind == "manifest.csv" else {"Jörg": (1,)})


def test_the_first_channel_of_a_decathlon_image_is_used(tmp_path: Path, image, labels) -> None:
    channels = np.stack([image, image + 1000, image + 2000], axis=3)
    write_volume(tmp_path / "imagesTr/a.nii.gz", channels)
    write_volume(tmp_path / "labelsTr/a.nii.gz", labels)
    entry = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    description = {"tensorImageSize": "4D", "modality": {"0": "T2"}, "training": [entry]}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    for data in (tmp_path, tmp_path / "dataset.json"):
        (case,) = find_cases(data)
        with with_one_volume(case) as readable:
            volume, read = read_case(readable)
            assert readable.image != case.image
        assert not readable.image.exists()
        np.testing.assert_array_equal(volume.array, image)
        np.testing.assert_allclose(volume.affine_mm, read.affine_mm)


@pytest.mark.parametrize("shape", [SHAPE_IJK, (*SHAPE_IJK, 1)])
def test_a_3d_image_is_used_as_it_is(tmp_path: Path, image, labels, shape) -> None:
    path = write_volume(tmp_path / "i.nii.gz", image.reshape(shape))
    case = BenchmarkCase("s", "a", path, write_volume(tmp_path / "l.nii.gz", labels))
    with with_one_volume(case) as readable:
        assert readable is case
        read_case(readable)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("name\tabbreviation\ncord\tC\n", {}),
        ("index\tname\nn/a\tcord\n2\troot\n", {"root": (2,)}),
        ("index\tname\n1.0\tcord\n0\tbackground\n", {"cord": (1,)}),
        ("index\n1\n", {}),
        ("", {}),
    ],
)
def test_tables_of_bids(tmp_path: Path, make_pair, table: str, expected) -> None:
    make_pair(tmp_path / "sub-1/sub-1_T1w.nii.gz", tmp_path / "derivatives/sub-1_dseg.nii.gz")
    (tmp_path / "derivatives/dseg.tsv").write_text(table)
    (case,) = find_cases(tmp_path)
    assert case.structures == expected
    assert [name for name, _ in targets(case, read_case(case)[1], 100)]


def test_datalists_with_lists_and_gaps(tmp_path: Path, make_pair) -> None:
    make_pair(tmp_path / "i/a.nii.gz", tmp_path / "l/a.nii.gz")
    make_pair(tmp_path / "i/b.nii.gz", tmp_path / "l/a2.nii.gz")
    entries = [
        {"image": "i/a.nii.gz", "label": ["l/a.nii.gz"]},
        {"image": ["i/a.nii.gz", "i/b.nii.gz"], "label": ["l/a.nii.gz", "l/a2.nii.gz"]},
        {"image": "i/b.nii.gz"},
        {"image": "i/b.nii.gz", "label": None},
        "i/b.nii.gz",
        {"image": "i/absent.nii.gz", "label": "l/a.nii.gz"},
    ]
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps({"training": entries, "test": ["i/b.nii.gz"]}))
    cases = find_cases(path)
    assert [case.name for case in cases] == ["a", "a a", "a a2", "absent"]
    for case in cases[:-1]:
        assert case.image == tmp_path / "i/a.nii.gz"
        read_case(case)
    with pytest.raises(InputError, match='image "absent.nii.gz" does not exist'):
        read_case(cases[-1])


def test_label_values_that_a_scale_put_off_are_those_of_a_training(
    tmp_path: Path, image, labels
) -> None:
    off = np.where(labels, labels + 4.58e-5, 0).astype(np.float32)
    case = BenchmarkCase(
        "s",
        "a",
        write_volume(tmp_path / "i.nii.gz", image),
        write_volume(tmp_path / "l.nii.gz", off),
    )
    assert np.array_equal(read_case(case)[1].array, labels)
    write_volume(case.label, off * 1.1)
    with pytest.raises(InputError, match="fractions"):
        read_case(case)


def test_a_label_map_on_another_grid_is_refused(tmp_path: Path, image, labels) -> None:
    shifted = AFFINE_MM.copy()
    shifted[0, 3] = 4
    case = BenchmarkCase(
        "s",
        "a",
        write_volume(tmp_path / "i.nii.gz", image),
        write_volume(tmp_path / "l.nii.gz", labels, shifted),
    )
    with pytest.raises(InputError, match="lie 4.0 mm apart"):
        read_case(case)
    write_volume(case.label, labels[:-1])
    with pytest.raises(InputError, match=r"\(20, 18, 16\) voxels, its label map \(19, 18, 16\)"):
        read_case(case)


def test_cases_are_limited_by_source_and_need_a_structure(tmp_path: Path, image, labels) -> None:
    empty = np.zeros_like(labels)
    empty[0, 0, 0] = 1
    cases = [
        BenchmarkCase(
            source,
            name,
            tmp_path / "i.nii.gz",
            write_volume(tmp_path / f"{source}{name}.nii.gz", array),
        )
        for source, name, array in [
            ("a", "1", empty),
            ("a", "2", labels),
            ("b", "3", labels),
            ("a", "4", labels),
            ("a", "5", labels),
        ]
    ]
    assert [case.name for case in choose_cases(cases, 2, 1000)] == ["2", "3", "4"]
    assert choose_cases(cases, None, 1000) == cases
