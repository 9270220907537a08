"""Thousands of generated requests to every route: no HTTP 5xx, nothing outside of the studies."""

from __future__ import annotations

import gzip
import http.client
import os
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed

from chaos.common import AFFINE_MM, SHAPE_IJK, Outcome, click, label_bytes, mask_hash, scan
from chaos.generated import Sent, operations, requests_to
from chaos.watch import FolderWatch
from lib.server.routes import ROUTES
from serving import BALL_WEIGHTS, RunningServer, running_server

SECRET = "SECRET-of-another-folder"
"""SECRET: is in the files beside the studies, and may be in no reply."""

ARGUMENTS = (*BALL_WEIGHTS, "--conf", "requests_per_minute", "0")


def run(number: int, seed: int, folder: Path) -> Outcome:
    """Send ``number`` requests; folder: an empty one for the server and its studies."""
    outside, work = prepare(folder)
    environment = {
        "TMPDIR": str(work / "temporary"),
        "MONAI_LABEL_SESSION_PATH": str(work / "sessions"),
        "OMP_NUM_THREADS": "1",
    }
    arguments = (*ARGUMENTS, "--conf", "model_dir", str(work / "model"))
    arguments += ("--conf", "audit_log", str(work / "audit.jsonl"))
    studies = outside / "studies"
    with running_server(studies, work / "server.log", *arguments, env=environment) as server:
        before = mask_hash(click(server.url, "head"))
        watch = FolderWatch([folder, outside, outside / "elsewhere", outside.parent])
        outcome = send_all(server, number, seed)
        touched = {path for path in watch.touched() if path not in (outside, work, studies)}
        watch.close()
        requests.delete(f"{server.url}/train/", timeout=300)
        outcome.check(not touched, f"these were touched: {sorted(map(str, touched))[:10]}")
        after = mask_hash(click(server.url, "head"))
        outcome.check(before == after, "the mask of the first click is another one now")
    return outcome


def prepare(folder: Path) -> tuple[Path, Path]:
    """Make the studies, what lies beside them, and a folder for the server's own files."""
    outside, work = folder / "outside", folder / "work"
    for path in ("studies", "elsewhere"):
        (outside / path).mkdir(parents=True)
    for path in ("temporary", "sessions"):
        (work / path).mkdir(parents=True)
    for number, name in enumerate(("head", "chest")):
        nib.save(scan(number), outside / "studies" / f"{name}.nii.gz")
    secret = scan(7)
    secret.header["descrip"] = SECRET.encode()
    for path in ("secret", "secret.nii"):
        (outside / "elsewhere" / path).write_bytes(secret.to_bytes())
    (outside / "elsewhere" / "secret.raw").write_bytes(SECRET.encode() * 4000)
    os.symlink(outside / "elsewhere", outside / "studies" / "linked-folder")
    return outside, work


def sent_files(outside: Path) -> dict[str, bytes]:
    """Return the files that clients send: good ones, and hostile ones."""
    good, secret = scan(3).to_bytes(), outside / "elsewhere" / "secret.raw"
    grid = (
        "NRRD0005\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\nsizes: 40 30 20\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nencoding: raw\nspace origin: (0,0,0)\n"
    )
    header = bytearray(good[:352])
    header[40:56] = np.array([3, 2000, 2000, 1500, 1, 1, 1, 1], "<i2").tobytes()
    empty = nib.Nifti1Image(np.zeros(SHAPE_IJK, np.uint8), AFFINE_MM).to_bytes()
    return {
        "good.nii": good,
        "label.nii": label_bytes(1),
        "empty.nii": empty,
        "packed.nii.gz": gzip.compress(label_bytes(2)),
        "raw.bin": bytes(int(np.prod(SHAPE_IJK))),
        "detached.nrrd": f"{grid}data file: {secret}\n\n".encode(),
        "list.nrrd": f"{grid}data file: LIST\n{secret}\n\n".encode(),
        "inline.nrrd": f"{grid}\n".encode() + bytes(24000),
        "bomb.nii.gz": gzip.compress(bytes(header) + bytes(10**6)),
        "cut.nii": good[:1000],
        "text.nii.gz": b"hello",
        "nothing.nii": b"",
        "slice.dcm": bytes(128) + b"DICM" + bytes(40),
    }


def send_all(server: RunningServer, number: int, seed: int) -> Outcome:
    """Send the requests one after the other."""
    openapi = requests.get(f"{server.url}/openapi.json", timeout=60).json()
    found = operations(openapi, list(ROUTES))
    outcome, statuses, routes = Outcome(), Counter(), set()
    address, kept = urlsplit(server.url), {"connection": None}
    started = time.monotonic()

    @with_seed(seed)
    @settings(
        max_examples=number,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(requests_to(found, sent_files(Path(server.studies).parent)))
    def send_one(sent: Sent) -> None:
        status, body = send(address.hostname or "", address.port or 0, kept, sent)
        statuses[status] += 1
        routes.add((sent.method, sent.target.partition("?")[0].split("/")[1]))
        shown = f"{sent.method} {sent.target[:200]} {str(sent.body or '')[:300]}"
        outcome.check(status < 500, f"HTTP {status} to {shown}: {body[:300]!r}")
        outcome.check(
            SECRET.encode() not in body, f"a file of another folder in the reply: {shown}"
        )
        outcome.check(b"root:x:0:" not in body, f"/etc/passwd in the reply to {shown}")

    send_one()
    seconds = time.monotonic() - started
    outcome.facts = {
        "requests": sum(statuses.values()),
        "routes": len(found),
        "statuses": dict(sorted(statuses.items())),
        "seconds": round(seconds, 1),
    }
    return outcome


def send(host: str, port: int, kept: dict, sent: Sent) -> tuple[int, bytes]:
    """Send a request as it is, with a path that no library tidies; return status and body.

    kept: the open connection, which the server may have closed after its last reply.
    """
    for is_last in (kept["connection"] is None, True):
        connection = kept["connection"] or http.client.HTTPConnection(host, port, timeout=120)
        try:
            connection.request(sent.method, sent.target, sent.body, sent.headers)
            reply = connection.getresponse()
            body = reply.read()
        except (http.client.HTTPException, ConnectionError) as error:
            connection.close()
            kept["connection"] = None
            if is_last:
                return 599, f"no reply ({type(error).__name__}: {error})".encode()
            continue
        kept["connection"] = None if reply.will_close else connection
        return reply.status, body
    raise AssertionError("not reached")
