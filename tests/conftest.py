"""Fixtures and set-up that all tests share."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

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
    os.environ["MONAI_LABEL_TRACKING_ENABLED"] = "false"


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
