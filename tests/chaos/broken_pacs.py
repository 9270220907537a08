"""A PACS that is slow, silent, cut off, answers rubbish, or is restarted; clicks go on."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import requests

from chaos.common import AFFINE_MM, CENTRE_IJK, Outcome, click, label_bytes, mask_hash, scan
from chaos.common import save_label as save
from chaos.fake_pacs import FAULTS, SERVICES, FakePacs, fake_pacs
from ct_series import write_ct_series
from orthanc import OrthancError, running_orthanc
from serving import BALL_WEIGHTS, RunningServer, free_port, running_server

WAIT_SECONDS = 0.5
"""WAIT_SECONDS: of MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT; a silent PACS is given up after four."""

LONGEST_SECONDS = 60.0
"""LONGEST_SECONDS: limit of every reply, on a machine that runs other jobs too."""

Action = Callable[[RunningServer, str], requests.Response]


def run(number: int, seed: int, folder: Path) -> Outcome:
    """Break the PACS ``number`` times, each time in a way drawn from the seed."""
    outcome = Outcome()
    with fake_pacs() as pacs:
        uids = add_series(pacs, folder / "dicom", number + 1)
        with running_server(
            pacs.url, folder / "server.log", *BALL_WEIGHTS, env=environment(folder)
        ) as server:
            break_it(outcome, server, pacs, uids, random.Random(seed))
    restart_orthanc(outcome, folder)
    return outcome


def environment(folder: Path) -> dict[str, str]:
    """Return the settings of a server that asks the PACS for each list, and gives up early."""
    return {
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "cache"),
        "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": "0",
        "MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT": str(WAIT_SECONDS),
        "OMP_NUM_THREADS": "1",
    }


def add_series(pacs: FakePacs, folder: Path, number: int, first: int = 0) -> list[str]:
    """Add copies of one scan, each a series of its own, numbered from first; return their UIDs."""
    voxels = np.asarray(scan(0).dataobj)
    uids = []
    for index in range(first, first + number):
        write_ct_series(voxels, AFFINE_MM, folder / str(index), description=f"series {index}")
        uids.append(pacs.add(folder / str(index)))
    return uids


def break_it(
    outcome: Outcome, server: RunningServer, pacs: FakePacs, uids: list[str], dice: random.Random
) -> None:
    """Break the PACS and heal it, once for each series but the first, which is fetched before."""
    kept, *others = uids
    expected = mask_hash(click(server.url, kept))
    statuses: Counter[int] = Counter()
    seconds = []
    for uid in others:
        fault = dice.choice(FAULTS)
        services = tuple(dice.sample(SERVICES, dice.randint(1, 3)))
        name, action = dice.choice(ACTIONS)
        where = f"{name} while {'/'.join(services)} is {fault}"
        pacs.breaks(fault, services)
        started = time.monotonic()
        try:
            reply = action(server, uid)
            check_reply(outcome, where, reply)
            statuses[reply.status_code] += 1
            if name == "a click on another series" and reply.status_code == 200:
                outcome.check(mask_hash(reply) == expected, f"{where}: another mask")
            check_others(outcome, where, server, kept, expected)
        except requests.RequestException as error:
            outcome.fail(f"{where}: {type(error).__name__}")
        finally:
            pacs.heals()
        seconds.append(time.monotonic() - started)
        reply = click(server.url, uid, timeout=LONGEST_SECONDS)
        is_right = reply.status_code == 200 and mask_hash(reply) == expected
        outcome.check(is_right, f"after {where}: HTTP {reply.status_code} {reply.text[:200]!r}"
                      if reply.status_code != 200 else f"after {where}: another mask")  # fmt: skip
    outcome.facts = {
        "statuses": dict(sorted(statuses.items())),
        "longest_s": round(max(seconds), 1),
    }


def check_reply(outcome: Outcome, where: str, reply: requests.Response) -> None:
    """Check that a reply is what was asked for, or a sentence and not an unexpected error."""
    if reply.status_code < 400:
        return
    detail = str(reply.json().get("detail", ""))
    is_kept = detail.startswith("the label was kept")
    is_expected = reply.status_code in (400, 404, 409, 502, 503) or is_kept
    outcome.check(is_expected and bool(detail), f"{where}: HTTP {reply.status_code} {detail!r}")


def check_others(
    outcome: Outcome, where: str, server: RunningServer, kept: str, expected: str
) -> None:
    """Check that a series that was fetched before is segmented, and the server says what it is."""
    is_same = mask_hash(click(server.url, kept, timeout=LONGEST_SECONDS)) == expected
    outcome.check(is_same, f"{where}: another mask of the series that is there")
    health = requests.get(f"{server.url}/healthz", timeout=LONGEST_SECONDS)
    outcome.check(health.ok, f"{where}: /healthz is {health.status_code}")


# --- what clients do meanwhile --------------------------------------------------------------------


def _get(path: str) -> Action:
    return lambda server, uid: requests.get(server.url + path, timeout=LONGEST_SECONDS)


def _save_label(server: RunningServer, uid: str) -> requests.Response:
    return save(server.url, uid, label_bytes(5))


def _next_sample(server: RunningServer, uid: str) -> requests.Response:
    url = f"{server.url}/activelearning/random"
    return requests.post(url, json={}, timeout=LONGEST_SECONDS)


def _click(server: RunningServer, uid: str) -> requests.Response:
    return click(server.url, uid, CENTRE_IJK, timeout=LONGEST_SECONDS)


ACTIONS: tuple[tuple[str, Action], ...] = (
    ("a click on another series", _click),
    ("a click on another series", _click),
    ("saving a label", _save_label),
    ("the next sample", _next_sample),
    ("the list of images", _get("/datastore/?output=all")),
    ("the numbers of images", _get("/datastore/")),
    ("the description of the server", _get("/info/")),
    ("a search of the viewer", _get("/dicom-web/studies?limit=5")),
)
"""ACTIONS: a request that needs the PACS, with its name."""


# --- a PACS that is restarted ---------------------------------------------------------------------


def restart_orthanc(outcome: Outcome, folder: Path) -> None:
    """Click while a real Orthanc is down, and after it came back."""
    port = free_port()
    voxels = np.asarray(scan(0).dataobj)
    for name in ("before", "after"):
        write_ct_series(voxels, AFFINE_MM, folder / "sent" / name, description=name)
    try:
        with running_orthanc(folder / "orthanc", port) as orthanc:
            orthanc.upload(folder / "sent")
            address = orthanc.dicomweb_url
            series = requests.get(f"{address}/series", timeout=30).json()
            first, second = (each["0020000E"]["Value"][0] for each in series)
            env = {**environment(folder), "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "other")}
            context = running_server(address, folder / "orthanc.log", *BALL_WEIGHTS, env=env)
            server = context.__enter__()
            expected = mask_hash(click(server.url, first))
    except OrthancError as error:
        outcome.facts["orthanc"] = str(error).partition(":")[0]
        return
    try:
        is_same = mask_hash(click(server.url, first)) == expected
        outcome.check(is_same, "without Orthanc: another mask of the series that is there")
        down = click(server.url, second).status_code
        outcome.check(down == 502, f"without Orthanc: HTTP {down} for a series that is not there")
        with running_orthanc(folder / "orthanc", port):
            is_same = mask_hash(click(server.url, second)) == expected
            outcome.check(is_same, "after the restart of Orthanc: another mask")
        outcome.facts["orthanc"] = "restarted"
    finally:
        context.__exit__(None, None, None)
