"""Measure an adaptation to saved labels: its time, its verdict, and Dice before and after.

    python -m benchmarks.adaptation_benchmark --data DIR --source NAME --labelled 7 \\
        --json FILE --markdown FILE

Saves the labels of the first cases of a source, runs the trainer fastsam3d_adapt with its defaults,
and clicks on the other cases of the source and on those of other sources, with both weights and the
same random numbers. DIR is a data set that benchmarks/datasets.py reads. A student that the verdict
does not publish is not stored, so the report ends with the verdict.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from monailabel.client import MONAILabelClient
from tqdm import tqdm

from lib.errors import AppError, InputError
from lib.weights.files import Weights, file_weights
from lib.weights.versions import StudentVersions

from .accuracy_report import summarise
from .adaptation_distances import described, distances
from .adaptation_report import markdown
from .adaptation_site import Selection, select, study_name, write_site
from .bench import Bench, Plan, collect
from .click_clients import APP, MODEL, running_server
from .datasets import BenchmarkCase, find_cases
from .distillation_benchmark import IDLE_CLICKS, POLL_SECONDS, ClickTimer, train
from .machine import machine
from .protocols import make_protocol
from .report_table import write_report

TRAINER = "fastsam3d_adapt"
WEIGHTS = APP / "weights" / "fastsam3d_default.safetensors"
CLICKS = (1, 3, 5, 10)
ROIS = 40
"""ROIS: ROIs of each source whose distance to those on the labels is measured."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="labelled scans")
    parser.add_argument("--part", help="part of the data, as in eval, Ts, validation")
    parser.add_argument("--source", required=True, help="source whose labels are saved")
    parser.add_argument("--labelled", type=int, default=7, help="scans with saved labels (7)")
    parser.add_argument(
        "--structures", type=lambda text: text.split(","), default=[],
        help="comma-separated structures that are saved; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--others", type=int, default=40, help="most structures of other sources (40)"
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="default: the app's")
    parser.add_argument("--repeats", type=int, default=2, help="click series per structure (2)")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated clicks")
    parser.add_argument("--options", type=json.loads, default={}, help="training options, as JSON")
    parser.add_argument(
        "--clicks-meanwhile", action="store_true",
        help="train through a running server and time clicks on it",
    )  # fmt: skip
    parser.add_argument("--work", type=Path, help="folder of temporary files")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    logging.disable(logging.WARNING)
    try:
        result = run(options)
    except AppError as error:
        sys.exit(f"adaptation_benchmark: {error}")
    finally:
        logging.disable(logging.NOTSET)  # a test's process goes on
    write_report(result, markdown(result), options)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Adapt, measure and return all numbers; raises AppError if an option cannot be used."""
    base = file_weights(options.weights)
    cases = find_cases(options.data, options.part)
    selection = select(cases, options.source, options.labelled, options.others, options.structures)
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        **machine(),
        "weights": base.info(),
        "source": options.source,
        "labelled": [study_name(case) for case in selection.labelled],
        "structures": options.structures,
        "options": options.options,
        "repeats": options.repeats,
        "seed": options.seed,
    }
    with tempfile.TemporaryDirectory(prefix="adaptation-", dir=options.work) as temporary:
        folder = Path(temporary)
        write_site(selection.labelled, options.structures, folder / "studies")
        adapt = adapt_on_server if options.clicks_meanwhile else adapt_alone
        result |= adapt(folder, options.weights.resolve(), options.options)
        result["training"] = verdict(folder / "model" / MODEL / "adapt" / "train_stats.json")
        if result["training"]["published"]:
            path = published(folder / "model", base)
            result |= measure(options.weights, path, selection, options, base)
            result["distances"] = measure_distances(file_weights(path), selection, options.seed)
    return result


def adapt_alone(folder: Path, weights: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Run the app's trainer in a process; return its minutes. Raises AppError if it fails."""
    command = [sys.executable, str(APP / "train.py"), "--trainer", TRAINER]
    command += ["--studies", str(folder / "studies")]
    command += ["--conf", "weights", str(weights), "--conf", "model_dir", str(folder / "model")]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value).lower()]
    stats, log = folder / "model" / MODEL / "adapt" / "train_stats.json", folder / "training.log"
    start = time.monotonic()
    with log.open("wb") as file, tqdm(desc="adaptation", unit="epoch") as bar:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            if stats.is_file():
                state = json.loads(stats.read_text(encoding="utf-8"))
                bar.total = state.get("total_epochs")
                bar.update(state.get("epoch", 0) - bar.n)
    if process.returncode:
        lines = log.read_text(errors="replace").splitlines()
        raise AppError(f"the adaptation failed: {lines[-1] if lines else process.returncode}")
    return {"minutes": minutes_since(start)}


def adapt_on_server(folder: Path, weights: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Train through a server; return the minutes, and the times of clicks before and meanwhile."""
    conf = ["weights", str(weights), "model_dir", str(folder / "model")]
    with running_server(folder / "studies", folder, conf) as server:
        clicks = ClickTimer(server, folder / "studies")
        idle = clicks.median(IDLE_CLICKS)
        client = MONAILabelClient(server.url)
        start = time.monotonic()
        _, training = train(server, client, dict(options), clicks, trainer=TRAINER)
        minutes = minutes_since(start)
    return {"minutes": minutes, "click_ms": {"idle": idle, "training": training}}


def minutes_since(start: float) -> float:
    """Return the minutes since a value of time.monotonic()."""
    return round((time.monotonic() - start) / 60, 2)


def verdict(stats: Path) -> dict[str, Any]:
    """Return the end of a training from its statistics."""
    state = json.loads(stats.read_text(encoding="utf-8"))
    judged = state.get("judged", {})
    return {
        "published": state["published"],
        "reason": state["reason"],
        "asks": state.get("asks", False),
        "gain": judged.get("gain"),
        "lower": judged.get("lower"),
        "updates": state["iteration"],
        "seconds": state["history"][-1]["seconds"],
        "skipped": state.get("skipped", {}),
    }


def published(model_dir: Path, base: Weights) -> Path:
    """Return the file of the version that is served."""
    versions = StudentVersions(model_dir / MODEL / "published", base.network_id)
    manifest = versions.read()
    version = manifest.find(manifest.served)
    if version is None:
        raise InputError(f"{versions.folder} has no served version")
    return versions.path_of(version)


def measure(
    before: Path, after: Path, selection: Selection, options: argparse.Namespace, base: Weights
) -> dict[str, Any]:
    """Return the Dice before and after, on other cases of the source and of other sources."""
    files = {"before": str(before), "after": str(after)}
    protocol = make_protocol("random", CLICKS, options.seed)
    bench = Bench(Plan(tuple(files), files, protocol, repeats=options.repeats))
    if bench.weights()["before"]["sha256"] != base.network_id:
        raise InputError(f"another version is served instead of {before}; roll it back")
    groups = {"same": selection.same, "others": selection.others}
    dice = {name: dice_of(bench, cases, options.seed) for name, cases in groups.items() if cases}
    return {"adapted": bench.weights()["after"], **dice}


def dice_of(bench: Bench, cases: Sequence[BenchmarkCase], seed: int) -> dict[str, Any]:
    """Return the summaries and all scores of both weights."""
    scores, skipped = collect(bench, cases)
    return {
        "cases": len(cases) - len(skipped),
        "structures": len(scores["before"]),
        "skipped": skipped,
        "models": {name: summarise(each, CLICKS, seed) for name, each in scores.items()},
        "pairs": {name: [asdict(score) for score in each] for name, each in scores.items()},
    }


def measure_distances(adapted: Weights, selection: Selection, seed: int) -> dict[str, Any]:
    """Return the distances of each source's ROIs to those on the labels, and their limit."""
    adaptation = adapted.adaptation
    if adaptation is None:
        raise InputError(f"{adapted.file} is not adapted")
    limit = float(adaptation.likeness.limit)
    groups: dict[str, list[BenchmarkCase]] = {}
    for case in (*selection.same, *selection.others):
        groups.setdefault(case.source, []).append(case)
    sources = {
        source: distances(adapted, adaptation, cases, ROIS, seed)
        for source, cases in tqdm(groups.items(), desc="distances", unit="source")
    }
    rows = {source: described(values, limit) for source, values in sources.items() if values}
    return {"limit": limit, "rois": ROIS, "sources": rows}


if __name__ == "__main__":
    main()
