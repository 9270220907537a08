"""The loop of each stage of the pretraining: until its minutes are used up, resumable."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lib.networks import FastSAM3D
from lib.options import find_device

from .initialisation import clip_each
from .state import AveragedWeights, RunState, learning_rate, load_state, save_state, write_log

Loss = Callable[[FastSAM3D, dict[str, Tensor], torch.Generator], tuple[Tensor, dict[str, Tensor]]]
"""Loss: the loss of a batch, and the values to log, (,) each."""


@dataclass(frozen=True)
class StageOptions:
    """Options of a stage.

    minutes: budget of the stage, with all resumed parts; the learning rate falls over it.
    max_steps: stop earlier, with the same schedule. rois: ROIs per step. save_every, log_every: in
    steps.
    """

    minutes: float = 60.0
    max_steps: int = 1 << 40
    rois: int = 2
    peak_rate: float = 4e-4
    warm_up: int = 60
    weight_decay: float = 0.03
    average_decay: float = 0.99
    clip_norm: float = 0.5
    save_every: int = 50
    log_every: int = 10
    workers: int = 1
    seed: int = 0
    device: str = "cpu"


def train(
    network: FastSAM3D,
    samples: Dataset,
    folder: Path,
    options: StageOptions,
    loss: Loss,
) -> tuple[RunState, AveragedWeights]:
    """Train until the minutes are used up; resume from `state.pt` if the folder has it.

    loss: of a batch of the samples. The folder gets the state, the log and its curves. Raises
    InputError for an unknown device.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(find_device(options.device))
    network = network.to(device).train()
    average = AveragedWeights(network, options.average_decay)
    optimizer = make_optimizer(network, options)
    generator = torch.Generator().manual_seed(options.seed)
    config = {**network.config.to_dict(), **network.policy.to_dict()}
    run = RunState()
    if (folder / "state.pt").exists():
        run = load_state(folder / "state.pt", network, average, optimizer, generator, config)

    def save() -> None:
        save_state(folder / "state.pt", network, average, optimizer, generator, run, config)
        write_log(run, folder)

    before = run.minutes
    start = time.monotonic()
    recent: dict[str, list[Tensor]] = defaultdict(list)
    bar = tqdm(initial=run.step, unit="step", mininterval=5)
    for batch in batches(samples, run.step, options, device):
        run.minutes = before + (time.monotonic() - start) / 60
        if run.minutes >= options.minutes or run.step >= options.max_steps:
            break
        rate = learning_rate(
            run.minutes / options.minutes, run.step, options.peak_rate, options.warm_up
        )
        batch = {name: x.to(device, non_blocking=True) for name, x in batch.items()}
        for group in optimizer.param_groups:
            group["lr"] = rate
        value, facts = loss(network, batch, generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        facts["gradient"] = clip_each(network.parameters(), options.clip_norm)
        optimizer.step()
        for name, fact in {"loss": value, **facts}.items():
            recent[name].append(fact.detach())
        run.step += 1
        average.update(network, run.step)
        bar.update()
        if run.step % options.log_every == 0:
            row = {name: float(torch.stack(values).mean()) for name, values in recent.items()}
            run.log.append({"step": run.step, "minutes": run.minutes, "rate": rate, **row})
            bar.set_postfix(
                {"min": f"{run.minutes:.1f}", "loss": f"{row.get('loss', math.nan):.3f}"}
            )
            recent.clear()
        if run.step % options.save_every == 0:
            save()
    bar.close()
    save()
    return run, average


def make_optimizer(network: FastSAM3D, options: StageOptions) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices and kernels only.

    Biases, norms, tokens and position tables do not decay.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        is_matrix = parameter.ndim >= 2 and name.endswith("weight")
        is_token = "embed.weight" in name or "token" in name.split(".")[-2] or "rel_pos" in name
        (decayed if is_matrix and not is_token else free).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.peak_rate, betas=(0.9, 0.99))


def batches(
    samples: Dataset, first_step: int, options: StageOptions, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Yield batches from `first_step` on without end; sample n belongs to step n // rois."""
    loader = DataLoader(
        samples,
        batch_size=options.rois,
        sampler=range(first_step * options.rois, 1 << 40),
        num_workers=options.workers,
        prefetch_factor=3 if options.workers else None,
        pin_memory=device.type == "cuda",
    )
    return iter(loader)
