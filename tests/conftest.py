"""Set-up and fixtures that all tests share.

A server takes seconds to start, so tests share one wherever they do not need options of their own.
A test on a shared server uses image names of its own, and removes what other tests must not meet.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orthanc import Orthanc
from pacs import running_pacs
from serving import BALL_WEIGHTS, RunningServer, running_server

REPOSITORY = Path(__file__).resolve().parents[1]

_temporary = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Keep MONAI Label's sessions and caches out of the home directory.

    It reads these settings once, at import, so they are set before any test module is imported;
    servers that tests start as subprocesses inherit them.
    """
    folder = tempfile.mkdtemp(prefix="fastsam3d-tests-")
    config.stash[_temporary] = folder
    os.environ["MONAI_LABEL_SESSION_PATH"] = str(Path(folder, "sessions"))
    os.environ["MONAI_LABEL_DATASTORE_CACHE_PATH"] = str(Path(folder, "datastore"))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what `pytest_configure` made."""
    shutil.rmtree(config.stash[_temporary], ignore_errors=True)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of the reference outputs that lie in the repository."""
    return REPOSITORY / "tests" / "golden"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of large test data outside the repository; tests that need it skip without it."""
    folder = Path(os.environ.get("FASTSAM3D_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}: set FASTSAM3D_SHARED")
    return folder


@pytest.fixture(scope="session")
def ball_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server on a folder of studies, empty at first; its weights draw a ball at each click.

    Tests add their images with ``add_study``, or upload them as sessions.
    """
    folder = tmp_path_factory.mktemp("ball-server")
    (folder / "studies").mkdir()
    with running_server(folder / "studies", folder / "server.log", *BALL_WEIGHTS) as server:
        yield server


@pytest.fixture(scope="session")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """A DICOM server, empty at first; tests that need it skip if Orthanc is not installed."""
    with running_pacs(tmp_path_factory.mktemp("pacs")) as orthanc:
        yield orthanc


@pytest.fixture(scope="session")
def dicom_server(
    pacs: Orthanc, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server on ``pacs``; its weights draw a ball at each click.

    It starts as by a path to the interpreter, without an activated environment, and cannot reach
    other machines. It lists new series at once (MONAI Label keeps the list for two hours).
    """
    folder = tmp_path_factory.mktemp("dicom-server")
    env = {
        "PYTHONPATH": str(REPOSITORY / "tests" / "data" / "no_network"),
        "NETWORK_LOG": str(folder / "network.log"),
        "PATH": "/usr/bin:/bin",
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "cache"),
        "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": "0",
    }
    log = folder / "server.log"
    with running_server(pacs.dicomweb_url, log, *BALL_WEIGHTS, env=env) as server:
        yield server
