"""Measure how much a network's encoder carries: Dice with the features of an untrained one.

python -m benchmarks.untrained_encoder --data DIR [--model fastsam3d] [--weights FILE]
    [--clicks 1,3,5,10] [--per-source N] [--json FILE]

The blocks and the neck of the image encoder are replaced by untrained ones; the untrained neck's
channels get the mean and the spread of the trained ones on random ROIs, so that the decoder sees
numbers of the usual size. All other parts stay. The difference to the trained encoder is what it
carries.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy_report import markdown
from benchmarks.bench import Bench, Plan, collect
from benchmarks.datasets import choose_cases, find_cases
from benchmarks.protocols import MIN_MM3, make_protocol
from lib.errors import AppError
from lib.networks import FastSAM3D, build_untrained
from lib.trainers.data.painted_rois import paint_roi
from lib.weights.files import file_weights, save_weights

from .accuracy import make_report

WEIGHTS = Path(__file__).resolve().parents[1] / "apps" / "fastsam3d" / "weights"
NAMES = ("trained encoder", "untrained encoder")
ROIS = 6
"""ROIS: painted ROIs on which the channels of both encoders are compared."""


@torch.no_grad()
def with_untrained_encoder(network: FastSAM3D, seed: int = 0) -> FastSAM3D:
    """Return a copy whose encoder blocks and neck are untrained; the network is in eval mode."""
    other = build_untrained(network.config, seed, network.policy)
    state = network.state_dict()
    replaced = ("image_encoder.blocks.", "image_encoder.neck.")
    state |= {name: x for name, x in other.state_dict().items() if name.startswith(replaced)}
    other.load_state_dict(state)
    images = torch.stack([paint_roi(network.config.roi_size, number) for number in range(ROIS)])
    ours, theirs = (
        each.image_encoder(images).transpose(0, 1).flatten(1) for each in (network, other)
    )
    last: Any = other.image_encoder.neck[-1]
    scale = ours.std(dim=1) / theirs.std(dim=1).clamp(min=1e-6)
    last.bias.copy_((last.bias - theirs.mean(dim=1)) * scale + ours.mean(dim=1))
    last.weight.mul_(scale)
    return other


def measure(options: argparse.Namespace, weights: Path) -> dict[str, object]:
    """Return the report of the accuracy benchmark on both encoders."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "untrained.safetensors")
        save_weights(with_untrained_encoder(file_weights(weights).network), path)
        files = dict(zip(NAMES, (str(weights), str(path)), strict=True))
        counts = [int(text) for text in options.clicks.split(",")]
        plan = Plan(NAMES, files, make_protocol("random", counts), 10.0, 1, 1, "auto", ("point",))
        bench = Bench(plan)
        cases = choose_cases(find_cases(options.data, None), options.per_source, MIN_MM3)
        scores, skipped = collect(bench, cases, 1)
        return make_report(plan, scores, skipped, {"data": options.data.name})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of labelled scans")
    parser.add_argument("--model", default="fastsam3d", help="its default weights are measured")
    parser.add_argument("--weights", type=Path, help="other weights")
    parser.add_argument("--clicks", default="1,3,5,10")
    parser.add_argument("--per-source", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    try:
        weights = options.weights or WEIGHTS / f"{options.model}_default.safetensors"
        report = measure(options, weights)
    except AppError as error:
        sys.exit(f"untrained_encoder: {error}")
    finally:
        logging.disable(logging.NOTSET)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(markdown(report))


if __name__ == "__main__":
    main()
