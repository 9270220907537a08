"""The teacher's features are computed once per ROI, stored, and checked when they are read."""

from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from lib.trainers.teacher import TeacherFeatures

BLOCKS = (1, 3)


def images(count: int) -> Tensor:
    return torch.randn(count, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))


def features_in(
    folder: Path, max_bytes: int = 1 << 30, teacher_hash: str = "abc"
) -> TeacherFeatures:
    return TeacherFeatures(folder, max_bytes, tiny.teacher(), teacher_hash, BLOCKS)


def count_calls(features: TeacherFeatures, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    encode = features.teacher.encode_intermediates

    def counted(volume: Tensor, blocks: tuple[int, ...]) -> tuple[Tensor, dict[int, Tensor]]:
        calls.append(len(volume))
        return encode(volume, blocks)

    monkeypatch.setattr(features.teacher, "encode_intermediates", counted)
    return calls


def test_features_are_those_of_the_teacher_in_half_precision(tmp_path: Path) -> None:
    volumes = images(3)
    outputs, embedding = features_in(tmp_path).get("xyz", volumes)
    with torch.no_grad():
        expected, expected_outputs = tiny.teacher().encode_intermediates(volumes, BLOCKS)
    assert set(outputs) == set(BLOCKS)
    for block in BLOCKS:
        assert outputs[block].shape == (3, 4, 4, 4, 32) and outputs[block].dtype == torch.float32
        torch.testing.assert_close(outputs[block], expected_outputs[block], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(embedding, expected, rtol=2e-3, atol=2e-3)
    assert not embedding.requires_grad


def test_a_later_epoch_runs_without_the_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = images(4)
    features = features_in(tmp_path)
    calls = count_calls(features, monkeypatch)
    first = features.get("abcd", volumes)
    assert sum(calls) == 4 and features.computed == 4
    again = features.get("dbca", volumes[[3, 1, 2, 0]])
    assert sum(calls) == 4

    later = features_in(tmp_path)  # another run
    later_calls = count_calls(later, monkeypatch)
    afterwards = later.get("abcd", volumes)
    assert not later_calls
    for block in BLOCKS:
        assert torch.equal(first[0][block], afterwards[0][block])
        assert torch.equal(first[0][block][[3, 1, 2, 0]], again[0][block])
    assert torch.equal(first[1], afterwards[1])


def test_stored_and_computed_features_are_equal(tmp_path: Path) -> None:
    volumes = images(3)
    together = features_in(tmp_path / "a").get("abc", volumes)
    other = features_in(tmp_path / "b")
    other.get("b", volumes[1:2])
    apart = other.get("abc", volumes)
    assert torch.equal(together[1], apart[1])
    assert all(torch.equal(together[0][block], apart[0][block]) for block in BLOCKS)
    no_store = features_in(tmp_path / "c", max_bytes=0)
    no_store.get("abc", volumes)
    assert torch.equal(no_store.get("abc", volumes)[1], together[1]) and no_store.computed == 6


def test_another_teacher_has_its_own_features(tmp_path: Path) -> None:
    features_in(tmp_path).get("a", images(1))
    other = features_in(tmp_path, teacher_hash="def")
    other.get("a", images(1))
    assert other.computed == 1


def test_features_of_an_earlier_layout_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features_in(tmp_path).get(["a"], images(1))
    monkeypatch.setattr("lib.trainers.teacher.LAYOUT", 1_000)
    later = features_in(tmp_path)
    later.get(["a"], images(1))
    assert later.computed == 1


@pytest.mark.parametrize("damage", ["cut", "emptied", "changed", "folder"])
def test_damaged_entries_are_computed_again(tmp_path: Path, damage: str) -> None:
    volumes = images(1)
    expected = features_in(tmp_path).get("a", volumes)
    (path,) = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(
            {"cut": whole[:-9], "emptied": b"", "changed": whole[:-9] + b"\x00" * 9}[damage]
        )
    features = features_in(tmp_path)
    assert torch.equal(features.get("a", volumes)[1], expected[1])
    assert features.computed == 1
    if damage != "folder":
        assert path.read_bytes() == whole


def test_the_teacher_is_frozen(tmp_path: Path) -> None:
    features = features_in(tmp_path)
    assert not features.teacher.training
    assert not any(parameter.requires_grad for parameter in features.teacher.parameters())
