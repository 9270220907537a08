"""Several processes compute what one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_site import SHORT, Site

from lib.trainers import run as run_module
from lib.trainers.processes import is_under_torchrun, own_device, wanted_processes

SMALL = {**SHORT, "start": "served", "threads": 1}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def alone(site):
    return site.train("alone", **SMALL)


def assert_alike(stats, alone):
    for ours, theirs in zip(stats["history"], alone["history"], strict=True):
        assert (ours["k"], ours["iteration"]) == (theirs["k"], theirs["iteration"])
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-2)
        for one, other in zip(ours["pair_losses"], theirs["pair_losses"], strict=True):
            assert one == (other if other is None else pytest.approx(other, rel=2e-2))
    first, expected = stats["history"][0], alone["history"][0]
    assert first["loss"] == pytest.approx(expected["loss"], rel=1e-4), "before rounding adds up"
    assert stats["best_metric"] == pytest.approx(alone["best_metric"], abs=0.02)


def test_two_processes_give_what_one_gives(site, alone):
    assert_alike(site.train("together", **SMALL, processes=2), alone)


@pytest.mark.slow
def test_torchrun(site, alone):
    script = Path(run_module.__file__).parents[2] / "train.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(script), "--studies", str(site.folder / "studies")]
    conf = {
        "weights": site.student,
        "teacher_weights": site.teacher,
        "model_dir": site.folder / "torchrun",
        "spacing_mm": "8",
    }
    for name, value in conf.items():
        command += ["--conf", name, str(value)]
    for name, value in SMALL.items():
        command += [f"--{'start-from' if name == 'start' else name.replace('_', '-')}", str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_alike(site.task("torchrun").stats(), alone)


def test_one_process_per_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert wanted_processes(0, "cuda") == 4
    assert wanted_processes(0, "cuda:1") == 1
    assert wanted_processes(0, "cpu") == 1
    assert wanted_processes(3, "cpu") == 3


def test_outside_torchrun():
    assert not is_under_torchrun()
    assert own_device("cpu") == torch.device("cpu")
