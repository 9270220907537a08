"""`fastsam3d_adapt`: the served student learns the labels of a site in minutes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lib.errors import InputError, StoppedError
from lib.networks import Adaptation, FastSAM3D
from lib.weights.files import Weights
from lib.weights.served import ServedWeights

from . import processes
from .adapt_options import AdaptOptions
from .adapt_run import AdaptRun
from .data.studies import Datastore, ExaminedStudy, list_studies
from .data.study_split import MOST_JUDGED
from .duration import adaptation_seconds
from .seen_studies import seen_studies, studies_metadata
from .served_judge import MaskSource
from .task import PublishingTask
from .verdict import describe_dice

ADAPTED = "; adapted to "
"""ADAPTED: separates the two parts of the description of an adapted student."""


class AdaptationTask(PublishingTask):
    """Adapt the mask decoder of the served student to the labels of a site, and publish it.

    The encoder stays as it is, so each ROI is encoded once. The training itself is
    :class:`lib.trainers.adapt_run.AdaptRun`.
    """

    options_class = AdaptOptions
    judges_in_halves = True

    def __init__(
        self, folder: Path, served: ServedWeights, mask_source: MaskSource, *, device: str = ""
    ) -> None:
        super().__init__(
            "fastsam3d_adapt",
            "Adaptation of the student to the saved labels, in minutes",
            folder / "adapt",
            served,
            mask_source,
            device,
        )

    def check(self, request: Mapping[str, Any], datastore: Datastore) -> AdaptOptions:
        """Return the options; raise InputError for anything known to fail before training."""
        options: AdaptOptions = self._options(request, datastore)
        if not any(datastore.get_labels_by_image_id(name) for name in datastore.list_images()):
            raise InputError("there are no labels to adapt to; save some first, three are enough")
        return options

    def estimate_seconds(self, options: Any, datastore: Datastore) -> float | None:
        """Estimate the duration from the speed of the student here; None on a GPU."""
        labelled = sum(study.is_labelled for study in list_studies(datastore))
        judged = min(labelled, MOST_JUDGED)
        return adaptation_seconds(options, self._served().network, labelled, judged)

    def _train_on(
        self, options: AdaptOptions, studies: list[ExaminedStudy], skipped: dict[str, str]
    ) -> dict[str, Any]:
        start_ts = int(time.time())
        if options.threads:
            torch.set_num_threads(options.threads)
        served, device = self._served(), processes.own_device(options.device)

        def judge(
            student: FastSAM3D, adaptation: Adaptation, judged: Sequence[ExaminedStudy]
        ) -> None:
            self._measure(run, student, served, judged, options, adaptation=adaptation)

        seen = {study.name for study in seen_studies(studies, self._served)}
        run = AdaptRun(
            self._folder, options, studies, served, self._mask_source, device, judge, seen
        )
        facts = {"skipped": skipped, "skipped_count": len(skipped), "start_ts": start_ts}
        run.begin({"curves": f"/train/{self.name}/curves.png", **facts})
        run.train()
        if not run.is_done:
            raise StoppedError
        verdict = self._decide(run, options, studies)
        metadata = self._metadata(run, options, served, studies)
        return self._publish(
            run, run.candidate(), verdict, metadata, options, run.candidate_adaptation()
        )

    def _metadata(
        self,
        run: AdaptRun,
        options: AdaptOptions,
        served: Weights,
        studies: Sequence[ExaminedStudy],
    ) -> dict[str, str]:
        """Return the metadata for the student's file."""
        pairs, patients = self._judged(run, studies)
        # each adaptation starts from the decoder before the first one, so the last one alone counts
        description = served.metadata.get("description", served.file).split(ADAPTED)[0]
        return {
            "trained": "true",
            "licence": served.metadata.get("licence", "that of the weights it was trained from"),
            "description": f"{description}{ADAPTED}{len(studies)} labels of this site",
            "dice": f"{describe_dice(pairs, patients=patients)} (cross-validated)",
            "parent_sha256": served.network_id,
            "options": str(options.result_options()),
            **studies_metadata(served, studies),
        }
