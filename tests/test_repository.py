"""The files around the code agree: requirements, Makefile, CI, citation, changelog."""

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[1]

MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(?:home|Users|root|work)/\w")
"""MACHINE_PATH: a checkout or home folder of one machine; web addresses may contain such a path."""

OWN_PACKAGES = {"training"}
"""OWN_PACKAGES: folders of this repository whose names a distribution has too."""


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def requirements(name: str) -> list[Requirement]:
    """Return the requirements of a file, without those of the files that it includes."""
    lines = (line.split(" #")[0].strip() for line in read(name).splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-r "))]


def pins() -> dict[str, str]:
    """Return the versions in constraints.txt by canonical name; fail for a line without a pin."""
    versions = {}
    for requirement in requirements("constraints.txt"):
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"{requirement} is not pinned"
        versions[canonicalize_name(requirement.name)] = specifier.version
    return versions


def imported_packages(folder: str) -> set[str]:
    """Return the top-level names of all absolute imports in the Python files below a folder."""
    names = set()
    for path in (REPOSITORY / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(str(node.module).split(".")[0])
    return names


def make_targets() -> set[str]:
    """Return the names of the targets in the Makefile."""
    return set(re.findall(r"^([a-z][a-z-]*):(?!=)", read("Makefile"), flags=re.MULTILINE))


def tracked_files() -> list[Path]:
    """Return the files that git tracks or would track; skip outside a checkout."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    if listing.returncode != 0:
        pytest.skip(f"no git checkout: {listing.stderr.strip()}")
    paths = (REPOSITORY / name for name in listing.stdout.split("\0") if name)
    return [path for path in paths if path.is_file()]


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_ranges_contain_the_pins(name: str) -> None:
    exact = pins()
    for requirement in requirements(name):
        pin = exact.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} has no pin in constraints.txt"
        assert requirement.specifier.contains(pin), f"{requirement} leaves out the tested {pin}"


@pytest.mark.parametrize(
    ("folder", "files"),
    [
        ("apps", ["requirements.txt", "requirements-gpu.txt"]),
        ("sample-data", ["requirements.txt"]),
        ("tests", ["requirements.txt", "requirements-dev.txt"]),
    ],
)
def test_requirements_name_what_is_imported(folder: str, files: list[str]) -> None:
    distributions = packages_distributions()
    listed = {canonicalize_name(item.name) for name in files for item in requirements(name)}
    others = distributions.keys() - sys.stdlib_module_names - OWN_PACKAGES
    installed = imported_packages(folder) & others
    assert installed, f"no Python files in {folder}"
    missing = {
        package
        for package in installed
        if not listed & {canonicalize_name(name) for name in distributions[package]}
    }
    assert not missing


def test_constraints_leave_the_torch_build_open() -> None:
    cuda = [name for name in pins() if name.startswith(("nvidia-", "cuda-", "triton"))]
    assert not cuda


def test_ci_runs_the_tests() -> None:
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)
    assert re.search(r"^make test$", read(".ci/run"), flags=re.MULTILINE)
    assert {"test", "lint", "typecheck"} <= make_targets()


def test_the_ci_workflow_runs_the_checks() -> None:
    """All checks on Python 3.11, the fast tests on 3.12, as README.md says."""
    workflow = read(".github/workflows/ci.yml")
    assert re.search(r"^ +- run: \.ci/run$", workflow, flags=re.MULTILINE)
    assert re.search(r"^ +- run: make test PYTHON=python3\.12$", workflow, flags=re.MULTILINE)
    assert re.findall(r'python-version: "(.+)"', workflow) == ["3.11", "3.12"]


def test_citation_and_changelog_name_the_version() -> None:
    version = re.search(r'^version = "(.+)"$', read("pyproject.toml"), flags=re.MULTILINE)
    assert version is not None
    citation = dict(re.findall(r"^([\w-]+): (.+)$", read("CITATION.cff"), flags=re.MULTILINE))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == version[1]
    heading = f"## {version[1]} - {citation['date-released']}"
    assert heading in read("CHANGELOG.md").splitlines()


@pytest.mark.parametrize("paper", ["2403.09827", "2310.15161"])
def test_the_citation_has_both_papers(paper: str) -> None:
    assert f"value: arXiv:{paper}" in read("CITATION.cff")


def test_no_file_names_a_path_of_one_machine() -> None:
    paths = []
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        if match := MACHINE_PATH.search(text):
            paths.append(f"{path.relative_to(REPOSITORY)}: {match.group()}")
    assert not paths
