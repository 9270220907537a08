"""A run that ends early, however that is, goes on where it was and gives the same numbers."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from small_site import SHORT, Site, killed_after, numbers

from lib.errors import InputError
from lib.trainers import run as run_module
from lib.trainers.run import Run

SMALL = {**SHORT, "start": "served", "threads": 1}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def undisturbed(site):
    return site.train("undisturbed", **SMALL)


@pytest.fixture(autouse=True)
def only_epochs_are_saved(monkeypatch):
    """However slow the machine is."""
    monkeypatch.setattr(run_module, "SAVE_SECONDS", 1e9)


def facts(stats):
    names = ("best_metric", "best_metric_epoch", "pair_errors", "dice_served", "reason")
    return {"history": numbers(stats), **{name: stats[name] for name in names}}


# stage 1, between the stages, in stage 2, and after the last update
@pytest.mark.parametrize("updates", [4, 6, 11])
def test_a_killed_run_ends_as_if_it_had_not_been(site, undisturbed, monkeypatch, updates):
    name = f"killed after {updates}"
    monkeypatch.setattr(run_module, "SAVE_SECONDS", 0.0)
    with killed_after(updates, monkeypatch):
        site.train(name, **SMALL)
    assert "resumed" not in site.task(name).stats().get("reason", "")
    stats = site.train(name, **SMALL)
    assert stats["resumed"] == f"resumed after update {updates}"
    assert facts(stats) == facts(undisturbed)


def test_only_the_last_updates_are_done_again(site, undisturbed, monkeypatch):
    """Between two states 30 s apart nothing is kept, so it is computed again."""
    with killed_after(5, monkeypatch):
        site.train("between", **SMALL)
    stats = site.train("between", **SMALL)
    assert stats["resumed"] == "resumed after update 3"
    assert facts(stats) == facts(undisturbed)


def test_a_kill_before_publishing(site, undisturbed, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "compare", die)
        with pytest.raises(Killed):
            site.train("unpublished", **SMALL)
    stats = site.train("unpublished", **SMALL)
    assert stats["resumed"] == "resumed after update 12"
    assert facts(stats) == facts(undisturbed)


@pytest.mark.parametrize("options", [{"lr": 1e-3}, {"stage1_fraction": 0.25}])
def test_other_options_begin_anew_and_it_is_said(site, monkeypatch, options):
    with killed_after(4, monkeypatch):
        site.train("changed", **SMALL)
    stats = site.train("changed", **{**SMALL, **options})
    assert "options, studies or weights are others now" in stats["resumed"]
    assert len(stats["history"]) == 4


def test_other_studies_begin_anew(tmp_path, monkeypatch):
    site = Site(tmp_path)
    with killed_after(4, monkeypatch):
        site.train(**SMALL)
    path = tmp_path / "studies" / "scan3.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + np.int16(1), image.affine), path)
    assert "are others now" in site.train(**SMALL)["resumed"]


def test_options_that_change_no_number_are_free(site, undisturbed, monkeypatch):
    with killed_after(7, monkeypatch):
        site.train("free", **SMALL)
    stats = site.train("free", **SMALL, keep_versions=1)
    assert stats["resumed"] == "resumed after update 6"
    assert facts(stats) == facts(undisturbed)


def test_resuming_can_be_declined(site, monkeypatch):
    with killed_after(4, monkeypatch):
        site.train("declined", **SMALL)
    assert site.train("declined", **SMALL, resume=False)["resumed"] == ""


def test_a_damaged_state_begins_anew(site, undisturbed, monkeypatch):
    with killed_after(4, monkeypatch):
        site.train("damaged", **SMALL)
    state = site.folder / "damaged" / "fastsam3d" / "run" / "state.pt"
    state.write_bytes(state.read_bytes()[:-500])
    stats = site.train("damaged", **SMALL)
    assert "cannot be read" in stats["resumed"] and "begins anew" in stats["resumed"]
    assert facts(stats) == facts(undisturbed)


def test_the_features_of_the_teacher_are_not_computed_again(site, undisturbed):
    task = site.task("undisturbed")
    task({**SHORT, **SMALL, "lr": 1e-3}, site.datastore)
    assert task._run.features.computed == 0


def test_a_full_disk_loses_nothing(site, undisturbed, monkeypatch):
    """The state of the last epoch stays; with room again the run goes on from it."""
    replace, saved = os.replace, []

    def full(source, target):
        if Path(target).name == "state.pt":
            saved.append(target)
            if len(saved) == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
        return replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            site.train("full", **SMALL)
    assert "No space left" in site.task("full").stats()["error"]
    stats = site.train("full", **SMALL)
    assert stats["resumed"] == "resumed after update 6"
    assert facts(stats) == facts(undisturbed) and "error" not in stats


def test_a_student_that_cannot_be_written_is_not_lost(site, undisturbed, monkeypatch):
    monkeypatch.setattr(
        "lib.trainers.run.judge", lambda *_: run_module.Verdict(True, "it is better")
    )

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    task = site.task("unwritten")
    with monkeypatch.context() as patch:
        patch.setattr("lib.weights.versions.save_checkpoint", full)
        with pytest.raises(InputError, match="make room on the disk and train again"):
            task(SMALL, site.datastore)
    result = task(SMALL, site.datastore)
    assert result["published"] and task.stats()["resumed"] == "resumed after update 12"


# --- a process of its own -------------------------------------------------------------------------


def start(site: Site, model_dir: str, **options: object) -> subprocess.Popen:
    script = Path(run_module.__file__).parents[2] / "train.py"
    command = [sys.executable, str(script), "--studies", str(site.folder / "studies")]
    conf = {
        "weights": site.student,
        "teacher_weights": site.teacher,
        "model_dir": site.folder / model_dir,
        "spacing_mm": "8",
    }
    for name, value in conf.items():
        command += ["--conf", name, str(value)]
    for name, value in {**SMALL, **options}.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_update(site: Site, model_dir: str, process: subprocess.Popen, update: int) -> None:
    state = site.folder / model_dir / "fastsam3d" / "run" / "state.pt"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if state.exists():
            content = torch.load(state, weights_only=True)
            if content["progress"]["update"] >= update:
                return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    raise TimeoutError(f"update {update} was not reached")


LONG = {"max_epochs": 40, "val_interval": 100}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_ended(site, how):
    whole = start(site, "whole run", **LONG)
    assert whole.wait(timeout=400) == 0, whole.stdout.read()
    process = start(site, f"ended by {how}", **LONG)
    wait_for_update(site, f"ended by {how}", process, 9)
    process.send_signal(how)
    output = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    if how == signal.SIGTERM:
        assert output.splitlines()[-1].startswith("the training was stopped; train again to go on")
    again = start(site, f"ended by {how}", **LONG)
    assert again.wait(timeout=400) == 0, again.stdout.read()
    stats, expected = site.task(f"ended by {how}").stats(), site.task("whole run").stats()
    assert stats["resumed"].startswith("resumed after update ")
    assert stats["history"][-1]["loss"] == pytest.approx(expected["history"][-1]["loss"], rel=0.02)
    assert facts(stats) == facts(expected), "bit for bit on one thread"
