"""Unsaved work is the newest prompts of each structure that its user has not saved."""

from __future__ import annotations

from typing import Any

import pytest

from lib.datastore.journal_masks import KEPT, JournalMasks
from lib.datastore.label_history import LabelVersion
from lib.datastore.unsaved_work import own_work, work_of_others


def entry(
    minute: int, label: str = "liver", user: str = "Anna", prompts: Any = (1,), mask: str = ""
) -> dict[str, Any]:
    return {
        "time": f"2026-11-26T10:{minute:02d}:00.000+00:00",
        "label": label,
        "user": user,
        "prompts": list(prompts),
        "options": {"coordinates": "lps_mm"},
        "initial_mask_sha256": mask,
    }


def of_page(entry: dict[str, Any], page: str) -> dict[str, Any]:
    return entry | {"options": entry["options"] | {"page": page}}


def version(minute: int, user: str, last: int | None = None) -> LabelVersion:
    info = {} if last is None else {"last_interaction": entry(last)["time"]}
    time = f"2026-11-26T10:{minute:02d}:00+00:00"
    return LabelVersion(1, time, user, "", ".nii.gz", info)


def labels(work: Any) -> list[tuple[str, list[Any]]]:
    return [(each["label"], each["prompts"]) for each in work.structures]


def test_the_newest_entry_of_each_structure_counts() -> None:
    entries = [entry(1), entry(2, "spleen"), entry(3, prompts=(1, 2))]
    work = own_work(entries, [], "Anna")
    assert labels(work) == [("spleen", [1]), ("liver", [1, 2])]
    assert work.time == entries[-1]["time"]


def test_only_ones_own_save_ends_ones_own_work() -> None:
    """The journal's newest entry at the save tells what the label has, not the time of the save."""
    entries = [entry(1), entry(5, "spleen")]
    assert labels(own_work(entries, [version(3, "Ben")], "Anna")) == labels(
        own_work(entries, [], "Anna")
    )
    assert labels(own_work(entries, [version(3, "Anna")], "Anna")) == [("spleen", [1])]
    assert labels(own_work(entries, [version(6, "Anna", last=1)], "Anna")) == [("spleen", [1])]
    assert labels(own_work(entries, [version(6, "Anna", last=5)], "Anna")) == []


def test_a_save_ends_the_work_on_the_structures_of_its_page() -> None:
    """A second page of the same user, on another structure, loses nothing."""
    entries = [entry(1), entry(2, "spleen"), entry(4)]
    saved = version(5, "Anna", last=4)
    saved.info["structures_of_page"] = ["liver", "colon"]
    assert labels(own_work(entries, [saved], "Anna")) == [("spleen", [1])]
    assert labels(own_work([*entries, entry(6)], [saved], "Anna")) == [
        ("spleen", [1]),
        ("liver", [1]),
    ]
    both = version(7, "Anna", last=6)
    both.info["structures_of_page"] = ["spleen", "liver"]
    assert labels(own_work([*entries, entry(6)], [saved, both], "Anna")) == []


def test_a_save_leaves_what_another_page_did_to_the_same_structure() -> None:
    """What the page that saved had restored is part of its label; later entries are not."""
    restored, first = of_page(entry(1), "old"), of_page(entry(3, prompts=(1, 2)), "A")
    second = of_page(entry(2, prompts=(1, 3)), "B")
    saved = version(5, "Anna", last=3)
    saved.info.update(structures_of_page=["liver"], page="A", restored_until=restored["time"])
    entries = [restored, second, first]
    assert labels(own_work(entries, [saved], "Anna")) == [("liver", [1, 3])]
    assert labels(own_work([restored, first], [saved], "Anna")) == []
    assert labels(own_work([entry(2), first], [saved], "Anna")) == []  # of an older viewer
    both = version(7, "Anna", last=3)
    both.info.update(page="C", restored_until=second["time"])
    assert labels(own_work(entries, [saved, both], "Anna")) == []
    unnamed = version(7, "Anna", last=3)
    assert labels(own_work(entries, [unnamed], "Anna")) == []


def test_work_of_others_is_apart() -> None:
    entries = [entry(1, user="Ben"), entry(2), entry(3, user="Carl"), entry(4, user="")]
    assert [work.user for work in work_of_others(entries, None, "Anna")] == ["", "Carl", "Ben"]
    assert [work.user for work in work_of_others(entries, version(2, "Dora"), "Anna")] == [
        "",
        "Carl",
    ]
    assert labels(own_work(entries, [], "Anna")) == [("liver", [1])]


def test_a_structure_that_was_cleared_is_known_and_not_offered() -> None:
    entries = [entry(1), entry(2, prompts=())]
    assert labels(own_work(entries, [], "Anna")) == [("liver", [])]
    assert work_of_others(entries, None, "Ben") == []
    painted = [*entries, entry(3, prompts=(), mask="ab")]
    assert [work.user for work in work_of_others(painted, None, "Ben")] == ["Anna"]


@pytest.mark.parametrize(
    "change",
    [{"label": ""}, {"prompts": {"foreground": [[1, 2, 3]]}}, {"options": {}}, {"options": None}],
    ids=str,
)
def test_entries_of_other_clients_are_left_out(change: dict[str, Any]) -> None:
    assert own_work([{**entry(1), **change}], [], "Anna").structures == []


def test_the_newest_masks_are_kept(tmp_path) -> None:
    masks = JournalMasks(tmp_path / "scan.masks")
    paths = []
    for number in range(KEPT + 3):
        path = tmp_path / f"{number}.nii.gz"
        path.write_bytes(bytes([number]))
        masks.keep(path)
        paths.append(path)
    kept = sorted(path.read_bytes()[0] for path in (tmp_path / "scan.masks").iterdir())
    assert kept == list(range(3, KEPT + 3))
    assert masks.find("../../etc") is None and masks.find("00") is None
    found = [masks.find(path.name[:64]) for path in (tmp_path / "scan.masks").iterdir()]
    assert {path.read_bytes() for path in found if path} == {bytes([n]) for n in kept}
    JournalMasks(tmp_path / "off", is_on=False).keep(paths[0])
    assert not (tmp_path / "off").exists()
