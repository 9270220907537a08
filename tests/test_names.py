"""Modules and classes have unique names; the code imports without cycles."""

import ast
from collections import defaultdict
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = ("apps", "benchmarks", "training", "sample-data", "tools", "docs")
NOT_COUNTED = ("__init__", "conftest")

# SHARED_MODULES: modules that may share a name, with the reason.
SHARED_MODULES = {
    # the command line for what the module of the library does
    "checkpoint": {"apps/fastsam3d/checkpoint.py", "apps/fastsam3d/lib/networks/checkpoint.py"},
    # each room's part of the model FastSAM3D; MONAI Label finds a model by the name of its config
    "fastsam3d": {
        "apps/fastsam3d/lib/configs/fastsam3d.py",
        "apps/fastsam3d/lib/infers/fastsam3d.py",
        "apps/fastsam3d/lib/networks/fastsam3d.py",
    },
    # the two ways to start a training: the command line, and the routes below /train
    "train": {"apps/fastsam3d/train.py", "apps/fastsam3d/lib/server/train.py"},
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
    assert shared(places) == {}


# ROOTS: the folders whose imports are checked, with the folder that their module names start at.
ROOTS = {"benchmarks": "", "training": "", "apps/fastsam3d/lib": "apps/fastsam3d"}


def module_name(path: Path, root: str) -> str:
    """Return a module's dotted name; a package has the name of its folder."""
    parts = path.relative_to(REPOSITORY / root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path, root: str) -> set[str]:
    """Return the absolute names that a file imports, also in functions."""
    package = path.relative_to(REPOSITORY / root).parent.parts
    names = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def import_graph(folder: str) -> dict[str, set[str]]:
    """Return the imported modules of each module of a folder.

    A package itself is left out as a target: its `__init__` imports its modules, and `from package
    import module` imports the module.
    """
    root = ROOTS[folder]
    modules = {module_name(path, root): path for path in python_files([folder])}
    targets = {name for name, path in modules.items() if path.stem != "__init__"}
    return {name: imported_modules(path, root) & targets for name, path in modules.items()}


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of an import cycle; an empty list if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("folder", ROOTS)
def test_imports_have_no_cycle(folder: str) -> None:
    graph = import_graph(folder)
    assert sum(map(len, graph.values())) > 5, "no imports found"
    assert cycle(graph) == []


def test_a_cycle_is_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
