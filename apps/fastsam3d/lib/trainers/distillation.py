"""Training from a client as a MONAI Label train task."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from monailabel.interfaces.tasks.train import TrainTask

from lib.errors import InputError
from lib.weights.files import Weights
from lib.weights.served import ServedWeights

from . import processes
from .data.studies import Datastore, ExaminedStudy, Split, examine, find_studies, split
from .run import Run, RunWeights
from .run_state import RunFolder
from .schedule import layer_pairs
from .student_start import check_compatible
from .train_options import TrainOptions

logger = logging.getLogger(__name__)


class StoppedError(InputError):
    """A user stopped the run, which can be resumed."""

    def __init__(self) -> None:
        super().__init__("the training was stopped; train again to go on where it was")


class DistillationTask(TrainTask):
    """Distil the teacher into the served student, or fine-tune it on labels, and publish it.

    The task checks the request, collects the studies, starts the processes, and publishes the
    student if it is better. The training itself is :class:`lib.trainers.run.Run`.
    """

    def __init__(
        self,
        folder: Path,
        served: ServedWeights,
        teacher: Weights,
        *,
        spacing_mm: float = 1.5,
        device: str = "",
    ) -> None:
        super().__init__("Distillation of the teacher into the student, or fine-tuning on labels")
        self._folder = RunFolder(folder / "run")
        self._served = served
        self._teacher = teacher
        self._spacing_mm = spacing_mm
        self._default_device = device

    def config(self) -> dict[str, Any]:
        """Return the options in the clients' table, with their defaults."""
        return TrainOptions.config()

    def stats(self) -> dict[str, Any]:
        """Return the statistics of the current or last run."""
        return self._folder.read_stats()

    @property
    def error(self) -> str:
        """The reason why the last run failed; empty if it did not."""
        return str(self.stats().get("error", ""))

    @property
    def curves(self) -> Path:
        """The picture of the run's curves; it exists after the first epoch."""
        return self._folder.curves

    # --- check ------------------------------------------------------------------------------------

    def check(self, request: Mapping[str, Any], datastore: Datastore) -> TrainOptions:
        """Return the options; raise InputError for anything known to fail before training."""
        device = {"device": self._default_device} if self._default_device else {}
        options = TrainOptions.from_request({**device, **request})
        teacher = self._teacher_for(options)
        if teacher is not None:
            student_config, teacher_config = self._served().network.config, teacher.network.config
            check_compatible(student_config, teacher_config)
            if options.stage1_epochs:
                layer_pairs(teacher_config.depth, student_config.depth)
        if not datastore.list_images():
            raise InputError("there are no studies to train on; add images to the datastore")
        return options

    def _teacher_for(self, options: TrainOptions) -> Weights | None:
        if options.teacher == "none":
            return None
        if not self._teacher.trained:
            raise InputError(
                "there is no teacher: start the server with --conf teacher_weights FILE, or train "
                'on labels alone with the option teacher "none"'
            )
        return self._teacher

    # --- train ------------------------------------------------------------------------------------

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train, and publish the student if it is better; return whether it was, and why.

        Raise InputError for faults that a user can correct; the statistics hold its message too.
        """
        options = self.check(request, datastore)
        with self._record_errors(options):
            lock = processes.only_run(self._folder.folder)
            with lock if processes.is_launcher() else nullcontext():
                studies, skipped = self._find_studies(options, datastore)
                return self._train_in_processes(options, studies, skipped)

    def _find_studies(
        self, options: TrainOptions, datastore: Datastore
    ) -> tuple[Split[ExaminedStudy], dict[str, str]]:
        """Return the studies, split for validation, and the skipped ones: name -> reason."""
        studies, skipped = find_studies(datastore)
        if options.teacher == "none":
            studies = [study for study in studies if study.is_labelled]
            if not studies:
                raise InputError(
                    "there are no labels to train on; save some, or train with a teacher"
                )
        usable, unusable = examine(studies)
        skipped |= unusable
        for name, reason in skipped.items():
            logger.warning("%s is skipped: %s", name, reason)
        if not usable:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
            raise InputError(f"none of the studies can be used ({reasons})")
        return split(usable, options.val_split, options.seed), skipped

    def _train_in_processes(
        self, options: TrainOptions, studies: Split[ExaminedStudy], skipped: dict[str, str]
    ) -> dict[str, Any]:
        count = processes.process_count(options.processes, options.device)
        if processes.is_under_torchrun():
            return _train_in_group(self, options, studies, skipped)
        if count > 1:
            if not processes.spawn(_train_in_group, count, self, options, studies, skipped):
                raise StoppedError
            stats = self.stats()
            return {name: stats.get(name) for name in ("published", "reason")}
        return self._train(options, studies, skipped)

    def _train(
        self, options: TrainOptions, studies: Split[ExaminedStudy], skipped: dict[str, str]
    ) -> dict[str, Any]:
        """Train in this process; the first process of a run publishes the student."""
        start_ts = int(time.time())
        if options.threads:
            torch.set_num_threads(options.threads)
        weights = RunWeights(
            self._served.base.network_id, self._served(), self._teacher_for(options)
        )
        device = processes.own_device(options.device)
        run = Run(self._folder, options, studies, weights, self._spacing_mm, device)
        facts = {"skipped": skipped, "skipped_count": len(skipped), "start_ts": start_ts}
        run.begin({"curves": "/train/fastsam3d/curves.png", **facts})
        run.train()
        if not run.is_done:
            raise StoppedError
        return self._publish(run, options) if run.is_first else {}

    # --- publish ----------------------------------------------------------------------------------

    def _publish(self, run: Run, options: TrainOptions) -> dict[str, Any]:
        candidate, served = run.candidate(), self._served()
        verdict = run.compare(served)
        number = None
        if verdict.is_better:
            metadata = self._metadata(run, options, served)
            try:
                version = self._served.published.publish(candidate, metadata, options.keep_versions)
            except OSError as error:
                raise InputError(
                    f"the trained student could not be written ({error}); make room on the disk "
                    "and train again: the run goes on where it stopped"
                ) from error
            number = version.number
        result = {"published": verdict.is_better, "reason": verdict.reason, "version": number}
        run.end(**result)
        logger.info("%s: %s", "published" if number else "not published", verdict.reason)
        return result

    def _metadata(self, run: Run, options: TrainOptions, served: Weights) -> dict[str, str]:
        """Return the metadata for the student's file."""
        best, studies = run.progress.best, run.progress.facts["studies"]
        dice = ", ".join(f"{value:.3f}" for value in best["dice"].values())
        clicks = "/".join(str(count) for count in best["dice"])
        teacher = self._teacher if options.teacher != "none" else None
        source = f"distilled from {teacher.file}" if teacher else "fine-tuned on labels"
        return {
            "trained": "true",
            "licence": served.metadata.get("licence", "that of the weights it was trained from"),
            "description": f"{source} on {studies['train']} studies of this site",
            "dice": f"{dice} after {clicks} clicks, on {studies['held_out']} held-out",
            "teacher_sha256": teacher.network_id if teacher else "",
            "parent_sha256": served.network_id,
            "options": str(options.result_options()),
        }

    # --- errors -----------------------------------------------------------------------------------

    @contextmanager
    def _record_errors(self, options: TrainOptions) -> Iterator[None]:
        """Write errors to the statistics, for clients; turn out-of-memory into an InputError."""
        self._folder.write_reason("")
        try:
            yield
        except StoppedError as error:
            self._folder.write_reason(str(error), is_error=False)
            raise
        except InputError as error:
            self._folder.write_reason(str(error))
            raise
        except Exception as error:
            if not _is_out_of_memory(error):
                reason = f"the training failed ({type(error).__name__}: {error}); see the log"
                self._folder.write_reason(reason)
                raise
            advice = (
                f"out of memory on {options.device}: lower train_batch_size (now "
                f"{options.train_batch_size}), or raise accumulate (now {options.accumulate})"
            )
            self._folder.write_reason(advice)
            raise InputError(advice) from error


def _train_in_group(
    task: DistillationTask,
    options: TrainOptions,
    studies: Split[ExaminedStudy],
    skipped: dict[str, str],
) -> dict[str, Any]:
    """Train as one of several processes."""
    with processes.process_group(options.device):
        return task._train(options, studies, skipped)


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in text for words in ("out of memory", "not enough memory", "can't allocate memory")
    )
