"""Curves of a run: a picture for clients, and TensorBoard's event files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from lib.atomic_file import write_atomically

Row = Mapping[str, Any]
"""Row: one epoch of the history in the training statistics."""

History = Sequence[Row]
Lines = Mapping[str, Sequence[tuple[int, float]]]
"""Lines: name -> points (epoch, value)."""

SCALARS = ("loss", "k", "lr", "kl", "dice", "ce", "embedding_loss")
"""SCALARS: fields of a row that TensorBoard shows as they are."""


def draw_curves(history: History, path: Path) -> None:
    """Write a PNG with the losses, the number of pairs k and the Dice of all epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6))
    panels = {
        "losses": loss_lines(history),
        "pairs k": {"k": [(row["epoch"], row["k"]) for row in history]},
        "Dice after clicks": dice_lines(history),
    }
    for axes, (title, lines) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name, points in lines.items():
            style = ":" if name.startswith("teacher") else "-"
            axes.plot(*zip(*points, strict=True), style, marker=".", label=name)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(fontsize=6, ncols=2)
    figure.tight_layout()
    with write_atomically(path, durable=False) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def loss_lines(history: History) -> Lines:
    """Return a line for each pair (epochs that measured it) and for each part of the loss."""
    lines = defaultdict(list)
    for row in history:
        for number, value in enumerate(row["pair_losses"], start=1):
            if value is not None:
                lines[f"pair {number}"].append((row["epoch"], value))
        for name in ("embedding_loss", "kl", "dice", "ce"):
            if name in row:
                lines[name].append((row["epoch"], row[name]))
    return lines


def dice_lines(history: History) -> Lines:
    """Return a line for each network ("student", "teacher") and number of clicks."""
    lines = defaultdict(list)
    for row in history:
        for network in ("student", "teacher"):
            for clicks, value in (row.get(f"dice_{network}") or {}).items():
                lines[f"{network}, {clicks}"].append((row["epoch"], value))
    return lines


class EventWriter:
    """Writes rows of the history to TensorBoard's event files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None  # opened with the first row

    def add(self, row: Row) -> None:
        """Append the numbers of one epoch."""
        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder))
        for name, value in _scalars(row).items():
            self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Close the file; `add` opens a new one."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _scalars(row: Row) -> dict[str, float]:
    values = {name: row[name] for name in SCALARS if name in row}
    for number, value in enumerate(row["pair_losses"], start=1):
        if value is not None:
            values[f"pair_losses/{number}"] = value
    for network in ("student", "teacher"):
        for clicks, value in (row.get(f"dice_{network}") or {}).items():
            values[f"dice_{network}/{clicks}"] = value
    return values
