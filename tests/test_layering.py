"""Imports in `apps/fastsam3d/lib` go down from floor to floor; networks need nothing but torch."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

LIB = Path(__file__).resolve().parents[1] / "apps" / "fastsam3d" / "lib"

# The rooms of lib from the top floor down, with the rooms below that each one uses.
FLOORS: tuple[dict[str, set[str]], ...] = (
    {
        "configs": {"infers", "options", "trainers", "weights"},
        "server": {
            "atomic_file",
            "datastore",
            "errors",
            "imaging",
            "infers",
            "options",
            "weights",
        },
    },
    {
        "infers": {"cache", "errors", "imaging", "networks", "options", "weights"},
        "trainers": {
            "atomic_file",
            "cache",
            "errors",
            "imaging",
            "networks",
            "options",
            "weights",
        },
        "datastore": {"atomic_file", "errors", "imaging"},
    },
    {
        "imaging": {"errors"},
        "options": {"errors"},
        "weights": {"atomic_file", "errors", "networks"},
    },
    {
        "networks": set(),
        "errors": set(),
        "atomic_file": set(),
        "cache": set(),
    },
)
MAY_IMPORT = {room: below for floor in FLOORS for room, below in floor.items()}

# `networks` must import with torch alone; the others are for what not everyone does with it.
NETWORKS_NEED = {"torch"}
NETWORKS_MAY_USE = NETWORKS_NEED | {"flash_attn", "numpy", "safetensors"}

FILES = sorted(LIB.rglob("*.py"))
NETWORK_FILES = [path for path in FILES if "networks" in path.relative_to(LIB).parts]


def relative_name(path: Path) -> str:
    return path.relative_to(LIB).as_posix()


def room_of(path: Path) -> str:
    """Room that a file lies in: `networks/config.py` -> `networks`."""
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
    """Return the third-party packages among `names`, neither ours nor of the standard library."""
    return {name.split(".")[0] for name in names} - {"lib"} - sys.stdlib_module_names


def rooms_used_by(path: Path) -> set[str]:
    """Other rooms that a file imports from."""
    rooms = {name.split(".")[1] for name in all_imports(path) if name.startswith("lib.")}
    return rooms - {room_of(path)}


def test_every_file_lies_in_a_room() -> None:
    assert {room_of(path) for path in FILES} == MAY_IMPORT.keys() | {"__init__"}


def test_rooms_use_lower_floors_only() -> None:
    for number, floor in enumerate(FLOORS):
        lower = {room for below in FLOORS[number + 1 :] for room in below}
        assert all(uses <= lower for uses in floor.values()), f"floor {number}"


@pytest.mark.parametrize("path", FILES, ids=relative_name)
def test_imports_follow_the_table(path: Path) -> None:
    assert rooms_used_by(path) <= MAY_IMPORT.get(room_of(path), set())
    assert "main" not in {name.split(".")[0] for name in all_imports(path)}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_every_permission_is_used(room: str) -> None:
    used = [rooms_used_by(path) for path in FILES if room_of(path) == room]
    assert set().union(*used) == MAY_IMPORT[room]


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
