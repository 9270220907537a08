"""Train the default weights: `python -m training.pretrain --data DIR --out DIR --minutes 60`.

An interrupted run resumes from `state.pt` in the output folder; so does a finished run with more
minutes. The average of the weights is written to `weights.safetensors`.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lib.errors import AppError
from lib.networks import CONFIGS, FastSAM3D, FastSAM3DConfig, MaskPolicy, build_untrained
from lib.networks.checkpoint import read_checkpoint
from lib.options import find_device
from lib.weights import save_weights
from lib.weights.files import as_weights_errors

from .data import ClickSamples, SampleOptions
from .initialisation import (
    clip_each,
    initialise,
    learn_to_mark_clicks,
    spread_keys,
    take_weights,
)
from .interaction import interactive_loss
from .sources import load_atlases, load_cases
from .state import AveragedWeights, RunState, learning_rate, load_state, save_state, write_log

ATLASES = Path("/usr/share/mricron/templates")

NAME = "sam_med3d_default"
TEACHER = CONFIGS[NAME]


@dataclass(frozen=True)
class PretrainOptions:
    """Options of the pretraining.

    minutes: budget of the run, with all resumed parts; the learning rate falls over it. max_steps:
    stop earlier, with the same schedule. rois: ROIs per step. clicks: maximum clicks of a series.
    click_steps: steps of the decoder alone before the training. plain_share: share of the steps
    without image detail and mask refiner, in which the encoder has to learn. save_every, log_every:
    in steps.
    """

    minutes: float = 60.0
    max_steps: int = 1 << 40
    rois: int = 2
    clicks: int = 10
    peak_rate: float = 4e-4
    warm_up: int = 60
    weight_decay: float = 0.03
    average_decay: float = 0.99
    clip_norm: float = 0.5
    click_steps: int = 100
    plain_share: float = 0.5
    save_every: int = 50
    log_every: int = 10
    workers: int = 1
    seed: int = 0
    device: str = "cpu"


def pretrain(
    network: FastSAM3D,
    samples: Dataset,
    folder: Path,
    options: PretrainOptions,
) -> tuple[RunState, AveragedWeights]:
    """Train until the minutes are used up; resume from `state.pt` if the folder has it.

    The folder gets the state, the log and its curves. Raises InputError for an unknown device.
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
    recent: dict[str, list[float]] = defaultdict(list)
    bar = tqdm(initial=run.step, unit="step", mininterval=5)
    for batch in batches(samples, run.step, options):
        run.minutes = before + (time.monotonic() - start) / 60
        if run.minutes >= options.minutes or run.step >= options.max_steps:
            break
        rate = learning_rate(
            run.minutes / options.minutes, run.step, options.peak_rate, options.warm_up
        )
        batch = {name: x.to(device) for name, x in batch.items()}
        for name, value in train_step(network, batch, optimizer, generator, rate, options).items():
            recent[name].append(value)
        run.step += 1
        average.update(network, run.step)
        bar.update()
        if run.step % options.log_every == 0:
            row = {name: float(np.mean(values)) for name, values in recent.items()}
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


def make_optimizer(network: FastSAM3D, options: PretrainOptions) -> torch.optim.AdamW:
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
    samples: Dataset, first_step: int, options: PretrainOptions
) -> Iterator[dict[str, Tensor]]:
    """Yield batches from `first_step` on without end; sample n belongs to step n // rois."""
    loader = DataLoader(
        samples,
        batch_size=options.rois,
        sampler=range(first_step * options.rois, 1 << 40),
        num_workers=options.workers,
        prefetch_factor=3 if options.workers else None,
    )
    return iter(loader)


def train_step(
    network: FastSAM3D,
    batch: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    rate: float,
    options: PretrainOptions,
) -> dict[str, float]:
    """Do one update and return the values to log.

    The series has a random length; its first and last clicks have a loss.
    """
    clicks = int(torch.randint(2, options.clicks + 1, (), generator=generator))
    detail = float(torch.rand((), generator=generator)) >= options.plain_share
    for group in optimizer.param_groups:
        group["lr"] = rate
    with mixed_precision(batch["image"].device):
        graded = {0, clicks - 1}
        loss, facts = interactive_loss(network, batch, clicks, graded, generator, detail)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = clip_each(network.parameters(), options.clip_norm)
    optimizer.step()
    name = "loss" if detail else "loss_plain"
    return {name: float(loss.detach()), "gradient": norm, **facts}


def mixed_precision(device: torch.device) -> torch.autocast:
    """Return autocast to bfloat16 on GPUs that support it; bfloat16 needs no loss scaling."""
    enabled = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def averaged_network(
    config: FastSAM3DConfig, average: AveragedWeights, policy: MaskPolicy | None = None
) -> FastSAM3D:
    """Return a network with the averaged weights, on the CPU, in eval mode."""
    network = build_untrained(config, 0, policy)
    network.load_state_dict({name: x.cpu() for name, x in average.weights.items()})
    return network.eval()


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


def initial_network(
    samples: ClickSamples, options: PretrainOptions, start: Path | None
) -> FastSAM3D:
    """Return the network before its first step.

    start: weights to continue from, or None. Raises WeightsError if they cannot be used.
    """
    network = build_untrained(NAME, options.seed)
    images = torch.stack([samples[number]["image"] for number in range(8)])
    initialise(network, images)
    if start is not None:
        with as_weights_errors():
            state = read_checkpoint(start).state
        new_names = take_weights(network, state)
        if any("refiner.key" in name for name in new_names):
            spread_keys(network, images)
    if options.plain_share:
        learn_to_mark_clicks(network, images, options.click_steps, options.seed, detail=False)
    if start is None:
        learn_to_mark_clicks(network, images, options.click_steps, options.seed)
    return network


def run_command(parsed: argparse.Namespace) -> None:
    """Pretrain as the command line says; raises AppError if an option cannot be used."""
    find_device(parsed.device)  # before the data is read, so that a wrong name fails at once
    torch.set_num_threads(parsed.threads)
    torch.set_flush_denormal(True)  # a tenth faster on a CPU
    names = [field.name for field in dataclasses.fields(PretrainOptions)]
    options = PretrainOptions(**{name: getattr(parsed, name) for name in names})
    cases = [*load_cases(parsed.data), *load_atlases(parsed.atlases)]
    samples = ClickSamples(cases, SampleOptions(), options.seed)
    if (parsed.out / "state.pt").exists():
        network = build_untrained(NAME, options.seed)
    else:
        network = initial_network(samples, options, parsed.start)
    run, average = pretrain(network, samples, parsed.out, options)
    save_weights(
        averaged_network(TEACHER, average, network.policy),
        parsed.out / "weights.safetensors",
        {"steps": str(run.step), "minutes": f"{run.minutes:.1f}", "seed": str(options.seed)},
        dtype=torch.float16,
    )


def main(arguments: list[str] | None = None) -> None:
    try:
        run_command(parse_arguments(arguments))
    except AppError as error:
        sys.exit(f"pretrain: {error}")


if __name__ == "__main__":
    main()
