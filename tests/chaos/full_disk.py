"""A disk that is full at each write: HTTP 507 with the reason, and what was there stays.

The disk is a small one in memory (tmpfs), which only an administrator can mount. A file leaves as
much space as the next request gets, from none to enough, so that each of its writes fails once.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import requests

from chaos.common import AFFINE_MM, Outcome, click, digest, mask_hash, save_label, scan
from serving import BALL_WEIGHTS, RunningServer, running_server

DISK_MB = 24
PAGE = 4096
SHAPE_IJK = (40, 36, 30)
"""SHAPE_IJK: of the scans; a label takes 43 kB, and a scan 86 kB."""

MOST_PAGES = 60
"""MOST_PAGES: the most space that is left; every request fits into it."""

LISTED_SECONDS = 30.0
"""LISTED_SECONDS: the server notices within this time that a file was taken away."""

FULL = "the disk of the server is full"


def run(number: int, seed: int, folder: Path) -> Outcome:
    """Send each kind of request with ``number`` amounts of space; folder: for logs."""
    outcome = Outcome()
    with small_disk(folder) as disk:
        if disk is None:
            outcome.facts["skipped"] = "mounting a small disk needs an administrator"
            return outcome
        (disk / "studies").mkdir()
        (disk / "temporary").mkdir()
        nib.save(scan(0, SHAPE_IJK), disk / "studies" / "head.nii")
        env = {
            "TMPDIR": str(disk / "temporary"),
            "MONAI_LABEL_SESSION_PATH": str(disk / "sessions"),
            "OMP_NUM_THREADS": "1",
        }
        arguments = (*BALL_WEIGHTS, "--conf", "label_versions", "2", "--conf", "audit_log", "off")
        log = folder / "server.log"
        with running_server(disk / "studies", log, *arguments, env=env) as server:
            FullDisk(server, disk, outcome).fill(number, random.Random(seed))
    return outcome


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """Mount a small disk; yield None where that is not allowed."""
    disk = folder / "disk"
    disk.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=700", "tmpfs", str(disk)]
    try:
        is_mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        is_mounted = False
    if not is_mounted:
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


class FullDisk:
    """A server whose disk is filled before each request."""

    def __init__(self, server: RunningServer, disk: Path, outcome: Outcome) -> None:
        self.server, self.disk, self.outcome = server, disk, outcome
        self.ballast = disk / "ballast"
        self.label = b""
        self.images = {"head"}
        self.statuses: Counter[str] = Counter()
        self.mask = mask_hash(click(server.url, "head"))
        self.requests: dict[str, Callable[[int], requests.Response]] = {
            "save": self._save,
            "restore": lambda number: self._post("/datastore/label/restore", version=1),
            "describe": self._describe,
            "upload": self._upload,
            "session": self._session,
            "click": lambda number: click(server.url, "head"),
        }

    def fill(self, number: int, dice: random.Random) -> None:
        """Send all kinds of requests with different amounts of space, in a random order."""
        for seed in range(2):
            self._check("save", self._save(seed))
        for round_number in range(number):
            pages = MOST_PAGES * (round_number + 1) // number if round_number else 0
            for name in dice.sample(sorted(self.requests), len(self.requests)):
                self._leave(pages * PAGE + dice.randrange(PAGE))
                reply = self.requests[name](1000 * round_number + dice.randrange(1000))
                self.ballast.unlink(missing_ok=True)
                self._check(f"{name} with {pages} pages", reply)
                self.statuses[f"{name} {reply.status_code}"] += 1
        self.outcome.facts["statuses"] = dict(sorted(self.statuses.items()))

    def _leave(self, space: int) -> None:
        """Fill the disk up to so many bytes, rounded to pages."""
        status = os.statvfs(self.disk)
        filling = status.f_bavail * status.f_frsize - space
        with self.ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(filling, 1))

    def _check(self, what: str, reply: requests.Response) -> None:
        """Check a reply, and that label, images and masks are the last ones that were saved."""
        if reply.status_code != 200:
            is_said = reply.status_code == 507 and FULL in reply.text
            self.outcome.check(is_said, f"{what}: HTTP {reply.status_code} {reply.text[:300]}")
        query = {"label": "head", "tag": "final"}
        url = f"{self.server.url}/datastore/label"
        found = requests.get(url, params=query, timeout=60)
        self.outcome.check(found.content == self.label, f"{what}: the label is another one")
        self.outcome.check(self.server.images() == self.images, f"{what}: other images are listed")
        is_same = mask_hash(click(self.server.url, "head")) == self.mask
        self.outcome.check(is_same, f"{what}: the mask is another one")
        parts = [str(path) for path in self.disk.rglob(".*.partial")]
        self.outcome.check(not parts, f"{what}: {parts} stayed")

    def _save(self, number: int) -> requests.Response:
        values = np.random.default_rng(number).integers(0, 4, SHAPE_IJK, dtype=np.uint8)
        content = nib.Nifti1Image(values, AFFINE_MM).to_bytes()
        reply = save_label(self.server.url, "head", content)
        self.label = content if reply.ok else self.label
        return reply

    def _post(self, path: str, **query: object) -> requests.Response:
        """Restore the oldest version that is there."""
        query = {"image": "head", "tag": "final", **query}
        url = f"{self.server.url}/datastore/label/versions"
        listed = requests.get(url, params=query, timeout=60).json()["versions"]
        versions = self.disk / "studies" / "labels" / "final" / ".versions" / "head"
        wanted = listed[-1]
        contents = [path.read_bytes() for path in versions.glob("*.nii")]
        (content,) = {each for each in contents if digest(each) == wanted["sha256"]}
        query["version"] = wanted["version"]
        reply = requests.post(self.server.url + path, params=query, timeout=60)
        self.label = content if reply.ok else self.label
        return reply

    def _describe(self, number: int) -> requests.Response:
        query = {"label": "head", "tag": "final"}
        data = {"info": f'{{"remark": "{number:0400d}"}}'}
        url = f"{self.server.url}/datastore/label/info"
        return requests.put(url, params=query, data=data, timeout=60)

    def _upload(self, number: int) -> requests.Response:
        name, content = f"scan-{number}", scan(number, SHAPE_IJK).to_bytes()
        self._remove_old()
        url = f"{self.server.url}/datastore/image"
        files = {"file": (f"{name}.nii", content)}
        reply = requests.put(url, params={"image": name}, files=files, timeout=60)
        self.images |= {name} if reply.ok else set()
        return reply

    def _remove_old(self) -> None:
        """Take away the scan that was uploaded before, and wait until the server notices."""
        for name in self.images - {"head"}:
            (self.disk / "studies" / f"{name}.nii").unlink()
        self.images = {"head"}
        deadline = time.monotonic() + LISTED_SECONDS
        while self.server.images() != self.images and time.monotonic() < deadline:
            time.sleep(0.1)

    def _session(self, number: int) -> requests.Response:
        files = {"files": ("scan.nii", scan(number, SHAPE_IJK).to_bytes())}
        reply = requests.put(f"{self.server.url}/session/", files=files, timeout=60)
        if reply.ok:
            url = f"{self.server.url}/session/{reply.json()['session_id']}"
            requests.delete(url, timeout=60)
        return reply
