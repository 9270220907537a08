"""Atomic writes of files and folders."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(target: Path, scratch: Path) -> Iterator[Path]:
    """Yield a path to write to; it replaces ``target`` when the block succeeds.

    The path has the target's name and suffix. It lies in a temporary folder in ``scratch``, on the
    same file system. After an error the target is unchanged.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".partial-") as folder:
        partial = Path(folder) / target.name
        yield partial
        if target.is_dir():  # a folder cannot be replaced by renaming over it
            shutil.move(target, Path(folder) / "old")
        os.replace(partial, target)
