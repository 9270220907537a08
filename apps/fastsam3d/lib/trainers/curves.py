"""A run as a picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.atomic_file import write_atomically

History = Sequence[Mapping[str, Any]]
Lines = Mapping[str, Sequence[tuple[int, float]]]


def draw_curves(history: History, path: Path) -> None:
    """Loss of each pair and of stage 2, k, and Dice over the epochs, as a PNG."""
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
    """Name -> (epoch, value): each pair while it is measured, and the parts of the loss."""
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
    """Name -> (epoch, value) of student and teacher after each number of clicks."""
    lines = defaultdict(list)
    for row in history:
        for who in ("student", "teacher"):
            for clicks, value in (row.get(f"dice_{who}") or {}).items():
                lines[f"{who}, {clicks}"].append((row["epoch"], value))
    return lines
