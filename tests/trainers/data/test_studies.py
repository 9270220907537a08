"""Studies are found, examined and split; unusable ones are skipped with a reason."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import tiny
from monailabel.datastore.local import LocalDatastore

from lib.errors import InputError
from lib.imaging.volume import read_volume
from lib.trainers.data import Study, examine, find_studies, split
from lib.trainers.data.studies import PLACES, examine_study, list_studies
from lib.trainers.data.study_split import halves, judging_studies


def datastore_in(folder: Path) -> LocalDatastore:
    return LocalDatastore(str(folder), extensions=["*.nii.gz"], auto_reload=False)


def save_label(study: Study, array: np.ndarray, affine_mm: np.ndarray = tiny.AFFINE_MM) -> None:
    assert study.label is not None
    nibabel.save(nibabel.Nifti1Image(array, affine_mm), study.label)


def test_a_final_label_comes_before_an_original_one(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        tiny.make_study(tmp_path, name, labelled=False)
    label = tiny.make_study(tmp_path, "elsewhere").label
    assert label is not None
    for name, tag in (("b", "original"), ("c", "original"), ("c", "final")):
        folder = tmp_path / "labels" / tag
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.nii.gz").write_bytes(label.read_bytes())
    label.unlink()
    (tmp_path / "elsewhere.nii.gz").unlink()

    studies, skipped = find_studies(datastore_in(tmp_path))
    assert [study.name for study in studies] == ["a", "b", "c"] and not skipped
    assert all(study.image == tmp_path / f"{study.name}.nii.gz" for study in studies)
    tags = [study.label.parent.name if study.label else None for study in studies]
    assert tags == [None, "original", "final"]


class Failing:
    """A DICOM server with a refused series and a deleted one."""

    def list_images(self) -> list[str]:
        return ["refused", "gone", "fine"]

    def get_image_uri(self, image_id: str) -> str:
        if image_id == "refused":
            raise InputError("its slices are not evenly spaced")
        return "" if image_id == "gone" else "/images/fine.nii.gz"

    def get_image_info(self, image_id: str) -> dict[str, str]:
        return {"PatientID": " P-1 "}

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        return {}

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        raise AssertionError("there are no labels")


def test_a_series_that_cannot_be_fetched_is_skipped_with_its_reason() -> None:
    studies, skipped = find_studies(Failing())
    assert [study.name for study in studies] == ["fine"]
    assert skipped["refused"] == "its slices are not evenly spaced"
    assert '"gone"' in skipped["gone"]
    assert studies[0].patient == "patient P-1"


def test_clicks_of_a_labelled_study_lie_in_its_structures(tmp_path: Path) -> None:
    study = tiny.make_study(tmp_path, "a")
    examined = examine_study(study)
    assert study.label is not None
    labels = read_volume(study.label).array
    assert examined.is_labelled and set(examined.structures) == {2, 5}
    for value, places in examined.structures.items():
        assert places.shape == (PLACES, 3)  # of 864
        assert set(labels[tuple(places.T)]) == {value}
        assert len(np.unique(places, axis=0)) == PLACES


def test_clicks_of_an_unlabelled_study_lie_in_the_body(tmp_path: Path) -> None:
    examined = examine_study(tiny.make_study(tmp_path, "a", labelled=False))
    assert not examined.is_labelled
    image = read_volume(tmp_path / "a.nii.gz").array
    values = image[tuple(examined.body.T)]
    assert len(values) > 100
    assert (values > 50).mean() > 0.95
    assert np.ptp(examined.body, axis=0).min() > 10


def test_the_key_depends_on_the_voxels_of_image_and_label(tmp_path: Path) -> None:
    study = tiny.make_study(tmp_path, "a")
    first = examine_study(study)
    again = tiny.make_study(tmp_path, "b")
    assert examine_study(again).key == first.key
    assert examine_study(tiny.make_study(tmp_path, "b", seed=1)).key != first.key
    assert examine_study(dataclasses.replace(study, label=None)).key != first.key
    assert study.label is not None
    save_label(study, np.roll(np.asarray(nibabel.load(study.label).dataobj), 1, axis=0))
    assert examine_study(study).key != first.key


def test_unusable_studies_are_skipped_with_a_reason(tmp_path: Path) -> None:
    good = tiny.make_study(tmp_path, "good")
    broken = tiny.make_study(tmp_path, "broken", labelled=False)
    broken.image.write_bytes(broken.image.read_bytes()[:400])
    absent = Study("absent", tmp_path / "absent.nii.gz")
    usable, skipped = examine([good, broken, absent])
    assert [study.name for study in usable] == ["good"]
    assert "damaged" in skipped["broken"] and "does not exist" in skipped["absent"]


def test_a_study_with_a_label_that_cannot_be_used_takes_part_without_it(tmp_path: Path) -> None:
    study = tiny.make_study(tmp_path, "a")
    assert study.label is not None
    study.label.write_bytes(b"hello")
    (examined,), skipped = examine([study])
    assert not examined.is_labelled and len(examined.body) > 100
    assert skipped["a"].startswith('its label is not used: label "a_label.nii.gz" cannot be read')


def test_a_healthy_case_takes_part_without_a_label(tmp_path: Path) -> None:
    study = tiny.make_study(tmp_path, "a")
    save_label(study, np.zeros(tiny.SHAPE, np.uint8))
    (examined,), skipped = examine([study])
    assert not examined.is_labelled and not skipped


def test_one_of_several_copies_of_a_scan_takes_part(tmp_path: Path) -> None:
    """Otherwise one could train the student that another one judges."""
    other = tiny.make_study(tmp_path, "other", labelled=False)
    image = nibabel.load(other.image)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), other.image)
    studies = [tiny.make_study(tmp_path, name, labelled=name != "a") for name in "abc"]
    usable, skipped = examine([*studies, other])
    assert [study.name for study in usable] == ["b", "other"], "a labelled copy"
    reason = 'it is the same scan as "b"; keep all labels there'
    assert skipped == {"a": reason, "c": reason}


def test_what_is_replaced_in_a_study_is_logged(tmp_path: Path, caplog) -> None:
    study = tiny.make_study(tmp_path, "a", labelled=False)
    image = nibabel.load(study.image)
    array = np.asarray(image.dataobj).astype(np.float32)
    array[:2] = np.nan
    nibabel.save(nibabel.Nifti1Image(array, image.affine), study.image)
    with caplog.at_level("WARNING"):
        examine_study(study)
    assert "are NaN; they are taken as 0" in caplog.text


def test_no_error_of_one_study_ends_a_training(tmp_path: Path, monkeypatch) -> None:
    good, nearly_blank = tiny.make_study(tmp_path, "good"), tmp_path / "blank.nii.gz"
    blank = np.zeros((64, 60, 56), np.int16)
    blank[33:36, 33:36, 33:36] = 1
    nibabel.save(nibabel.Nifti1Image(blank, np.diag([0.5, 0.6, 0.7, 1])), nearly_blank)
    usable, skipped = examine([Study("blank", nearly_blank), good])
    assert [study.name for study in usable] == ["good"]
    assert "nothing that stands out" in skipped["blank"]

    def fail(study: Study) -> None:
        raise KeyError("unforeseen")

    monkeypatch.setattr("lib.trainers.data.studies.examine_study", fail)
    usable, skipped = examine([good])
    assert not usable and "KeyError: 'unforeseen'" in skipped["good"]


def test_hidden_files_are_no_studies_and_no_labels(tmp_path: Path) -> None:
    tiny.make_study(tmp_path, "a", labelled=False)
    (tmp_path / "._a.nii.gz").write_bytes(b"\0\5\x16\7" + bytes(200))
    (tmp_path / "labels" / "final").mkdir(parents=True)
    (tmp_path / "labels" / "final" / "._a.nii.gz").write_bytes(b"\0\5\x16\7" + bytes(200))
    studies, skipped = find_studies(datastore_in(tmp_path))
    assert [(study.name, study.label) for study in studies] == [("a", None)] and not skipped


@pytest.mark.parametrize("values", [(1, 300), (3, 6), (299, 65535)])
def test_label_values_are_kept(tmp_path: Path, values: tuple[int, int]) -> None:
    study = tiny.make_study(tmp_path, "a")
    assert study.label is not None
    label = np.asarray(nibabel.load(study.label).dataobj).astype(np.uint16)
    label[label == 2], label[label == 5] = values
    save_label(study, label)
    assert set(examine_study(study).structures) == set(values)


def test_a_label_in_the_frame_that_itk_shows_fits_its_image(tmp_path: Path) -> None:
    """Slicer saves a label by the frame in which ITK shows the image."""
    study = tiny.make_study(tmp_path, "a")
    image = nibabel.load(study.image)
    image.set_sform(shifted(60), 2)
    image.set_qform(tiny.AFFINE_MM, 1)
    nibabel.save(image, study.image)
    assert set(examine_study(study).structures) == {2, 5}


def shifted(by_mm: float) -> np.ndarray:
    affine_mm = tiny.AFFINE_MM.copy()
    affine_mm[0, 3] += by_mm
    return affine_mm


def one_voxel() -> np.ndarray:
    label = np.zeros(tiny.SHAPE, dtype=np.uint8)
    label[20, 20, 10] = 1
    return label


@pytest.mark.parametrize(
    ("change", "affine_mm", "message"),
    [
        (lambda label: label[:-1], tiny.AFFINE_MM, "another grid"),
        (lambda label: label, shifted(1.0), "another grid"),
        (lambda label: (label / 2).astype(np.float32), tiny.AFFINE_MM, "fractions"),
        (lambda label: label.astype(np.int16) - 1, tiny.AFFINE_MM, "from -1"),
        (lambda label: one_voxel(), tiny.AFFINE_MM, "100 mm³"),
    ],
)
def test_a_label_that_does_not_fit_is_refused(
    tmp_path: Path,
    change: Callable[[np.ndarray], np.ndarray],
    affine_mm: np.ndarray,
    message: str,
) -> None:
    study = tiny.make_study(tmp_path, "a")
    assert study.label is not None
    save_label(study, change(np.asarray(nibabel.load(study.label).dataobj)), affine_mm)
    with pytest.raises(InputError, match=message):
        examine_study(study)


def test_a_label_stored_as_whole_floats_a_little_off_is_used(tmp_path: Path) -> None:
    study = tiny.make_study(tmp_path, "a")
    assert study.label is not None
    label = np.asarray(nibabel.load(study.label).dataobj).astype(np.float32)
    save_label(study, label, shifted(0.01))
    assert set(examine_study(study).structures) == {2, 5}


def named(count: int, labelled: int = 0) -> list[Study]:
    path = Path("x.nii.gz")
    return [Study(f"s{n}", path, path if n < labelled else None) for n in range(count)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("count", "labelled"), [(2, 0), (2, 2), (2, 1), (7, 3), (20, 20), (3, 1)])
def test_no_study_that_trains_or_selects_judges(count: int, labelled: int, seed: int) -> None:
    studies = named(count, labelled)
    parts = split(studies, 0.2, seed)
    names = [{x.name for x in part} for part in parts]
    train, held_out, judged = names
    assert train and held_out and judged
    assert not judged & (train | held_out)
    assert not train & held_out or train == held_out, "too few to hold some out"
    assert sorted(train | held_out | judged) == sorted(x.name for x in studies)
    assert sorted(x.name for x in parts.all()) == sorted(x.name for x in studies)
    if labelled > 1:
        assert all(any(x.is_labelled for x in part) for part in (parts.train, parts.judged))


@pytest.mark.parametrize(
    ("count", "labelled", "sizes"),
    [
        (7, 7, (2, 1, 4)),
        (40, 40, (26, 6, 8)),
        (90, 90, (62, 16, 12)),
        (40, 0, (29, 7, 4)),
        (40, 2, (29, 7, 4)),
    ],
)
def test_sizes_of_the_parts(count: int, labelled: int, sizes: tuple[int, ...]) -> None:
    assert tuple(len(part) for part in split(named(count, labelled), 0.2, 0)) == sizes


@pytest.mark.parametrize("val_split", [0.001, 0.9, 0.999])
@pytest.mark.parametrize("labelled", [0, 1, 12])
def test_some_study_trains_whatever_the_share(labelled: int, val_split: float) -> None:
    parts = split(named(12, labelled), val_split, 0)
    assert parts.train and parts.held_out and parts.judged


def test_the_split_depends_on_names_and_seed_alone() -> None:
    studies = named(12)
    judged = {x.name for x in split(studies, 0.3, 1).judged}
    assert {x.name for x in split(studies[::-1], 0.3, 1).judged} == judged
    assert len({frozenset(x.name for x in split(studies, 0.3, n).judged) for n in range(8)}) > 3


def test_studies_that_the_served_student_knows_train_and_do_not_judge() -> None:
    studies = named(12, 8)
    first = split(studies, 0.2, 0)
    learned = {x.name for x in first.train + first.held_out}
    assert {x.name for x in split(studies, 0.2, 0, learned).judged} == {
        x.name for x in first.judged
    }
    labelled = {f"s{n}" for n in range(8)}
    parts = split(studies, 0.2, 0, labelled)
    assert parts.judged and not labelled & {x.name for x in parts.judged}
    assert sorted(x.name for x in parts.all()) == sorted(x.name for x in studies)
    assert not split(studies, 0.2, 0, {x.name for x in studies}).judged


def test_studies_are_listed_without_reading_them() -> None:
    labels = {"a": {"final": "a"}, "b": {"other": "b"}, "._a": {}}
    datastore = SimpleNamespace(list_images=lambda: ["b", "._a", "a"])
    datastore.get_labels_by_image_id = labels.__getitem__
    datastore.get_image_info = {"a": None, "b": {"PatientID": 0}}.__getitem__
    listed = list_studies(datastore)  # type: ignore[arg-type]
    assert [(x.name, x.is_labelled) for x in listed] == [("a", True), ("b", False)]
    assert [x.patient for x in listed] == ["a", "patient 0"]


def test_a_single_study_judges_nothing_and_none_is_an_error() -> None:
    train, held_out, judged = split(named(1), 0.2, 0)
    assert train == held_out and not judged
    with pytest.raises(InputError, match="no studies"):
        split([], 0.2, 0)
    with pytest.raises(InputError, match="val_split is 1"):
        split(named(3), 1, 0)


def test_halves_are_disjoint_and_equally_large() -> None:
    studies = named(7)
    first, second = halves(studies, 1)
    assert (len(first), len(second)) == (4, 3)
    assert sorted(x.name for x in first + second) == sorted(x.name for x in studies)
    assert halves(studies[::-1], 1) == (first, second)


def of_patients(*counts: int, labelled: int = 100) -> list[Study]:
    """Return so many studies of each patient, the first ones with a label."""
    path, studies = Path("x.nii.gz"), []
    for patient, count in enumerate(counts):
        for number in range(count):
            label = path if number < labelled else None
            studies.append(Study(f"{number}-of-{patient}", path, label, f"P{patient}"))
    return studies


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("labelled", [100, 1])
@pytest.mark.parametrize("counts", [(3, 2), (1, 4, 2), (2,) * 9, (1, 1, 1, 1, 12), (3,) * 40])
def test_no_patient_is_in_two_parts(counts: tuple[int, ...], labelled: int, seed: int) -> None:
    parts = split(of_patients(*counts, labelled=labelled), 0.2, seed)
    train, held_out, judged = ({x.patient for x in part} for part in parts)
    assert train and judged and not judged & (train | held_out)
    assert held_out == train or not held_out & train
    assert len(judged) <= (len(counts) + 1) // 2 and len(parts.judged) <= 12
    assert all(x.is_labelled for x in parts.judged), "the others of their patients are left out"
    if counts == (2,) * 9:
        assert len(judged) == 4 and len(parts.judged) == (8 if labelled > 1 else 4)


@pytest.mark.parametrize("series", [1, 3, 6, 13])
def test_many_series_of_a_patient_do_not_keep_other_patients_from_judging(series: int) -> None:
    judged = split(of_patients(*[series] * 20), 0.2, 0).judged
    assert len({x.patient for x in judged}) == 4
    assert len(judged) == min(12, 4 * series)
    assert [x.name for x in judging_studies(of_patients(3, 1, 2), 4)] == [
        "0-of-0", "0-of-1", "0-of-2", "1-of-0"
    ]  # fmt: skip


def test_the_studies_of_a_single_patient_judge_nothing() -> None:
    studies = of_patients(5)
    assert not split(studies, 0.2, 0).judged
    assert len(split(studies, 0.2, 0).train) == 5
    assert halves(studies, 0) == (studies, [])


def test_a_patient_that_the_served_student_knows_does_not_judge() -> None:
    studies = of_patients(2, 2, 2, 2)
    judged = {x.patient for x in split(studies, 0.2, 0).judged}
    seen = [x.name for x in studies if x.patient in judged and x.name.startswith("1-")]
    again = split(studies, 0.2, 0, seen)
    assert {x.patient for x in again.judged} == {x.patient for x in studies} - judged


def test_halves_have_other_patients() -> None:
    first, second = halves(of_patients(3, 1, 2, 2), 1)
    patients = [{x.patient for x in half} for half in (first, second)]
    assert [len(half) for half in patients] == [2, 2] and not patients[0] & patients[1]
    assert len(first) + len(second) == 8
