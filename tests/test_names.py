"""Modules and classes have unique names; benchmarks and training import without cycles."""

import ast
from collections import defaultdict
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = ("apps", "benchmarks", "training", "sample-data", "tools", "docs")
NOT_COUNTED = ("__init__", "conftest")

# SHARED_MODULES: modules that may share a name; a command may be called as what it runs.
SHARED_MODULES = {
    "checkpoint": {"apps/fastsam3d/checkpoint.py", "apps/fastsam3d/lib/networks/checkpoint.py"},
    "fastsam3d": {
        "apps/fastsam3d/lib/configs/fastsam3d.py",
        "apps/fastsam3d/lib/infers/fastsam3d.py",
        "apps/fastsam3d/lib/networks/fastsam3d.py",
    },
    "train": {"apps/fastsam3d/train.py", "apps/fastsam3d/lib/server/train.py"},
}
# SHARED_CLASSES: MONAI Label's TaskConfig and the network both have the model's name.
SHARED_CLASSES = {
    "FastSAM3D": {
        "apps/fastsam3d/lib/configs/fastsam3d.py",
        "apps/fastsam3d/lib/networks/fastsam3d.py",
    },
}


def python_files(folders: Iterable[str]) -> list[Path]:
    return [path for folder in folders for path in sorted((REPOSITORY / folder).rglob("*.py"))]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def relative_name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def shared(places: dict[str, set[str]]) -> dict[str, set[str]]:
    return {name: files for name, files in places.items() if len(files) > 1}


def test_module_names_are_unique() -> None:
    places = defaultdict(set)
    for path in python_files(FOLDERS):
        if path.stem not in NOT_COUNTED:
            places[path.stem].add(relative_name(path))
    assert len(places) > 50
    assert shared(places) == SHARED_MODULES


def test_class_names_are_unique() -> None:
    places = defaultdict(set)
    for path in python_files(FOLDERS):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].add(relative_name(path))
    assert len(places) > 50
    assert shared(places) == SHARED_CLASSES


def imported_modules(path: Path) -> set[str]:
    """Return the modules of benchmarks and training that a file imports, also in functions."""
    package = path.parent.name
    names = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def import_graph(folder: str) -> dict[str, set[str]]:
    modules = {f"{folder}.{path.stem}": path for path in python_files([folder])}
    return {name: imported_modules(path) & modules.keys() for name, path in modules.items()}


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of an import cycle; an empty list if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("folder", ["benchmarks", "training"])
def test_imports_have_no_cycle(folder: str) -> None:
    graph = import_graph(folder)
    assert sum(map(len, graph.values())) > 5, "no imports found"
    assert cycle(graph) == []


def test_a_cycle_is_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
