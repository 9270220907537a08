"""The adaptation to labels: three students, cross-validated, with the encoder untouched."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from small_site import MASKS, FolderDatastore, Killed, Site, judge_as, stop_while_judging

from lib.errors import InputError, StoppedError
from lib.imaging.volume import read_volume
from lib.trainers.adapt_batches import beside_label, pool_sizes
from lib.trainers.adapt_options import AdaptOptions
from lib.trainers.adapt_run import AdaptRun, make_phases
from lib.trainers.data import Study
from lib.trainers.data.painted_rois import paint_roi
from lib.trainers.data.studies import examine, find_studies, read_label
from lib.trainers.decoder_autocast import decoder_autocast
from lib.trainers.run import Run

SHORT = {
    "max_epochs": 4,
    "iterations_per_epoch": 2,
    "train_batch_size": 2,
    "rois": 8,
    "lr": 1e-3,
    "threads": 1,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("labelled"), count=5, labelled=4)


def adapt(site: Site, name: str, **options: object) -> dict:
    task = site.adaptation(name)
    task({**SHORT, **options}, site.datastore)
    return task.stats()


@pytest.fixture(scope="module")
def stats(labelled: Site) -> dict:
    return adapt(labelled, "undisturbed", min_gain=0.9)


def numbers(stats: dict) -> list[dict]:
    return [{name: x for name, x in row.items() if name != "seconds"} for row in stats["history"]]


def test_three_students_are_trained_and_two_are_judged(stats: dict) -> None:
    assert [row["student"] for row in stats["history"]] == [1, 1, 2, 2, 3, 3, 3, 3]
    assert [row["iteration"] for row in stats["history"]] == list(range(2, 17, 2))
    assert (stats["epoch"], stats["total_epochs"]) == (8, 8)
    assert stats["studies"] == {"train": 4, "labelled": 4, "judged": 4}
    assert set(stats["judged"]["dice"]) == {f"scan{n}" for n in range(4)}, "each study, once"
    assert all(row["kl"] >= 0 and row["dice"] > 0 for row in stats["history"])
    assert stats["published"] is False and "on 4 studies that took no part" in stats["reason"]
    assert stats["curves"] == "/train/fastsam3d_adapt/curves.png"


def test_no_student_is_judged_on_studies_that_trained_it() -> None:
    studies = [Study(f"s{n}", Path("x.nii.gz"), Path("y.nii.gz")) for n in range(7)]
    *halves, last = make_phases(studies, 0)  # type: ignore[arg-type]
    for phase in halves:
        assert not {x.name for x in phase.train} & {x.name for x in phase.judged}
    assert sorted(x.name for phase in halves for x in phase.judged) == [x.name for x in studies]
    assert last.train == studies and not last.judged
    assert [phase.judged for phase in make_phases(studies[:1], 0)] == [[]]  # type: ignore[arg-type]


def test_few_studies_of_many_judge_and_none_that_the_served_student_knows() -> None:
    studies = [Study(f"s{n}", Path("x.nii.gz"), Path("y.nii.gz")) for n in range(40)]
    seen = {f"s{n}" for n in range(0, 40, 3)}
    *halves, last = make_phases(studies, 0, seen)  # type: ignore[arg-type]
    assert [len(phase.judged) for phase in halves] == [6, 6]
    assert not seen & {x.name for phase in halves for x in phase.judged}
    assert [len(phase.train) for phase in halves] == [20, 20] and len(last.train) == 40


def test_of_patients_with_many_series_as_many_as_possible_judge() -> None:
    path = Path("x.nii.gz")
    studies = [Study(f"s{n}", path, path, f"P{n % 10}") for n in range(80)]
    *halves, _ = make_phases(studies, 0, {"s3"})  # type: ignore[arg-type]
    patients = [{x.patient for x in phase.judged} for phase in halves]
    assert sorted(len(each) for each in patients) == [4, 5]
    assert "patient P3" not in patients[0] | patients[1], "one of its series was learned"
    assert all(len(phase.judged) == 6 for phase in halves)


def test_only_the_mask_decoder_changes(labelled: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    judge_as(monkeypatch, 0.6, 0.5)
    assert adapt(labelled, "published")["published"]
    served = labelled.served("published")
    new, old = served().network.state_dict(), served.base.network.state_dict()
    changed = {name for name, x in new.items() if not torch.equal(x, old[name])}
    assert changed and all(name.startswith("mask_decoder.") for name in changed)
    assert "adapted to 4 labels of this site" in served().info()["description"]
    adaptation = served().adaptation
    assert adaptation is not None and served().info()["adapted"]
    before = served.base.network.mask_decoder.state_dict()
    assert all(torch.equal(x, before[name]) for name, x in adaptation.earlier.state_dict().items())
    served.published.rollback(None)
    assert served().network_id == served.base.network_id, "one call undoes it"


def test_adapting_again_starts_from_the_decoder_before_the_first_time(
    labelled: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_as(monkeypatch, 0.6, 0.5)
    adapt(labelled, "twice")
    first = labelled.served("twice")()
    asked = adapt(labelled, "twice")
    assert asked["asks"], "the served student has learned all labels"
    assert "of 4 labelled studies 0 took no part in version 1" in asked["reason"]
    assert adapt(labelled, "twice", accept=True)["published"]
    assert labelled.served("twice")().info()["description"].count("adapted to") == 1
    second = labelled.served("twice")()
    assert first.adaptation is not None and second.adaptation is not None
    for before, after in (
        (first.network, second.network),  # the same labels, seed and start
        (first.adaptation.earlier, second.adaptation.earlier),
    ):
        after_state = after.state_dict()
        assert all(torch.equal(x, after_state[name]) for name, x in before.state_dict().items())


def test_only_studies_that_the_served_student_never_saw_judge_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_as(monkeypatch, 0.6, 0.5)
    site = Site(tmp_path, count=8, labelled=8)
    labels, later = tmp_path / "studies" / "labels" / "final", tmp_path / "later"
    later.mkdir()
    for number in range(4):
        (labels / f"scan{number}.nii.gz").rename(later / f"scan{number}.nii.gz")
    assert adapt(site, "model")["published"]
    assert len(json.loads(site.served()().metadata["studies"])) == 4
    for path in later.iterdir():
        path.rename(labels / path.name)
    second = adapt(site, "model")
    assert second["published"] and set(second["judged"]["dice"]) == {f"scan{n}" for n in range(4)}
    assert second["studies"] == {"train": 8, "labelled": 8, "judged": 4}
    assert len(json.loads(site.served()().metadata["studies"])) == 8
    distilled = site.train(max_epochs=1)
    assert distilled["studies"]["judged"] == 0 and distilled["asks"]
    reason = "no study to judge on: of 8 studies 0 took no part in version 2"
    assert reason in distilled["reason"]


def test_a_stop_is_noticed_between_two_judged_studies(
    labelled: Site, stats: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        judged = stop_while_judging(patch)
        with pytest.raises(StoppedError):
            adapt(labelled, "stopped", min_gain=0.9)
    (first,) = set(judged)
    updates = []
    step = AdaptRun._step
    monkeypatch.setattr(AdaptRun, "_step", lambda *x: updates.append(step(*x)))
    resumed = adapt(labelled, "stopped", min_gain=0.9)
    assert resumed["resumed"] == "resumed after update 4", "the first student's last one"
    assert len(updates) == 12, "nothing is trained again"
    assert resumed["judged"]["dice"].pop(first) == [0.4, 0.4], "not measured again"
    expected = dict(stats["judged"]["dice"])
    expected.pop(first)
    assert resumed["judged"]["dice"] == expected


def test_killed_while_it_judges_a_run_goes_on_there(
    labelled: Site, stats: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure_one(*arguments: Any) -> list[float]:
        if len(measured) == 2:
            raise Killed
        measured.append(arguments[2][0].name)
        return [0.4]

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("lib.trainers.task.mean_dice", measure_one)
        adapt(labelled, "killed while judging", min_gain=0.9)
    resumed = adapt(labelled, "killed while judging", min_gain=0.9)
    assert numbers(resumed) == numbers(stats)
    assert resumed["judged"]["dice"][measured[0]] == [0.4, 0.4]


@pytest.mark.parametrize("update", [3, 7])
def test_a_killed_run_resumes(
    labelled: Site, stats: dict, monkeypatch: pytest.MonkeyPatch, update: int
) -> None:
    step, name = AdaptRun._step, f"killed after {update}"

    def step_or_die(self: AdaptRun, batch: dict) -> None:
        if self.progress.update == update:
            raise Killed
        step(self, batch)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(AdaptRun, "_step", step_or_die)
        adapt(labelled, name, min_gain=0.9)
    resumed = adapt(labelled, name, min_gain=0.9)
    assert resumed["resumed"].startswith("resumed after update")
    assert numbers(resumed) == numbers(stats) and resumed["judged"] == stats["judged"]


def test_with_other_masks_a_stopped_run_starts_anew(
    labelled: Site, stats: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ROIs and verdict depend on the options of the server."""
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        stop_while_judging(patch)
        adapt(labelled, "other masks", min_gain=0.9)
    task = labelled.adaptation("other masks")
    task._mask_source = replace(MASKS, spacing_mm=5.0)
    task({**SHORT, "min_gain": 0.9}, labelled.datastore)
    assert "the server's options for masks; training starts anew" in task.stats()["resumed"]


def test_with_other_patients_a_stopped_run_starts_anew(
    labelled: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The halves are other ones then: what trained a student could judge it."""
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        stop_while_judging(patch)
        adapt(labelled, "other patients", min_gain=0.9)
    monkeypatch.setattr(
        labelled.datastore, "patients", {f"scan{n}": f"P-{n // 2}" for n in range(4)}
    )
    stats = adapt(labelled, "other patients", min_gain=0.9)
    assert "starts anew" in stats["resumed"] and len(stats["judged"]["dice"]) == 4


def test_a_rollback_meanwhile_publishes_nothing(
    labelled: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student was judged against a version that is not served any more."""
    judge_as(monkeypatch, 0.6, 0.5)
    adapt(labelled, "rolled back")
    task = labelled.adaptation("rolled back")
    step = AdaptRun._step

    def step_after_rollback(self: AdaptRun, batch: dict) -> None:
        if self.progress.update == 6:
            task._served.published.rollback(0)
        step(self, batch)

    monkeypatch.setattr(AdaptRun, "_step", step_after_rollback)
    task({**SHORT, "accept": True, "seed": 1}, labelled.datastore)
    stats = task.stats()
    assert not stats["published"] and "another version is served" in stats["reason"]


def test_labels_that_are_removed_meanwhile_still_train_and_judge(
    tmp_path: Path, stats: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a client saves them anew, in another format."""
    site = Site(tmp_path, count=5, labelled=4)
    step = AdaptRun._step

    def step_without_labels(self: AdaptRun, batch: dict) -> None:
        for path in (tmp_path / "studies" / "labels" / "final").iterdir():
            path.unlink()
        step(self, batch)

    monkeypatch.setattr(AdaptRun, "_step", step_without_labels)
    disturbed = adapt(site, "model", min_gain=0.9)
    assert numbers(disturbed) == numbers(stats)
    assert disturbed["judged"]["dice"] == stats["judged"]["dice"]


def test_empty_labels_are_no_labels(tmp_path: Path) -> None:
    site = Site(tmp_path, count=2, labelled=2)
    for path in (tmp_path / "studies" / "labels" / "final").iterdir():
        label = nib.load(path)
        nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), path)
    with pytest.raises(InputError, match="scan0: its label is empty; scan1: its label is empty"):
        adapt(site, "empty")


def test_three_labels_ask_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge_as(monkeypatch, 0.6, 0.5)
    site = Site(tmp_path, count=3, labelled=3)
    asked = adapt(site, "few")
    assert asked["asks"] and not asked["published"] and "accept true" in asked["reason"]

    def fail(*_: object) -> None:
        raise AssertionError("an update")

    monkeypatch.setattr(AdaptRun, "_step", fail)
    assert adapt(site, "few", accept=True)["published"]


def test_one_label_asks_too(tmp_path: Path) -> None:
    site = Site(tmp_path, count=1, labelled=1)
    asked = adapt(site, "one")
    assert asked["asks"] and "no study to judge on" in asked["reason"]
    assert adapt(site, "one", accept=True)["published"]


def test_several_scans_of_one_patient_ask_too(tmp_path: Path) -> None:
    site = Site(tmp_path, count=3, labelled=3)
    site.datastore.patients = {f"scan{n}": "P-1" for n in range(3)}
    asked = adapt(site, "one patient")
    assert asked["asks"] and asked["studies"]["judged"] == 0
    assert "all labelled studies have the same PatientID" in asked["reason"]
    assert "P-1" not in str(asked), "clients and logs do not need it"


def test_a_distillation_starts_from_the_decoder_before_the_adaptation(
    labelled: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_as(monkeypatch, 0.6, 0.5)
    adapt(labelled, "then distilled")
    starts = []
    monkeypatch.setattr(Run, "train", lambda run: starts.append(run.student))
    with pytest.raises(StoppedError):
        labelled.train("then distilled", start="served")
    before = labelled.served("then distilled").base.network.state_dict()
    (student,) = starts
    assert all(torch.equal(x, before[name]) for name, x in student.state_dict().items())


def test_a_slow_machine_does_fewer_updates(labelled: Site) -> None:
    stats = adapt(
        labelled, "slow", max_epochs=8, iterations_per_epoch=5, max_minutes=1e-4, min_gain=0.9
    )
    assert stats["iteration"] == 10 + 10 + 20
    assert [row["student"] for row in stats["history"]] == [1, 1, 2, 2, 3, 3, 3, 3]
    assert len(stats["judged"]["dice"]) == 4, "each student was judged at its end"


def test_a_machine_that_was_busy_at_first_catches_up(
    labelled: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = AdaptRun._plan

    def plan_with_a_slow_start(run: AdaptRun, phase: int) -> None:
        if phase == 0:
            run._step_seconds.extend([100.0] * 6)
        plan(run, phase)
        run._step_seconds.clear()

    monkeypatch.setattr(AdaptRun, "_plan", plan_with_a_slow_start)
    stats = adapt(labelled, "busy", max_epochs=8, iterations_per_epoch=5, min_gain=0.9)
    assert [row["student"] for row in stats["history"]] == [1] * 2 + [2] * 4 + [3] * 8


def test_each_label_of_many_has_a_roi_and_few_have_two() -> None:
    options = AdaptOptions.from_request({"device": "cpu"})
    assert pool_sizes(options, 7) == (64, 32)
    assert pool_sizes(options, 40) == (80, 80)
    assert pool_sizes(options, 100) == (128, 128)
    assert pool_sizes(options, 300) == (300, 300)


def test_places_beside_a_label_are_near_it_and_outside(labelled: Site) -> None:
    studies, _ = examine(find_studies(labelled.datastore)[0])
    study = next(each for each in studies if each.is_labelled)
    beside = beside_label(study)
    assert not beside.is_labelled and len(beside.body) > 100
    label = read_label(study.study.label, read_volume(study.study.image))  # type: ignore[arg-type]
    assert not label[tuple(beside.body.T)].any()
    ball = np.argwhere(label)
    extent, middle = np.ptp(ball, axis=0) + 1, ball.mean(axis=0)
    assert (np.abs(beside.body - middle) <= extent + 1).all()


@pytest.mark.parametrize("has_it", [True, False])
def test_bfloat16_is_used_where_it_is_fast(monkeypatch: pytest.MonkeyPatch, has_it: bool) -> None:
    monkeypatch.setattr("lib.trainers.decoder_autocast.multiplies_bfloat16", lambda: has_it)
    with decoder_autocast(torch.device("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if has_it else torch.float32)


def test_no_labels(tmp_path: Path) -> None:
    site = Site(tmp_path, count=2, labelled=0)
    with pytest.raises(InputError, match="no labels to adapt to"):
        site.adaptation().check({}, site.datastore)
    with pytest.raises(InputError, match="no studies"):
        site.adaptation().check({}, FolderDatastore(tmp_path))


def test_a_folder_of_models_that_cannot_be_written_is_refused_at_once(
    labelled: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # file modes do not stop the superuser, who may run the tests
    monkeypatch.setattr("lib.trainers.task.can_write", lambda folder: False)
    with pytest.raises(InputError, match=r"cannot be written.*--conf model_dir"):
        labelled.adaptation().check({}, labelled.datastore)


def test_the_clients_table() -> None:
    config = AdaptOptions.config()
    assert list(config) == ["device", "min_gain", "accept", "resume", "max_epochs", "max_minutes"]
    assert AdaptOptions.from_request(config) == AdaptOptions.from_request({})


def test_painted_rois_are_normalised_and_differ() -> None:
    image = paint_roi(32, 1)
    assert image.shape == (1, 32, 32, 32) and image.dtype == torch.float32
    assert torch.isfinite(image).all() and abs(float(image.mean())) < 1
    assert torch.equal(image, paint_roi(32, 1))
    other = paint_roi(32, 2)
    assert abs(np.corrcoef(image.flatten(), other.flatten())[0, 1]) < 0.5
