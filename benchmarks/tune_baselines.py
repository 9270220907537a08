"""Choose the parameters of the baselines: `python -m benchmarks.tune_baselines --data DIR`.

One parameter after the other, on the train part of the data and never on what is reported: the
value with the highest mean of the macro-average Dice over the numbers of clicks stays. It prints
what it tried; the result is in `baselines.py`.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .baselines import Ball, RandomWalker, RegionGrowing
from .datasets import choose_cases, find_cases, read_case, targets
from .protocols import MIN_MM3, click_series, make_protocol

PROTOCOL = make_protocol("random", (1, 3, 5, 10))
GRIDS: dict[Callable[..., Any], dict[str, tuple[float, ...]]] = {
    Ball: {"radius_mm": (5, 7.5, 10, 12.5, 15, 20)},
    RegionGrowing: {
        "radius_mm": (10, 15, 20, 25, 30, 40),
        "spread": (1, 1.5, 2, 2.5, 3, 4, 6),
        "sample_mm": (2, 3, 5, 7),
        "negative_mm": (5, 7.5, 10, 15),
        "sigma_mm": (0, 0.7, 1, 1.5, 2),
    },
    RandomWalker: {"spacing_mm": (1.5, 2.5, 3.5), "beta": (30, 130, 500)},
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--part", default="train")
    parser.add_argument("--per-source", type=int, default=2)
    parser.add_argument("--structures", type=int, default=2, help="of each case, drawn at random")
    options = parser.parse_args(arguments)
    objects = []
    for case in choose_cases(find_cases(options.data, options.part), options.per_source, MIN_MM3):
        volume, labels = read_case(case)
        found = list(targets(case, labels, MIN_MM3))
        chosen = np.random.default_rng(0).permutation(len(found))[: options.structures]
        objects += [(case, volume, *found[number]) for number in sorted(chosen)]

    def mean_dice(make: Callable[..., Any], parameters: dict[str, float]) -> np.ndarray:
        by_source = defaultdict(list)
        for case, volume, name, target in tqdm(objects, leave=False):
            model, key = make(volume, **parameters), f"{case.name}/{name}"
            series = click_series(model, target, PROTOCOL, key, (1, 1, 1))
            by_source[case.source].append(series.dice)
        return np.mean([np.mean(dice, axis=0) for dice in by_source.values()], axis=0)

    for make, grid in GRIDS.items():
        best: dict[str, float] = {}
        for name, values in grid.items():
            tried = {value: mean_dice(make, {**best, name: value}) for value in values}
            for value, dice in tried.items():
                print(make.__name__, best, name, value, dice.round(3), dice.mean().round(3))
            best[name] = max(tried, key=lambda value: tried[value].mean())
        print(make.__name__, "chosen:", best)


if __name__ == "__main__":
    main()
