"""Thousands of generated requests to every route: no HTTP 5xx, nothing outside of the studies."""

from __future__ import annotations

import gzip
import http.client
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
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
from ct_series import write_ct_series
from lib.server.routes import ROUTES
from orthanc import OrthancError, running_orthanc
from serving import BALL_WEIGHTS, RunningServer, free_port, running_server

SECRET = "SECRET-of-another-folder"
"""SECRET: is in the files beside the studies, and may be in no reply."""

ARGUMENTS = (*BALL_WEIGHTS, "--conf", "requests_per_minute", "0")

IMAGES = ("head", "chest")


@dataclass(frozen=True)
class AttackedSite:
    """outside: folder of the studies, and of files beside them. work: the server's own files."""

    outside: Path
    work: Path


def run(number: int, seed: int, folder: Path) -> Outcome:
    """Send ``number`` requests; folder: an empty one for the server and its studies."""
    site = prepare(folder)
    return attack(site, str(site.outside / "studies"), {}, number, seed)


def run_on_pacs(number: int, seed: int, folder: Path) -> Outcome:
    """Send them to a server whose studies are those of an Orthanc."""
    site = prepare(folder)
    for index, name in enumerate(IMAGES):
        voxels = np.asarray(scan(index).dataobj)
        write_ct_series(voxels, AFFINE_MM, site.work / "dicom" / name, description=name)
    try:
        with running_orthanc(site.work / "orthanc", free_port()) as orthanc:
            orthanc.upload(site.work / "dicom")
            series = requests.get(f"{orthanc.dicomweb_url}/series", timeout=30).json()
            uids = [each["0020000E"]["Value"][0] for each in series]
            names = dict(zip(IMAGES, uids, strict=True))
            return attack(site, orthanc.dicomweb_url, names, number, seed)
    except OrthancError as error:
        return Outcome({"skipped": str(error)})


def attack(
    site: AttackedSite, studies: str, names: Mapping[str, str], number: int, seed: int
) -> Outcome:
    """Start a server, send requests, and check its files and its first mask.

    studies: a folder, or the address of a DICOM server. names: ID by name of an image, where it is
    another text.
    """
    folder, outside, work = site.outside.parent, site.outside, site.work
    environment = {
        "TMPDIR": str(work / "temporary"),
        "MONAI_LABEL_SESSION_PATH": str(work / "sessions"),
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(work / "cache"),
        "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": "0",
        "OMP_NUM_THREADS": "1",
    }
    arguments = (*ARGUMENTS, "--conf", "model_dir", str(work / "model"))
    arguments += ("--conf", "audit_log", str(work / "audit.jsonl"))
    image = names.get("head", "head")
    with running_server(studies, work / "server.log", *arguments, env=environment) as server:
        before = mask_hash(click(server.url, image))
        watch = FolderWatch([folder, outside, outside / "elsewhere"])
        outcome = send_all(server, sent_files(outside), names, number, seed)
        own = (outside, work, outside / "studies")
        touched = {path for path in watch.touched() if path not in own}
        watch.close()
        requests.delete(f"{server.url}/train/", timeout=300)
        outcome.check(not touched, f"these were touched: {sorted(map(str, touched))[:10]}")
        after = mask_hash(click(server.url, image))
        outcome.check(before == after, "the mask of the first click is another one now")
    return outcome


def prepare(folder: Path) -> AttackedSite:
    """Make the studies, what lies beside them, and a folder for the server's own files."""
    outside, work = folder / "outside", folder / "work"
    for path in ("studies", "elsewhere"):
        (outside / path).mkdir(parents=True)
    for path in ("temporary", "sessions"):
        (work / path).mkdir(parents=True)
    for number, name in enumerate(IMAGES):
        nib.save(scan(number), outside / "studies" / f"{name}.nii.gz")
    secret = scan(7)
    secret.header["descrip"] = SECRET.encode()
    for path in ("secret", "secret.nii"):
        (outside / "elsewhere" / path).write_bytes(secret.to_bytes())
    (outside / "elsewhere" / "secret.raw").write_bytes(SECRET.encode() * 4000)
    os.symlink(outside / "elsewhere", outside / "studies" / "linked-folder")
    return AttackedSite(outside, work)


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


def send_all(
    server: RunningServer,
    files: Mapping[str, bytes],
    names: Mapping[str, str],
    number: int,
    seed: int,
) -> Outcome:
    """Send the requests one after the other.

    HTTP 502 with a reason is right where a DICOM server refuses what a client asked it for.
    """
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
    @given(requests_to(found, files, names))
    def send_one(sent: Sent) -> None:
        status, body = send(address.hostname or "", address.port or 0, kept, sent)
        statuses[status] += 1
        routes.add((sent.method, sent.target.partition("?")[0].split("/")[1]))
        shown = f"{sent.method} {sent.target[:200]} {str(sent.body or '')[:300]}"
        is_of_pacs = bool(names) and status == 502 and b"the DICOM server" in body
        outcome.check(status < 500 or is_of_pacs, f"HTTP {status} to {shown}: {body[:300]!r}")
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
