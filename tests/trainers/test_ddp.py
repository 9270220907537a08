"""Several processes give the numbers of one."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from small_site import SHORT, Site

from lib.trainers.processes import (
    any_of_all,
    is_launcher,
    is_under_torchrun,
    own_device,
    process_count,
)

SMALL = {**SHORT, "max_epochs": 2, "start": "served", "threads": 1}


@pytest.fixture(scope="module")
def alone(site: Site) -> dict:
    return site.train("alone", **SMALL)


def assert_alike(stats: dict, alone: dict) -> None:
    for row, expected in zip(stats["history"], alone["history"], strict=True):
        assert (row["k"], row["iteration"]) == (expected["k"], expected["iteration"])
        assert row["loss"] == pytest.approx(expected["loss"], rel=2e-2)
        for value, other in zip(row["pair_losses"], expected["pair_losses"], strict=True):
            assert value == (other if other is None else pytest.approx(other, rel=2e-2))
    first, expected = stats["history"][0], alone["history"][0]
    assert first["loss"] == pytest.approx(expected["loss"], rel=1e-4), "before rounding adds up"
    assert stats["best_metric"] == pytest.approx(alone["best_metric"], abs=0.02)


def test_two_processes_give_the_numbers_of_one(site: Site, alone: dict) -> None:
    assert_alike(site.train("together", **SMALL, processes=2), alone)


@pytest.mark.slow
def test_two_processes_stop_after_the_update_and_save_it(site: Site) -> None:
    """SIGTERM goes to the process that started them, as the server's *Stop* sends it."""
    options = {**SMALL, "max_epochs": 5000, "val_interval": 5000, "processes": 2}
    process = site.start("stopped-together", **options)
    state = site.run_folder("stopped-together") / "state.pt"
    deadline = time.monotonic() + 400
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=100)[0]
    assert process.returncode == 1, output
    assert output.splitlines()[-1].startswith("the training was stopped; train again to go on")
    stats = site.task("stopped-together").stats()
    update = torch.load(state, weights_only=True)["progress"]["update"]
    assert "was stopped" in stats["reason"] and "error" not in stats
    assert stats["iteration"] == update >= SMALL["iterations_per_epoch"]


def test_any_of_all_in_a_single_process() -> None:
    assert any_of_all(True, torch.device("cpu"))
    assert not any_of_all(False, torch.device("cpu"))


@pytest.mark.slow
def test_torchrun(site: Site, alone: dict) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", *site.command("torchrun", **SMALL)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_alike(site.task("torchrun").stats(), alone)


def test_one_process_per_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert process_count(0, "cuda") == 4
    assert process_count(0, "cuda:1") == 1
    assert process_count(0, "cpu") == 1
    assert process_count(3, "cpu") == 3


def test_outside_torchrun() -> None:
    assert not is_under_torchrun() and is_launcher()
    assert own_device("cpu") == torch.device("cpu")


def test_the_first_process_of_torchrun_is_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_RANK", "0")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        assert is_under_torchrun() and is_launcher() == (rank == 0)
