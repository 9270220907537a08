"""Train the default weights: `python -m training.pretrain --data DIR --out DIR`.

Two stages: the image encoder learns without clicks (:mod:`training.cells`), then the whole network
learns from series of clicks (:mod:`training.interaction`). An interrupted run resumes from
`state.pt` in the stage's folder; so does a finished run with more minutes. The average of the
weights is written to `weights.safetensors`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lib.errors import AppError
from lib.networks import CONFIGS, POLICIES, FastSAM3D, build_untrained
from lib.networks.checkpoint import read_checkpoint
from lib.options import find_device
from lib.weights import save_weights
from lib.weights.files import as_weights_errors

from .cells import CellRois, cell_loss
from .data import ClickSamples, SampleOptions
from .initialisation import initialise, learn_to_mark_clicks, spread_keys, take_weights
from .interaction import interactive_loss
from .sources import load_atlases, load_cases
from .stage_loop import Loss, StageOptions, train

ATLASES = Path("/usr/share/mricron/templates")

NAME = "sam_med3d_default"
TEACHER = CONFIGS[NAME]
"""TEACHER: what is trained."""

STAGES = {
    "cells": StageOptions(rois=4, peak_rate=6e-4, average_decay=0.995),
    "clicks": StageOptions(rois=2, peak_rate=5e-4, average_decay=0.996),
}
"""STAGES: the stages in their order, with the options in which they differ; also their folders."""


@dataclass(frozen=True)
class PretrainOptions:
    """Options of the pretraining.

    cell_minutes, minutes: budgets of the two stages, with all resumed parts; 0 skips a stage.
    max_steps: stop each stage earlier. clicks: maximum clicks of a series. rois: ROIs per step; 0:
    as few as suit a CPU. targets: structures of each ROI. click_steps: steps in which the decoder
    of a new network learns to mark clicks, before the second stage.
    """

    cell_minutes: float = 60.0
    minutes: float = 60.0
    max_steps: int = 1 << 40
    clicks: int = 10
    rois: int = 0
    targets: int = 4
    click_steps: int = 100
    workers: int = 1
    seed: int = 0
    device: str = "cpu"


def pretrain(
    samples: ClickSamples, folder: Path, options: PretrainOptions, start: Path | None = None
) -> tuple[FastSAM3D, dict[str, str]]:
    """Return the trained network, on the CPU in eval mode, and the facts of its training.

    folder: gets a folder of each stage. start: weights to continue from; without cell keys, a first
    stage begins with an encoder of its own all the same. Raises WeightsError if they cannot be
    used.
    """
    images = torch.stack([samples[number]["image"] for number in range(8)])
    network = build_untrained(TEACHER, options.seed, POLICIES[NAME])
    initialise(network, images)
    if start is not None:
        take_start(network, start, images, is_first_stage=bool(options.cell_minutes))
    facts = {"seed": str(options.seed)}

    def learn(name: str, minutes: float, samples: Dataset, loss: Loss) -> None:
        stage = replace(
            STAGES[name],
            minutes=minutes,
            rois=options.rois or STAGES[name].rois,
            max_steps=options.max_steps,
            workers=options.workers,
            seed=options.seed,
            device=options.device,
        )
        run, average = train(network, samples, folder / name, stage, loss)
        network.cpu().load_state_dict({key: x.cpu() for key, x in average.weights.items()})
        facts[f"{name}_steps"], facts[f"{name}_minutes"] = str(run.step), f"{run.minutes:.1f}"

    if options.cell_minutes:
        learn("cells", options.cell_minutes, CellRois(samples), cell_loss)
    if start is None:
        learn_to_mark_clicks(network, images, options.click_steps, options.seed)
    if options.minutes:
        learn("clicks", options.minutes, samples, partial(click_loss, clicks=options.clicks))
    return network.eval(), facts


def take_start(network: FastSAM3D, path: Path, images: Tensor, is_first_stage: bool) -> None:
    """Copy the weights of a file; raises WeightsError if they cannot be used.

    images: (B, 1, S, S, S) normalised. is_first_stage: an image encoder that never learned keys is
    not copied then. A refiner's coarser cells are not copied if they have other channels.
    """
    with as_weights_errors():
        state = read_checkpoint(path).state
    of_keys = "mask_decoder.refiner.cell_keys."
    if is_first_stage and not any(name.startswith(of_keys) for name in state):
        state = {name: x for name, x in state.items() if not name.startswith("image_encoder.")}
    own = network.state_dict()
    of_refiner = "mask_decoder.refiner.coarser."
    state = {
        name: x
        for name, x in state.items()
        if not name.startswith(of_refiner) or (name in own and own[name].shape == x.shape)
    }
    new_names = take_weights(network, state)
    if any(".refiner.key." in name for name in new_names):
        spread_keys(network, images)


def click_loss(
    network: FastSAM3D, batch: dict[str, Tensor], generator: torch.Generator, clicks: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a series of at most ``clicks`` clicks, and the values to log.

    The series has a random length, and each of its clicks has a loss.
    """
    length = int(torch.randint(1, clicks + 1, (), generator=generator))
    return interactive_loss(network, batch, length, set(range(length)), generator)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder of state, log and weights")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--atlases", type=Path, default=ATLASES, help="folder of mricron-data")
    parser.add_argument("--start", type=Path, help="start from these weights, not random ones")
    for field in dataclasses.fields(PretrainOptions):
        kind = type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    return parser.parse_args(arguments)


def run_command(parsed: argparse.Namespace) -> None:
    """Pretrain as the command line says; raises AppError if an option cannot be used."""
    find_device(parsed.device)  # before the data is read, so that a wrong name fails at once
    torch.set_num_threads(parsed.threads)
    torch.set_flush_denormal(True)  # a tenth faster on a CPU
    names = [field.name for field in dataclasses.fields(PretrainOptions)]
    options = PretrainOptions(**{name: getattr(parsed, name) for name in names})
    cases = [*load_cases(parsed.data), *load_atlases(parsed.atlases)]
    samples = ClickSamples(cases, SampleOptions(targets=options.targets), options.seed)
    network, facts = pretrain(samples, parsed.out, options, parsed.start)
    save_weights(network, parsed.out / "weights.safetensors", facts, dtype=torch.float16)


def main(arguments: list[str] | None = None) -> None:
    try:
        run_command(parse_arguments(arguments))
    except AppError as error:
        sys.exit(f"pretrain: {error}")


if __name__ == "__main__":
    main()
