"""Measure the models of a plan on labelled scans, in one process or in several."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from tqdm import tqdm

from lib.errors import InputError
from lib.imaging.volume import Volume

from .accuracy_report import CURVE_AREAS, Score
from .contestants import Contestant, Prompted, make_contestants
from .datasets import BenchmarkCase, ignored_voxels, read_case, targets, with_one_volume
from .protocols import MIN_MM3, Protocol, Scan, Series, area

Scores = dict[str, list[Score]]
"""Scores: the scores of each model, by its name."""


@dataclass(frozen=True)
class Plan:
    """The settings of a measurement; every process builds its models from them.

    models: names, see `contestants.py`. weights: file of a model, by its name. radius_mm: radius of
    the ball baseline. repeats: click series per structure; their mean is scored. threads: threads
    of each process when there are several. options: further options of the app, by name.
    """

    models: tuple[str, ...]
    weights: Mapping[str, str]
    protocol: Protocol
    radius_mm: float = 10.0
    repeats: int = 1
    threads: int = 1
    options: Mapping[str, str] = field(default_factory=dict)
    prompts: tuple[str, ...] = ("point",)
    replay: str = ""


class Bench:
    """The models of a plan, loaded and ready to be clicked on."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.contestants: dict[str, Contestant] = make_contestants(
            plan.models, plan.weights, plan.radius_mm, plan.options, plan.prompts
        )
        if plan.replay and plan.replay not in self.contestants:
            names = ", ".join(self.contestants)
            raise InputError(f"--replay {plan.replay}: it is not measured; choose one of {names}")

    def weights(self) -> dict[str, dict[str, Any]]:
        """Return the weights' description of each model that the app serves."""
        return {
            name: contestant.weights()
            for name, contestant in self.contestants.items()
            if isinstance(contestant, Prompted)
        }

    def measure(self, case: BenchmarkCase) -> Scores | str:
        """Score every model on every structure of a case.

        Return the reason as a string if the case cannot be used.
        """
        with with_one_volume(case) as readable:
            try:
                volume, labels = read_case(readable)
            except InputError as error:
                return f"{case.source}: {error}"
            scan = Scan(readable.image, volume, ignored_voxels(case, labels))
            return self._measure(case, scan, labels)

    def _measure(self, case: BenchmarkCase, scan: Scan, labels: Volume) -> Scores:
        scores: Scores = {name: [] for name in self.contestants}
        for structure, target in targets(case, labels, MIN_MM3):
            key = f"{case.name}/{structure}"
            repeats = range(self.plan.repeats)
            replayed: list[Series | None] = [None] * self.plan.repeats
            if self.plan.replay:
                replayed = [
                    self.click(self.plan.replay, scan, key, target, repeat) for repeat in repeats
                ]
            for name in self.contestants:
                series = [
                    self.click(name, scan, key, target, repeat, replayed[repeat])
                    for repeat in repeats
                ]
                scores[name].append(make_score(case, structure, target, series))
        return scores

    def click(
        self,
        name: str,
        scan: Scan,
        key: str,
        target: np.ndarray,
        repeat: int = 0,
        replayed: Series | None = None,
    ) -> Series:
        """Run one click series on a model.

        key: names case and structure; it seeds the clicks. target: (I, J, K) bool. replayed: a
        series whose clicks are made again.
        """
        protocol = replace(self.plan.protocol, seed=self.plan.protocol.seed + repeat)
        return self.contestants[name](scan, target, protocol, key, replayed)


def make_score(
    case: BenchmarkCase, structure: str, target: np.ndarray, series: Sequence[Series]
) -> Score:
    """Average all click series on one structure."""
    dice = np.mean([one.dice for one in series], axis=0)
    nsd = np.mean([one.nsd for one in series], axis=0)
    curve_areas = (area(dice), dice[-1], area(nsd), nsd[-1]) if series[0].nsd else ()
    return Score(
        case.source,
        case.name,
        structure,
        case.modality,
        int(np.count_nonzero(target)),
        tuple(round(float(value), 4) for value in dice),
        {name: round(float(v), 4) for name, v in zip(CURVE_AREAS, curve_areas, strict=False)},
        round(float(np.median([seconds for one in series for seconds in one.seconds])), 4),
        sum(one.refused for one in series),
        round(float(np.mean([one.harm for one in series])), 4),
    )


_bench: Bench | None = None
"""_bench: the models of this worker process."""


def _start_worker(plan: Plan) -> None:
    global _bench
    logging.disable(logging.WARNING)
    torch.set_num_threads(plan.threads)
    _bench = Bench(plan)


def _measure_in_worker(case: BenchmarkCase) -> Scores | str:
    assert _bench is not None
    return _bench.measure(case)


def measure_in_processes(
    plan: Plan, cases: Sequence[BenchmarkCase], jobs: int
) -> Iterator[Scores | str]:
    """Yield `Bench.measure` of each case in order; `jobs` processes share the cores."""
    pool = ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(plan,)
    )
    with pool:
        # the click path of a process computes with all cores unless the environment says otherwise
        with patch.dict(os.environ, OMP_NUM_THREADS=str(plan.threads)):
            results = pool.map(_measure_in_worker, cases)  # starts the processes
        yield from results


def collect(
    bench: Bench, cases: Sequence[BenchmarkCase], jobs: int = 1
) -> tuple[Scores, list[str]]:
    """Return all scores by model, and the reasons for the skipped cases.

    Raises InputError if no structure could be measured.
    """
    scores: Scores = {name: [] for name in bench.contestants}
    skipped = []
    results = (
        map(bench.measure, cases) if jobs == 1 else measure_in_processes(bench.plan, cases, jobs)
    )
    for result in tqdm(results, total=len(cases), unit="case", mininterval=2):
        if isinstance(result, str):
            skipped.append(result)
            continue
        for name, case_scores in result.items():
            scores[name] += case_scores
    if not all(scores.values()):
        reasons = "; ".join(skipped[:3]) or f"no structure has {MIN_MM3:.0f} mm³"
        raise InputError(f"nothing to measure in {len(cases)} cases: {reasons}")
    return scores, skipped
