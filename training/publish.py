"""Write trained weights in half precision, with their description in the file.

python -m training.publish --weights FILE --description TEXT --out FILE
python -m training.publish --weights FILE --report JSON --model fastsam3d --out FILE

The first command writes the file to measure. The second adds the report of `benchmarks/accuracy.py`
on it, and names the published file in the report. The weights stay the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lib.errors import AppError, InputError
from lib.networks.checkpoint import read_checkpoint, rebuild_network
from lib.weights import save_weights
from lib.weights.files import as_weights_errors, file_weights

LICENCE = "Apache-2.0"


def measured(report: Mapping[str, Any], model: str) -> str:
    """Return one line: the macro-average Dice after each number of clicks, and the sources.

    Raises InputError if the report has no such model.
    """
    if model not in report["models"]:
        raise InputError(
            f"the report has no model {model!r}; choose from {', '.join(report['models'])}"
        )
    summary = report["models"][model]
    clicks = [str(count) for count in report["clicks"]]
    dice = ", ".join(f"{summary['macro'][count]:.3f}" for count in clicks)
    sources = ", ".join(
        f"{name} ({row['structures']} structures)" for name, row in summary["sources"].items()
    )
    return f"{dice} after {'/'.join(clicks)} clicks, macro-average over {sources}"


def publish(
    weights: Path,
    out: Path,
    description: str = "",
    report: Mapping[str, Any] | None = None,
    model: str = "fastsam3d",
    teacher_sha256: str = "",
) -> None:
    """Write `out`; the metadata of `weights` stays, except for what the arguments replace.

    Raises WeightsError if `weights` cannot be used, InputError if the report has no such model.
    """
    with as_weights_errors():
        checkpoint = read_checkpoint(weights)
    metadata = {**checkpoint.metadata, "trained": "true", "licence": LICENCE}
    metadata.pop("measured_with", None)  # of other weights, or of these before
    if description:
        metadata["description"] = description
    if teacher_sha256:
        metadata["teacher_sha256"] = teacher_sha256
    if report is not None:
        metadata |= {"dice": measured(report, model), "measured_with": report["command"]}
    with as_weights_errors():
        network = rebuild_network(checkpoint)
    save_weights(network, out, metadata, dtype=torch.float16)


def record_publication(report: Path, model: str, measured_file: Path, published: Path) -> None:
    """Name the published file in the report that measured the same weights before.

    Publishing changes the metadata of a file, and so its hash. Raises InputError if the report
    measured other weights than `measured_file`.
    """
    content = read_report(report)
    facts = content["weights"][model]
    if facts["sha256"] != file_weights(measured_file).network_id:
        raise InputError(
            f"report {report} measured other weights: {facts['sha256']}; measure {measured_file}"
        )
    facts |= file_weights(published).info()
    report.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_report(path: Path) -> dict[str, Any]:
    """Return a report of `benchmarks/accuracy.py`; raises InputError if it cannot be read."""
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"report {path} cannot be read: {error}") from error
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--description", default="", help="data with licences, time, machine")
    parser.add_argument("--report", type=Path, help="JSON of benchmarks/accuracy.py")
    parser.add_argument("--model", default="fastsam3d", help="the model's name in the report")
    options = parser.parse_args(arguments)
    try:
        report = read_report(options.report) if options.report else None
        publish(options.weights, options.out, options.description, report, options.model)
        if options.report:
            record_publication(options.report, options.model, options.weights, options.out)
    except AppError as error:
        sys.exit(f"publish: {error}")


if __name__ == "__main__":
    main()
