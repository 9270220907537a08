"""Two servers on the same studies and model_dir: a training of one, or of torchrun, is for both."""

import os
import subprocess
import sys
import time

import pytest
import requests
from small_site import SHORT, Site

from serving import running_server

CLICK = {"foreground": [[10, 9, 8]]}
# Of a single study none is left to judge: the new student is published if it is accepted.
PUBLISH = {**SHORT, "max_epochs": 2, "start": "served", "accept": True}
LONG = {**SHORT, "max_epochs": 5000, "val_interval": 5000, "start": "served"}
SECONDS = 400


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return Site(tmp_path_factory.mktemp("shared"), count=1, labelled=1)


@pytest.fixture(scope="module")
def servers(site):
    studies = site.folder / "studies"
    with (
        running_server(studies, site.folder / "one.log", *site.arguments) as one,
        running_server(studies, site.folder / "other.log", *site.arguments) as other,
    ):
        yield one, other


def clicked(server):
    """Return the hash of the weights that made a mask."""
    reply = server.infer("fastsam3d", "scan0", CLICK, output="json")
    assert reply.status_code == 200, reply.text
    return reply.json()["weights"]["sha256"]


def shown(server):
    """Return the hash of the weights in GET /info/."""
    return server.info()["models"]["fastsam3d"]["weights"]["sha256"]


def train(server, **options):
    return requests.post(f"{server.url}/train/fastsam3d", json=options, timeout=60)


def status(server):
    return requests.get(f"{server.url}/train/", timeout=60).json()


def wait(until):
    """Wait until a call returns something true, and return that."""
    deadline = time.monotonic() + SECONDS
    while not (value := until()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return value


def test_the_other_server_sees_and_stops_a_training(site, servers):
    one, other = servers
    assert train(one, **LONG).status_code == 200
    wait(lambda: one.info()["train_stats"]["fastsam3d"].get("iteration"))
    seen = status(other)
    assert seen["status"] == "RUNNING"
    assert seen["request"]["model"] == "fastsam3d"
    for path in ("fastsam3d", "fastsam3d_adapt"):
        refused = requests.post(f"{other.url}/train/{path}", json={}, timeout=60)
        assert refused.status_code == 409, refused.text
        assert "a training is running; " in refused.json()["detail"]
        assert "fastsam3d is trained on " in refused.json()["detail"]
    assert "error" not in one.info()["train_stats"]["fastsam3d"]
    stopped = requests.delete(f"{other.url}/train/", timeout=SECONDS).json()
    assert stopped["status"] == "STOPPED"
    assert wait(lambda: (now := status(one)["status"]) != "RUNNING" and now) == "STOPPED"
    assert "was stopped" in other.info()["train_stats"]["fastsam3d"]["reason"]
    assert requests.delete(f"{other.url}/train/", timeout=60).json() is None


def test_both_serve_what_one_publishes_and_rolls_back(servers):
    one, other = servers
    before = clicked(one)
    assert clicked(other) == shown(other) == before
    reply = train(one, **PUBLISH)
    assert reply.status_code == 200, reply.text
    task = wait(lambda: (now := status(one))["status"] in ("DONE", "ERROR") and now)
    assert task["status"] == "DONE", task["details"]
    published = clicked(one)
    assert published != before
    assert shown(other) == clicked(other) == published
    reply = requests.post(f"{other.url}/weights/fastsam3d/rollback", timeout=30)
    assert reply.json()["served"] == 0
    assert shown(one) == clicked(one) == before


def test_both_serve_what_torchrun_publishes(site, servers):
    before = [clicked(server) for server in servers]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", *site.command("model", **PUBLISH, seed=1)]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    published = [clicked(server) for server in servers]
    assert published[0] == published[1] != before[0]
    assert [shown(server) for server in servers] == published
