"""The state of a run: saved to resume it, and as statistics for clients."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from lib.atomic_file import write_atomically, write_text_atomically

from .data.studies import ExaminedStudy
from .request_options import RequestOptions

logger = logging.getLogger(__name__)

NOT_ENDED = "the run has not ended"
"""NOT_ENDED: the `reason` in the statistics of a run until its end."""

STATE_FORMAT = 3
"""STATE_FORMAT: version of the state file; a run resumes from its own version only."""


@dataclass
class Progress:
    """The progress of a run, without its networks.

    update: number of updates done. seconds: training time, including earlier attempts. history: one
    row per epoch. sums: name -> [sum, count] for each value of the current epoch. facts: further
    statistics for clients. best: the best validation of the stage.
    """

    update: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)

    def skip(self, study: str, reason: str) -> None:
        """Add a study to the skipped ones in the facts, and log the reason."""
        logger.warning("%s is skipped: %s", study, reason)
        skipped = self.facts.setdefault("skipped", {})
        skipped[study] = reason
        self.facts["skipped_count"] = len(skipped)

    def add(self, parts: Mapping[str, Any]) -> None:
        """Add the loss and its parts of one update; the list `pair_losses` may grow."""
        for name, value in parts.items():
            sums = self.sums.setdefault(name, [])
            for place, number in enumerate(value if isinstance(value, list) else [value]):
                if place == len(sums):
                    sums.append([0.0, 0])
                sums[place][0] += number
                sums[place][1] += 1
        self.update += 1

    def end_epoch(self, pairs: int, **entry: Any) -> dict[str, Any]:
        """Append a row to the history, with the means of the epoch, and return it.

        `pair_losses` has a value for each of the `pairs`; it is None if the pair was not trained.
        """
        means = {
            name: [total / count for total, count in values] for name, values in self.sums.items()
        }
        losses = means.pop("pair_losses", [])
        row = {name: values[0] for name, values in means.items()}
        row["pair_losses"] = [*losses, *[None] * (pairs - len(losses))]
        self.sums = {}
        self.history.append({**row, **entry})
        return self.history[-1]


def run_signature(
    options: RequestOptions, studies: Sequence[ExaminedStudy], networks: Mapping[str, Any]
) -> str:
    """Return a hash of everything that decides a run's result.

    These are the options, the images and labels with their patients, and the networks (given by
    their ids).
    """
    parts = {
        "format": STATE_FORMAT,
        "options": options.result_options(),
        "studies": [(each.name, each.key, each.patient) for each in studies],
        "networks": dict(networks),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class RunFolder:
    """The files of a model's run: state, best student, statistics and curves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state.pt"
        self.best = folder / "best.pt"
        self.stats = folder / "train_stats.json"
        self.curves = folder / "curves.png"
        self.events = folder / "events"

    def save_state(self, signature: str, progress: Progress, state: Mapping[str, Any]) -> None:
        """Save everything that a resumed run needs; state: that of the student and optimizer."""
        content = {"signature": signature, "progress": vars(progress), **state}
        save_tensors(self.state, content)

    def load_state(self, signature: str) -> tuple[dict[str, Any] | None, str]:
        """Return the state of a run with this signature, or None, and a note for the user."""
        try:
            content = torch.load(self.state, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None, ""
        except Exception as error:  # the unpickler raises almost anything for a damaged file
            kind = type(error).__name__
            return None, f"the state of the last run cannot be read ({kind}); training starts anew"
        if content["signature"] != signature:
            return None, (
                "the last run did not end, but its options, studies or weights were different, or "
                "the server's options for masks; training starts anew"
            )
        return content, f"resumed after update {content['progress']['update']}"

    def remove_state(self) -> None:
        """Remove the state, so that the next training starts anew."""
        self.state.unlink(missing_ok=True)

    def save_best(self, student: torch.nn.Module) -> None:
        """Save the weights of the best student of the stage so far."""
        save_tensors(self.best, student.state_dict())

    def write_stats(
        self, progress: Progress, epochs: tuple[int, int], updates: int, **results: Any
    ) -> None:
        """Write the statistics for clients; a finished run adds its results (`total_time`, …).

        epochs: those that are over, and all. updates: of the whole run.
        """
        stats = {
            "epoch": epochs[0],
            "total_epochs": epochs[1],
            "remaining_time": remaining(progress, updates),
            "iteration": progress.update,
            "best_metric": progress.best.get("mean", 0.0),
            "best_metric_epoch": progress.best.get("epoch"),
            "current_time": duration(progress.seconds),
            "published": False,
            "reason": NOT_ENDED,
            **progress.facts,
            "history": progress.history,
            **results,
        }
        write_text_atomically(self.stats, json.dumps(plain(stats), indent=1))

    def begin_stats(self) -> None:
        """Replace the statistics of the run before: the next one is still reading its studies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stats = {
            "epoch": 0,
            "published": False,
            "reason": NOT_ENDED,
            "start_ts": int(time.time()),  # clients show the run that started last
            "history": [],
        }
        write_text_atomically(self.stats, json.dumps(stats, indent=1))

    def write_reason(self, reason: str, is_error: bool = True) -> None:
        """Add to the statistics why the run ended early."""
        stats = {**self.read_stats(), "published": False, "reason": reason}
        if is_error:
            stats["error"] = reason
        write_text_atomically(self.stats, json.dumps(stats, indent=1))

    def read_stats(self) -> dict[str, Any]:
        """Return the statistics of the current or last run; empty without one."""
        try:
            return json.loads(self.stats.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}


def save_tensors(path: Path, content: Any) -> None:
    """Write tensors atomically with torch.save."""
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def private_folder(path: Path) -> Path:
    """Make a folder that only the account of this process may enter; return its path.

    One that another account made keeps its rights.
    """
    path.mkdir(parents=True, exist_ok=True)
    with suppress(PermissionError):
        path.chmod(0o700)
    return path


def remaining(progress: Progress, updates: int) -> str | None:
    """Return the time that the other updates take at the speed so far; None before the first."""
    if not progress.update:
        return None
    return duration(progress.seconds / progress.update * (updates - progress.update))


def duration(seconds: float) -> str:
    """Return a time as H:MM:SS."""
    return str(timedelta(seconds=int(seconds)))


def plain(value: Any) -> Any:
    """Return a value for JSON: string keys, lists, and None for NaN and infinity."""
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Clock:
    """Measures the training time and decides when to save.

    save_seconds: longest time between two saved states within an epoch.
    """

    def __init__(self, save_seconds: float) -> None:
        self._save_seconds = save_seconds
        self._last = self._saved = time.monotonic()

    def tick(self, progress: Progress) -> None:
        """Add the time since the last tick to the progress."""
        now = time.monotonic()
        progress.seconds += now - self._last
        self._last = now

    def is_time_to_save(self) -> bool:
        """Return whether the last save was `save_seconds` ago."""
        return time.monotonic() - self._saved >= self._save_seconds

    def mark_saved(self) -> None:
        """Start the interval until the next save."""
        self._saved = time.monotonic()
