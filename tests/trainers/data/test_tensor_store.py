"""The store of tensors is bounded, keeps the entries in use, and survives a full disk."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib.trainers.data.tensor_store import TensorStore


def store_of(folder: Path, entries: int) -> TensorStore:
    """Return a store with room for `entries` of `tensors`; a header has less than 400 bytes."""
    return TensorStore(folder, entries * (4096 + 400))


def tensors(value: float) -> dict[str, Tensor]:
    return {"x": torch.full((1024,), float(value))}


def test_entries_in_use_stay_and_unused_ones_are_removed(tmp_path: Path) -> None:
    old = store_of(tmp_path, 3)
    for number, key in enumerate("abc"):
        old.put(key, tensors(number))
        os.utime(tmp_path / f"{key}.safetensors", (1000 + number, 1000 + number))
    now = store_of(tmp_path, 3)
    assert now.get("a") is not None  # the oldest, but in use
    now.put("d", tensors(3))
    assert [key for key in "abcd" if now.get(key)] == ["a", "c", "d"]
    now.put("e", tensors(4))  # all others are in use
    assert [key for key in "acde" if now.get(key)] == ["a", "c", "d"]
    assert now.nbytes <= now.max_bytes


def test_a_full_disk_stores_nothing_and_raises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lib.trainers.data.tensor_store.save_file", fail)
    # caplog stays empty if the whole suite ran before
    monkeypatch.setattr(
        "lib.trainers.data.tensor_store.logger.warning",
        lambda text, *values: warnings.append(text % values),
    )
    store = TensorStore(tmp_path, 1 << 20)
    store.put("a", tensors(1))
    assert store.get("a") is None and not list(tmp_path.iterdir())
    assert len(warnings) == 1 and "No space left" in warnings[0]
