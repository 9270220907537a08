"""The short forms of the programs; `make chaos` runs the long ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from chaos import (
    broken_pacs,
    full_disk,
    kills,
    many_clients,
    random_requests,
    replaced_scan,
)
from chaos.common import Outcome
from chaos.watch import FolderWatch

SHORT: tuple[tuple[Callable[[int, int, Path], Outcome], int], ...] = (
    (random_requests.run, 250),
    (random_requests.run_on_pacs, 60),
    (kills.run, 2),
    (full_disk.run, 5),
    (broken_pacs.run, 5),
    (many_clients.run, 8),
    (replaced_scan.run, 8),
)
"""SHORT: the programs with numbers that take some seconds each, most of them for the start."""


@pytest.mark.parametrize(
    ("run", "number"), SHORT, ids=lambda value: getattr(value, "__module__", "")[6:]
)
def test_nothing_breaks(run: Callable[[int, int, Path], Outcome], number: int, tmp_path: Path):
    outcome = run(number, 0, tmp_path / "run")
    if "skipped" in outcome.facts:
        pytest.skip(outcome.facts["skipped"])
    assert not outcome.failures, "\n".join(outcome.failures[:20])


def test_a_file_beside_the_studies_is_not_touched_unseen(tmp_path: Path) -> None:
    """The watch of the first program can fail."""
    (tmp_path / "secret").write_text("secret")
    watch = FolderWatch([tmp_path])
    assert watch.touched() == set()
    (tmp_path / "secret").read_text()
    assert watch.touched() == {tmp_path / "secret"}
    (tmp_path / "new").touch()
    assert watch.touched() == {tmp_path / "new"}
    watch.close()
