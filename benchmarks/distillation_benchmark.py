"""Measure layer-wise distillation through a running server.

    python -m benchmarks.distillation_benchmark --studies DIR --json FILE --markdown FILE

Trains a student from its teacher through the client's API and clicks during the training. Then
trains for the same time with the logits alone, and compares. Last, kills a short training and
resumes it. DIR is a folder of studies as the server takes it, or a data set that
`benchmarks.datasets` reads (`--part` selects a part of it).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from monailabel.client import MONAILabelClient

from lib.errors import AppError, InputError
from lib.imaging.volume import read_volume
from lib.trainers.schedule import active_pairs

from .click_clients import MODEL, Ohif, Server, running_server
from .click_report import percentiles
from .datasets import find_cases
from .distillation_report import markdown
from .machine import machine
from .report_table import write_report

POLL_SECONDS = 2.0
IDLE_CLICKS, CLICK_EVERY = 15, 4.0
"""IDLE_CLICKS: clicks on the idle server; CLICK_EVERY: seconds between clicks while training."""

SHORT = {"max_epochs": 6, "iterations_per_epoch": 3, "train_batch_size": 4, "val_rois": 4}
"""SHORT: options of the training that is killed."""


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        run(parse(arguments))
    except AppError as error:
        sys.exit(f"distillation_benchmark: {error}")


def run(options: argparse.Namespace) -> None:
    """Measure and write the requested files; raises AppError if an option cannot be used."""
    train_options = {"start": "teacher", **options.options}
    with tempfile.TemporaryDirectory(prefix="distillation-", dir=options.work) as temporary:
        folder = Path(temporary)
        studies = prepare(options.studies, options.part, options.most, folder / "studies")
        conf = [text for pair in options.conf for text in pair]
        conf += ["model_dir", str(folder / "model")]
        with running_server(studies, folder, conf) as server:
            result = measure(server, studies, train_options, options.logits_rate, options.kill)
        curves = folder / "model" / MODEL / "run" / "curves.png"
        shutil.copy(curves, options.json.with_suffix(".png"))
    write_report(result, markdown(result), options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=Path, required=True)
    parser.add_argument("--part", help="part of the data set, see benchmarks.datasets")
    parser.add_argument(
        "--most", type=int, default=40, help="most studies taken from a data set (40)"
    )
    parser.add_argument("--options", type=json.loads, default={}, help="training options, as JSON")
    parser.add_argument("--conf", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"))
    parser.add_argument(
        "--logits-rate", type=float, help="learning rate with the logits alone (default: lr_stage2)"
    )
    parser.add_argument(
        "--no-kill", dest="kill", action="store_false", help="skip killing and resuming"
    )
    parser.add_argument("--work", type=Path, help="folder of temporary files")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args(arguments)


def prepare(source: Path, part: str | None, most: int, folder: Path) -> Path:
    """Return a folder of studies as the server takes it; copy up to `most` cases of a data set."""
    if part is None and list(source.glob("*.nii.gz")):
        return source
    (folder / "labels" / "final").mkdir(parents=True)
    cases = find_cases(source, part)
    for case in cases[:: -(-len(cases) // most)]:
        name = f"{case.source}-{case.name}".replace(" ", "_")
        suffix = "".join(case.image.suffixes[-2:])
        shutil.copy(case.image, folder / f"{name}{suffix}")
        shutil.copy(case.label, folder / "labels" / "final" / f"{name}{suffix}")
    return folder


def measure(
    server: Server, studies: Path, options: dict[str, Any], logits_rate: float | None, kill: bool
) -> dict[str, Any]:
    """Return all numbers as they are written to JSON.

    options: of the training. logits_rate: learning rate with the logits alone, or None for that of
    stage 2. kill: whether to kill and resume a training.
    """
    client = MONAILabelClient(server.url)
    clicks = ClickTimer(server, studies)
    result: dict[str, Any] = {"date": str(date.today()), **machine(), "options": options}
    result["weights"] = before = weights(server)
    result["click_ms"] = {"idle": clicks.median(IDLE_CLICKS)}

    stats, times = train(server, client, options, clicks)
    result["click_ms"]["training"] = times
    result["layerwise"] = summary(stats)
    result["schedule"] = schedule(stats)
    after = weights(server)
    if stats["published"]:
        rollback(server)
    result["publishing"] = {
        "published": stats["published"],
        "reason": stats["reason"],
        "served_is_new": after["sha256"] != before["sha256"],
        "rollback_restores": weights(server)["sha256"] == before["sha256"],
    }

    same_time = {**options, "stage1_fraction": 0, "max_epochs": epochs_of_logits(stats)}
    if logits_rate:
        same_time["lr_stage2"] = logits_rate  # untrained blocks tolerate a higher rate
    logits, _ = train(server, client, same_time)
    if logits["published"]:
        rollback(server)
    result["logits_only"] = {**summary(logits), "rate": logits_rate}
    if kill:
        result["kill"] = killed(server, client, options)
    return result


def train(
    server: Server,
    client: MONAILabelClient,
    options: dict[str, Any],
    clicks: ClickTimer | None = None,
    trainer: str = MODEL,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Train until the task is DONE; return its statistics and the times of clicks during it."""
    client.train_start(trainer, dict(options))
    times: list[float] = []
    last = time.monotonic()
    while client.train_status(True):
        time.sleep(POLL_SECONDS)
        if (
            clicks
            and statistics_of(server, trainer).get("epoch")
            and time.monotonic() - last > CLICK_EVERY
        ):
            times.append(clicks.ms())
            last = time.monotonic()
    task = client.train_status()
    if task["status"] != "DONE":
        raise AppError(f"the training ended in {task['status']}: {task['details'][-1]}")
    return statistics_of(server, trainer), click_times(times) if times else None


def statistics_of(server: Server, trainer: str = MODEL) -> dict[str, Any]:
    """Return the statistics of the current or last training."""
    return json.loads(server.get("/info/"))["train_stats"][trainer]


def weights(server: Server) -> dict[str, Any]:
    """Return the description of the weights that are served."""
    return json.loads(server.get(f"/weights/{MODEL}"))["weights"]


def rollback(server: Server) -> None:
    """Serve the previous version of the weights again."""
    import requests

    requests.post(f"{server.url}/weights/{MODEL}/rollback", timeout=60).raise_for_status()


def summary(stats: dict[str, Any]) -> dict[str, Any]:
    """Return the best student's and the teacher's Dice, the pairs' errors and the time."""
    best = next(row for row in stats["history"] if row["epoch"] == stats["best_metric_epoch"])
    student, teacher = best["dice_student"], best["dice_teacher"]
    return {
        "epochs": stats["total_epochs"],
        "updates": stats["iteration"],
        "seconds": stats["history"][-1]["seconds"],
        "dice_student": student,
        "dice_teacher": teacher,
        "kept": {clicks: student[clicks] / max(teacher[clicks], 1e-9) for clicks in student},
        "pair_errors": stats.get("pair_errors"),
        "studies": stats["studies"],
        "skipped": stats["skipped"],
    }


def schedule(stats: dict[str, Any]) -> list[dict[str, int]]:
    """Return iteration and k of each epoch of stage 1, and k after Eq. 2."""
    rows = [row for row in stats["history"] if row["stage"] == 1]
    return [
        {
            "epoch": row["epoch"],
            "iteration": row["iteration"],
            "k": row["k"],
            "eq2": active_pairs(row["iteration"], rows[-1]["iteration"], len(row["pair_losses"])),
        }
        for row in rows
    ]


def epochs_of_logits(stats: dict[str, Any]) -> int:
    """Return how many epochs of stage 2 take as long as the whole run."""
    last, end = stats["history"][-1], stats["total_epochs"]
    first = next((row for row in stats["history"] if row["stage"] == 2), last)
    before = next((r for r in stats["history"] if r["epoch"] == first["epoch"] - 1), {"seconds": 0})
    epochs = end - first["epoch"] + 1
    return max(1, round(last["seconds"] / ((last["seconds"] - before["seconds"]) / epochs)))


class ClickTimer:
    """Clicks repeatedly on one study, each time at another place."""

    def __init__(self, server: Server, studies: Path) -> None:
        path, shape_ijk = first_readable(studies)
        self._image = path.name.removesuffix(".nii.gz")
        self._viewer = Ohif(server.url)
        self._centre = np.array(shape_ijk) // 2
        self._generator = np.random.default_rng(0)
        self._viewer.click(self._image, [self._centre])

    def ms(self) -> float:
        """Time a second click near the first one in ms, with the embedding cached."""
        step = self._generator.integers(-4, 5, 3)
        place = np.clip(self._centre + step, 0, None)
        return self._viewer.click(self._image, [self._centre, place]).ms

    def median(self, count: int) -> dict[str, Any]:
        """Return median and 95th percentile of `count` clicks."""
        return click_times([self.ms() for _ in range(count)])


def first_readable(studies: Path) -> tuple[Path, tuple[int, ...]]:
    """Return path and shape of the first readable .nii.gz; raises InputError without one."""
    for path in sorted(studies.glob("*.nii.gz")):
        try:
            return path, read_volume(path).shape_ijk
        except InputError as error:
            print(error, flush=True)
    raise InputError(f"{studies} has no readable .nii.gz")


def click_times(times_ms: Sequence[float]) -> dict[str, Any]:
    """Return median, 95th percentile and number of click times."""
    times = percentiles(times_ms)
    return {"median": times["p50"], "p95": times["p95"], "clicks": len(times_ms)}


def killed(server: Server, client: MONAILabelClient, options: dict[str, Any]) -> dict[str, float]:
    """Return the last loss of a short run, and of the same run killed (-9) and resumed."""
    short = {**options, **SHORT, "min_gain": 1.0}
    whole, _ = train(server, client, {**short, "keep_versions": 1})
    client.train_start(MODEL, dict(short))
    while statistics_of(server).get("iteration", 0) < 9 or "total_time" in statistics_of(server):
        if not client.train_status(True):
            details = client.train_status()["details"][-3:]
            raise AppError(f"the training ended before it could be killed: {details}")
        time.sleep(0.1)
    for process in server.processes[0].children(recursive=True):
        if is_training(process):
            os.kill(process.pid, signal.SIGKILL)
    while client.train_status(True):
        time.sleep(POLL_SECONDS)
    status = client.train_status()["status"]
    again, _ = train(server, client, short)
    return {
        "loss": whole["history"][-1]["loss"],
        "resumed_loss": again["history"][-1]["loss"],
        "difference": abs(again["history"][-1]["loss"] / whole["history"][-1]["loss"] - 1),
        "status_after_kill": status,
        "resumed": again["resumed"],
    }


def is_training(process: psutil.Process) -> bool:
    return "monailabel.interfaces.utils.app" in process.cmdline()


if __name__ == "__main__":
    main()
