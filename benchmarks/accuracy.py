"""Dice after simulated clicks, on anyone's labelled scans.

python benchmarks/accuracy.py --data DIR
    --models fastsam3d,sam_med3d,ball,region_growing,random_walker --clicks 1,3,5,10
    [--json FILE] [--markdown FILE] [--pictures FOLDER]

DIR: see `benchmarks/datasets.py`. Models are asked through the server's own path, with nothing but
the clicks, and masks are scored on the scan's own grid. Clicks depend on what a model answers, but
their random numbers only on seed, case, structure and number: neither on the order nor on others.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("MONAI_LABEL_TRACKING_ENABLED", "false")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from benchmarks.accuracy_report import CURVE_AREAS, Score, markdown, summarise, worst  # noqa: E402
from benchmarks.contestants import (  # noqa: E402
    Contestant,
    Scan,
    Served,
    make_contestants,
    present_models,
)
from benchmarks.datasets import BenchmarkCase, choose_cases, find_cases, read_case, targets  # noqa: E402
from benchmarks.protocols import (  # noqa: E402
    MIN_MM3,
    Protocol,
    Series,
    area,
    make_protocol,
)
from lib.errors import InputError  # noqa: E402

FAILURES = 6


@dataclass(frozen=True)
class Plan:
    """What every process needs to know.

    repeats: series of clicks on each structure, of which the mean counts. threads: of each process
    where there are several.
    """

    models: tuple[str, ...]
    weights: Mapping[str, str]
    protocol: Protocol
    radius_mm: float
    repeats: int = 1
    threads: int = 1


class Bench:
    """The contestants of a plan, ready to run."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.contestants: dict[str, Contestant] = make_contestants(
            plan.models, plan.weights, plan.radius_mm
        )

    def weights(self) -> dict[str, dict[str, Any]]:
        return {
            name: contestant.weights()
            for name, contestant in self.contestants.items()
            if isinstance(contestant, Served)
        }

    def measure(self, case: BenchmarkCase) -> dict[str, list[Score]] | str:
        """The scores of each model on each structure of a case, or why it cannot be used."""
        try:
            volume, labels = read_case(case)
        except InputError as error:
            return f"{case.source}: {error}"
        scan = Scan(case.image, volume)
        scores: dict[str, list[Score]] = {name: [] for name in self.contestants}
        for structure, target in targets(case, labels, MIN_MM3):
            for name in self.contestants:
                series = [
                    self.click(name, scan, f"{case.name}/{structure}", target, repeat)
                    for repeat in range(self.plan.repeats)
                ]
                scores[name].append(make_score(case, structure, target, series))
        return scores

    def click(self, name: str, scan: Scan, key: str, target: np.ndarray, repeat: int = 0) -> Series:
        """One series of clicks of a contestant. key: of case and structure."""
        protocol = replace(self.plan.protocol, seed=self.plan.protocol.seed + repeat)
        return self.contestants[name](scan, target, protocol, key)


def make_score(
    case: BenchmarkCase, structure: str, target: np.ndarray, series: Sequence[Series]
) -> Score:
    """The mean of all series on a structure."""
    dice = np.mean([one.dice for one in series], axis=0)
    nsd = np.mean([one.nsd for one in series], axis=0)
    extra = (area(dice), dice[-1], area(nsd), nsd[-1]) if series[0].nsd else ()
    return Score(
        case.source,
        case.name,
        structure,
        case.modality,
        int(np.count_nonzero(target)),
        tuple(round(float(value), 4) for value in dice),
        {name: round(float(v), 4) for name, v in zip(CURVE_AREAS, extra, strict=False)},
        round(float(np.median([seconds for one in series for seconds in one.seconds])), 4),
        sum(one.refused for one in series),
    )


_bench: Bench | None = None


def _start_worker(plan: Plan) -> None:
    global _bench
    logging.disable(logging.WARNING)
    torch.set_num_threads(plan.threads)
    _bench = Bench(plan)


def _measure_in_worker(case: BenchmarkCase) -> dict[str, list[Score]] | str:
    assert _bench is not None
    return _bench.measure(case)


def measure_in_processes(
    plan: Plan, cases: Sequence[BenchmarkCase], jobs: int
) -> Iterator[dict[str, list[Score]] | str]:
    """`Bench.measure` of each case, in order; the processes share the cores."""
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(plan,)
    ) as pool:
        yield from pool.map(_measure_in_worker, cases)


def collect(
    bench: Bench, cases: Sequence[BenchmarkCase], jobs: int = 1
) -> tuple[dict[str, list[Score]], list[str]]:
    """All scores by model, and what was left out; raises InputError where nothing is left."""
    scores: dict[str, list[Score]] = {name: [] for name in bench.contestants}
    skipped = []
    results = (
        map(bench.measure, cases) if jobs == 1 else measure_in_processes(bench.plan, cases, jobs)
    )
    for result in tqdm(results, total=len(cases), unit="case", mininterval=2):
        if isinstance(result, str):
            skipped.append(result)
            continue
        for name, found in result.items():
            scores[name] += found
    if not all(scores.values()):
        reasons = "; ".join(skipped[:3]) or f"no structure has {MIN_MM3:.0f} mm³"
        raise InputError(f"nothing to measure in {len(cases)} cases: {reasons}")
    return scores, skipped


def make_report(
    plan: Plan, scores: Mapping[str, Sequence[Score]], skipped: Sequence[str], about: dict[str, Any]
) -> dict[str, Any]:
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
            name: summarise(found, protocol.counts, protocol.seed) for name, found in scores.items()
        },
        "failures": {
            name: [asdict(score) for score in worst(found, FAILURES)]
            for name, found in scores.items()
        },
        "pairs": {name: [asdict(score) for score in found] for name, found in scores.items()},
    }


def machine() -> str:
    """Processor, cores and versions that the numbers were taken with."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":")[1].strip()
            for line in info.read_text().splitlines()
            if "model name" in line
        ]
        cpu = names[0] if names else cpu
    return f"{cpu}, {os.cpu_count()} cores, torch {torch.__version__}"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder or datalist of scans")
    parser.add_argument("--part", help="part of the data: eval, Ts, validation")
    parser.add_argument("--models", help="names with commas between; default: all that are there")
    parser.add_argument("--clicks", default="1,3,5,10", help="numbers of clicks to score after")
    parser.add_argument("--protocol", default="random", help="random or cvpr2025")
    parser.add_argument(
        "--weights", action="append", default=[], metavar="NAME=FILE", help="may be repeated"
    )
    parser.add_argument("--per-source", type=int, help="at most so many cases of each source")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1, help="series of clicks on each structure")
    parser.add_argument("--radius-mm", type=float, default=10.0, help="of the ball")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder for the curve and the failures")
    return parser.parse_args(arguments)


def make_plan(options: argparse.Namespace) -> Plan:
    weights = dict(_split_weights(text) for text in options.weights)
    names = options.models.split(",") if options.models else present_models(weights)
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
    )


def _split_weights(text: str) -> tuple[str, str]:
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise InputError(f"--weights {text}: expected NAME=FILE, as in sam=sam_vit_b.pth")
    return name, file


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, write what was asked for, and return the report."""
    plan = make_plan(options)
    bench = Bench(plan)  # first, so that a wrong name is said at once
    cases = choose_cases(find_cases(options.data, options.part), options.per_source, MIN_MM3)
    start = time.monotonic()
    scores, skipped = collect(bench, cases, options.jobs)
    about = {
        "command": shlex.join(["python", "benchmarks/accuracy.py", *_shown_arguments(options)]),
        "date": date.today().isoformat(),
        "minutes": round((time.monotonic() - start) / 60, 1),
        "machine": machine(),
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


def _shown_arguments(options: argparse.Namespace) -> list[str]:
    """The options that decide the numbers; of the data only its name, which lies anywhere."""
    shown = ["--data", options.data.resolve().name]
    for name in ("part", "models", "protocol", "clicks", "per_source", "seed", "repeats"):
        if (value := getattr(options, name)) is not None:
            shown += [f"--{name.replace('_', '-')}", str(value)]
    for text in options.weights:
        name, file = _split_weights(text)
        shown += ["--weights", f"{name}={Path(file).name}"]
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    logging.disable(logging.WARNING)
    try:
        report = run(parse_arguments(arguments))
    except InputError as error:
        sys.exit(f"accuracy: {error}")
    print(markdown(report))


if __name__ == "__main__":
    main()
