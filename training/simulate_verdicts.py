"""Simulate verdicts on students that are no better: `python -m training.simulate_verdicts`.

Each verdict is on gains of studies whose mean is 0: the new student is as good as the served one.
The share that is published is the error of `lib.trainers.verdict.decide`. The gains are normally
distributed, heavy-tailed (Student's t with three degrees of freedom), or skewed (exponential) to
large gains or to large losses. With --half-spread they are those of an adaptation: each half of the
studies has a student of its own, which adds a common gain with this standard deviation.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np

from lib.trainers.verdict import FEWEST_STUDIES, decide

SPREAD = 0.03
"""SPREAD: standard deviation of a study's gain; measured are .02 to .04 over three series."""

MIN_GAIN = 0.005
"""MIN_GAIN: default of the option ``min_gain``."""

Draw = Callable[[np.random.Generator, int], np.ndarray]

GAINS: dict[str, Draw] = {
    "normal": lambda generator, count: generator.normal(0, SPREAD, count),
    "heavy-tailed": lambda generator, count: generator.standard_t(3, count) * SPREAD / 3**0.5,
    "large gains": lambda generator, count: (generator.exponential(1, count) - 1) * SPREAD,
    "large losses": lambda generator, count: (1 - generator.exponential(1, count)) * SPREAD,
}
"""GAINS: by name, a function that draws the gains of some studies; their mean is 0."""


def published_share(
    draw: Draw,
    studies: int,
    verdicts: int,
    min_gain: float,
    seed: int,
    gain: float = 0.0,
    half_spread: float | None = None,
) -> float:
    """Return the share of the verdicts that publish students with this mean gain.

    half_spread: standard deviation of the gain that all studies of a half share, as in an
    adaptation; None for a single student.
    """
    generator = np.random.default_rng(seed)
    published = 0
    for _ in range(verdicts):
        served = generator.uniform(0.3, 0.8, studies)
        candidate = served + gain + draw(generator, studies)
        if half_spread is not None:
            candidate += np.resize(generator.normal(0, half_spread, 2), studies)
        pair = candidate.tolist(), served.tolist()
        verdict = decide(*pair, min_gain, in_halves=half_spread is not None)
        published += verdict.answer == "publish"
    return published / verdicts


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--verdicts", type=int, default=1000, help="for each row and column")
    parser.add_argument("--min-gain", type=float, default=MIN_GAIN)
    parser.add_argument("--gain", type=float, default=0.0, help="of the new students")
    parser.add_argument("--half-spread", type=float, help="see above; default: one student")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.verdicts < 1 or options.seed < 0 or (options.half_spread or 0) < 0:
        parser.error("--verdicts must be 1 or more, --seed and --half-spread 0 or more")
    if not math.isfinite(options.gain):
        parser.error(f"--gain is {options.gain}, but must be a number")
    print(f"share published of {options.verdicts} students with a mean gain of {options.gain:g}")
    print("| studies |", " | ".join(GAINS), "|")
    print("|---|" + "---|" * len(GAINS))
    for studies in (FEWEST_STUDIES, 5, 6, 8, 12, 20):
        shares = [
            published_share(
                draw,
                studies,
                options.verdicts,
                options.min_gain,
                options.seed,
                options.gain,
                options.half_spread,
            )
            for draw in GAINS.values()
        ]
        print(f"| {studies} |", " | ".join(f"{share:.1%}" for share in shares), "|", flush=True)


if __name__ == "__main__":
    main()
