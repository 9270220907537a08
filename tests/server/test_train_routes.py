"""The routes of trainings, on an app whose trainer starts nothing: one training at a time."""

import signal
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import psutil
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lib.errors import StoppedError
from lib.server import other_training, train
from lib.server.install import install

CLIENTS = 8


class FakeTrainer:
    """Accepts all options, once all clients have asked, so that they are as close as can be."""

    reason = ""

    def __init__(self):
        self.barrier = threading.Barrier(CLIENTS)

    def check(self, options, datastore):
        self.barrier.wait(timeout=60)

    def estimate_seconds(self, options, datastore):
        return None

    def running(self):
        return None

    def stats(self):
        return {"reason": self.reason}


@pytest.fixture
def tasks(monkeypatch):
    """The tasks of MONAI Label, of which each takes a moment to be listed."""
    tasks = []

    def run(method, request, params, enqueue):
        time.sleep(0.05)
        tasks.append({"id": len(tasks), "status": "SUBMITTED"})
        return tasks[-1], None

    monkeypatch.setattr(train.AsyncTask, "run", run)
    monkeypatch.setattr(train, "tasks", lambda method: tasks)
    return tasks


@pytest.fixture
def client(monkeypatch):
    served = SimpleNamespace(
        configs={"fastsam3d": None},
        trainers={"fastsam3d": FakeTrainer()},
        options=SimpleNamespace(device=""),
        datastore=lambda: None,
    )
    for module in (train, other_training):
        monkeypatch.setattr(module, "app_instance", lambda: served)
    app = FastAPI()
    install(app)
    with TestClient(app) as client:
        yield client


def test_of_trainings_asked_for_at_once_one_starts(client, tasks):
    """On both routes: OHIF's, which names no model, and Slicer's."""
    paths = ["/train/", "/train/fastsam3d"] * (CLIENTS // 2)
    with ThreadPoolExecutor(CLIENTS) as threads:
        replies = list(threads.map(lambda path: client.post(path, json={}), paths))
    assert sorted(reply.status_code for reply in replies) == [200, *[409] * (CLIENTS - 1)]
    assert len(tasks) == 1
    refused = next(reply for reply in replies if reply.status_code == 409)
    assert "a training is running; wait for its end" in refused.json()["detail"]


@pytest.mark.parametrize("options", [5, "much", [1], None, True])
def test_options_of_a_trainer_are_an_object(client, tasks, options):
    reply = client.post("/train/", json={"fastsam3d": options})
    assert reply.status_code == 400 and not tasks
    assert f"fastsam3d is '{options}'; send an object of train options" in reply.json()["detail"]


def test_of_two_trainers_in_one_request_none_starts(client, tasks, monkeypatch):
    trainers = {"fastsam3d": FakeTrainer(), "fastsam3d_adapt": FakeTrainer()}
    monkeypatch.setattr(train.app_instance(), "trainers", trainers)
    reply = client.post("/train/", json={name: {} for name in trainers})
    assert reply.status_code == 400 and not tasks
    message = "the body names fastsam3d, fastsam3d_adapt, but one training runs at a time"
    assert message in reply.json()["detail"]


@pytest.mark.parametrize("path", ["/train/", "/train/fastsam3d"])
def test_the_server_does_not_train_in_its_own_process(client, tasks, path):
    reply = client.post(path, params={"run_sync": True}, json={})
    assert reply.status_code == 400 and not tasks
    assert "run_sync=true would train inside of the server" in reply.json()["detail"]


def test_a_training_that_another_server_stopped_is_no_error(client, monkeypatch):
    """Its process ends with the error of a stop, whose last line the task has."""
    line = f"lib.errors.StoppedError: {StoppedError()}"
    task = {"status": "ERROR", "request": {"model": "fastsam3d"}, "details": [line]}
    monkeypatch.setattr(train.train, "status", lambda *arguments: task)
    monkeypatch.setattr(train, "other_training", lambda: None)
    monkeypatch.setattr(train, "tasks", lambda method: [])
    trainer = train.app_instance().trainers["fastsam3d"]
    monkeypatch.setattr(trainer, "error", "", raising=False)
    assert client.get("/train/").json()["status"] == "STOPPED"
    # MONAI Label's thread may miss the last lines
    task["details"] = ["a line"]
    assert client.get("/train/").json()["status"] == "ERROR"
    monkeypatch.setattr(trainer, "reason", str(StoppedError()))
    assert client.get("/train/").json()["status"] == "STOPPED"


def test_details_that_grow_meanwhile_do_no_harm(client, monkeypatch):
    """A reply holds a copy: an encoder that iterates over the live lines fails if one is added."""
    lines = deque(["a line"], maxlen=20)
    task = {"status": "RUNNING", "request": {"model": "fastsam3d"}, "details": lines}
    monkeypatch.setattr(train.train, "status", lambda *arguments: task)
    monkeypatch.setattr(train, "tasks", lambda method: [task])
    assert train.train_status("user") == {**task, "details": ["a line"]}
    assert train.train_status("user", check_if_running=True)["details"] is not lines


@pytest.mark.parametrize("model", ["fastsam3d_adapt", ["a"], None])
@pytest.mark.parametrize("path", ["/train/", "/train/fastsam3d"])
def test_the_body_does_not_name_another_model(client, tasks, monkeypatch, path, model):
    """MONAI Label would start the trainer of that name, or fail where there is none."""
    reply = client.post(path, json={"model": model})
    assert reply.status_code == 400 and not tasks
    message = f"the body names the model {str(model)!r}, but this request trains 'fastsam3d'"
    assert message in reply.json()["detail"]
    monkeypatch.setattr(train._trainer("fastsam3d"), "barrier", threading.Barrier(1))
    assert client.post(path, json={"model": "fastsam3d"}).status_code == 200


def test_the_reason_of_the_last_run_is_not_that_of_an_earlier_one(client, monkeypatch):
    first, last = (
        {"status": "ERROR", "request": {"model": "fastsam3d"}, "details": [detail]}
        for detail in ("the first reason", "a line")
    )
    monkeypatch.setattr(train, "tasks", lambda method: [first, last])
    monkeypatch.setattr(
        train.train, "status", lambda all, check_if_running: [first, last] if all else last
    )
    trainer = train.app_instance().trainers["fastsam3d"]
    monkeypatch.setattr(trainer, "error", "the last reason", raising=False)
    for _ in range(2):
        listed = client.get("/train/", params={"all": True}).json()
        assert [task["details"] for task in listed] == [
            ["the first reason"], ["a line", "the last reason"],
        ]  # fmt: skip
    assert client.get("/train/").json()["details"] == ["a line", "the last reason"]


# --- stop -----------------------------------------------------------------------------------------

TRAINING = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
def stop(*_):
    time.sleep({seconds})
    sys.exit(7)
signal.signal(signal.SIGTERM, stop)
print(child.pid, flush=True)
time.sleep(600)
"""
"""TRAINING: a process with a child; it ends some time after SIGTERM, with the code 7."""


def started(seconds):
    """Return a running training and the process ID of its child."""
    command = [sys.executable, "-c", TRAINING.format(seconds=seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


def has_ended(pid):
    """Return whether a process is gone, or a zombie of a machine without an init, in a moment."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_training_has_time_for_the_update_under_way():
    """More than the stock five seconds, after which the state of the update would be lost."""
    process, child = started(seconds=7)
    train._end(process)
    assert process.returncode == 7 and has_ended(child)


def test_a_training_that_does_not_react_is_killed(monkeypatch):
    monkeypatch.setattr(train, "STOP_SECONDS", 0.5)
    process, child = started(seconds=600)
    train._end(process)
    assert process.returncode == -signal.SIGKILL and has_ended(child)


def test_no_training_starts_while_a_stopped_one_ends(client, tasks, monkeypatch):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    monkeypatch.setattr(train, "processes", lambda method: {"stopped": process})
    trainer = train.app_instance().trainers["fastsam3d"]
    monkeypatch.setattr(trainer, "barrier", threading.Barrier(1))
    refused = client.post("/train/fastsam3d", json={})
    assert refused.status_code == 409 and "was stopped still saves" in refused.json()["detail"]
    process.communicate(b"end\n")
    assert client.post("/train/fastsam3d", json={}).status_code == 200


def test_a_second_stop_waits_as_the_first_one_does(client, tasks, monkeypatch):
    process, _ = started(seconds=2)
    tasks.append({"id": "one", "status": "STOPPED"})
    monkeypatch.setattr(train, "processes", lambda method: {"one": process})
    threading.Timer(0.2, process.terminate).start()  # the first stop
    assert client.delete("/train/").json() == tasks[0]
    assert process.poll() == 7
    assert client.delete("/train/").json() is None, "nothing runs"
