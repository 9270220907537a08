"""What a file of weights is, and its conversion to our own format.

python apps/fastsam3d/checkpoint.py show FILE
python apps/fastsam3d/checkpoint.py convert FILE OUT.safetensors [--teacher FILE] [--half]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from lib.networks import describe_checkpoint, load_checkpoint, save_checkpoint
from lib.networks.checkpoint import CheckpointError, read_checkpoint
from lib.weights.files import file_sha256


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="checkpoint.py", description=__doc__.splitlines()[0])
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    shown = commands.add_parser("show", help="print what a file is")
    shown.add_argument("file", type=Path)
    shown.set_defaults(run=show)

    converted = commands.add_parser("convert", help="write it as our own safetensors")
    converted.add_argument("file", type=Path)
    converted.add_argument("out", type=Path, help="a new file, *.safetensors")
    converted.add_argument("--teacher", type=Path, help="file that completes an encoder alone")
    converted.add_argument("--half", action="store_true", help="store float16: half the size")
    converted.set_defaults(run=convert)
    return top


def show(options: argparse.Namespace) -> int:
    description = describe_checkpoint(options.file)
    print(json.dumps({**description, "sha256": file_sha256(options.file)}, indent=2))
    return 0


def convert(options: argparse.Namespace) -> int:
    if options.out.suffix != ".safetensors":
        raise CheckpointError(f"{options.out}: the new file's name must end in .safetensors")
    if options.out.exists():
        raise CheckpointError(f"{options.out}: there is such a file already; choose another name")
    network = load_checkpoint(options.file, teacher=options.teacher)
    facts = {
        "trained": "true",
        **read_checkpoint(options.file).metadata,
        "converted_from": f"{options.file.name} {file_sha256(options.file)}",
    }
    dtype = torch.float16 if options.half else torch.float32
    save_checkpoint(network, options.out, facts, dtype)
    print(f"wrote {options.out}, {options.out.stat().st_size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
