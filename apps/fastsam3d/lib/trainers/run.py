"""One distillation in one process: build, step, evaluate."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from lib.networks import FastSAM3D, build_untrained
from lib.weights.files import Weights

from . import processes
from .data.batches import Batches
from .data.roi_pool import SpacingAt, make_pools
from .data.studies import ExaminedStudy
from .data.study_split import Split
from .data.tensor_store import TensorStore
from .loop import TrainingLoop
from .run_state import Progress, RunFolder, private_folder, run_signature
from .schedule import LayerPairs, layer_pairs
from .stages import Batch, to_device
from .student_start import start_student
from .teacher import TeacherFeatures, make_features
from .train_options import TrainOptions
from .updates import Updater
from .validation import Validation, pair_errors, validate

logger = logging.getLogger(__name__)

START_MARGIN = 0.05
"""START_MARGIN: Dice by which the served student must beat the teacher's copy to be the start."""

MEASURED_ROIS = 4
"""MEASURED_ROIS: ROIs on which an epoch of stage 2 measures the errors of the pairs."""


class RunWeights(NamedTuple):
    """The networks of a run.

    base_id: id of the weights that the server was started with. served: the student to train.
    teacher: None for training on labels alone.
    """

    base_id: str
    served: Weights
    teacher: Weights | None


class Run(TrainingLoop):
    """The training of a student; its methods stand in the order in which they are called.

    Each process of a run has a Run of its own. The first process validates and saves; the others
    only take part in the updates.
    """

    # --- build ------------------------------------------------------------------------------------

    def __init__(
        self,
        folder: RunFolder,
        options: TrainOptions,
        studies: Split[ExaminedStudy],
        weights: RunWeights,
        spacing_mm: float,
        device: torch.device,
        spacing_mm_at: SpacingAt | None = None,
    ) -> None:
        """spacing_mm, spacing_mm_at: see `make_pools`."""
        super().__init__(folder, options, device)
        self.options = options
        self._loader: DataLoader | None = None
        self._studies, self._weights = studies, weights
        self._teacher_dice: dict[int, float] | None = None

        cache = private_folder(folder.folder / "cache")  # parts of patients' scans
        config, teacher = weights.served.network.config, weights.teacher
        max_bytes = options.cache_mb * 2**20
        store = TensorStore(cache / "rois", max_bytes)
        self.rois, self.held_out = make_pools(
            studies, config, options, spacing_mm, store, spacing_mm_at
        )
        self.pairs: LayerPairs = ()
        self.features: TeacherFeatures | None = None
        if teacher is not None:
            if options.stage1_epochs:
                self.pairs = layer_pairs(teacher.network.config.depth, config.depth)
            self.features = make_features(teacher, self.pairs, cache / "teacher", max_bytes, device)
        self.student = copy.deepcopy(weights.served.before_adaptation).to(device)
        self.student.requires_grad_(True)
        self._updater = Updater(self.student, self.features, self.pairs, options, device)
        self._schedule = self._updater.schedule
        self._batches = Batches(len(self.rois), options, processes.rank(), processes.world_size())
        self.signature = run_signature(
            options,
            studies.all(),
            {
                "parts": [len(part) for part in studies],
                "base": weights.base_id,
                "config": config.to_dict(),
                "policy": weights.served.network.policy.to_dict(),
                "teacher": teacher.network_id if teacher else None,
                "spacing_mm": spacing_mm,
                "is_scaled": spacing_mm_at is not None,
            },
        )

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Resume a stopped run with the same signature, or choose the student to start with.

        facts: further statistics for clients.
        """
        state, note = self._stored_state()
        if state is not None:
            self._load(state)
        else:
            self.progress.facts.update(self._choose_start())
            if self.pairs:
                self.progress.facts["pair_errors"] = {"initial": self._pair_errors(self.held_out)}
        teacher = self._weights.teacher
        self.progress.facts |= {
            "options": self.options.to_dict(),
            "teacher": teacher.file if teacher else None,
            "studies": {
                "train": len(self._studies.train),
                "held_out": len(self._studies.held_out),
                "judged": len(self._studies.judged),
                "labelled": sum(each.is_labelled for each in self._studies.all()),
            },
            "resumed": note,
            **facts,
        }
        if note:
            logger.info(note)
        self._write_stats()

    def _load(self, state: Mapping[str, Any]) -> None:
        self.progress = Progress(**state["progress"])
        self.student.load_state_dict(state["student"])
        self._updater.optimizer.load_state_dict(state["optimizer"])
        self._updater.scaler.load_state_dict(state["scaler"])
        self._batches.position = self.progress.update

    def _choose_start(self) -> dict[str, Any]:
        """Load the student that the run starts with; return facts about it for clients."""
        start = self.options.start
        if self.features is None or start == "served":
            return {"start": "served"}
        student = self.student
        fresh = build_untrained(student.config, self.options.seed, student.policy).to(self.device)
        start_student(fresh, self.features.teacher)
        means: dict[str, float] = {}
        if start == "auto":
            means = {
                "served": self._validate(self.student).mean,
                "teacher": self._validate(fresh).mean,
            }
            start = "served" if means["served"] > means["teacher"] + START_MARGIN else "teacher"
        if start == "teacher":
            self.student.load_state_dict(fresh.state_dict())
        return {"start": start, "start_dice": means}

    # --- step -------------------------------------------------------------------------------------

    @property
    def updates(self) -> int:
        return self._schedule.updates

    @property
    def is_epoch_over(self) -> bool:
        return self.progress.update % self._schedule.per_epoch == 0

    @property
    def epochs(self) -> tuple[int, int]:
        return self.progress.update // self._schedule.per_epoch, self.options.max_epochs

    def _batches_of_epoch(self) -> Iterable[Batch]:
        if self._loader is None:
            self._loader = DataLoader(
                self.rois, batch_sampler=self._batches, num_workers=self.options.workers
            )
        return self._loader

    def _step(self, batch: Batch) -> None:
        self.student.train()
        losses = self._updater(to_device(batch, self.device), self.progress.update)
        self.progress.add(losses)
        self._clock.tick(self.progress)

    # --- evaluate ---------------------------------------------------------------------------------

    def _end_epoch(self) -> None:
        """Validate if it is due, add the epoch to the history, and save."""
        last = self.progress.update - 1
        epoch, stage = self.progress.update // self._schedule.per_epoch, self._schedule.stage(last)
        dice = {}
        if self.is_first and self._schedule.is_validated(epoch):
            dice = self._validate_student(epoch, stage)
        row = self.progress.end_epoch(
            len(self.pairs),
            epoch=epoch,
            stage=stage,
            iteration=self.progress.update,
            k=self._schedule.k(last),
            lr=self._schedule.rate(last),
            seconds=round(self.progress.seconds, 1),
            **dice,
        )
        if not self.is_first:
            return
        if self.pairs and stage == 2:
            some_rois = Subset(self.rois, self._batches.batch(last)[:MEASURED_ROIS])
            row["pair_losses"] = self._pair_errors(some_rois)
        if self.pairs and epoch == self.options.stage1_epochs:
            self.progress.facts["pair_errors"]["stage1"] = self._pair_errors(self.held_out)
        self._report(row)
        self.save()

    def _validate_student(self, epoch: int, stage: int) -> dict[str, Any]:
        """Measure student and teacher for the history; keep the student if it is the best.

        One of stage 2 replaces those of stage 1 whatever its Dice: it has learned from masks and
        labels, and the difference is often chance.
        """
        validation = self._validate(self.student)
        if self.features is not None and self._teacher_dice is None:
            self._teacher_dice = self._validate(self.features.teacher).dice
        best = self.progress.best
        if (stage, validation.mean) > (best.get("stage", 0), best.get("mean", -1.0)):
            self.folder.save_best(self.student)
            self.progress.best = {
                "mean": validation.mean,
                "dice": validation.dice,
                "epoch": epoch,
                "stage": stage,
                "per_roi": validation.per_roi.tolist(),
            }
        return {"dice_student": validation.dice, "dice_teacher": self._teacher_dice}

    def _validate(self, network: FastSAM3D) -> Validation:
        return validate(network.eval(), self.held_out, self.features, seed=self.options.seed)

    def _pair_errors(self, rois: Dataset) -> list[float]:
        if self.features is None:
            return []
        return pair_errors(self.student.eval(), self.features, self.pairs, rois)

    def _report(self, row: Mapping[str, Any]) -> None:
        """Log the epoch and draw its curves."""
        dice = ""
        if row.get("dice_student"):
            teacher = _rounded(row["dice_teacher"]) if row["dice_teacher"] else "none"
            dice = f", Dice {_rounded(row['dice_student'])} (teacher {teacher})"
        logger.info(
            "stage %d, epoch %d of %d, k %d, loss %.4f%s",
            row["stage"],
            row["epoch"],
            self.options.max_epochs,
            row["k"],
            row["loss"],
            dice,
        )
        self._draw(row)

    def _state(self) -> dict[str, Any]:
        return {
            "student": self.student.state_dict(),
            "optimizer": self._updater.optimizer.state_dict(),
            "scaler": self._updater.scaler.state_dict(),
        }

    # --- end --------------------------------------------------------------------------------------

    def candidate(self) -> FastSAM3D:
        """Return the best student of the last stage, on the CPU, and measure its pair errors."""
        best = torch.load(self.folder.best, map_location=self.device, weights_only=True)
        self.student.load_state_dict(best)
        if self.pairs:
            self.progress.facts["pair_errors"]["final"] = self._pair_errors(self.held_out)
        return copy.deepcopy(self.student).cpu().eval()


def _rounded(dice: Mapping[int, float]) -> str:
    return " ".join(f"{value:.3f}" for value in dice.values())
