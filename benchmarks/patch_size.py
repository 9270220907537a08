"""What patches of 8³ voxels bring: `python -m benchmarks.patch_size --data DIR --json FILE`.

Two networks learn from the same samples for the same time of the processor: patches of 16³ voxels
(masks on cells of 6 mm) and patches of 8³ (3 mm, eight times as many tokens, with the sparse
operator). Each is then clicked on held-out scans. So that this takes minutes, they learn and are
measured on a cube of 96 mm, an eighth of the ROI; what a click costs is measured on the whole ROI
of 192 mm.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from training.data import ClickSamples, SampleOptions
from training.initial import initialise, learn_to_mark_clicks
from training.pretrain import TEACHER, TrainOptions, averaged_network, pretrain
from training.sources import load_cases
from training.student import student_of

from lib.networks import FastSAM3D, FastSAM3DConfig, mask_threshold
from lib.networks.fastsam3d import build_untrained
from lib.trainers.clicks import next_clicks
from lib.trainers.losses import overlaps

from .measure import Call, Timing, describe_machine, time_calls

CLICKS = 5
CUBE_SPACING_MM = 1.5
CUBE = SampleOptions(roi_size=64, spacings_mm=(CUBE_SPACING_MM, CUBE_SPACING_MM))
HELD_OUT = 4
"""Every so many cases is not trained on."""

_PLAIN = student_of(TEACHER)
NETWORKS: dict[str, FastSAM3DConfig] = {
    "16³ patches": _PLAIN,
    "8³ patches, sparse": dataclasses.replace(
        _PLAIN, patch_size=8, sparsity="lattice", segment_length=512
    ),
}


def on_cube(config: FastSAM3DConfig) -> FastSAM3DConfig:
    """The same on a cube of half the side: an eighth of the tokens, in as many segments."""
    return dataclasses.replace(
        config, roi_size=CUBE.roi_size, segment_length=config.segment_length // 8
    )


def train(
    config: FastSAM3DConfig, samples: ClickSamples, options: TrainOptions
) -> tuple[FastSAM3D, int]:
    """-> the network with averaged weights, and how many steps it had time for."""
    network = build_untrained(config, options.seed)
    images = torch.stack([samples[number]["image"] for number in range(8)])
    initialise(network, images)
    learn_to_mark_clicks(network, images, options.click_steps, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        run, average = pretrain(network, samples, Path(folder), options, clock=time.process_time)
    return averaged_network(config, average), run.step


@torch.inference_mode()
def dice_after_clicks(network: FastSAM3D, samples: ClickSamples, count: int, seed: int) -> Tensor:
    """Mean Dice on cells of 3 mm after 1 … CLICKS clicks, over `count` samples: (CLICKS,)."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for batch in DataLoader(samples, batch_size=4, sampler=range(count)):
        rows.append(_series(network, batch, generator))
    return torch.cat(rows, dim=1).mean(dim=1)


def _series(network: FastSAM3D, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """Dice (CLICKS, B · T) of one batch, as ClickSamples gives it."""
    config, per_roi = network.config, batch["targets"].shape[1]
    targets = batch["targets"].flatten(0, 1)
    prepared = network.prepare(network.encode(batch["image"])).for_each(per_roi)
    points = batch["clicks_roi"].flatten(0, 1)[:, None]
    labels = torch.ones(points.shape[:2], dtype=torch.long)
    low_res = torch.zeros(len(targets), 1, *(config.low_res_size,) * 3)
    dice = []
    for _ in range(CLICKS):
        low_res, _ = network.decode(prepared, points, labels, low_res)
        shown = F.interpolate(low_res, size=targets.shape[1:], mode="trilinear")[:, 0]
        shown = shown - mask_threshold(low_res, config.mask_threshold)[:, None, None, None]
        dice.append(overlaps(shown, targets)[1])
        point, label = next_clicks(shown, targets, generator, config.roi_size // targets.shape[-1])
        points, labels = torch.cat([points, point], dim=1), torch.cat([labels, label], dim=1)
    return torch.stack(dice)


@torch.inference_mode()
def stage_times(config: FastSAM3DConfig, runs: int) -> dict[str, Timing]:
    """What a click costs on the whole ROI: the encoder, one step of the decoder."""
    network = build_untrained(config, seed=0)
    volume = torch.randn(1, 1, *(config.roi_size,) * 3)
    prepared = network.prepare(network.encode(volume))
    points, labels = torch.full((1, 1, 3), config.roi_size / 2), torch.ones(1, 1, dtype=torch.long)
    low_res = torch.zeros(1, 1, *(config.low_res_size,) * 3)
    calls: dict[str, Call] = {
        "encode": lambda: network.prepare(network.encode(volume)),
        "decode": lambda: network.decode(prepared, points, labels, low_res),
    }
    return time_calls(calls, torch.device("cpu"), runs)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    cases = load_cases(options.data)
    held_out = cases[::HELD_OUT]
    kept = [case for n, case in enumerate(cases) if n % HELD_OUT]
    training = ClickSamples(kept, CUBE, seed=options.seed)
    testing = ClickSamples(held_out, CUBE, seed=options.seed + 1)
    train_options = TrainOptions(
        minutes=options.minutes, clicks=CLICKS, workers=0, seed=options.seed, rois=4
    )
    times = {name: stage_times(config, options.runs) for name, config in NETWORKS.items()}
    machine = describe_machine(torch.device("cpu"))
    torch.set_num_threads(1)  # threads that wait for each other would count as work
    rows = []
    for name, config in NETWORKS.items():
        network, steps = train(on_cube(config), training, train_options)
        dice = dice_after_clicks(network, testing, options.samples, options.seed)
        rows.append(
            {
                "network": name,
                "tokens": config.grid_size**3,
                "cell_mm": CUBE_SPACING_MM * config.roi_size / config.low_res_size,
                "times_ms": {stage: round(each.median, 1) for stage, each in times[name].items()},
                "steps": steps,
                "dice": [round(float(x), 3) for x in dice],
            }
        )
    return {
        "minutes": options.minutes,
        "seed": options.seed,
        "samples": options.samples,
        "machine": machine,
        "rows": rows,
    }


def to_markdown(result: dict[str, Any]) -> str:
    head = ["network", "tokens", "cell, mm", "encode, ms", "decode, ms", "steps"]
    head += [f"{count} click{'s' if count > 1 else ''}" for count in range(1, CLICKS + 1)]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in result["rows"]:
        times = [row["times_ms"].get(stage, "") for stage in ("encode", "decode")]
        cells = [row["network"], row["tokens"], row["cell_mm"], *times, row["steps"], *row["dice"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    machine = result["machine"]
    said = (
        f"{result['minutes']:g} minutes of one core each, {result['samples']} held-out ROIs of "
        f"3 structures, seed {result['seed']}; times on {machine['threads']} threads of "
        f"{machine['device_name']}, torch {machine['torch']}."
    )
    return "\n".join([*lines, "", said, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, for each network")
    parser.add_argument("--samples", type=int, default=48, help="held-out ROIs")
    parser.add_argument("--runs", type=int, default=10, help="of each stage of a click")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(arguments)
    result = measure(options)
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(to_markdown(result), encoding="utf-8")


if __name__ == "__main__":
    main()
