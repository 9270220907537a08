"""The distillation of the teacher into the served student as a MONAI Label train task."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lib.errors import InputError, StoppedError
from lib.weights.files import Weights
from lib.weights.served import ServedWeights

from . import processes
from .data.studies import Datastore, ExaminedStudy, list_studies
from .data.study_split import Split, split
from .duration import distillation_seconds
from .run import Run, RunWeights
from .schedule import layer_pairs
from .seen_studies import seen_studies, studies_metadata
from .served_judge import MaskSource
from .student_start import check_compatible
from .task import PublishingTask
from .train_options import TrainOptions
from .verdict import Verdict, describe_dice


class DistillationTask(PublishingTask):
    """Distil the teacher into the served student, or fine-tune it on labels, and publish it.

    The task checks the request, splits the studies, starts the processes, and publishes the student
    if it is better. The training itself is :class:`lib.trainers.run.Run`.
    """

    options_class = TrainOptions

    def __init__(
        self,
        folder: Path,
        served: ServedWeights,
        teacher: Weights,
        mask_source: MaskSource,
        *,
        spacing_mm: float = 1.5,
        device: str = "",
    ) -> None:
        super().__init__(
            "fastsam3d",
            "Distillation of the teacher into the student, or fine-tuning on labels",
            folder / "run",
            served,
            mask_source,
            device,
        )
        self._teacher = teacher
        self._spacing_mm = spacing_mm

    # --- check ------------------------------------------------------------------------------------

    def check(self, request: Mapping[str, Any], datastore: Datastore) -> TrainOptions:
        """Return the options; raise InputError for anything known to fail before training."""
        options: TrainOptions = self._options(request, datastore)
        teacher = self._teacher_for(options)
        if teacher is not None:
            student_config, teacher_config = self._served().network.config, teacher.network.config
            check_compatible(student_config, teacher_config)
            if options.stage1_epochs:
                layer_pairs(teacher_config.depth, student_config.depth)
        return options

    def estimate_seconds(self, options: Any, datastore: Datastore) -> float | None:
        """Estimate the duration from the speed of both networks here; None on a GPU."""
        teacher = self._teacher_for(options)
        needs_labels = self._needs_labels(options)
        studies = [x for x in list_studies(datastore) if x.is_labelled or not needs_labels]
        judged = len(split(studies, options.val_split, options.seed).judged) if studies else 0
        return distillation_seconds(
            options, self._served().network, teacher.network if teacher else None, judged
        )

    def _teacher_for(self, options: TrainOptions) -> Weights | None:
        if options.teacher == "none":
            return None
        if not self._teacher.trained:
            raise InputError(
                "there is no teacher: start the server with --conf teacher_weights FILE, or train "
                'on labels alone with the option teacher "none"'
            )
        return self._teacher

    def _needs_labels(self, options: TrainOptions) -> bool:
        return options.teacher == "none"

    # --- train ------------------------------------------------------------------------------------

    def _train_on(
        self, options: TrainOptions, studies: list[ExaminedStudy], skipped: dict[str, str]
    ) -> dict[str, Any]:
        seen = {study.name for study in seen_studies(studies, self._served)}
        parts = split(studies, options.val_split, options.seed, seen)
        taken = {study.name for study in parts.all()}
        left_out = [study.name for study in studies if study.name not in taken]
        skipped = skipped | dict.fromkeys(left_out, "other studies of its patient judge")
        count = processes.process_count(options.processes, options.device)
        if processes.is_under_torchrun():
            return _train_in_group(self, options, parts, skipped)
        if count > 1:
            if not processes.spawn(_train_in_group, count, self, options, parts, skipped):
                raise StoppedError
            stats = self.stats()
            return {name: stats.get(name) for name in ("published", "reason")}
        return self._train(options, parts, skipped)

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
        scales = self._mask_source.spacing_mm_at if self._mask_source.auto_zoom else None
        run = Run(self._folder, options, studies, weights, self._spacing_mm, device, scales)
        facts = {"skipped": skipped, "skipped_count": len(skipped), "start_ts": start_ts}
        run.begin({"curves": f"/train/{self.name}/curves.png", **facts})
        run.train()
        if not run.is_done:
            raise StoppedError
        return self._judge_and_publish(run, studies, options) if run.is_first else {}

    # --- publish ----------------------------------------------------------------------------------

    def _judge_and_publish(
        self, run: Run, studies: Split[ExaminedStudy], options: TrainOptions
    ) -> dict[str, Any]:
        student, served = run.candidate(), self._served()
        teacher = self._teacher_for(options)
        self._measure(run, student, served, studies.judged, options, teacher)
        verdict = self._decide(run, options, studies.all())
        if verdict.answer != "publish" and not served.trained:
            reason = f"{verdict.reason}; published, as that one was never trained"
            verdict = Verdict("publish", reason, verdict.gain, verdict.lower)
        metadata = self._metadata(run, options, served, studies)
        return self._publish(run, student, verdict, metadata, options)

    def _metadata(
        self, run: Run, options: TrainOptions, served: Weights, studies: Split[ExaminedStudy]
    ) -> dict[str, str]:
        """Return the metadata for the student's file."""
        pairs, patients = self._judged(run, studies.all())
        by_teacher = sum(not study.is_labelled for study in studies.judged)
        learned = [*studies.train, *studies.held_out]
        learned += seen_studies(studies.all(), self._served)
        teacher = self._teacher if options.teacher != "none" else None
        source = f"distilled from {teacher.file}" if teacher else "fine-tuned on labels"
        return {
            "trained": "true",
            "licence": served.metadata.get("licence", "that of the weights it was trained from"),
            "description": f"{source} on {len(studies.train)} studies of this site",
            "dice": describe_dice(pairs, by_teacher, patients),
            "teacher_sha256": teacher.network_id if teacher else "",
            "parent_sha256": served.network_id,
            "options": str(options.result_options()),
            **studies_metadata(served, learned),
        }

    def _memory_advice(self, options: TrainOptions) -> str:
        return f"{super()._memory_advice(options)}, or raise accumulate (now {options.accumulate})"


def _train_in_group(
    task: DistillationTask,
    options: TrainOptions,
    studies: Split[ExaminedStudy],
    skipped: dict[str, str],
) -> dict[str, Any]:
    """Train as one of several processes."""
    with processes.process_group(options.device):
        return task._train(options, studies, skipped)
