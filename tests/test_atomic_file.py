"""An atomic write replaces a file completely, or leaves the old file and nothing else."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lib import atomic_file
from lib.atomic_file import (
    copy_atomically,
    is_full,
    keep_as,
    remove_leftovers,
    temporary_file,
    write_atomically,
    write_text_atomically,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_write_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")
    write_text_atomically(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    assert names(tmp_path) == ["state.json"]


def test_the_old_file_is_seen_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("old")
    with write_atomically(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path
    assert path.read_text() == "new"


def test_an_error_in_the_block_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), write_atomically(path) as temporary:
        temporary.write_text("half of")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert names(tmp_path) == ["weights"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    path = tmp_path / "weights"
    path.write_text("old")
    monkeypatch.setattr(os, function, full)
    with pytest.raises(OSError, match="No space left"):
        write_text_atomically(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["weights"]


@pytest.mark.parametrize(
    ("durable", "synced"), [(True, ["file", "move", "folder"]), (False, ["move"])]
)
def test_content_is_synced_before_the_move_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool, synced: list[str]
) -> None:
    steps: list[str] = []
    replace = os.replace

    def sync(path: Path) -> None:
        steps.append("folder" if path.is_dir() else "file")

    def move(source: Path, target: Path) -> None:
        steps.append("move")
        replace(source, target)

    monkeypatch.setattr(atomic_file, "_sync", sync)
    monkeypatch.setattr(os, "replace", move)
    with write_atomically(tmp_path / "entry", durable=durable) as temporary:
        temporary.write_text("new")
    assert steps == synced


@pytest.mark.parametrize("has_links", [True, False])
def test_a_second_name_outlives_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    path, name = tmp_path / "label", tmp_path / "earlier"
    path.write_text("old")
    name.write_text("of another crash")
    keep_as(path, name)
    (tmp_path / "source").write_text("new")
    copy_atomically(tmp_path / "source", path)
    assert (path.read_text(), name.read_text()) == ("new", "old")
    assert names(tmp_path) == ["earlier", "label", "source"]


def test_leftovers_are_removed(tmp_path: Path) -> None:
    write_text_atomically(tmp_path / "kept", "content")
    with temporary_file(tmp_path) as temporary:
        temporary.write_text("half of")
        assert remove_leftovers(tmp_path) == [temporary]
    assert names(tmp_path) == ["kept"]


def test_what_a_full_disk_is() -> None:
    assert is_full(OSError(errno.ENOSPC, "x")) and is_full(OSError(errno.EDQUOT, "x"))
    assert not is_full(OSError(errno.EIO, "x")) and not is_full(ValueError())


WRITE_FOREVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from lib.atomic_file import write_text_atomically
for number in range(10**9):
    write_text_atomically(Path(sys.argv[2]), str(number % 10) * 10**6)
    print(number, flush=True)
"""


def test_a_kill_leaves_a_complete_file(tmp_path: Path) -> None:
    app, path = Path(atomic_file.__file__).parents[1], tmp_path / "digits"
    command = [sys.executable, "-c", WRITE_FOREVER, str(app), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    content = path.read_text()
    assert len(content) == 10**6 and len(set(content)) == 1
    leftovers = set(names(tmp_path)) - {"digits"}
    assert all(name.endswith(atomic_file.SUFFIX) for name in leftovers)
