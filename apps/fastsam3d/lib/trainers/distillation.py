"""Training from a client as a MONAI Label train task."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from monai.engines import Evaluator, SupervisedTrainer
from monailabel.interfaces.datastore import Datastore
from monailabel.tasks.train.basic_train import BasicTrainTask, Context

from lib.errors import InputError
from lib.networks import FastSAM3D
from lib.weights.files import Weights
from lib.weights.served import ServedWeights

from . import processes as launch
from .data.studies import Split, examine, find_studies, split
from .engines import ResumableTrainer, make_evaluator, make_handlers
from .run import Data, Run
from .run_state import RunFolder, signature
from .schedule import layer_pairs
from .student_start import check_compatible
from .train_options import TrainOptions

logger = logging.getLogger(__name__)


class StoppedError(InputError):
    """Someone stopped the run, which can be resumed."""


class DistillationTask(BasicTrainTask):
    """Layer-wise progressive distillation of the served student, and its publishing.

    BasicTrainTask runs the engines; what they do is in :class:`lib.trainers.run.Run`.
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
        self._folder = RunFolder(folder / "run")
        super().__init__(
            str(folder),
            description="Distillation of the teacher into the student, or fine-tuning on labels",
            amp=False,  # the updates do it themselves
            stats_path=str(self._folder.stats),
        )
        self._served = served
        self._teacher = teacher
        self._spacing_mm = spacing_mm
        self._default_device = device
        self._run: Run | None = None  # under way in this process; there is one at most

    def config(self) -> dict[str, Any]:
        return TrainOptions.config()

    def stats(self) -> dict[str, Any]:
        """Of the run under way, or of the last one."""
        return self._folder.read_stats()

    @property
    def error(self) -> str:
        """Why the last run ended early, as a sentence; nothing where it did not."""
        return str(self.stats().get("error", ""))

    @property
    def curves(self) -> Path:
        """A picture of the run, once it has one."""
        return self._folder.curves

    def check(self, request: Mapping[str, Any], datastore: Datastore) -> TrainOptions:
        """All that can be known to be wrong before a training; raises InputError."""
        device = {"device": self._default_device} if self._default_device else {}
        options = TrainOptions.from_request({**device, **request})
        teacher = self._teacher_for(options)
        if teacher is not None:
            ours, theirs = self._served().network.config, teacher.network.config
            check_compatible(ours, theirs)
            if options.stage1_epochs:
                layer_pairs(theirs.depth, ours.depth)
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

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train, and publish what is better; -> whether it was, and why.

        Raises InputError for what a user can mend; the statistics have the sentence too.
        """
        options = self.check(request, datastore)
        with self._telling_errors(options):
            if options.threads:
                torch.set_num_threads(options.threads)
            is_first = not launch.is_under_torchrun() or os.environ["RANK"] == "0"
            with launch.only_run(self._folder.folder) if is_first else nullcontext():
                return self._train_in_processes(options, datastore)

    def _train_in_processes(self, options: TrainOptions, datastore: Datastore) -> dict[str, Any]:
        parts, skipped = self._studies(options, datastore)
        arguments = (options, parts, skipped)
        count = launch.wanted_processes(options.processes, options.device)
        if launch.is_under_torchrun():
            with launch.joined(options.device):
                return self._train_here(*arguments)
        if count > 1:
            launch.spawn(_train_joined, count, self, *arguments)
            stats = self.stats()
            return {name: stats.get(name) for name in ("published", "reason")}
        return self._train_here(*arguments)

    def _studies(self, options: TrainOptions, datastore: Datastore) -> tuple[Split, dict[str, str]]:
        """The studies of both parts, and by name why others are skipped."""
        found, skipped = find_studies(datastore)
        if options.teacher == "none":
            found = [study for study in found if study.is_labelled]
            if not found:
                raise InputError(
                    "there are no labels to train on; save some, or train with a teacher"
                )
        usable, unusable = examine(found)
        skipped = {**skipped, **unusable}
        for name, reason in skipped.items():
            logger.warning("%s is skipped: %s", name, reason)
        if not usable:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
            raise InputError(f"none of the studies can be used ({reasons})")
        return split(usable, options.val_split, options.seed), skipped

    def _train_here(
        self, options: TrainOptions, parts: Split, skipped: Mapping[str, str]
    ) -> dict[str, Any]:
        """In this process, one of however many."""
        started = datetime.now(UTC).strftime("%Y%m%d_%H%M%S")
        request = {
            # what BasicTrainTask reads
            "name": self._folder.folder.name,
            "run_id": started,
            "multi_gpu": False,
            "device": options.device,
            "max_epochs": options.max_epochs,
            "train_batch_size": options.train_batch_size,
            "val_batch_size": 1,
            "pretrained": False,
            "dataset": "Dataset",
            "dataloader": "DataLoader",
            "tracking": options.tracking,
            "tracking_uri": options.tracking_uri or f"sqlite:///{self._folder.folder}/mlflow.db",
            "model": "fastsam3d",
            # ours
            "options": options,
            "skipped": dict(skipped),
        }
        self.train(launch.rank(), launch.world_size(), request, parts)
        run = self._run
        if run is None or not run.is_done:
            raise StoppedError("the training was stopped; train again to go on where it was")
        return self._publish(run, options) if run.is_first else {}

    def _publish(self, run: Run, options: TrainOptions) -> dict[str, Any]:
        candidate, served = run.candidate(), self._served()
        verdict = run.compare(served)
        number = None
        if verdict.is_better:
            facts = self._facts(run, options, served)
            try:
                number = self._served.published.publish(
                    candidate, facts, options.keep_versions
                ).number
            except OSError as error:
                raise InputError(
                    f"the trained student could not be written ({error}); make room on the disk "
                    "and train again: the run goes on where it stopped"
                ) from error
        result = {"published": verdict.is_better, "reason": verdict.reason, "version": number}
        run.end(**result)
        logger.info("%s: %s", "published" if number else "not published", verdict.reason)
        return result

    def _facts(self, run: Run, options: TrainOptions, served: Weights) -> dict[str, str]:
        """For the metadata of the student's file."""
        best, facts = run.progress.best, run.progress.facts
        dice = ", ".join(f"{value:.3f}" for value in best["dice"].values())
        clicks = "/".join(str(count) for count in best["dice"])
        teacher = self._teacher if options.teacher != "none" else None
        source = f"distilled from {teacher.file}" if teacher else "fine-tuned on labels"
        return {
            "trained": "true",
            "licence": served.metadata.get("licence", "that of the weights it was trained from"),
            "description": f"{source} on {facts['studies']['train']} studies of this site",
            "dice": f"{dice} after {clicks} clicks, on {facts['studies']['held_out']} held-out",
            "teacher_sha256": teacher.network_id if teacher else "",
            "parent_sha256": served.network_id,
            "options": str(options.deciding()),
        }

    @contextmanager
    def _telling_errors(self, options: TrainOptions) -> Iterator[None]:
        """Into the statistics, where clients find them; what memory lacks becomes an InputError."""
        self._folder.tell("")
        try:
            yield
        except StoppedError as error:
            self._folder.tell(str(error), is_error=False)
            raise
        except InputError as error:
            self._folder.tell(str(error))
            raise
        except Exception as error:
            if _is_out_of_memory(error):
                advice = (
                    f"out of memory on {options.device}: lower train_batch_size (now "
                    f"{options.train_batch_size}), or raise accumulate (now {options.accumulate})"
                )
                self._folder.tell(advice)
                raise InputError(advice) from error
            self._folder.tell(f"the training failed ({type(error).__name__}: {error}); see the log")
            raise

    # --- what BasicTrainTask asks for -------------------------------------------------------------

    def partition_datalist(self, context: Context, shuffle: bool = False) -> tuple[list, list]:
        return context.datalist.train, context.datalist.held_out

    def _device(self, context: Context) -> torch.device:
        return launch.own_device(context.request["device"])

    def network(self, context: Context) -> FastSAM3D:
        """Begin the run, of which all else is asked."""
        options, parts = context.request["options"], context.datalist
        served, teacher = self._served(), self._teacher_for(options)
        data = Data.of(
            parts, served.network.config, options, self._spacing_mm, self._folder.folder / "cache"
        )
        networks = {
            "base": self._served.base.network_id,
            "config": served.network.config.to_dict(),
            "policy": served.network.policy.to_dict(),
            "teacher": teacher.network_id if teacher else None,
            "spacing_mm": self._spacing_mm,
        }
        studies = {each.name: each for each in (*parts.train, *parts.held_out)}
        of = signature(options, list(studies.values()), networks)
        run = Run(self._folder, of, data, served, teacher, options, context.device)
        run.begin(
            {
                "options": options.to_dict(),
                "teacher": teacher.file if teacher else None,
                "studies": {
                    "train": len(parts.train),
                    "held_out": len(parts.held_out),
                    "labelled": sum(each.is_labelled for each in studies.values()),
                },
                "skipped": context.request["skipped"],
                "skipped_count": len(context.request["skipped"]),
                "curves": "/train/fastsam3d/curves.png",
                "start_ts": int(context.start_ts),
            }
        )
        context.run = run
        self._run = run
        return run.student

    def optimizer(self, context: Context) -> torch.optim.Optimizer:
        return context.run.updates.optimizer

    def loss_function(self, context: Context) -> None:
        """It is part of the update."""
        return None

    def lr_scheduler_handler(self, context: Context) -> None:
        """The learning rate is a function of the update."""
        return None

    def train_pre_transforms(self, context: Context) -> None:
        return None

    def train_post_transforms(self, context: Context) -> None:
        return None

    def val_inferer(self, context: Context) -> None:
        return None

    def _create_evaluator(self, context: Context) -> Evaluator | None:
        return make_evaluator(context) if context.local_rank == 0 else None

    def _create_trainer(self, context: Context) -> SupervisedTrainer:
        return ResumableTrainer(
            context.run,
            device=context.device,
            max_epochs=context.max_epochs,
            train_data_loader=context.run.loader(),
            network=context.network,
            optimizer=context.optimizer,
            loss_function=None,
            iteration_update=context.run.update,
            train_handlers=self.train_handlers(context),
            decollate=False,
        )

    def train_handlers(self, context: Context) -> list[Any]:
        return make_handlers(context)

    def finalize(self, context: Context) -> None:
        """Statistics and publishing are the run's."""


def _train_joined(
    task: DistillationTask, options: TrainOptions, parts: Split, skipped: Mapping[str, str]
) -> None:
    """One of the processes of this machine."""
    with launch.joined(options.device):
        task._train_here(options, parts, skipped)


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in text for words in ("out of memory", "not enough memory", "can't allocate memory")
    )
