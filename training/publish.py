"""Write trained weights with what has to be known about them in the file's metadata.

`python -m training.publish --weights FILE --report JSON --description TEXT --out FILE`, with the
report of `training.evaluate` on the same weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from lib.networks import describe_checkpoint, load_checkpoint, save_checkpoint

LICENCE = "Apache-2.0"


def measured(report: dict[str, Any], model: str = "fastsam3d") -> str:
    """One line: the macro-average Dice after each number of clicks, and on what it was measured."""
    summary = report["models"][model]
    dice = ", ".join(f"{value:.3f}" for value in summary["macro"].values())
    clicks = "/".join(summary["macro"])
    sources = ", ".join(
        f"{name} ({row['structures']} structures)" for name, row in summary["sources"].items()
    )
    return f"{dice} after {clicks} clicks, macro-average over {sources}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--description", required=True, help="data with licences, time, machine")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)

    metadata = describe_checkpoint(options.weights)["metadata"] | {
        "trained": "true",
        "licence": LICENCE,
        "description": options.description,
        "dice": measured(json.loads(options.report.read_text(encoding="utf-8"))),
    }
    save_checkpoint(load_checkpoint(options.weights), options.out, metadata, dtype=torch.float16)


if __name__ == "__main__":
    main()
