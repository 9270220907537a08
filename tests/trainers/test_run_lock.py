"""A folder has one training at a time; every process sees what runs there, and can stop it."""

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lib.errors import InputError
from lib.trainers import run_lock

APP = str(Path(run_lock.__file__).parents[2])
OTHER = """
import sys, threading
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from lib.trainers.run_lock import only_run
with only_run(Path(sys.argv[2]), "fastsam3d"):
    print("locked", flush=True)
    threading.Event().wait(300)
"""


@pytest.fixture
def other(tmp_path):
    """Another process with a run in tmp_path."""
    command = [sys.executable, "-c", OTHER, APP, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_the_run_of_another_process_is_seen_and_refuses_ours(other, tmp_path):
    found = run_lock.running(tmp_path)
    assert found["model"] == "fastsam3d" and found["host"] and found["start"]
    with (
        pytest.raises(
            InputError, match=f"another training is running .fastsam3d on {found['host']}"
        ),
        run_lock.only_run(tmp_path, "fastsam3d_adapt"),
    ):
        pass


def test_the_lock_ends_with_a_killed_process(other, tmp_path):
    other.kill()
    other.wait()
    assert run_lock.running(tmp_path) is None
    with run_lock.only_run(tmp_path, "fastsam3d_adapt"):
        pass


def test_a_request_to_stop_is_a_sigterm_for_the_run_of_another_process(other, tmp_path):
    run_lock.request_stop(tmp_path)
    assert other.wait(timeout=60) == -signal.SIGTERM
    assert not (tmp_path / "stop").exists()


def test_of_many_who_look_at_once_none_sees_a_run(tmp_path):
    """They have the lock together; one who had it alone would be a run to the others."""
    with run_lock.only_run(tmp_path, "fastsam3d"):
        pass
    with ThreadPoolExecutor(4) as threads:
        seen = list(threads.map(lambda _: run_lock.running(tmp_path), range(2000)))
    assert seen == [None] * 2000


def test_an_old_request_does_not_stop_the_next_run(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "WATCH_SECONDS", 0.01)
    killed = []
    monkeypatch.setattr(run_lock.os, "kill", lambda *arguments: killed.append(arguments))
    run_lock.request_stop(tmp_path)
    with run_lock.only_run(tmp_path, "fastsam3d"):
        threading.Event().wait(0.2)
        assert killed == []
        run_lock.request_stop(tmp_path)
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            time.sleep(0.01)
        threading.Event().wait(0.2)  # it is asked once
    assert len(killed) == 1


def test_nothing_runs_where_there_is_no_folder(tmp_path):
    assert run_lock.running(tmp_path / "missing") is None
