"""The files around the code agree with one another: requirements, Makefile, CI, README."""

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

# A checkout or a home folder of one machine; web addresses with such a path are fine.
MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(?:home|Users|root|work)/\w")


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def requirements(name: str) -> list[Requirement]:
    """Requirements that a file lists itself, without those of the files it includes."""
    lines = (line.split(" #")[0].strip() for line in read(name).splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-r "))]


def pins() -> dict[str, str]:
    """Exact versions of constraints.txt by canonical name; fails for a line that is no pin."""
    found = {}
    for requirement in requirements("constraints.txt"):
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"{requirement} is not pinned"
        found[canonicalize_name(requirement.name)] = specifier.version
    return found


def imported_packages(folder: str) -> set[str]:
    """Top-level names that the Python files below a folder import absolutely."""
    names = set()
    for path in (REPOSITORY / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(str(node.module).split(".")[0])
    return names


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):(?!=)", read("Makefile"), flags=re.MULTILINE))


def tracked_files() -> list[Path]:
    """Files that git tracks or would track; skips outside a checkout."""
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


# folders of ours whose names a distribution has too
OWN_PACKAGES = {"training"}


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


def test_readme_names_existing_make_targets() -> None:
    if not (REPOSITORY / "README.md").exists():
        pytest.skip("no README.md yet")
    readme = read("README.md")
    code = re.findall(r"```.*?```|`[^`\n]+`", readme, flags=re.DOTALL)
    commands = re.findall(r"(?m)(?:^|`|\$ |&& )make ([a-z][a-z-]*)", "\n".join(code))
    assert {"serve", "test"} <= set(commands)
    assert set(commands) <= make_targets()


def test_ci_runs_the_tests() -> None:
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)
    assert re.search(r"^make test$", read(".ci/run"), flags=re.MULTILINE)
    assert {"test", "lint", "typecheck"} <= make_targets()


def test_no_file_names_a_path_of_one_machine() -> None:
    found = []
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        if match := MACHINE_PATH.search(text):
            found.append(f"{path.relative_to(REPOSITORY)}: {match.group()}")
    assert not found
