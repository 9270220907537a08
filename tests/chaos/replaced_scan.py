"""A scan is replaced while clients click on it: each mask is that of the old or of the new one."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import requests

from chaos.common import Outcome, click, mask_hash, write_scan
from serving import BALL_WEIGHTS, RunningServer, running_server

CLIENTS = 3
SHAPES_IJK = ((60, 52, 34), (44, 58, 40))
"""SHAPES_IJK: of the two scans, which take turns; a mask on the wrong grid is never mistaken."""

LISTED_SECONDS = 20.0
"""LISTED_SECONDS: a replaced scan is the one that is clicked on within this time."""


def run(number: int, seed: int, folder: Path) -> Outcome:
    """Replace a scan ``number`` times."""
    studies = folder / "studies"
    studies.mkdir(parents=True)
    for index, shape in enumerate(SHAPES_IJK):
        write_scan(studies / f"scan{index}.nii.gz", index, shape)
    write_scan(studies / "head.nii.gz", 0, SHAPES_IJK[0])
    with running_server(studies, folder / "server.log", *BALL_WEIGHTS) as server:
        expected = [mask_hash(click(server.url, f"scan{index}")) for index in range(2)]
        return replace_it(server, studies / "head.nii.gz", expected, number, random.Random(seed))


def replace_it(
    server: RunningServer, scan: Path, expected: list[str], number: int, dice: random.Random
) -> Outcome:
    """Replace the scan at random moments of the clicks of some clients."""
    outcome, masks, is_over = Outcome(), [], threading.Event()

    def click_on() -> None:
        while not is_over.is_set():
            try:
                masks.append(mask_hash(click(server.url, "head")))
            except (AssertionError, requests.RequestException) as error:
                outcome.fail(str(error))

    threads = [threading.Thread(target=click_on) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for index in range(1, number + 1):
        write_scan(scan, index % 2, SHAPES_IJK[index % 2])
        time.sleep(dice.uniform(0, 0.5))
        if dice.random() < 0.2:  # long enough that only the new one counts
            is_new = wait_for(server, expected[index % 2])
            outcome.check(is_new, f"replacement {index}: still the mask of the old scan")
    is_over.set()
    for thread in threads:
        thread.join()
    others = [mask for mask in masks if mask not in expected]
    outcome.check(not others, f"{len(others)} masks are those of neither scan")
    outcome.check(wait_for(server, expected[number % 2]), "the last scan is not clicked on")
    outcome.facts = {"masks": len(masks), "of_second": masks.count(expected[1])}
    return outcome


def wait_for(server: RunningServer, mask: str) -> bool:
    """Return whether a click has this mask soon."""
    deadline = time.monotonic() + LISTED_SECONDS
    while time.monotonic() < deadline:
        if mask_hash(click(server.url, "head")) == mask:
            return True
        time.sleep(0.1)
    return False
