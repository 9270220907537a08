"""Run one of the programs: ``make chaos CHAOS="random_requests --number 10000 --seed 1"``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from chaos import (
    broken_pacs,
    full_disk,
    kills,
    many_clients,
    random_requests,
    replaced_scan,
)
from chaos.common import Outcome

PROGRAMS = {
    "random_requests": (random_requests.run, 10_000),
    "random_requests_on_pacs": (random_requests.run_on_pacs, 1500),
    "kills": (kills.run, 50),
    "full_disk": (full_disk.run, 60),
    "broken_pacs": (broken_pacs.run, 30),
    "many_clients": (many_clients.run, 600),
    "replaced_scan": (replaced_scan.run, 100),
}
"""PROGRAMS: name -> function and default number: of requests, kills, amounts of free space, faults,
seconds, or replacements."""


def main() -> int:
    """Run the program; the last line of the output is its result as JSON."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("--number", type=int, help="how much; its meaning is in the README")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices (%(default)s)")
    parser.add_argument("--folder", type=Path, help="keep logs and data there (default: removed)")
    options = parser.parse_args()
    run, number = PROGRAMS[options.program]
    number = options.number or number
    if options.folder:
        options.folder.mkdir(parents=True)  # an old run must not count as a new one
        outcome = run(number, options.seed, options.folder)
    else:
        with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
            outcome = run(number, options.seed, Path(folder))
    return report(options.program, number, options.seed, outcome)


def report(program: str, number: int, seed: int, outcome: Outcome) -> int:
    """Print the result; return the exit code."""
    facts = {"program": program, "number": number, "seed": seed, **outcome.facts}
    print(json.dumps({**facts, "failures": len(outcome.failures)}))
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
