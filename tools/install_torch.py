"""Install torch and the large packages that it requires, one at a time.

    .venv/bin/python tools/install_torch.py

pip alone installs nothing before it has downloaded all, which are 3 GB with CUDA, and its cache
keeps nothing of some mirrors. Here each package stays when the installation is interrupted. What is
small, or of another version than it should be, is left to the pip that follows.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[1]
BUILD_TOOLS = ("setuptools", "wheel")
"""BUILD_TOOLS: build the packages that have no wheel; installed with all that they require."""

FIRST = ("torch", "torchvision")
"""FIRST: what is installed with the large packages that it requires, and nothing else."""

LARGE = re.compile(r"nvidia|cuda|triton|pytorch")
"""LARGE: names of the packages beside torch that are large, or require large ones."""


def main() -> int:
    if code := _install(*BUILD_TOOLS):
        return code
    waiting = [Requirement(name) for name in FIRST]
    seen: set[str] = set()
    while waiting:
        requirement = waiting.pop(0)
        key = str(requirement)
        if key in seen:
            continue
        seen.add(key)
        if not is_installed(requirement.name):
            requirement.marker = None  # it was evaluated
            if code := _install("--no-deps", str(requirement)):
                return code
        waiting += large_requirements(requirement)
    return 0


def is_installed(name: str) -> bool:
    """Return whether a package is complete: pip writes its RECORD last."""
    importlib.invalidate_caches()
    try:
        return metadata.distribution(name).read_text("RECORD") is not None
    except metadata.PackageNotFoundError:
        return False


def large_requirements(requirement: Requirement) -> Iterator[Requirement]:
    """Yield what an installed package requires here with the extras that are asked for."""
    for text in metadata.requires(requirement.name) or ():
        needed = Requirement(text)
        extras = ("", *requirement.extras)
        applies = needed.marker is None or any(
            needed.marker.evaluate({"extra": extra}) for extra in extras
        )
        if applies and LARGE.search(needed.name):
            yield needed


def _install(*arguments: str) -> int:
    """Install packages in the versions of the lock files; return pip's exit code."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-input"]
    constraints = ["-c", str(REPOSITORY / "constraints.txt")]
    constraints += ["-c", str(REPOSITORY / "requirements.txt")]
    return subprocess.call([*pip, *constraints, *arguments])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
