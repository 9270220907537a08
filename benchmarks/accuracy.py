"""Measure Dice after simulated clicks on labelled scans.

python benchmarks/accuracy.py --data DIR
    --models fastsam3d,sam_med3d,ball,region_growing,random_walker --clicks 1,3,5,10
    [--prompts point,box,box_in_plane,lasso,scribble,stock] [--replay MODEL]
    [--attention stored|dense|sparse]
    [--json FILE] [--markdown FILE] [--pictures FOLDER]

`benchmarks/datasets.py` lists the layouts that DIR may have. The app's models run through the
server's own inference path and get nothing but the clicks. Masks are scored on the scan's own grid.
The clicks depend on the model's masks. Their random numbers depend on the seed, the case, the
structure and the click's number alone, so neither the order nor other models change them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any, get_args

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from benchmarks.accuracy_report import Score, markdown, summarise, worst  # noqa: E402
from benchmarks.bench import Bench, Plan, collect  # noqa: E402
from benchmarks.contestants import PROMPTS, available_models  # noqa: E402
from benchmarks.datasets import choose_cases, find_cases  # noqa: E402
from benchmarks.machine import cpu_name  # noqa: E402
from benchmarks.protocols import MIN_MM3, make_protocol  # noqa: E402
from lib.errors import AppError, InputError  # noqa: E402
from lib.networks import AttentionChoice  # noqa: E402

FAILURES = 6
"""FAILURES: number of structures with the lowest Dice that the report lists for each model."""

UNNAMED = {"zoom": "auto", "attention": "stored", "prompts": "point", "replay": ""}
"""UNNAMED: options that the command of a report leaves out if they have these values."""


def make_report(
    plan: Plan, scores: Mapping[str, Sequence[Score]], skipped: Sequence[str], about: dict[str, Any]
) -> dict[str, Any]:
    """Return the report as it is written to JSON; `about` comes first."""
    protocol = plan.protocol
    first = next(iter(scores.values()))
    return {
        **about,
        "protocol": protocol.name,
        "clicks": list(protocol.counts),
        "seed": protocol.seed,
        "repeats": plan.repeats,
        "cases": len({(score.source, score.case) for score in first}),
        "structures": len(first),
        "skipped": list(skipped),
        "models": {
            name: summarise(model_scores, protocol.counts, protocol.seed)
            for name, model_scores in scores.items()
        },
        "failures": {
            name: [asdict(score) for score in worst(model_scores, FAILURES)]
            for name, model_scores in scores.items()
        },
        "pairs": {
            name: [asdict(score) for score in model_scores] for name, model_scores in scores.items()
        },
    }


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder or datalist of labelled scans"
    )
    parser.add_argument("--part", help="part of the data, as in eval, Ts, validation")
    parser.add_argument(
        "--models", help="comma-separated names; default: all models whose weights are available"
    )
    parser.add_argument(
        "--clicks", default="1,3,5,10", help="click counts after which masks are scored"
    )
    parser.add_argument("--protocol", default="random", help="random or cvpr2025")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="weights of a model; repeatable",
    )
    parser.add_argument("--per-source", type=int, help="most cases of each source; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1, help="click series per structure")
    parser.add_argument("--radius-mm", type=float, default=10.0, help="radius of the ball baseline")
    parser.add_argument("--zoom", default="auto", help="option zoom of the app: auto, fixed or mm")
    parser.add_argument(
        "--attention",
        choices=get_args(AttentionChoice),
        default="stored",
        help="option attention of the app",
    )
    parser.add_argument(
        "--prompts",
        default="point",
        help=f"first prompt of a series, comma-separated, of {', '.join(PROMPTS)}",
    )
    parser.add_argument(
        "--replay", default="", help="model whose clicks all others get, instead of their own"
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument(
        "--pictures", type=Path, help="folder for the curve and pictures of failures"
    )
    return parser.parse_args(arguments)


def make_plan(options: argparse.Namespace) -> Plan:
    """Return the plan of the command line; raises InputError for invalid options."""
    weights = dict(_split_weights(text) for text in options.weights)
    names = options.models.split(",") if options.models else available_models(weights)
    try:
        counts = [int(text) for text in options.clicks.split(",")]
    except ValueError:
        raise InputError(f"--clicks {options.clicks}: expected numbers, as in 1,3,5,10") from None
    return Plan(
        tuple(dict.fromkeys(name.strip() for name in names)),
        weights,
        make_protocol(options.protocol, counts, options.seed),
        options.radius_mm,
        options.repeats,
        max(1, (os.cpu_count() or 1) // options.jobs),
        {"zoom": options.zoom, "attention": options.attention},
        tuple(dict.fromkeys(kind.strip() for kind in options.prompts.split(","))),
        options.replay,
    )


def _split_weights(text: str) -> tuple[str, str]:
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise InputError(f"--weights {text}: expected NAME=FILE, as in sam=sam_vit_b.pth")
    return name, file


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, write the requested files, and return the report."""
    plan = make_plan(options)
    bench = Bench(plan)  # before the data is read, so that a wrong name fails at once
    cases = choose_cases(find_cases(options.data, options.part), options.per_source, MIN_MM3)
    start = time.monotonic()
    scores, skipped = collect(bench, cases, options.jobs)
    about = {
        "command": report_command(options),
        "date": date.today().isoformat(),
        "minutes": round((time.monotonic() - start) / 60, 1),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "data": options.data.name,
        "weights": bench.weights(),
    }
    report = make_report(plan, scores, skipped, about)
    for path, text in (
        (options.json, json.dumps(report, indent=1)),
        (options.markdown, markdown(report)),
    ):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if options.pictures:
        from benchmarks.accuracy_pictures import draw_all

        draw_all(report, bench, cases, options.pictures)
    return report


def report_command(options: argparse.Namespace) -> str:
    """Return the command of a report: what affects the numbers, with the last part of each path."""
    words = ["python", "benchmarks/accuracy.py", "--data", options.data.resolve().name]
    for name in ("part", "models", "protocol", "clicks", "per_source", "seed", "repeats"):
        if (value := getattr(options, name)) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    for name, usual in UNNAMED.items():
        if (value := getattr(options, name)) != usual:
            words += [f"--{name}", value]
    for text in options.weights:
        name, file = _split_weights(text)
        words += ["--weights", f"{name}={Path(file).name}"]
    return shlex.join(words)


def main(arguments: Sequence[str] | None = None) -> None:
    logging.disable(logging.WARNING)
    try:
        report = run(parse_arguments(arguments))
    except AppError as error:
        sys.exit(f"accuracy: {error}")
    finally:
        logging.disable(logging.NOTSET)  # a test's process goes on
    print(markdown(report))


if __name__ == "__main__":
    main()
