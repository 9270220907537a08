"""Describe a file of weights, and convert it to the app's own format.

python apps/fastsam3d/checkpoint.py show FILE
python apps/fastsam3d/checkpoint.py convert FILE OUT.safetensors [--teacher FILE] [--half]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from lib.errors import AppError, InputError
from lib.networks import describe_checkpoint
from lib.weights import save_weights
from lib.weights.files import as_weights_errors, file_weights


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit status."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except AppError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser; ``run`` of its result is the function of the command."""
    top = argparse.ArgumentParser(prog="checkpoint.py", description=__doc__.splitlines()[0])
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    shown = commands.add_parser("show", help="print what a file holds")
    shown.add_argument("file", type=Path)
    shown.set_defaults(run=show)

    converted = commands.add_parser("convert", help="write the weights as safetensors")
    converted.add_argument("file", type=Path)
    converted.add_argument("out", type=Path, help="a new file, *.safetensors")
    converted.add_argument("--teacher", type=Path, help="file that completes an encoder-only file")
    converted.add_argument("--half", action="store_true", help="store float16: half the size")
    converted.set_defaults(run=convert)
    return top


def show(options: argparse.Namespace) -> None:
    """Print the description of a file as JSON."""
    with as_weights_errors():
        print(json.dumps(describe_checkpoint(options.file), indent=2))


def convert(options: argparse.Namespace) -> None:
    """Write a file in the app's own format; raises AppError."""
    if options.out.suffix != ".safetensors":
        raise InputError(f"{options.out}: the new file's name must end in .safetensors")
    if options.out.exists():
        raise InputError(f"{options.out}: this file exists already; choose another name")
    weights = file_weights(options.file, options.teacher)
    facts = {
        "trained": "true",
        **weights.metadata,
        "converted_from": f"{options.file.name} {weights.network_id.partition('+')[0]}",
    }
    dtype = torch.float16 if options.half else torch.float32
    save_weights(weights.network, options.out, facts, dtype, weights.adaptation)
    print(f"wrote {options.out}, {options.out.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    sys.exit(main())
