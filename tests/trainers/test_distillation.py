"""The task as MONAI Label runs it: its statistics, its publishing, and its error messages."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from small_site import (
    MASKS,
    SHORT,
    SPACING_MM,
    STUDENT,
    TEACHER,
    FolderDatastore,
    Site,
    judge_as,
    numbers,
    stop_while_judging,
)

from lib.errors import InputError, StoppedError
from lib.networks import FastSAM3D, build_untrained, load_checkpoint, save_checkpoint
from lib.trainers import DistillationTask, run_lock
from lib.trainers.data.study_split import Split
from lib.trainers.run import Run, RunWeights
from lib.trainers.run_state import RunFolder
from lib.trainers.train_options import TrainOptions
from lib.trainers.updates import Updater
from lib.trainers.validation import Validation
from lib.weights.files import file_weights
from lib.weights.versions import StudentVersions

OPTIONS = TrainOptions.from_request({**SHORT, "teacher": "none"})


@pytest.fixture(scope="module")
def stats(site: Site) -> dict:
    """Return the statistics of a run of both stages; one of the studies is unreadable."""
    unreadable = site.folder / "studies" / "cut.nii.gz"
    unreadable.write_bytes(b"no scan")
    try:
        return site.train("both stages", min_gain=0.9)
    finally:
        unreadable.unlink()


# --- statistics -----------------------------------------------------------------------------------


def test_history_has_a_row_per_epoch(stats: dict) -> None:
    history = stats["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert [row["stage"] for row in history] == [1, 1, 2, 2]
    assert [row["iteration"] for row in history] == [3, 6, 9, 12]
    assert [row["k"] for row in history] == [3, 6, 6, 6]
    for row in history:
        losses = row["pair_losses"]
        assert len(losses) == 6
        assert [loss is not None for loss in losses] == [n < row["k"] for n in range(6)]
    for row in history[:2]:  # stage 1: the mean over the trained pairs, and the neck's if all are
        trained = [loss for loss in row["pair_losses"] if loss is not None]
        expected = sum(trained) / len(trained) + row.get("embedding_loss", 0)
        assert row["loss"] == pytest.approx(expected)
    assert "embedding_loss" in history[1] and "embedding_loss" not in history[0]
    assert all(name in history[2] for name in ("kl", "dice", "ce"))


def test_validations_are_in_the_history(stats: dict) -> None:
    validated = [row["epoch"] for row in stats["history"] if "dice_student" in row]
    assert validated == [2, 4]
    for row in (stats["history"][1], stats["history"][3]):
        for network in ("student", "teacher"):
            assert list(row[f"dice_{network}"]) == ["1", "3", "5", "10"]
            assert all(0 <= value <= 1 for value in row[f"dice_{network}"].values())
    assert stats["history"][1]["dice_teacher"] == stats["history"][3]["dice_teacher"]


def test_statistics_have_the_keys_that_clients_read(stats: dict) -> None:
    assert (stats["epoch"], stats["total_epochs"]) == (4, 4)
    last = stats["history"][-1]
    assert stats["best_metric"] == pytest.approx(sum(last["dice_student"].values()) / 4)
    assert stats["total_time"].count(":") == 2
    assert isinstance(stats["published"], bool) and "mean Dice" in stats["reason"]
    assert stats["studies"] == {"train": 2, "held_out": 2, "judged": 2, "labelled": 2}
    assert list(stats["skipped"]) == ["cut"] and "cannot be read" in stats["skipped"]["cut"]
    assert stats["skipped_count"] == 1
    json.dumps(stats, allow_nan=False)


def test_pair_errors_are_measured_on_held_out_rois(stats: dict) -> None:
    assert set(stats["pair_errors"]) == {"initial", "stage1", "final"}
    assert all(len(errors) == 6 for errors in stats["pair_errors"].values())


def test_files_of_a_run(site: Site, stats: dict) -> None:
    folder = site.run_folder("both stages")
    assert site.task("both stages").curves.read_bytes()[:4] == b"\x89PNG"
    assert len(list((folder / "events").glob("events*"))) == 1, "TensorBoard's"
    assert not (folder / "state.pt").exists(), "the next training starts anew"
    assert site.task("both stages").stats() == stats


def test_a_run_is_repeatable(site: Site, stats: dict) -> None:
    assert numbers(site.train("again")) == numbers(stats)


def test_another_seed_gives_other_numbers(site: Site) -> None:
    rows = [numbers(site.train(f"seed {seed}", max_epochs=1, seed=seed))[0] for seed in range(2)]
    assert rows[0]["loss"] != rows[1]["loss"]


def test_stage_1_leaves_the_decoder_alone(site: Site) -> None:
    """The decoder starts as the teacher's, and only stage 2 changes it."""
    site.train("stage 1", max_epochs=2, stage1_fraction=1, start="teacher")
    teacher = file_weights(site.teacher).network.state_dict()
    student = torch.load(site.run_folder("stage 1") / "best.pt", weights_only=True)
    for name, x in student.items():
        if not name.startswith("image_encoder."):
            torch.testing.assert_close(x, teacher[name], rtol=0, atol=0)
    assert any(
        not torch.equal(x, teacher[name])
        for name, x in student.items()
        if name.startswith("image_encoder.neck")
    )


@pytest.mark.parametrize(
    ("options", "dice", "best"),
    [
        ({"teacher": "none", "max_epochs": 3}, [0.2, 0.6, 0.4], 1),
        ({"max_epochs": 4, "start": "teacher"}, [0.9, 0.8, 0.3, 0.2], 2),  # two in each stage
        ({"max_epochs": 2, "stage1_fraction": 1, "start": "teacher"}, [0.3, 0.2], 0),
    ],
    ids=["stage 2 alone", "both stages", "stage 1 alone"],
)
def test_the_student_of_the_best_validation_in_the_last_stage_is_the_candidate(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    options: dict,
    dice: list[float],
    best: int,
) -> None:
    expected = dice[best]
    values = iter(dice)
    students: list[dict] = []

    def validate(network: FastSAM3D, *_: object, **__: object) -> Validation:
        if network.config.depth != 6:  # the teacher
            return Validation({1: 0.5}, 0.5, torch.full((4, 1), 0.5), labelled=4)
        students.append({name: x.clone() for name, x in network.state_dict().items()})
        value = next(values)
        return Validation({1: value}, value, torch.full((4, 1), value), labelled=4)

    monkeypatch.setattr("lib.trainers.run.validate", validate)
    judge_as(monkeypatch, 0.5, 0.3)
    name = f"best of {len(dice)}"
    stats = site.train(name, **{"stage1_fraction": 0.5, **options}, val_interval=1, accept=True)
    assert (stats["best_metric"], stats["best_metric_epoch"]) == (expected, best + 1)
    assert stats["published"] and "mean Dice 0.500 against 0.300" in stats["reason"]
    published = site.task(name)._served().network.state_dict()
    for key, x in published.items():
        torch.testing.assert_close(x, students[best][key], rtol=0, atol=0)
    other = students[best - 1]
    assert any(not torch.equal(x, other[key]) for key, x in published.items())


def test_labels_alone(site: Site) -> None:
    stats = site.train("labels alone", teacher="none", max_epochs=2)
    assert [row["stage"] for row in stats["history"]] == [2, 2]
    assert stats["studies"] == {"train": 1, "held_out": 1, "judged": 1, "labelled": 2}
    assert stats["history"][-1]["dice_teacher"] is None
    assert stats["history"][-1]["kl"] == 0 and stats["teacher"] is None
    assert stats["start"] == "served"


# --- publishing -----------------------------------------------------------------------------------


def test_a_worse_student_is_not_published(site: Site) -> None:
    task = site.task("worse")
    worse = {"lr": 0.5, "lr_stage2": 0.5, "clip_norm": 100.0, "min_gain": 0.9, "max_epochs": 1}
    result = task({**SHORT, **worse}, site.datastore)
    assert result["published"] is False and "more than 0.9 is needed" in result["reason"]
    assert task.stats()["published"] is False
    assert not list((site.folder / "worse").rglob("published/*/*.safetensors"))


def test_an_untrained_student_is_replaced_without_a_gain(site: Site, tmp_path: Path) -> None:
    untrained = tmp_path / "untrained.safetensors"
    save_checkpoint(load_checkpoint(site.student), untrained, {"trained": "false"})
    task = site.task("untrained", student=untrained)
    result = task({**SHORT, "max_epochs": 1, "min_gain": 0.9}, site.datastore)
    assert result["published"] and result["version"] == 1
    assert "published, as that one was never trained" in result["reason"]
    assert task._served().info()["trained"]


def test_too_few_studies_to_judge_on_ask_the_user(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second request trains nothing: it publishes what the first one trained."""
    judge_as(monkeypatch, 0.5, 0.3)
    task, options = site.task("asks"), {**SHORT, "max_epochs": 1}
    assert task(options, site.datastore)["published"] is False
    stats = task.stats()
    assert stats["asks"] and "on 2 studies that took no part" in stats["reason"]
    assert "4 studies are needed to judge: train again with accept true" in stats["reason"]

    def fail(*_: object) -> None:
        raise AssertionError("an update")

    monkeypatch.setattr(Updater, "__call__", fail)
    monkeypatch.setattr("lib.trainers.task.mean_dice", fail)
    result = task({**options, "accept": True}, site.datastore)
    assert result["published"] and result["version"] == 1
    assert task.stats()["asks"] is False and not task._folder.state.exists()


def test_scans_of_one_patient_are_in_one_part_and_count_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_as(monkeypatch, 0.5, 0.3)
    site = Site(tmp_path, count=5, labelled=3)
    site.datastore.patients = {f"scan{n}": "P-2" for n in (0, 1, 3)} | {"scan2": "P-1"}
    stats = site.train("patients", max_epochs=1)
    assert stats["skipped"] == {"scan3": "other studies of its patient judge"}
    assert "on 2 studies of 1 patient that took no part" in stats["reason"]
    assert stats["studies"] == {"train": 2, "held_out": 2, "judged": 2, "labelled": 3}


def test_a_published_file_says_how_it_was_trained(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_as(monkeypatch, 0.5, 0.3)
    task = site.task("published")
    result = task({**SHORT, "max_epochs": 1, "accept": True}, site.datastore)
    assert result["published"] and result["version"] == 1
    info = task._served().info()
    assert info["description"] == "distilled from teacher.safetensors on 2 studies of this site"
    assert info["dice"] == (
        "0.500, before 0.300: mean after 1/3/5/10 clicks of served masks on 2 studies that took no "
        "part, 1 of them against the teacher's masks"
    )
    metadata = task._served().metadata
    assert len(json.loads(metadata["studies"])) == 2, "those that trained it, not those that judged"
    assert metadata["teacher_sha256"] == file_weights(site.teacher).network_id
    assert metadata["parent_sha256"] == file_weights(site.student).network_id
    assert "'max_epochs': 1" in metadata["options"]


def test_a_stop_is_noticed_between_two_judged_studies(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        judged = stop_while_judging(patch)
        with pytest.raises(StoppedError):
            site.train("stopped", max_epochs=1)
    (first,) = set(judged)
    judge_as(monkeypatch, 0.6, 0.5)
    dice = site.train("stopped", max_epochs=1)["judged"]["dice"]
    assert len(dice) == 2 and dice.pop(first) == [0.4, 0.4], "not measured again"
    assert list(dice.values()) == [[0.6, 0.5]]


@pytest.mark.parametrize("place", ["lib.trainers.task.examine", "lib.trainers.run.Run.candidate"])
def test_a_stop_outside_of_the_loop_is_a_stop(
    site: Site, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """While studies are read, and before the judging: no process is killed without a word."""

    def stop(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:  # as those who read studies handle a fault
            pytest.fail("a handler of errors took the stop for one")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(place, stop)
    with pytest.raises(StoppedError):
        site.train("stopped outside", max_epochs=1)
    assert signal.getsignal(signal.SIGTERM) is before
    stats = site.task("stopped outside").stats()
    assert "was stopped" in stats["reason"] and "error" not in stats


def test_a_stop_while_the_student_is_published_is_too_late(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = StudentVersions.publish

    def stop(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return publish(*arguments)

    judge_as(monkeypatch, 0.5, 0.3)
    monkeypatch.setattr(StudentVersions, "publish", stop)
    stats = site.train("stopped late", max_epochs=1, accept=True)
    assert stats["published"] and stats["version"] == 1 and stats["total_time"]


def test_after_a_rollback_meanwhile_the_next_run_judges_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student is judged against the version that is served then, and not trained again."""
    judge_as(monkeypatch, 0.5, 0.3)
    task, options = site.task("judged again"), {**SHORT, "max_epochs": 1, "accept": True}
    publish, published = task._served.published.publish, build_untrained(STUDENT, seed=7)

    def judge(*_: object) -> list[float]:
        if task._served().network_id == task._served.base.network_id:
            publish(published, {"studies": "[]"}, 3)
        return [0.4]

    with monkeypatch.context() as patch:
        patch.setattr("lib.trainers.task.mean_dice", judge)
        assert task(options, site.datastore)["published"] is False
    assert "than when the new student was judged; train again" in task.stats()["reason"]
    assert len(task.stats()["judged"]["dice"]) == 1, "the others would not count"
    updates = task.stats()["iteration"]
    assert task(options, site.datastore)["published"]
    stats = task.stats()
    assert stats["resumed"] == f"resumed after update {updates}"
    assert stats["iteration"] == updates and stats["version"] == 2


def test_a_stopped_run_starts_anew_if_other_studies_judge(tmp_path: Path) -> None:
    """What selected the student must not judge it, once a rollback lets the study judge."""
    site = Site(tmp_path, count=6, labelled=6)
    studies, _ = site.task()._find_studies(TrainOptions(), site.datastore)
    weights = RunWeights("base", site.served()(), None)

    def signature(parts: Split) -> str:
        folder = RunFolder(tmp_path / "run")
        return Run(folder, OPTIONS, parts, weights, SPACING_MM, torch.device("cpu")).signature

    one, other = (Split(studies[:2], studies[2:middle], studies[middle:]) for middle in (3, 4))
    assert one.all() == other.all() and signature(one) != signature(other)


def test_statistics_of_a_run_that_starts_are_not_those_of_the_last_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.train("two runs", max_epochs=1)
    seen = []

    def examine(studies: list) -> Any:
        seen.append(site.task("two runs").stats())
        raise RuntimeError("killed")

    monkeypatch.setattr("lib.trainers.task.examine", examine)
    with pytest.raises(RuntimeError):
        site.train("two runs", max_epochs=1)
    (stats,) = seen
    assert stats["reason"] == "the run has not ended" and not stats["published"]
    assert stats["epoch"] == 0 and not stats["history"] and "error" not in stats
    assert stats["start_ts"] >= site.task("two runs").stats()["start_ts"], "the newest, for clients"


def test_a_killed_run_says_so(site: Site, tmp_path: Path) -> None:
    folder = site.run_folder("killed")
    task = site.task("killed")
    task._folder.begin_stats()
    with run_lock.only_run(folder.parent, "fastsam3d"):
        assert task.stats()["reason"] == "the run has not ended" and not task.error
    with run_lock.only_run(folder.parent, "fastsam3d_adapt"):
        assert task.error, "the run of another trainer is not this one"
    message = "the training ended without a message, as when it is killed because memory is short"
    assert task.stats()["reason"].startswith(message) and task.error.startswith(message)


def test_a_study_that_was_removed_meanwhile_does_not_judge(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*arguments: Any) -> list[float]:
        (study,) = arguments[2]
        if study.name == measured[0]:
            raise InputError(f"label {study.name} does not exist")
        return [0.4]

    measured = list(site.train("all are there", max_epochs=1)["judged"]["dice"])
    monkeypatch.setattr("lib.trainers.task.mean_dice", measure)
    stats = site.train("one was removed", max_epochs=1)
    assert list(stats["judged"]["dice"]) == measured[1:]
    reason = f"it did not judge: label {measured[0]} does not exist"
    assert stats["skipped"][measured[0]] == reason
    assert stats["skipped_count"] == len(stats["skipped"])


def test_a_scan_that_was_replaced_meanwhile_does_not_judge(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mask of the new scan has another shape than the label."""
    judged = list(site.train("none replaced", max_epochs=1)["judged"]["dice"])
    labelled = next(name for name in judged if name in ("scan0", "scan1"))
    path = site.folder / "studies" / f"{labelled}.nii.gz"
    content = path.read_bytes()
    candidate = Run.candidate

    def replace_scan(self: Run) -> FastSAM3D:
        image = nib.load(path)
        padded = np.pad(np.asarray(image.dataobj), ((0, 3), (0, 0), (0, 0)), mode="edge")
        nib.save(nib.Nifti1Image(padded, image.affine), path)
        return candidate(self)

    monkeypatch.setattr(Run, "candidate", replace_scan)
    try:
        stats = site.train("one replaced", max_epochs=1)
    finally:
        path.write_bytes(content)
    assert list(stats["judged"]["dice"]) == [name for name in judged if name != labelled]
    assert "as it was replaced" in stats["skipped"][labelled]


# --- errors ---------------------------------------------------------------------------------------


def error_of(task: DistillationTask, datastore: FolderDatastore, **options: object) -> str:
    """Return the message of a training that must fail."""
    with pytest.raises(InputError) as error:
        task({**SHORT, **options}, datastore)
    return str(error.value)


def test_no_teacher(site: Site, tmp_path: Path) -> None:
    teacher = dataclasses.replace(file_weights(site.teacher), trained=False)
    task = DistillationTask(tmp_path, site.served(), teacher, MASKS)
    message = "there is no teacher: start the server with --conf teacher_weights"
    assert message in error_of(task, site.datastore)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 32}, "the teacher's width is 32 and the student's 16"),
        ({"depth": 11}, "the teacher has 11 blocks and the student 6"),
    ],
)
def test_a_teacher_that_does_not_fit(
    site: Site, tmp_path: Path, change: dict, message: str
) -> None:
    config = dataclasses.replace(TEACHER, **change)
    save_checkpoint(build_untrained(config, 0), tmp_path / "other.safetensors")
    teacher = file_weights(tmp_path / "other.safetensors")
    task = DistillationTask(tmp_path, site.served(), teacher, MASKS, spacing_mm=8.0)
    assert message in error_of(task, site.datastore)


def test_no_studies(site: Site, tmp_path: Path) -> None:
    message = error_of(site.task(), FolderDatastore(tmp_path))
    assert "there are no studies to train on" in message


def test_no_usable_study(tmp_path: Path) -> None:
    site = Site(tmp_path, count=1, labelled=0)
    (tmp_path / "studies" / "scan0.nii.gz").write_bytes(b"no scan")
    message = error_of(site.task(), site.datastore)
    assert "none of the studies can be used (scan0: " in message
    assert site.task().stats()["error"] == message, "clients read it there"


def test_no_labels(tmp_path: Path) -> None:
    site = Site(tmp_path, count=2, labelled=0)
    message = error_of(site.task(), site.datastore, teacher="none")
    assert "there are no labels to train on" in message


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory"
        ),
        MemoryError(),
    ],
)
def test_out_of_memory_names_the_options(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Updater, "__call__", fail)
    message = error_of(site.task("memory"), site.datastore, start="served")
    assert "out of memory on cpu: lower train_batch_size (now 4), or raise accumulate" in message
    assert site.task("memory").stats()["error"] == message


def test_another_error_is_recorded_and_raised(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(Updater, "__call__", fail)
    with pytest.raises(ZeroDivisionError):
        site.train("mistake", start="served")
    error = site.task("mistake").stats()["error"]
    assert error == "the training failed (ZeroDivisionError: a mistake); see the log"


def test_one_run_at_a_time(site: Site) -> None:
    task = site.task("busy")
    with run_lock.only_run(site.run_folder("busy").parent, "fastsam3d_adapt"):
        message = error_of(task, site.datastore)
    assert "another training is running (fastsam3d_adapt on " in message
    assert task.stats() == {}, "the statistics are those of the other run"


def test_student_and_teacher_of_the_tests_are_as_deep_as_in_the_paper() -> None:
    assert (TEACHER.depth, STUDENT.depth) == (12, 6)
