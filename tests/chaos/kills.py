"""``kill -9`` at random moments of saving, fetching, publishing and training.

After each kill the server starts again, no acknowledged label is lost, no file is broken, and the
same click has the same mask.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import requests
from small_site import SHORT, SPACING_MM, Site

from chaos.broken_pacs import add_series, environment
from chaos.common import Outcome, click, digest, mask_hash, save_label
from chaos.fake_pacs import FakePacs, fake_pacs
from lib.atomic_file import SUFFIX
from lib.weights.files import file_weights
from serving import BALL_WEIGHTS, RunningServer, running_server

KINDS = ("saving", "fetching", "publishing", "training")
"""KINDS: what the server does when it is killed, in turns."""

LONGEST_SECONDS = {"saving": 2.0, "fetching": 1.5, "publishing": 20.0, "training": 40.0}
"""LONGEST_SECONDS: a kill comes within this time after the activity began."""

TRAINING = {**SHORT, "min_gain": 0, "val_interval": 1, "start": "served", "resume": True}

KEPT = 15
"""KEPT: newest acknowledged versions that are looked for; the server keeps 20."""

POINT_IJK = (10, 9, 8)
"""POINT_IJK: the click on the small studies."""

PUBLISH = """
import sys
from pathlib import Path
from lib.networks import build_untrained
from lib.weights.versions import StudentVersions
from small_site import STUDENT
versions = StudentVersions(Path(sys.argv[1]), sys.argv[2])
for seed in range(int(sys.argv[3]), int(sys.argv[3]) + 10**6):
    versions.publish(build_untrained(STUDENT, seed), {}, 3)
    print("published", flush=True)
"""
"""PUBLISH: a program that publishes one network after the other, as trainings do."""


@dataclass
class Saved:
    """The labels of an image by their hashes: the acknowledged ones in the order of saving, the
    last one that was sent, and all that were sent."""

    acknowledged: list[str] = field(default_factory=list)
    flying: str = ""
    sent: set[str] = field(default_factory=set)


def run(number: int, seed: int, folder: Path) -> Outcome:
    """Kill ``number`` servers, one kind of work after the other."""
    outcome, dice = Outcome(facts=dict.fromkeys(KINDS, 0)), random.Random(seed)
    outcome.facts["saved"] = 0
    site = SmallSite(folder / "site", outcome)
    with ExitStack() as stack:
        pacs = stack.enter_context(fake_pacs())
        archive = Archive(folder / "archive", pacs, outcome)
        for index in range(number):
            kind = KINDS[index % len(KINDS)]
            place = archive if kind == "fetching" else site
            try:
                place.kill_during(kind, dice)
                outcome.facts[kind] += 1
            except (RuntimeError, AssertionError, requests.RequestException) as error:
                outcome.fail(f"round {index}, {kind}: {str(error)[-1500:]}")
        for place in (site, archive):
            place.check_after_start()
    outcome.facts["saved"] = sum(len(each.acknowledged) for each in site.saved.values())
    return outcome


@contextmanager
def killed(server: RunningServer, seconds: float) -> Iterator[None]:
    """Kill a server after a time; the block ends before or after that."""
    timer = threading.Timer(seconds, os.kill, (server.pid, signal.SIGKILL))
    timer.start()
    yield
    timer.join()
    with suppress(requests.RequestException):
        for _ in range(100):
            requests.get(f"{server.url}/healthz", timeout=5)
            time.sleep(0.05)
        raise RuntimeError("the server still runs after kill -9")


class SmallSite:
    """A folder of small studies with tiny networks, on which labels are saved and trained."""

    def __init__(self, folder: Path, outcome: Outcome) -> None:
        folder.mkdir(parents=True)
        self.site, self.folder, self.outcome = Site(folder), folder, outcome
        self.images = sorted(self.site.datastore.list_images())
        self.saved = {image: Saved() for image in self.images[2:]}
        self.masks: dict[str, str] = {}
        self.starts = 0

    @contextmanager
    def server(self) -> Iterator[RunningServer]:
        conf = {
            "weights": self.site.student,
            "teacher_weights": self.site.teacher,
            "model_dir": self.folder / "model",
            "spacing_mm": SPACING_MM,
            "audit_log": "off",
        }
        arguments = [text for name, value in conf.items() for text in ("--conf", name, str(value))]
        self.starts += 1
        log = self.folder / f"server-{self.starts}.log"
        env = {"OMP_NUM_THREADS": "1", "TMPDIR": str(self.folder)}
        with running_server(self.folder / "studies", log, *arguments, env=env) as server:
            yield server

    def kill_during(self, kind: str, dice: random.Random) -> None:
        """Start, check what the last kill left, and kill during the next activity."""
        activities: dict[str, Callable[[RunningServer], None]] = {
            "saving": self._save, "publishing": self._publish, "training": self._train,
        }  # fmt: skip
        with self.server() as server:
            self.check(server)
            with killed(server, dice.uniform(0.05, LONGEST_SECONDS[kind])):
                activities[kind](server)

    def check_after_start(self) -> None:
        with self.server() as server:
            self.check(server)

    # --- activities: each ends when the server is gone --------------------------------------------

    def _save(self, server: RunningServer) -> None:
        def save_all(image: str, saved: Saved) -> None:
            shape = nib.load(self.site.datastore.get_image_uri(image)).shape
            generator = np.random.default_rng(len(saved.acknowledged))
            with suppress(requests.RequestException):
                while True:
                    values = generator.integers(0, 3, shape, dtype=np.uint8)
                    image_file = nib.load(self.site.datastore.get_image_uri(image))
                    content = nib.Nifti1Image(values, image_file.affine).to_bytes()
                    saved.flying = digest(content)
                    saved.sent.add(saved.flying)
                    reply = save_label(server.url, image, content)
                    assert reply.status_code == 200, reply.text
                    saved.acknowledged.append(saved.flying)

        threads = [threading.Thread(target=save_all, args=item) for item in self.saved.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _publish(self, server: RunningServer) -> None:
        """Publish by another process and roll back over HTTP; both are killed."""
        command = [sys.executable, "-c", PUBLISH, self.folder / "model" / "fastsam3d" / "published"]
        command += [file_weights(self.site.student).network_id, str(1000 * self.starts)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as publisher:
            try:
                publisher.stdout.readline()
                with suppress(requests.RequestException):
                    while True:
                        for version in self._versions(server):
                            url = f"{server.url}/weights/fastsam3d/rollback"
                            requests.post(url, params={"version": version}, timeout=60)
            finally:
                publisher.kill()

    def _train(self, server: RunningServer) -> None:
        with suppress(requests.RequestException):
            requests.post(f"{server.url}/train/fastsam3d", json=TRAINING, timeout=60)

    # --- checks -----------------------------------------------------------------------------------

    def _versions(self, server: RunningServer) -> list[int]:
        listed = requests.get(f"{server.url}/weights/fastsam3d", timeout=60).json()
        return [0, *(int(each["number"]) for each in listed["versions"])]

    def check(self, server: RunningServer) -> None:
        """Check labels, files and masks."""
        for image, saved in self.saved.items():
            self._check_labels(server, image, saved)
        self._check_files()
        reply = server.infer("fastsam3d", "scan0", {"foreground": [list(POINT_IJK)]}, "json")
        assert reply.status_code == 200, reply.text
        weights = reply.json()["weights"]["sha256"]
        mask = mask_hash(click(server.url, "scan0", POINT_IJK))
        is_same = self.masks.setdefault(weights, mask) == mask
        self.outcome.check(is_same, f"weights {weights[:8]}: another mask than before a kill")

    def _check_labels(self, server: RunningServer, image: str, saved: Saved) -> None:
        query = {"label": image, "tag": "final"}
        reply = requests.get(f"{server.url}/datastore/label", params=query, timeout=60)
        if not saved.acknowledged and reply.status_code == 404:
            return
        found = digest(reply.content)
        newest = saved.acknowledged[-1:] + [saved.flying]
        self.outcome.check(found in newest, f"{image}: the label is not what was acknowledged")
        if found == saved.flying and found not in saved.acknowledged:
            saved.acknowledged.append(found)  # it came in, but the reply did not come out
        query = {"image": image, "tag": "final"}
        url = f"{server.url}/datastore/label/versions"
        listed = requests.get(url, params=query, timeout=60).json()
        known = {each["sha256"] for each in [listed["current"], *listed["versions"]]}
        lost = [each for each in saved.acknowledged[-KEPT:] if each not in known]
        self.outcome.check(not lost, f"{image}: {len(lost)} acknowledged versions are lost")

    def _check_files(self) -> None:
        """Check that each file of the studies can be read, and that none is a part of one."""
        studies = self.folder / "studies"
        parts = [str(path) for path in studies.rglob(f"*{SUFFIX}")]
        self.outcome.check(not parts, f"the start left {parts}")
        for path in studies.rglob("*.json"):
            try:
                json.loads(path.read_text())
            except ValueError:
                self.outcome.fail(f"{path} is broken")
        sent = {each for saved in self.saved.values() for each in saved.sent}
        for path in (studies / "labels").rglob("*.nii"):
            is_whole = digest(path.read_bytes()) in sent
            self.outcome.check(is_whole, f"{path} is none of the labels that were sent")


class Archive:
    """A server on a slow PACS, which is killed while it fetches a series."""

    def __init__(self, folder: Path, pacs: FakePacs, outcome: Outcome) -> None:
        folder.mkdir(parents=True)
        self.folder, self.pacs, self.outcome = folder, pacs, outcome
        self.fetched: list[str] = []
        self.mask = ""
        self.starts = 0

    @contextmanager
    def server(self) -> Iterator[RunningServer]:
        self.starts += 1
        log = self.folder / f"server-{self.starts}.log"
        env = {**environment(self.folder), "MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT": "30"}
        with running_server(self.pacs.url, log, *BALL_WEIGHTS, env=env) as server:
            yield server

    def kill_during(self, kind: str, dice: random.Random) -> None:
        """Start, check what the last kill left, and kill during the next download."""
        (uid,) = add_series(self.pacs, self.folder / "dicom" / str(self.starts), 1, self.starts)
        with self.server() as server:
            self.check(server)
            self.pacs.breaks("slow", ("retrieve",))
            try:
                with (
                    killed(server, dice.uniform(0.05, LONGEST_SECONDS[kind])),
                    suppress(requests.RequestException),
                ):
                    click(server.url, uid)
            finally:
                self.pacs.heals()
        self.fetched.append(uid)

    def check_after_start(self) -> None:
        if self.fetched:
            with self.server() as server:
                self.check(server)

    def check(self, server: RunningServer) -> None:
        """Check the masks of all series whose download was killed; all are copies of one scan."""
        for uid in self.fetched:
            mask = mask_hash(click(server.url, uid))
            self.mask = self.mask or mask
            self.outcome.check(mask == self.mask, f"series {uid}: another mask after a kill")
