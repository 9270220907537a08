"""Imports inside `apps/fastsam3d/lib` go one way, and the networks need nothing but torch."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

LIB = Path(__file__).resolve().parents[1] / "apps" / "fastsam3d" / "lib"

# Each module or package of lib, and the others that it may import; a new one needs a row here.
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "options": {"errors"},
    "networks": set(),
    "intensity": {"errors"},
    "prompts": {"errors"},
    "roi": {"errors"},
    "cache": {"errors"},
    "mask": set(),
    "reply": {"mask"},
    "dicom": {"errors"},
    "volume": {"dicom", "errors", "intensity"},
    "weights": {"errors", "networks"},
    "precision": {"networks"},
    "outline": set(),
    "transforms": {"cache", "errors", "intensity", "mask", "prompts", "roi", "volume"},
    "infers": {
        "cache",
        "errors",
        "intensity",
        "networks",
        "outline",
        "precision",
        "prompts",
        "reply",
        "roi",
        "transforms",
        "volume",
        "weights",
    },
    "published": {"errors", "networks", "weights"},
    "served": {"errors", "networks", "published", "weights"},
    "trainers": {
        "cache",
        "errors",
        "intensity",
        "networks",
        "prompts",
        "published",
        "roi",
        "served",
        "transforms",
        "volume",
        "weights",
    },
    "configs": {
        "errors",
        "infers",
        "networks",
        "options",
        "published",
        "served",
        "trainers",
        "weights",
    },
    "datastore": {"dicom", "errors"},
    "ohif": set(),
    "images": {"errors"},
    "opening": {"images"},
    "trainings": {"errors", "published"},
    "server": {"datastore", "errors", "images", "infers", "ohif", "opening", "reply", "trainings"},
}

# `networks` must import with torch alone; the others are for what not everyone does with it.
NETWORKS_NEED = {"torch"}
NETWORKS_MAY_USE = NETWORKS_NEED | {"flash_attn", "numpy", "safetensors"}

FILES = sorted(LIB.rglob("*.py"))
NETWORK_FILES = [path for path in FILES if "networks" in path.relative_to(LIB).parts]


def relative_name(path: Path) -> str:
    return path.relative_to(LIB).as_posix()


def unit_of(path: Path) -> str:
    """Row of MAY_IMPORT that a file belongs to: `networks/config.py` -> `networks`."""
    return path.relative_to(LIB).with_suffix("").parts[0]


def imported_names(node: ast.AST, path: Path) -> Iterator[str]:
    """Absolute dotted names that one syntax node imports; none if it is no import."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        package = ("lib", *path.relative_to(LIB).parent.parts)
        base = package[: len(package) + 1 - node.level] if node.level else ()
        module = ".".join((*base, *([node.module] if node.module else [])))
        yield from (f"{module}.{alias.name}" for alias in node.names)


def all_imports(path: Path) -> list[str]:
    """Absolute dotted names of all imports in a file, those inside functions included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [name for node in ast.walk(tree) for name in imported_names(node, path)]


def foreign(names: list[str]) -> set[str]:
    """Top-level packages among `names` that are neither ours nor the standard library's."""
    return {name.split(".")[0] for name in names} - {"lib"} - sys.stdlib_module_names


def test_every_module_has_a_row() -> None:
    assert FILES, f"no modules in {LIB}"
    assert {unit_of(path) for path in FILES} <= MAY_IMPORT.keys()


def test_the_table_goes_one_way() -> None:
    assert set().union(*MAY_IMPORT.values()) <= MAY_IMPORT.keys()
    assert list(TopologicalSorter(MAY_IMPORT).static_order())  # raises CycleError


@pytest.mark.parametrize("path", FILES, ids=relative_name)
def test_imports_follow_the_table(path: Path) -> None:
    names = all_imports(path)
    ours = {name.split(".")[1] for name in names if name.startswith("lib.")}
    assert ours - {unit_of(path)} <= MAY_IMPORT.get(unit_of(path), set())
    assert "main" not in {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", NETWORK_FILES, ids=relative_name)
def test_networks_need_only_torch(path: Path) -> None:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    needed = [name for node in body for name in imported_names(node, path)]
    assert foreign(needed) <= NETWORKS_NEED
    assert foreign(all_imports(path)) <= NETWORKS_MAY_USE


@pytest.mark.parametrize("path", FILES, ids=relative_name)
def test_lib_does_not_print(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lines = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert not lines
