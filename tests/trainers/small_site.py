"""A small site to train at: a few studies, a teacher of 12 blocks and a student of 6."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from lib.infers.served_masks import ServedMasks
from lib.networks import FastSAM3DConfig, build_untrained, save_checkpoint
from lib.trainers import AdaptationTask, DistillationTask
from lib.trainers import run as run_module
from lib.trainers.run import Run
from lib.weights.files import file_weights
from lib.weights.served import ServedWeights
from lib.weights.versions import StudentVersions

TEACHER = FastSAM3DConfig(
    roi_size=16,
    patch_size=4,
    width=16,
    depth=12,
    num_heads=2,
    out_channels=16,
    decoder_heads=2,
    decoder_mlp_width=16,
    mask_channels=4,
    iou_head_width=8,
    position_bias="none",
    swap_dense_axes=False,
)
STUDENT = replace(TEACHER, depth=6, attention_free_blocks=(0, 1), residual="normed")
SPACING_MM = 8.0
MASKS = ServedMasks(SPACING_MM, auto_zoom=False)

# a run of seconds: two epochs of each stage
SHORT = {
    "max_epochs": 4,
    "iterations_per_epoch": 3,
    "stage1_fraction": 0.5,
    "train_batch_size": 4,
    "val_rois": 4,
    "val_interval": 2,
    "device": "cpu",
}


class FolderDatastore:
    """The part of MONAI Label's datastore that training uses, on a folder.

    patients: PatientID of images, as a datastore of a DICOM server knows it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.patients: dict[str, str] = {}

    def list_images(self) -> list[str]:
        return [path.name.partition(".")[0] for path in self.folder.glob("*.nii.gz")]

    def get_image_uri(self, image_id: str) -> str:
        return str(self.folder / f"{image_id}.nii.gz")

    def get_image_info(self, image_id: str) -> dict[str, str]:
        return {"PatientID": self.patients[image_id]} if image_id in self.patients else {}

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        exists = Path(self.get_label_uri(image_id, "final")).exists()
        return {"final": image_id} if exists else {}

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        return str(self.folder / "labels" / label_tag / f"{label_id}.nii.gz")


def write_studies(folder: Path, count: int = 4, labelled: int = 2) -> FolderDatastore:
    """Write studies with a bright ball in a body; the first `labelled` have a label of the ball."""
    (folder / "labels" / "final").mkdir(parents=True)
    generator = np.random.default_rng(0)
    affine_mm = np.diag([6.0, 7.0, 8.0, 1.0])
    ijk = np.indices((24, 21, 18))
    for number in range(count):
        image = generator.normal(0, 15, ijk.shape[1:])
        image[distance(ijk, (12, 10, 9)) > 8] = -1000
        ball = distance(ijk, generator.integers(7, 12, 3)) < 4
        image[ball] += 300
        name = f"scan{number}.nii.gz"
        nib.save(nib.Nifti1Image(image.astype(np.int16), affine_mm), folder / name)
        if number < labelled:
            label = nib.Nifti1Image(ball.astype(np.uint8), affine_mm)
            nib.save(label, folder / "labels" / "final" / name)
    return FolderDatastore(folder)


def distance(ijk: np.ndarray, centre_ijk: tuple[int, ...] | np.ndarray) -> np.ndarray:
    return np.linalg.norm(ijk - np.reshape(centre_ijk, (3, 1, 1, 1)), axis=0)


def write_networks(folder: Path) -> tuple[Path, Path]:
    """Write files of a student and of its teacher, both with random weights."""
    student, teacher = folder / "student.safetensors", folder / "teacher.safetensors"
    save_checkpoint(build_untrained(STUDENT, seed=1), student)
    save_checkpoint(build_untrained(TEACHER, seed=2), teacher)
    return student, teacher


class Site:
    """Studies, networks and the trainer, in a folder."""

    def __init__(self, folder: Path, **studies: int) -> None:
        self.folder = folder
        self.datastore = write_studies(folder / "studies", **studies)
        self.student, self.teacher = write_networks(folder)

    @property
    def arguments(self) -> list[str]:
        """Options of a server on this site."""
        conf = {
            "weights": self.student,
            "teacher_weights": self.teacher,
            "model_dir": self.folder / "model",
            "spacing_mm": SPACING_MM,
        }
        return [text for name, value in conf.items() for text in ("--conf", name, str(value))]

    def task(self, model_dir: str = "model", student: Path | None = None) -> DistillationTask:
        folder = self.folder / model_dir / "fastsam3d"
        served, teacher = self.served(model_dir, student), file_weights(self.teacher)
        return DistillationTask(folder, served, teacher, MASKS, spacing_mm=SPACING_MM)

    def adaptation(self, model_dir: str = "model") -> AdaptationTask:
        folder = self.folder / model_dir / "fastsam3d"
        return AdaptationTask(folder, self.served(model_dir), MASKS)

    def served(self, model_dir: str = "model", student: Path | None = None) -> ServedWeights:
        folder = self.folder / model_dir / "fastsam3d"
        base = file_weights(student or self.student)
        return ServedWeights(base, StudentVersions(folder / "published", base.network_id))

    def train(self, model_dir: str = "model", **options: object) -> dict:
        """Train with ``SHORT`` and these options; return the statistics."""
        task = self.task(model_dir)
        task({**SHORT, **options}, self.datastore)
        return task.stats()

    def run_folder(self, model_dir: str) -> Path:
        return self.folder / model_dir / "fastsam3d" / "run"

    def command(self, model_dir: str, **options: object) -> list[str]:
        """Return train.py and its arguments for these options."""
        script = Path(run_module.__file__).parents[2] / "train.py"
        command = [str(script), "--studies", str(self.folder / "studies")]
        conf = {
            "weights": self.student,
            "teacher_weights": self.teacher,
            "model_dir": self.folder / model_dir,
            "spacing_mm": "8",
            "zoom": "fixed",  # as MASKS
        }
        for name, value in conf.items():
            command += ["--conf", name, str(value)]
        for name, value in options.items():
            flag = "start-from" if name == "start" else name.replace("_", "-")
            command += [f"--{flag}", str(value)]
        return command

    def start(self, model_dir: str, **options: object) -> subprocess.Popen:
        """Start train.py in a process of its own."""
        return subprocess.Popen(
            [sys.executable, *self.command(model_dir, **options)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def numbers(stats: dict) -> list[dict]:
    """Return the history without times."""
    return [{name: x for name, x in row.items() if name != "seconds"} for row in stats["history"]]


class Killed(BaseException):
    """Ends a run as abruptly as a killed process."""


@contextlib.contextmanager
def killed_after(updates: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kill a run within the block after `updates` updates."""
    step = Run._step

    def step_or_die(self: Run, batch: dict) -> None:
        if self.progress.update == updates:
            raise Killed
        step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_step", step_or_die)
        with contextlib.suppress(Killed):
            yield


def judge_as(monkeypatch: pytest.MonkeyPatch, new: float, served: float) -> None:
    """Let the studies that judge give the new student and the served one these Dice."""
    values = itertools.cycle([new, served])
    monkeypatch.setattr("lib.trainers.task.mean_dice", lambda *_: [next(values)])


def stop_while_judging(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let a stop arrive while a study is judged; return the list of the judged studies' names."""
    judged: list[str] = []

    def stop(*arguments: Any) -> list[float]:
        judged.append(arguments[2][0].name)
        os.kill(os.getpid(), signal.SIGTERM)
        return [0.4]

    monkeypatch.setattr("lib.trainers.task.mean_dice", stop)
    return judged
