"""Train, watch, roll back and take the next sample in the viewer at /viewer/."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import requests
from ohif_page import TIMEOUT_MS
from playwright.sync_api import Browser, Route
from small_site import SHORT, Site
from viewer_page import PromptViewer, open_prompt_viewer

from conftest import ARTIFACTS
from serving import RunningServer, running_server

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("viewer_package")]

TRAINING_MS = 300_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("viewer-site"))


@pytest.fixture(scope="module")
def trained(site: Site) -> Iterator[RunningServer]:
    """A server on four small studies, of which two have a label."""
    with running_server(site.folder / "studies", site.folder / "log", *site.arguments) as running:
        yield running


@pytest.fixture
def viewer(
    browser: Browser, trained: RunningServer, request: pytest.FixtureRequest
) -> Iterator[PromptViewer]:
    with open_prompt_viewer(browser, trained.url, study_of(trained, "scan0")) as viewer:
        viewer.page.locator(".fs summary", has_text="Learn").click()
        viewer.page.locator(".fs li[data-version='0']").wait_for(timeout=TIMEOUT_MS)
        yield viewer
        ARTIFACTS.mkdir(exist_ok=True)
        viewer.page.screenshot(path=ARTIFACTS / f"{request.node.name}.png")
        assert viewer.errors == []


def test_a_training_and_its_decision(viewer: PromptViewer, trained: RunningServer) -> None:
    """The panel shows the progress, then the server's own decision and the curves."""
    asked = []

    def shorten(route: Route) -> None:
        """Let the training take seconds; the panel sends the epochs alone."""
        if route.request.method != "POST":
            route.fallback()
            return
        asked.append(route.request.post_data_json)
        body = json.dumps({**SHORT, **route.request.post_data_json, "min_gain": 0})
        route.continue_(post_data=body)

    viewer.page.route("**/train/fastsam3d", shorten)
    viewer.page.get_by_label("Epochs").fill("4")
    viewer.button("Train")
    viewer.page.locator(".fs [data-epoch]").wait_for(timeout=TRAINING_MS)
    viewer.page.locator(".fs [data-decision]").wait_for(timeout=TRAINING_MS)
    viewer.page.locator(".fs button", has_text="Train").wait_for(timeout=TRAINING_MS)
    stats = trained.info()["train_stats"]["fastsam3d"]
    assert asked == [{"max_epochs": 4}] and stats["epoch"] == 4
    assert viewer.page.locator(".fs [data-decision]").inner_text() == stats["reason"]
    width = "document.querySelector('.fs img[alt*=Curves]')?.naturalWidth > 100"
    viewer.page.wait_for_function(width, timeout=TIMEOUT_MS)


def test_a_training_that_asks(viewer: PromptViewer, trained: RunningServer) -> None:
    """The adaptation starts with a button; a training that asks is answered with another."""
    asked = []

    def start(route: Route) -> None:
        if route.request.method != "POST":
            route.fallback()
            return
        asked.append((route.request.url.rsplit("/", 1)[1], route.request.post_data_json))
        route.fulfill(json={})

    def ask(route: Route) -> None:
        """Let the adaptation wait for an answer, after all other trainings."""
        info = route.fetch().json()
        stats = {"start_ts": 1 << 40, "asks": True, "reason": "two studies prove nothing"}
        info["train_stats"]["fastsam3d_adapt"] = stats
        route.fulfill(json=info)

    viewer.page.route("**/train/fastsam3d_adapt", start)
    viewer.page.route("**/info/", ask)
    viewer.button("Adapt")
    viewer.page.locator(".fs [data-decision]", has_text="two studies").wait_for(timeout=TIMEOUT_MS)
    with viewer.page.expect_request("**/train/fastsam3d_adapt"):
        viewer.button("Publish all the same")
    viewer.page.locator(".fs button", has_text="Adapt").wait_for(timeout=TIMEOUT_MS)
    assert asked == [("fastsam3d_adapt", {}), ("fastsam3d_adapt", {"accept": True})]


def test_a_training_tells_at_once_how_long_it_takes(
    viewer: PromptViewer, trained: RunningServer
) -> None:
    """The estimate of the reply stands beside the progress, and goes with the training."""
    state = {"status": ""}

    def start(route: Route) -> None:
        if route.request.method != "POST":
            route.fallback()
            return
        state["status"] = "RUNNING"
        route.fulfill(json={"estimate_seconds": 437, "estimate": "about 7 min on this CPU"})

    viewer.page.route("**/train/", lambda route: route.fulfill(json=state))
    viewer.page.route("**/train/fastsam3d", start)
    viewer.button("Train")
    estimate = viewer.page.locator(".fs [data-estimate]")
    estimate.wait_for(timeout=TIMEOUT_MS)
    assert estimate.inner_text() == "about 7 minutes"
    state["status"] = "DONE"
    viewer.page.locator(".fs button", has_text="Train").wait_for(timeout=TIMEOUT_MS)
    state["status"] = "RUNNING"  # a training that another page started
    viewer.page.locator(".fs summary", has_text="Learn").click()
    viewer.page.locator(".fs summary", has_text="Learn").click()
    viewer.page.locator(".fs [data-epoch]").wait_for(timeout=TIMEOUT_MS)
    assert not estimate.count()


def test_roll_back(viewer: PromptViewer, trained: RunningServer, site: Site) -> None:
    """A version that was published is listed and served; each can be served again."""
    network = site.task()._served().network
    network.mask_decoder.mask_tokens.weight.data += 1
    number = site.task()._served.published.publish(network, {}, keep=3).number
    viewer.page.reload()
    viewer.wait_until_ready()
    viewer.page.locator(".fs summary", has_text="Learn").click()
    for target in (0, number):
        viewer.page.locator(f".fs li[data-version='{target}'] button").click()
        viewer.page.locator(f".fs li[data-version='{target}'][aria-current=true]").wait_for()
        reply = requests.get(f"{trained.url}/weights/fastsam3d", timeout=30).json()
        assert reply["served"] == target


def test_the_next_sample(viewer: PromptViewer, trained: RunningServer) -> None:
    """Each strategy of the server opens an image without a label; else a sentence says so."""
    strategies = list(trained.info()["strategies"])
    assert viewer.page.get_by_label("Strategy").locator("option").all_inner_texts() == strategies
    viewer.page.get_by_label("Strategy").select_option("first")
    viewer.button("Next sample")
    expected = {study_of(trained, name) for name in ("scan2", "scan3")}
    viewer.page.wait_for_url(lambda url: url.partition("UIDs=")[2] in expected, timeout=TIMEOUT_MS)
    viewer.wait_until_ready()

    viewer.page.route("**/activelearning/**", lambda route: route.fulfill(json={}))
    viewer.page.locator(".fs summary", has_text="Learn").click()
    viewer.button("Next sample")
    viewer.wait_for_popup("nothing left to label")


def study_of(server: RunningServer, image: str) -> str:
    """Return the StudyInstanceUID of an image of the server's folder."""
    studies = requests.get(f"{server.url}/dicom-web/studies", {"PatientID": image}, timeout=30)
    (study,) = studies.json()
    return study["0020000D"]["Value"][0]
