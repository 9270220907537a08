"""Training over HTTP, as clients do it: train, watch, stop, resume and roll back."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from monailabel.client.client import MONAILabelClientException
from small_site import SHORT, Site

from serving import RunningServer, running_server
from slicer import SlicerPlugin

CLICK = {"foreground": [[10, 9, 8]]}
LONG = {**SHORT, "max_epochs": 2000, "val_interval": 1000, "start": "served"}
DEADLINE = 300
OHIF = ""  # its button names no model


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Return a site of this module's own, as a test moves its labels."""
    return Site(tmp_path_factory.mktemp("served-site"))


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[RunningServer]:
    with running_server(site.folder / "studies", site.folder / "log", *site.arguments) as running:
        yield running


@pytest.fixture
def slicer(server: RunningServer, tmp_path: Path) -> SlicerPlugin:
    return SlicerPlugin(server.url, tmp_path)


@pytest.fixture(autouse=True)
def no_training_goes_on(server: RunningServer) -> Iterator[None]:
    """Stop the training of a test that failed, so that the others do not fail with it."""
    yield
    requests.delete(f"{server.url}/train/", timeout=180)


def stats(server: RunningServer) -> dict:
    return server.info()["train_stats"]["fastsam3d"]


def wait_for_end(server: RunningServer) -> dict:
    """Return the task once the training has ended."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        task = requests.get(f"{server.url}/train/", timeout=30).json()
        if task["status"] in ("DONE", "ERROR", "STOPPED"):
            return task
        time.sleep(0.3)
    raise TimeoutError(f"{task['status']}: {task.get('details')}")


def wait_for_stats(server: RunningServer, get: Callable[[dict], Any]) -> Any:
    """Return what `get` takes from the statistics, once it is not empty."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        value = get(stats(server))
        if value:
            return value
        task = requests.get(f"{server.url}/train/", timeout=30).json()
        assert task["status"] in ("SUBMITTED", "RUNNING"), task["details"]
        time.sleep(0.3)
    raise TimeoutError(f"{stats(server)}")


def resumed_note(s: dict) -> str:
    """Return the note of a resumed run; empty while the run reads its studies.

    Until then the statistics have none, or the note of the run before, which may have found the
    state of a run that asks.
    """
    note = s.get("resumed", "")
    return note if note.startswith("resumed after") else ""


def wait_until_idle(slicer: SlicerPlugin) -> None:
    """Wait until MONAI Label's thread has noticed that the stopped process ended."""
    deadline = time.monotonic() + DEADLINE
    while slicer.client.train_status(True):
        assert time.monotonic() < deadline, "the training is still running"
        time.sleep(0.3)


def served_sha256(server: RunningServer) -> str:
    """Return the hash of the served weights from the reply to a click."""
    reply = server.infer("fastsam3d", "scan0", CLICK, output="json")
    assert reply.status_code == 200, reply.text
    return reply.json()["weights"]["sha256"]


def post(server: RunningServer, path: str = "fastsam3d", **params: object) -> requests.Response:
    return requests.post(f"{server.url}/train/{path}", json=params, timeout=60)


def test_train_publish_and_roll_back(server: RunningServer, slicer: SlicerPlugin) -> None:
    """Slicer sends the trainer's config, as changed in its table, and the client's id."""
    before = served_sha256(server)
    # the smallest gain suffices; the verdict has tests of its own
    params = {**slicer.config("trainers", "fastsam3d"), **SHORT, "min_gain": 0}
    slicer.client.train_start("fastsam3d", params)
    assert slicer.client.train_status(True)
    task = wait_for_end(server)
    assert task["status"] == "DONE", task["details"]
    assert not slicer.client.train_status(True)

    done = stats(server)
    assert (done["epoch"], done["total_epochs"]) == (4, 4)
    assert 0 <= done["best_metric"] <= 1 and done["total_time"]
    assert [(row["stage"], row["k"], row["iteration"]) for row in done["history"]] == [
        (1, 3, 3), (1, 6, 6), (2, 6, 9), (2, 6, 12),
    ]  # fmt: skip
    assert list(done["history"][-1]["dice_student"]) == ["1", "3", "5", "10"]
    picture = requests.get(f"{server.url}{done['curves']}", timeout=30)
    assert picture.headers["content-type"] == "image/png"

    assert isinstance(done["published"], bool) and "mean Dice" in done["reason"]
    after = served_sha256(server)
    assert (after != before) == done["published"]
    versions = requests.get(f"{server.url}/weights/fastsam3d", timeout=30).json()
    assert versions["weights"]["sha256"] == after
    rollback = requests.post(f"{server.url}/weights/fastsam3d/rollback", timeout=30)
    if done["published"]:
        assert rollback.json()["served"] == 0
    else:
        assert rollback.status_code == 404 and "nothing to roll back" in rollback.text
    assert served_sha256(server) == before
    models = server.info()["models"]
    assert models["fastsam3d"]["weights"]["sha256"] == before


def test_another_process_publishes(
    server: RunningServer, site: Site, request: pytest.FixtureRequest
) -> None:
    """The server serves the new version from its next click on."""
    published = site.task()._served.published
    before = served_sha256(server)
    network = site.task()._served().network
    network.mask_decoder.mask_tokens.weight.data += 1
    request.addfinalizer(lambda: published.rollback(0))  # whatever happens, for the other tests
    version = published.publish(network, {}, keep=3)
    assert served_sha256(server) == version.sha256
    url = f"{server.url}/weights/fastsam3d"
    listed = requests.get(url, timeout=30).json()
    assert listed["served"] == version.number
    reply = requests.post(f"{url}/rollback", params={"version": 0}, timeout=30).json()
    assert reply["weights"]["sha256"] == before == served_sha256(server)
    again = requests.post(f"{url}/rollback", params={"version": version.number}, timeout=30)
    assert again.json()["served"] == version.number
    assert served_sha256(server) == version.sha256
    assert requests.post(f"{url}/rollback", params={"version": 77}, timeout=30).status_code == 404
    requests.post(f"{url}/rollback", params={"version": 0}, timeout=30)


def test_stop_and_resume(server: RunningServer, slicer: SlicerPlugin) -> None:
    reply = post(server, OHIF, **LONG).json()
    assert list(reply) == ["fastsam3d"], "OHIF's button starts the distillation alone"
    started = reply["fastsam3d"]["result"]
    assert started["status"] in ("SUBMITTED", "RUNNING")
    assert started["estimate_seconds"] > 0 and started["estimate"].startswith("about ")
    wait_for_stats(server, lambda s: s.get("epoch", 0) >= 2 and not s.get("total_time"))
    busy = post(server, **LONG)
    assert busy.status_code == 409 and "a training is running" in busy.json()["detail"]
    assert post(server, OHIF).status_code == 409
    assert served_sha256(server), "clicks work during a training"
    assert slicer.client.train_stop()["status"] == "STOPPED"
    assert wait_for_end(server)["status"] == "STOPPED"
    wait_until_idle(slicer)
    stopped = stats(server)
    assert "train again to go on" in stopped["reason"] and "error" not in stopped

    assert post(server, **LONG).status_code == 200
    resumed = wait_for_stats(server, resumed_note)
    assert resumed == f"resumed after update {stopped['iteration']}", "not one update is lost"
    requests.delete(f"{server.url}/train/", timeout=60)
    assert wait_for_end(server)["status"] == "STOPPED"


def test_adapt_over_http(server: RunningServer, slicer: SlicerPlugin) -> None:
    """The second trainer is in the list of clients, and starts by its name."""
    params = {**slicer.config("trainers", "fastsam3d_adapt"), "max_epochs": 1, "rois": 4}
    reply = requests.post(
        f"{server.url}/train/", json={"fastsam3d_adapt": params}, timeout=60
    ).json()
    assert list(reply) == ["fastsam3d_adapt"]
    task = wait_for_end(server)
    assert task["status"] == "DONE", task["details"]
    done = server.info()["train_stats"]["fastsam3d_adapt"]
    assert done["studies"] == {"train": 2, "labelled": 2, "judged": 2}
    assert done["published"] is False and "2 studies that took no part" in done["reason"]
    picture = requests.get(f"{server.url}{done['curves']}", timeout=30)
    assert picture.headers["content-type"] == "image/png"
    assert server.infer("fastsam3d", "scan0", CLICK, output="json").status_code == 200


def test_nothing_to_stop(server: RunningServer) -> None:
    reply = requests.delete(f"{server.url}/train/", timeout=60)
    assert reply.status_code == 200 and reply.json() is None


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"epochs": 3}, "unknown option 'epochs'; the options are device, seed, "),
        ({"max_epochs": 0}, "max_epochs is 0; it must be at least 1"),
    ],
)
def test_errors_in_a_request_reach_the_client(
    slicer: SlicerPlugin, params: dict, message: str
) -> None:
    with pytest.raises(MONAILabelClientException) as error:
        slicer.client.train_start("fastsam3d", params)
    assert "Status: 400" in error.value.msg and message in error.value.msg


def test_there_is_no_such_trainer(server: RunningServer) -> None:
    reply = post(server, "sam_med3d")
    assert reply.status_code == 404
    assert "no trainer 'sam_med3d'; there are fastsam3d" in reply.json()["detail"]
    for path in ("weights/sam_med3d", "weights/nothing", "train/sam_med3d/curves.png"):
        assert requests.get(f"{server.url}/{path}", timeout=30).status_code == 404


def wait_for_labels(server: RunningServer, count: int) -> None:
    """Wait until the server has noticed that so many studies have labels."""
    deadline = time.monotonic() + DEADLINE
    while requests.get(f"{server.url}/datastore/", timeout=30).json()["completed"] != count:
        assert time.monotonic() < deadline, f"the server does not list {count} labels"
        time.sleep(0.1)


@pytest.fixture
def no_labels(server: RunningServer, site: Site, tmp_path: Path) -> Iterator[None]:
    """Move the labels away for the time of a test."""
    folder = site.folder / "studies" / "labels" / "final"
    labels = [path.name for path in folder.glob("*.nii.gz")]
    for name in labels:
        (folder / name).rename(tmp_path / name)
    wait_for_labels(server, 0)
    yield
    for name in labels:
        (tmp_path / name).rename(folder / name)
    wait_for_labels(server, len(labels))


@pytest.mark.usefixtures("no_labels")
def test_an_error_in_the_training_reaches_the_client(server: RunningServer) -> None:
    """The last of the task's details, which clients show, is the message."""
    assert post(server, **SHORT, teacher="none").status_code == 200
    task = wait_for_end(server)
    assert task["status"] == "ERROR"
    assert "there are no labels to train on" in task["details"][-1]
    assert "there are no labels to train on" in stats(server)["error"]


@pytest.mark.slow
def test_ohif_trains_without_options(server: RunningServer) -> None:
    reply = post(server, OHIF)
    assert reply.json()["fastsam3d"]["result"]["status"] in ("SUBMITTED", "RUNNING")
    wait_for_stats(server, lambda s: s.get("total_epochs") == 48 and "error" not in s)
    requests.delete(f"{server.url}/train/", timeout=60)
