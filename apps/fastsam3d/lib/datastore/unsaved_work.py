"""Unsaved work on an image: the newest prompts of each structure that no saved label has.

It comes from the journal of the image alone, so that it outlives a page, a browser and a server.
Entries without the name of a structure, or with clicks in voxels, are of clients that keep their
own work, such as 3D Slicer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib.datastore.label_history import LabelVersion

LAST_INTERACTION = "last_interaction"
"""LAST_INTERACTION: key in the description of a label: time of the newest entry of the journal
when the label was saved."""

STRUCTURES_OF_PAGE = "structures_of_page"
"""STRUCTURES_OF_PAGE: key in the description of a label: names of the structures of the page that
saved it. Another page of the same user may work on others."""

PAGE = "page"
"""PAGE: key in the description of a label, and in the options of an entry: name of the page that
saved or asked. Each load of a page has another one."""

RESTORED_UNTIL = "restored_until"
"""RESTORED_UNTIL: key in the description of a label: time of the newest entry that the page which
saved it had restored when it was opened."""

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class UnsavedWork:
    """What one user did to an image and did not save.

    user: empty if unknown. time: of the newest entry. structures: the newest entry of each
    structure, oldest first; one without prompts and without a mask to start from is empty.
    """

    user: str
    time: str
    structures: list[Entry]


def own_work(entries: Sequence[Entry], versions: Sequence[LabelVersion], user: str) -> UnsavedWork:
    """Return what a user did to each structure since that user saved it last.

    entries: the journal, oldest first. versions: of the final label, the current one included. A
    save ends the work on the structures of the page that saved, or on all if it does not name them:
    what this page made or restored. Entries of another page of the same user stay.
    """
    saves = [version for version in versions if version.user == user]
    return _work([each for each in entries if not any(_has(save, each) for save in saves)], user)


def _has(version: LabelVersion, entry: Entry) -> bool:
    names = version.info.get(STRUCTURES_OF_PAGE)
    is_of_page = not isinstance(names, list) or entry.get("label") in names
    time = str(entry.get("time", ""))
    return is_of_page and time <= _saved_until(version) and _was_seen(version, entry, time)


def _was_seen(version: LabelVersion, entry: Entry, time: str) -> bool:
    """Return whether the page that saved had made or restored an entry.

    A client that does not name its page counts as the only one.
    """
    options = entry.get("options")
    made_by = options.get(PAGE) if isinstance(options, dict) else None
    saved_by = version.info.get(PAGE)
    if not made_by or not saved_by or made_by == saved_by:
        return True
    return time <= str(version.info.get(RESTORED_UNTIL) or "")


def work_of_others(
    entries: Sequence[Entry], current: LabelVersion | None, user: str
) -> list[UnsavedWork]:
    """Return what each other user did since the current label was saved, the newest work first.

    Work without anything to draw is left out.
    """
    since = _saved_until(current) if current else ""
    users = {str(entry.get("user", "")) for entry in entries} - {user}
    works = [_work(entries, other, since) for other in users]
    drawn = [work for work in works if any(map(has_mask, work.structures))]
    return sorted(drawn, key=lambda work: work.time, reverse=True)


def has_mask(entry: Entry) -> bool:
    """Return whether a structure has something to draw."""
    return bool(entry["prompts"] or entry.get("initial_mask_sha256"))


def _work(entries: Sequence[Entry], user: str, since: str = "") -> UnsavedWork:
    newest: dict[str, Entry] = {}
    for entry in entries:
        is_ours = str(entry.get("user", "")) == user and str(entry.get("time", "")) > since
        if is_ours and _is_of_viewer(entry):
            newest.pop(entry["label"], None)  # the order is that of the newest entries
            newest[entry["label"]] = entry
    structures = list(newest.values())
    return UnsavedWork(user, structures[-1]["time"] if structures else "", structures)


def _is_of_viewer(entry: Entry) -> bool:
    options = entry.get("options")
    return (
        bool(entry.get("label"))
        and isinstance(entry.get("prompts"), list)
        and isinstance(options, dict)
        and options.get("coordinates") == "lps_mm"
    )


def _saved_until(version: LabelVersion) -> str:
    """Return the time up to which a label has the entries of the journal.

    Both times are UTC in ISO 8601, so that their texts have the order of the times.
    """
    return str(version.info.get(LAST_INTERACTION) or version.time)
