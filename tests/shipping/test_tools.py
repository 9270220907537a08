"""What make says before an installation, and about updates; checksums; one version everywhere."""

import hashlib
import re
from pathlib import Path

import pytest

import check_updates
import install_plan

REPOSITORY = Path(__file__).resolve().parents[2]
WEIGHTS = REPOSITORY / "apps" / "fastsam3d" / "weights"


def test_the_plan_is_made_from_the_rate_of_the_download_alone():
    lines = [
        (10.0, "Collecting numpy==1.26.4"),
        (20.0, "Downloading numpy-1.26.4-cp311-cp311-manylinux.whl (18.3 MB)"),
        (22.0, "Installing collected packages: numpy"),
    ]
    text = install_plan.plan(lines)
    assert "3.7 GB" in text
    assert "about 7 min at 9.2 MB/s" in text  # 3700 / 9.15 / 60


def test_the_plan_of_a_second_try_does_not_invent_a_rate():
    lines = [(1.0, "Using cached numpy-1.26.4.whl (18.3 MB)"), (1.1, "Installing collected")]
    text = install_plan.plan(lines)
    assert "MB/s" not in text
    assert "earlier try" in text


def test_a_release_that_our_own_range_refuses_has_the_reason_of_the_range():
    (reason,) = check_updates.own_reason("pydicom", "3.0.1")
    assert "pydicom-seg" in reason
    assert check_updates.own_reason("pydicom", "2.4.5") == []
    assert check_updates.pin("numpy").startswith("1.26")


def sums():
    lines = (WEIGHTS / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def test_the_weights_are_those_of_the_checksums():
    files = {path.name: path for path in WEIGHTS.glob("*.safetensors")}
    assert files.keys() == sums().keys()
    for name, path in files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sums()[name], (
            f"{name} changed: run sha256sum *.safetensors > SHA256SUMS in {WEIGHTS.name}"
        )


def test_the_image_has_the_torch_and_the_packages_of_the_lock_file():
    locked = set((REPOSITORY / "constraints.txt").read_text().splitlines())
    image = (REPOSITORY / "deploy" / "requirements-image.txt").read_text().splitlines()
    packages = {line for line in image if not line.startswith("#")}
    assert packages <= locked
    argument = re.search(r"^ARG TORCH=(.+)$", (REPOSITORY / "Containerfile").read_text(), re.M)
    assert argument is not None
    assert argument[1] in locked


@pytest.mark.parametrize("name", ["compose.yaml", "Containerfile", "deploy/nginx.conf"])
def test_only_pyproject_has_the_version(name):
    version = re.search(r'^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text(), re.M)
    assert version is not None
    assert version[1] not in (REPOSITORY / name).read_text()
