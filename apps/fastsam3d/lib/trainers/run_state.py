"""How far a run has come: for clients, as curves, and to resume it."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from lib.atomic_file import write_atomically, write_text_atomically

from .data.studies import ExaminedStudy
from .train_options import TrainOptions
from .updates import Updates

STATE_FORMAT = 1


@dataclass
class Progress:
    """Everything of a run that is not in its networks.

    update: updates done. seconds: of all processes that worked on it, one after the other. sums:
    of the epoch under way. facts: for clients besides. best: the best validation so far.
    """

    update: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)

    def add(self, parts: Mapping[str, Any]) -> None:
        """The loss and its parts of one update; of `pair_losses` there may be more than before."""
        for name, value in parts.items():
            kept = self.sums.setdefault(name, [])
            for place, number in enumerate(value if isinstance(value, list) else [value]):
                if place == len(kept):
                    kept.append([0.0, 0])
                kept[place][0] += number
                kept[place][1] += 1
        self.update += 1

    def end_epoch(self, pairs: int, **entry: Any) -> dict[str, Any]:
        """Means of the epoch become an entry of the history."""
        means = {
            name: [total / count for total, count in values] for name, values in self.sums.items()
        }
        losses = means.pop("pair_losses", [])
        row = {name: values[0] for name, values in means.items()}
        row["pair_losses"] = [*losses, *[None] * (pairs - len(losses))]
        self.sums = {}
        self.history.append({**row, **entry})
        return self.history[-1]


def signature(
    options: TrainOptions, studies: Sequence[ExaminedStudy], networks: Mapping[str, Any]
) -> str:
    """Equal for runs that compute the same: options, images, labels, and networks by their ids."""
    parts = {
        "format": STATE_FORMAT,
        "options": options.deciding(),
        "studies": [(each.name, each.key) for each in studies],
        "networks": dict(networks),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class RunFolder:
    """The files of the run of a model: its state, the best student, statistics and curves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state.pt"
        self.best = folder / "best.pt"
        self.stats = folder / "train_stats.json"
        self.curves = folder / "curves.png"

    def save_state(self, of: str, progress: Progress, updates: Updates) -> None:
        """All that a resumed run needs. of: the run's signature."""
        content = {
            "signature": of,
            "progress": vars(progress),
            "student": updates.student.state_dict(),
            "optimizer": updates.optimizer.state_dict(),
            "scaler": updates.scaler.state_dict(),
        }
        save_tensors(self.state, content)

    def load_state(self, of: str) -> tuple[dict[str, Any] | None, str]:
        """The state of a run with this signature, and a sentence on what was found."""
        try:
            content = torch.load(self.state, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None, ""
        except Exception as error:  # a damaged file makes the unpickler raise almost anything
            kind = type(error).__name__
            return None, f"the state of the last run cannot be read ({kind}); this one begins anew"
        if content["signature"] != of:
            return None, (
                "the last run was stopped, but options, studies or weights are others now; "
                "this one begins anew"
            )
        return content, f"resumed after update {content['progress']['update']}"

    def forget_state(self) -> None:
        self.state.unlink(missing_ok=True)

    def save_best(self, student: torch.nn.Module) -> None:
        save_tensors(self.best, student.state_dict())

    def write_stats(self, progress: Progress, options: TrainOptions, **last: Any) -> None:
        """Statistics as clients read them: `total_time` is there once the run has ended."""
        stats = {
            "epoch": progress.update // options.iterations_per_epoch,
            "total_epochs": options.max_epochs,
            "iteration": progress.update,
            "best_metric": progress.best.get("mean", 0.0),
            "best_metric_epoch": progress.best.get("epoch"),
            "current_time": duration(progress.seconds),
            "published": False,
            "reason": "the run has not ended",
            **progress.facts,
            "history": progress.history,
            **last,
        }
        write_text_atomically(self.stats, json.dumps(plain(stats), indent=1))

    def tell(self, sentence: str, is_error: bool = True) -> None:
        """Beside what was reached: why the run ended early. Nothing: it is under way."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stats = self.read_stats()
        stats.pop("error", None)
        if sentence:
            stats |= {"published": False, "reason": sentence}
        if sentence and is_error:
            stats["error"] = sentence
        write_text_atomically(self.stats, json.dumps(stats, indent=1))

    def read_stats(self) -> dict[str, Any]:
        try:
            return json.loads(self.stats.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}


def save_tensors(path: Path, content: Any) -> None:
    """A reader finds the old file or the new one, also after a power cut."""
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def duration(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Clock:
    """Adds the time since it was last asked to the progress, and says when to save."""

    def __init__(self, save_seconds: float) -> None:
        self._save_seconds = save_seconds
        self._last = self._saved = time.monotonic()

    def tick(self, progress: Progress) -> None:
        now = time.monotonic()
        progress.seconds += now - self._last
        self._last = now

    def is_time_to_save(self) -> bool:
        return time.monotonic() - self._saved >= self._save_seconds

    def saved(self) -> None:
        self._saved = time.monotonic()
