"""Train the default weights: `python -m training.pretrain --data DIR --out DIR --minutes 60`.

Interrupted or called again with more minutes, it goes on where `state.pt` in the output folder
ends. The average of the weights is written as `weights.safetensors`.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lib.networks import CONFIGS, FastSAM3D, FastSAM3DConfig, save_checkpoint
from lib.networks.checkpoint import read_checkpoint
from lib.networks.fastsam3d import build_untrained

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

TEACHER = dataclasses.replace(
    CONFIGS["sam_med3d_small"],
    width=256,
    num_heads=4,
    out_channels=192,
    position_bias="none",  # the absolute one is enough, and attention is faster without
    detail_channels=32,
    mask_threshold="expected_dice",
    mask_edges="image",
)


@dataclass(frozen=True)
class PretrainOptions:
    """How to train. minutes: budget of all calls together, and length of the learning rate's fall.

    max_steps, call_minutes (of this call): stop earlier, with the schedule unchanged. rois: per
    step. clicks: most clicks in a series. click_steps: of the decoder alone, before. save_every,
    log_every: in steps.
    """

    minutes: float = 60.0
    call_minutes: float = math.inf
    max_steps: int = 1 << 40
    rois: int = 2
    clicks: int = 10
    peak_rate: float = 4e-4
    warm_up: int = 60
    weight_decay: float = 0.03
    average_decay: float = 0.99
    clip_norm: float = 0.5
    click_steps: int = 100
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
    start: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[RunState, AveragedWeights]:
    """Train until the minutes are used up; everything that matters is in `folder` afterwards.

    start: of the minutes, as the clock has it, if not now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    network = network.to(device).train()
    average = AveragedWeights(network, options.average_decay)
    optimizer = make_optimizer(network, options)
    generator = torch.Generator().manual_seed(options.seed)
    config = network.config.to_dict()
    run = RunState()
    if (folder / "state.pt").exists():
        run = load_state(folder / "state.pt", network, average, optimizer, generator, config)

    def save() -> None:
        save_state(folder / "state.pt", network, average, optimizer, generator, run, config)
        write_log(run, folder)

    before = run.minutes
    start = clock() if start is None else start
    recent: dict[str, list[float]] = defaultdict(list)
    bar = tqdm(initial=run.step, unit="step", mininterval=5)
    for batch in batches(samples, run.step, options):
        in_call = (clock() - start) / 60
        run.minutes = before + in_call
        used_up = run.minutes >= options.minutes or in_call >= options.call_minutes
        if used_up or run.step >= options.max_steps:
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
            bar.set_postfix({"min": f"{run.minutes:.1f}", "loss": f"{row['loss']:.3f}"})
            recent.clear()
        if run.step % options.save_every == 0:
            save()
    bar.close()
    save()
    return run, average


def make_optimizer(network: FastSAM3D, options: PretrainOptions) -> torch.optim.AdamW:
    """AdamW; only matrices and kernels decay, not biases, norms, tokens and position tables."""
    decayed, free = [], []
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
    """Batches from `first_step` on without end; sample n belongs to step n // rois."""
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
    """One update; the first click and the last of a series of random length are graded."""
    clicks = int(torch.randint(2, options.clicks + 1, (), generator=generator))
    for group in optimizer.param_groups:
        group["lr"] = rate
    with mixed_precision(batch["image"].device):
        loss, dice = interactive_loss(network, batch, clicks, {0, clicks - 1}, generator)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = clip_each(network.parameters(), options.clip_norm)
    optimizer.step()
    return {"loss": float(loss.detach()), "gradient": norm, **dice}


def mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where a GPU computes in it; it needs no scaling of the loss."""
    enabled = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def averaged_network(config: FastSAM3DConfig, average: AveragedWeights) -> FastSAM3D:
    """A network with the averaged weights, on the CPU, in eval mode."""
    network = build_untrained(config, seed=0)
    network.load_state_dict({name: x.cpu() for name, x in average.weights.items()})
    return network.eval()


def main(arguments: list[str] | None = None) -> None:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder of state, log and weights")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    for field in dataclasses.fields(PretrainOptions):
        kind = type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    parser.add_argument("--atlases", type=Path, default=ATLASES, help="folder of mricron-data")
    parser.add_argument("--start", type=Path, help="weights to go on from, instead of random ones")
    values = vars(parser.parse_args(arguments))
    data, out, atlases = values.pop("data"), values.pop("out"), values.pop("atlases")
    start = values.pop("start")
    torch.set_num_threads(values.pop("threads"))
    torch.set_flush_denormal(True)  # a tenth faster on a CPU
    options = PretrainOptions(**values)

    samples = ClickSamples(
        [*load_cases(data), *load_atlases(atlases)], SampleOptions(), options.seed
    )
    network = build_untrained(TEACHER, options.seed)
    if not (out / "state.pt").exists():
        images = torch.stack([samples[number]["image"] for number in range(8)])
        initialise(network, images)
        if start:
            new = take_weights(network, read_checkpoint(start).state)
            if any("refiner.key" in name for name in new):
                spread_keys(network, images)
        else:
            learn_to_mark_clicks(network, images, options.click_steps, options.seed)
    run, average = pretrain(network, samples, out, options, begun)
    save_checkpoint(
        averaged_network(TEACHER, average),
        out / "weights.safetensors",
        {"steps": str(run.step), "minutes": f"{run.minutes:.1f}", "seed": str(options.seed)},
        dtype=torch.float16,
    )


if __name__ == "__main__":
    main()
