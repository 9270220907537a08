"""What make says before an installation, and about updates; checksums; one version everywhere."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import check_updates
import install_plan
import install_torch

REPOSITORY = Path(__file__).resolve().parents[2]
WEIGHTS = REPOSITORY / "apps" / "fastsam3d" / "weights"


def fake_pip(*lines, pause=0.0):
    """A process that writes the lines of pip, with a pause before the last one."""
    code = f"import time\nfor line in {lines[:-1]!r}: print(line, flush=True)\n"
    code += f"time.sleep({pause}); print({lines[-1]!r})"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


NUMPY = "  Downloading numpy-1.26.4-cp311-cp311-manylinux.whl (18.3 MB)"


def test_the_plan_says_the_size_before_and_the_time_after_the_first_download():
    assert "3.7 GB" in install_plan.size(80)
    with fake_pip("Collecting numpy", NUMPY, "Installing collected", pause=0.5) as pip:
        rate, lines = install_plan._read(pip)
    # 18.3 MB in half a second; a busy machine may see the first line late, or the second one
    assert 5 < rate < 100
    assert lines[0] == "Collecting numpy"
    text = install_plan.duration(3700, 9.15)
    assert "about 7 min at 9.2 MB/s" in text  # 3700 / 9.15 / 60


def test_a_slow_download_gives_a_lower_bound_before_its_end(monkeypatch, capsys):
    monkeypatch.setattr(install_plan, "SLOW_SECONDS", 0.1)
    with fake_pip(NUMPY, "Installing collected", pause=1) as pip:
        install_plan._read(pip)
    assert "slow" in capsys.readouterr().out
    assert "more than 67 min" in install_plan.at_least(18.3, 20)  # 3700 / 18.3 * 20 / 60


def test_the_plan_of_a_second_try_counts_what_is_in_place():
    text = install_plan.size(4500)
    assert "goes on: 4.5 of about 9 GB are in place, about 1.9 GB are still to download" in text
    assert "MB/s" not in install_plan.duration(1850, 0)


def test_torch_is_installed_package_by_package_with_the_extras_of_each(monkeypatch):
    """torch and one of its requirements are installed; the others come one by one."""
    required = {
        "torch": [
            "numpy",
            "cuda-toolkit[cublas]==13.0; platform_system == 'Linux'",
            "nvidia-cudnn==9; platform_system == 'Windows'",
            "triton==3",
        ],
        "cuda-toolkit": ["nvidia-cublas==13.1; extra == 'cublas'", "nvidia-nvtx; extra == 'nvtx'"],
    }
    there = {"torch", "triton"}
    asked = []

    def install(command):
        if command[-1] == "wheel":
            assert "--no-deps" not in command  # wheel 0.48 cannot build without packaging
            return 0
        asked.append(command[-1])
        assert "--no-deps" in command
        there.add(Requirement(command[-1]).name)
        return 0

    monkeypatch.setattr(install_torch.subprocess, "call", install)
    monkeypatch.setattr(install_torch, "is_installed", there.__contains__)
    monkeypatch.setattr(install_torch.metadata, "requires", required.get)
    assert install_torch.main() == 0
    assert asked == ["torchvision", "cuda-toolkit[cublas]==13.0", "nvidia-cublas==13.1"]


def test_a_package_without_its_record_is_not_complete(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    info = tmp_path / "halfdone-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: halfdone\nVersion: 1.0\n")
    assert not install_torch.is_installed("halfdone")
    (info / "RECORD").write_text("")
    assert install_torch.is_installed("halfdone")


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


def test_secrets_stay_and_a_certificate_for_another_host_is_named(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is missing")

    def make(host):
        return subprocess.run(
            [REPOSITORY / "deploy" / "make-secrets.sh", host],
            env={**os.environ, "SECRETS": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )

    assert "for a.example.org" in make("a.example.org").stdout
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"api_key", "tls.crt", "tls.key"}
    assert make("a.example.org").stderr == ""
    assert "is not for b.example.org; it stays" in make("b.example.org").stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
