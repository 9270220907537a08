"""The state of a pretraining run, its files, and the learning rate's schedule."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib.atomic_file import write_atomically
from lib.errors import InputError


@dataclass
class RunState:
    """Progress of a run; `log` has a row per logged interval."""

    step: int = 0
    minutes: float = 0.0
    log: list[dict[str, float]] = field(default_factory=list)


class AveragedWeights:
    """Exponential moving average of a network's weights; its decay grows over the first steps."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: x.detach().clone() for name, x in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Add the network's weights; step: number of the step, from 0."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        state = network.state_dict()
        now = [state[name] for name in self.weights]
        torch._foreach_lerp_(list(self.weights.values()), now, share)


def learning_rate(progress: float, step: int, peak: float, warm_up: int) -> float:
    """Return the rate: linear warm-up, then a cosine to 1 % of the peak.

    progress: used share of the budget, 0 to 1. warm_up: in steps.
    """
    cosine = 0.01 + 0.99 * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return peak * min(1.0, (step + 1) / warm_up) * cosine


def save_state(
    path: Path,
    network: nn.Module,
    average: AveragedWeights,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    run: RunState,
    config: dict[str, Any],
) -> None:
    """Write the whole state atomically."""
    content = {
        "config": config,
        "network": network.state_dict(),
        "average": average.weights,
        "optimizer": optimizer.state_dict(),
        "generator": generator.get_state(),
        "run": vars(run),
    }
    with write_atomically(path) as temporary:
        torch.save(content, temporary)


def load_state(
    path: Path,
    network: nn.Module,
    average: AveragedWeights,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    config: dict[str, Any],
) -> RunState:
    """Restore the whole state; raises InputError if it belongs to another network."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    content["config"].pop("window_path", None)  # in states of earlier releases
    if content["config"] != config:
        raise InputError(f"{path} is the state of another network: {content['config']}")
    network.load_state_dict(content["network"])
    _copy(average.weights, content["average"])
    optimizer.load_state_dict(content["optimizer"])
    generator.set_state(content["generator"])
    return RunState(**content["run"])


def _copy(target: dict[str, Tensor], source: dict[str, Tensor]) -> None:
    for name, x in target.items():
        x.copy_(source[name])


def write_log(run: RunState, folder: Path) -> None:
    """Write `log.csv`, with a row per interval, and `curves.png`."""
    if not run.log:
        return
    names = sorted({name for row in run.log for name in row}, key=lambda n: (len(n), n))
    with open(folder / "log.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(run.log)
    _plot(run.log, folder / "curves.png")


def _plot(log: list[dict[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4))
    for axes, names in zip(
        figure.subplots(1, 2), (("loss",), ("same", "dice_1", "dice_3", "dice_5")), strict=True
    ):
        for name in names:
            if rows := [row for row in log if name in row]:
                axes.plot([row["minutes"] for row in rows], [row[name] for row in rows], label=name)
        axes.set_xlabel("minutes")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)
