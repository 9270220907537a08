"""A run that ends early resumes where it stopped and gives the numbers of an undisturbed run."""

import dataclasses
import errno
import os
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small_site import SHORT, Killed, Site, judge_as, killed_after, numbers

from lib.errors import InputError
from lib.trainers import loop
from lib.trainers.data import ExaminedStudy, Study
from lib.trainers.request_options import NOT_IN_RESULT
from lib.trainers.run import Run
from lib.trainers.run_state import run_signature
from lib.trainers.teacher import TeacherFeatures
from lib.trainers.train_options import TrainOptions
from lib.trainers.updates import Updater

SMALL = {**SHORT, "start": "served", "threads": 1, "min_gain": 0.9}


@pytest.fixture(scope="module")
def undisturbed(site: Site) -> dict:
    return site.train("undisturbed", **SMALL)


@pytest.fixture(autouse=True)
def saved_at_epochs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the time between saved states out of the tests."""
    monkeypatch.setattr(loop, "SAVE_SECONDS", 1e9)


@pytest.fixture(scope="module")
def killed(site: Site) -> Path:
    """Return the model folder of a run that was killed after update 4, whose state is of update 3.

    The teacher's features are stored there, too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "SAVE_SECONDS", 1e9)
        with killed_after(4, patch):
            site.train("killed", **SMALL)
    return site.folder / "killed"


def copy_of(killed: Path, site: Site, name: str) -> str:
    """Copy the model folder of the killed run; return its name."""
    shutil.copytree(killed, site.folder / name)
    return name


def facts(stats: dict) -> dict:
    names = ("best_metric", "best_metric_epoch", "pair_errors", "judged", "reason")
    return {"history": numbers(stats), **{name: stats[name] for name in names}}


def test_a_killed_run_resumes_at_the_last_state(
    site: Site, undisturbed: dict, killed: Path
) -> None:
    """Updates after the state are computed again; the result is the same bit for bit."""
    name = copy_of(killed, site, "resumed")
    assert "resumed" not in site.task(name).stats()["reason"]
    stats = site.train(name, **SMALL, keep_versions=1)  # an option that does not change the result
    assert stats["resumed"] == "resumed after update 3"
    assert facts(stats) == facts(undisturbed)


# within stage 1, between the stages, and within stage 2
@pytest.mark.parametrize("updates", [4, pytest.param(6, marks=pytest.mark.slow), 11])
def test_states_within_an_epoch_lose_no_update(
    site: Site, undisturbed: dict, monkeypatch: pytest.MonkeyPatch, updates: int
) -> None:
    name = f"killed after {updates}"
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    with killed_after(updates, monkeypatch):
        site.train(name, **SMALL)
    stats = site.train(name, **SMALL)
    assert stats["resumed"] == f"resumed after update {updates}"
    assert facts(stats) == facts(undisturbed)


def test_sigterm_stops_after_the_update_and_saves_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates: list[int] = []
    update_student = Updater.__call__

    def terminated(self: Updater, batch: dict, update: int) -> dict:
        updates.append(update)
        if update == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return update_student(self, batch, update)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Updater, "__call__", terminated)
    with pytest.raises(InputError, match="the training was stopped; train again to go on"):
        site.train("stopped", **SMALL)
    assert updates == [0, 1, 2, 3, 4]
    assert signal.getsignal(signal.SIGTERM) is before
    state = torch.load(site.run_folder("stopped") / "state.pt", weights_only=True)
    assert state["progress"]["update"] == 5
    stats = site.task("stopped").stats()
    assert "was stopped" in stats["reason"] and "error" not in stats and stats["iteration"] == 5


def test_the_copies_of_scans_are_private(site: Site, undisturbed: dict) -> None:
    cache = site.run_folder("undisturbed") / "cache"
    assert any(cache.rglob("*.safetensors"))
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def begin(site: Site, name: str, **options: object) -> dict:
    """Begin a run and kill it before its first update; return the statistics."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "train", lambda _: (_ for _ in ()).throw(Killed))
        site.train(name, **{**SMALL, **options})
    return site.task(name).stats()


def test_a_run_with_other_options_starts_anew(site: Site, killed: Path) -> None:
    stats = begin(site, copy_of(killed, site, "other options"), lr=1e-3)
    assert "its options, studies or weights were different" in stats["resumed"]
    assert stats["iteration"] == 0 and stats["history"] == []


def test_resuming_can_be_declined(site: Site, killed: Path) -> None:
    stats = begin(site, copy_of(killed, site, "declined"), resume=False)
    assert stats["resumed"] == "" and stats["iteration"] == 0


def test_a_run_with_a_damaged_state_starts_anew(site: Site, killed: Path) -> None:
    name = copy_of(killed, site, "damaged")
    state = site.run_folder(name) / "state.pt"
    state.write_bytes(state.read_bytes()[:-500])
    stats = begin(site, name)
    assert "cannot be read" in stats["resumed"] and "training starts anew" in stats["resumed"]
    assert stats["iteration"] == 0


def test_the_signature_depends_on_options_studies_and_networks() -> None:
    options = TrainOptions()
    study = ExaminedStudy(Study("a", Path("a.nii.gz")), "key", "image", None, {}, np.zeros((1, 3)))
    networks = {"base": "abc", "spacing_mm": 1.5}
    signature = run_signature(options, [study], networks)
    for option in dataclasses.fields(TrainOptions):
        other = dataclasses.replace(options, **{option.name: "other"})
        is_equal = run_signature(other, [study], networks) == signature
        assert is_equal == (option.name in NOT_IN_RESULT), option.name
    assert run_signature(options, [dataclasses.replace(study, key="new")], networks) != signature
    assert run_signature(options, [study, study], networks) != signature
    assert run_signature(options, [study], {**networks, "base": "def"}) != signature


def test_a_later_run_does_not_compute_the_teachers_features_again(
    site: Site, undisturbed: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the teacher's encoder was called")

    name = copy_of(site.folder / "undisturbed", site, "later")
    monkeypatch.setattr(TeacherFeatures, "_compute", fail)
    site.train(name, **{**SMALL, "lr": 1e-3, "max_epochs": 2})


def test_a_killed_run_is_published_after_its_last_update(
    site: Site, undisturbed: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill, or a full disk, at the end costs no update."""

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "candidate", die)
        site.train("unpublished", **SMALL)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Updater, "__call__", die)  # no update is computed any more
    unwritten = copy_of(site.folder / "unpublished", site, "unwritten")
    stats = site.train("unpublished", **SMALL)
    assert stats["resumed"] == "resumed after update 12"
    assert facts(stats) == facts(undisturbed)

    judge_as(monkeypatch, 1.0, 0.0)
    accepted = {**SMALL, "accept": True}
    task = site.task(unwritten)
    with monkeypatch.context() as patch:
        patch.setattr("lib.weights.versions.save_checkpoint", full)
        with pytest.raises(InputError, match="make room on the disk and train again"):
            task(accepted, site.datastore)
    result = task(accepted, site.datastore)
    assert result["published"] and task.stats()["resumed"] == "resumed after update 12"


def test_a_full_disk_loses_nothing(
    site: Site, killed: Path, undisturbed: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last state stays; once there is room again, the run resumes from it."""
    name = copy_of(killed, site, "full")
    replace = os.replace

    def full(source: str, target: str) -> None:
        if Path(target).name == "state.pt":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            site.train(name, **SMALL)
    assert "No space left" in site.task(name).stats()["error"]
    stats = site.train(name, **SMALL)
    assert stats["resumed"] == "resumed after update 3"
    assert facts(stats) == facts(undisturbed) and "error" not in stats


# --- a process of its own -------------------------------------------------------------------------


def wait_for_update(site: Site, name: str, process: subprocess.Popen, update: int) -> None:
    state = site.run_folder(name) / "state.pt"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if state.exists():
            content = torch.load(state, weights_only=True)
            if content["progress"]["update"] >= update:
                return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    raise TimeoutError(f"update {update} was not reached")


LONG = {**SMALL, "max_epochs": 40, "val_interval": 100}


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_ended_by_a_signal_resumes(site: Site, signal_number: signal.Signals) -> None:
    name, whole_name = f"ended by {signal_number}", f"whole run for {signal_number}"
    whole = site.start(whole_name, **LONG)
    assert whole.wait(timeout=400) == 0, whole.stdout.read()
    process = site.start(name, **LONG)
    wait_for_update(site, name, process, 9)
    process.send_signal(signal_number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    if signal_number == signal.SIGTERM:
        assert output.splitlines()[-1].startswith("the training was stopped; train again to go on")
    again = site.start(name, **LONG)
    assert again.wait(timeout=400) == 0, again.stdout.read()
    stats, expected = site.task(name).stats(), site.task(whole_name).stats()
    assert stats["resumed"].startswith("resumed after update ")
    assert facts(stats) == facts(expected), "bit for bit on one thread"
