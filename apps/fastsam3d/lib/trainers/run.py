"""One training of a student in one process: what is trained, on what, and what is written."""

from __future__ import annotations

import copy
import logging
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.utils.data import DataLoader, Dataset, Subset
from torch.utils.tensorboard import SummaryWriter

from lib.networks import FastSAM3D, build_untrained
from lib.weights.files import Weights

from . import processes as launch
from .curves import draw_curves
from .data.batches import Batches
from .data.roi_pool import RoiOptions, RoiPool
from .data.studies import Split
from .data.tensor_store import TensorStore
from .run_state import Clock, Progress, RunFolder, duration
from .schedule import LayerPairs, layer_pairs
from .stages import to_device
from .student_start import start_student
from .teacher import TeacherFeatures
from .train_options import TrainOptions
from .updates import Updates
from .validation import Validation, Verdict, judge, pair_errors, validate

logger = logging.getLogger(__name__)

SAVE_SECONDS = 30.0
MARGIN = 0.05
"""Dice by which a served student must be ahead of the teacher's copy to be gone on with."""

MEASURED_ROIS = 4
"""ROIs on which the pairs' errors are measured in an epoch that does not train them."""


@dataclass(frozen=True)
class Data:
    """The ROIs of a run. rois: for training. held_out: for validation, without augmentation."""

    rois: RoiPool
    held_out: RoiPool
    by_roi: bool

    @classmethod
    def of(
        cls, parts: Split, config: Any, options: TrainOptions, spacing_mm: float, cache: Path
    ) -> Data:
        store = TensorStore(cache / "rois", options.cache_mb * 2**20)
        rois = RoiPool(
            parts.train, options.pool_size, config, RoiOptions(spacing_mm), options.seed, store
        )
        held_out = RoiPool(
            parts.held_out,
            options.val_rois,
            config,
            RoiOptions.plain(spacing_mm),
            options.seed + 1,
            store,
        )
        return cls(rois, held_out, parts.by_roi)


def make_features(
    teacher: Weights, pairs: LayerPairs, cache: Path, options: TrainOptions, device: torch.device
) -> TeacherFeatures:
    for folder in (cache / "teacher").glob("*"):  # of teachers before this one
        if not folder.name.startswith(teacher.network_id[:16]):
            shutil.rmtree(folder, ignore_errors=True)
    network = copy.deepcopy(teacher.network).to(device)
    blocks = [block for block, _ in pairs]
    return TeacherFeatures(
        cache / "teacher", options.cache_mb * 2**20, network, teacher.network_id, blocks
    )


class Run:
    """What happens around each update; attached to the trainer's engine as a handler."""

    def __init__(
        self,
        folder: RunFolder,
        signature: str,
        data: Data,
        served: Weights,
        teacher: Weights | None,
        options: TrainOptions,
        device: torch.device,
    ) -> None:
        self.folder, self.signature, self.data = folder, signature, data
        self.options, self.device = options, device
        self.is_first = launch.rank() == 0
        self.progress = Progress()
        self.stop_asked = False
        self._clock = Clock(SAVE_SECONDS)
        self._validation: dict[str, Any] = {}
        self._teacher_dice: dict[int, float] | None = None
        self._writer: SummaryWriter | None = None

        config = served.network.config
        cache = folder.folder.parent / "cache"
        self.pairs: LayerPairs = ()
        self.features: TeacherFeatures | None = None
        if teacher is not None:
            if options.stage1_epochs:
                self.pairs = layer_pairs(teacher.network.config.depth, config.depth)
            self.features = make_features(teacher, self.pairs, cache, options, device)
        student = copy.deepcopy(served.network).to(device).requires_grad_(True)
        self.updates = Updates(student, self.features, self.pairs, options, device)
        self.batches = Batches(len(data.rois), options, launch.rank(), launch.world_size())

    @property
    def student(self) -> FastSAM3D:
        return self.updates.student

    def loader(self) -> DataLoader:
        return DataLoader(
            self.data.rois, batch_sampler=self.batches, num_workers=self.options.workers
        )

    # --- begin ------------------------------------------------------------------------------------

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Go on with a stopped run that computes the same, or choose a student to start with."""
        content, note = None, ""
        if self.options.resume:
            content, note = self.folder.load_state(self.signature)
        if content is not None:
            self.progress = Progress(**content["progress"])
            self.student.load_state_dict(content["student"])
            self.updates.optimizer.load_state_dict(content["optimizer"])
            self.updates.scaler.load_state_dict(content["scaler"])
            self.batches.position = self.progress.update
        else:
            start = self._choose_start()
            self.progress.facts.update(start)
            if self.pairs:
                self.progress.facts["pair_errors"] = {"initial": self._pair_errors()}
        self.progress.facts.update(facts, resumed=note)
        if note:
            logger.info(note)
        self.write()

    def _choose_start(self) -> dict[str, Any]:
        """Load the student that the run starts with; -> what clients are told of it."""
        teacher, wanted = self.features, self.options.start
        if teacher is None or wanted == "served":
            return {"start": "served"}
        student = self.student
        fresh = build_untrained(student.config, self.options.seed, student.policy).to(self.device)
        start_student(fresh, teacher.teacher)
        means: dict[str, float] = {}
        if wanted == "auto":
            means = {
                name: self._validate(network).mean
                for name, network in (("served", self.student), ("teacher", fresh))
            }
            wanted = "served" if means["served"] > means["teacher"] + MARGIN else "teacher"
        if wanted == "teacher":
            self.student.load_state_dict(fresh.state_dict())
        return {"start": wanted, "start_dice": means}

    # --- during -----------------------------------------------------------------------------------

    def update(self, engine: Engine, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """The engine's iteration; MONAI's handlers expect the output of each item in a list."""
        self.student.train()
        parts = self.updates(to_device(batch, self.device), self.progress.update)
        self.progress.add(parts)
        self._clock.tick(self.progress)
        return [parts]

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    @contextmanager
    def listening_to_stop(self) -> Iterator[None]:
        """SIGTERM stops after the update under way, with nothing lost."""
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or launch.world_size() > 1:
            yield
            return
        before = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stop_asked", True))
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _iteration_completed(self, engine: Engine) -> None:
        if self.progress.update % self.updates.schedule.per_epoch == 0:
            return  # the epoch's end saves, with its entry in the history
        if self.stop_asked:
            self.save()
            engine.terminate()
        elif self._clock.is_time_to_save():
            self.save()

    def _epoch_completed(self, engine: Engine) -> None:
        update = self.progress.update - 1
        stage = self.updates.schedule.stage(update)
        row = self.progress.end_epoch(
            len(self.pairs),
            epoch=engine.state.epoch,
            stage=stage,
            iteration=self.progress.update,
            k=self.updates.schedule.k(update),
            lr=self.updates.schedule.rate(update),
            seconds=round(self.progress.seconds, 1),
            **self._validation,
        )
        self._validation = {}
        if not self.is_first:
            return
        if stage == 2 and self.pairs:
            row["pair_losses"] = self._pair_errors(self._some_rois(update))
        if engine.state.epoch == self.options.stage1_epochs and self.pairs:
            self.progress.facts["pair_errors"]["stage1"] = self._pair_errors()
        self._log(row)
        draw_curves(self.progress.history, self.folder.curves)
        self.save()
        if self.stop_asked:
            engine.terminate()

    def _some_rois(self, update: int) -> Dataset:
        return Subset(self.data.rois, self.batches.batch(update)[:MEASURED_ROIS])

    def save(self) -> None:
        """The state, and what clients see."""
        if self.is_first:
            self._clock.tick(self.progress)
            self.folder.save_state(self.signature, self.progress, self.updates)
            self._clock.saved()
            self.write()

    def write(self, **last: Any) -> None:
        if self.is_first:
            self.folder.write_stats(self.progress, self.options, **last)

    def _log(self, row: Mapping[str, Any]) -> None:
        """A line for the client's window and the server's log, and TensorBoard's curves."""
        dice = row.get("dice_student")
        logger.info(
            "stage %d, epoch %d of %d, k %d, loss %.4f%s",
            row["stage"],
            row["epoch"],
            self.options.max_epochs,
            row["k"],
            row["loss"],
            f", Dice {_rounded(dice)} (teacher {_rounded(row['dice_teacher'])})" if dice else "",
        )
        if self._writer is None:
            self._writer = SummaryWriter(str(self.folder.folder / "events"))
        for name in ("loss", "k", "lr", "kl", "dice", "ce", "embedding_loss"):
            if name in row:
                self._writer.add_scalar(name, row[name], row["epoch"])
        for number, value in enumerate(row["pair_losses"], start=1):
            if value is not None:
                self._writer.add_scalar(f"pair_losses/{number}", value, row["epoch"])
        for who in ("student", "teacher"):
            for clicks, value in (row.get(f"dice_{who}") or {}).items():
                self._writer.add_scalar(f"dice_{who}/{clicks}", value, row["epoch"])
        self._writer.flush()

    # --- measuring --------------------------------------------------------------------------------

    def validate(self) -> float:
        """Of the student as it is; -> the key metric. The best student so far is kept."""
        found = self._validate(self.student)
        if self.features is not None and self._teacher_dice is None:
            self._teacher_dice = self._validate(self.features.teacher).dice
        self._validation = {"dice_student": found.dice, "dice_teacher": self._teacher_dice}
        if found.mean > self.progress.best.get("mean", -1.0):
            self.folder.save_best(self.student)
            self.progress.best = {
                "mean": found.mean,
                "dice": found.dice,
                "epoch": self.progress.update // self.options.iterations_per_epoch,
                "per_roi": found.per_roi.tolist(),
            }
        return found.mean

    def _validate(self, network: FastSAM3D) -> Validation:
        return validate(network.eval(), self.data.held_out, self.features, seed=self.options.seed)

    def _pair_errors(self, samples: Dataset | None = None) -> list[float]:
        if self.features is None:
            return []
        samples = self.data.held_out if samples is None else samples
        return pair_errors(self.student.eval(), self.features, self.pairs, samples)

    # --- end --------------------------------------------------------------------------------------

    @property
    def is_done(self) -> bool:
        return self.progress.update >= self.updates.schedule.updates

    def candidate(self) -> FastSAM3D:
        """The best student of the run, on the CPU; the pairs' errors are measured last on it."""
        best = torch.load(self.folder.best, map_location=self.device, weights_only=True)
        self.student.load_state_dict(best)
        if self.pairs:
            self.progress.facts["pair_errors"]["final"] = self._pair_errors()
        return copy.deepcopy(self.student).cpu().eval()

    def compare(self, served: Weights) -> Verdict:
        """The candidate against what is served now, on the same ROIs and clicks."""
        network = copy.deepcopy(served.network).to(self.device)
        found = self._validate(network)
        self.progress.facts["dice_served"] = found.dice
        ours = torch.tensor(self.progress.best["per_roi"])
        verdict = judge(ours, found.per_roi, self.options.min_gain)
        if not (verdict.is_better or served.trained):
            verdict = Verdict(True, f"{verdict.reason}; published, as that one was never trained")
        if self.data.by_roi:
            return Verdict(
                verdict.is_better, f"{verdict.reason}; of one study, which was trained on as well"
            )
        return verdict

    def end(self, **last: Any) -> None:
        """Nothing is left to do; the next training begins a run of its own."""
        self.write(total_time=duration(self.progress.seconds), **last)
        self.folder.forget_state()
        if self._writer is not None:
            self._writer.close()


def _rounded(dice: Mapping[int, float] | Sequence | None) -> str:
    values = dice.values() if isinstance(dice, Mapping) else dice or ()
    return " ".join(f"{value:.3f}" for value in values) or "none"
