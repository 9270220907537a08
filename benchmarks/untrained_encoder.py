"""Measure how much a network's encoder carries: Dice with the features of an untrained one.

python -m benchmarks.untrained_encoder [--model fastsam3d | --weights FILE] --data DIR ...

The further options are those of benchmarks/accuracy.py.

The blocks and the neck of the image encoder are replaced by untrained ones; the untrained neck's
channels get the mean and the spread of the trained ones on random ROIs, so that the decoder sees
numbers of the usual size. All other parts stay. The difference to the trained encoder is what it
carries.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lib.errors import AppError
from lib.networks import FastSAM3D, build_untrained
from lib.trainers.data.painted_rois import paint_roi
from lib.weights.files import file_weights, save_weights

from . import accuracy

WEIGHTS = Path(__file__).resolve().parents[1] / "apps" / "fastsam3d" / "weights"
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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Further options, --data among them, are those of benchmarks/accuracy.py.",
    )
    parser.add_argument("--model", default="fastsam3d", help="its default weights are measured")
    parser.add_argument("--weights", type=Path, help="other weights")
    options, others = parser.parse_known_args(arguments)
    accuracy.parse_arguments(others)  # a wrong option fails before the encoders are compared
    trained = options.weights or WEIGHTS / f"{options.model}_default.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        untrained = Path(folder, "untrained.safetensors")
        try:
            save_weights(with_untrained_encoder(file_weights(trained).network), untrained)
        except AppError as error:
            sys.exit(f"untrained_encoder: {error}")
        files = [f"--weights=trained={trained}", f"--weights=untrained={untrained}"]
        accuracy.main(["--models", "trained,untrained", *files, *others])


if __name__ == "__main__":
    main()
