"""One adaptation to labels in one process: three students, embeddings in memory, few parameters."""

from __future__ import annotations

import copy
import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib.errors import InputError
from lib.networks import Adaptation, FastSAM3D
from lib.weights.files import Weights

from .adapt_batches import EmbeddedBatches
from .adapt_options import AdaptOptions
from .data.studies import ExaminedStudy
from .data.study_split import MOST_JUDGED, halves, judging_studies, unseen_studies
from .decoder_autocast import decoder_autocast
from .loop import TrainingLoop
from .run_state import Progress, RunFolder, run_signature
from .served_judge import MaskSource
from .stages import Batch, SameEncoder, Stage2, Stage2Options, step_seed, to_device

logger = logging.getLogger(__name__)

WARM_UP, FALL = 0.1, 0.5
"""WARM_UP, FALL: shares of a student's updates over which the learning rate rises and falls."""

FIRST_TIMED, TIMED_UPDATES = 6, 20
"""FIRST_TIMED, TIMED_UPDATES: after so many updates it is planned how many fit into the option
``max_minutes``, and again before each further student, from the last updates' speed: other programs
may slow the first ones down."""

FEWEST_UPDATES = 20
"""FEWEST_UPDATES: updates of the last student on the slowest machine; the others have half, which
must be more than FIRST_TIMED."""

Judge = Callable[[FastSAM3D, Adaptation, Sequence[ExaminedStudy]], None]
"""Judge(student, adaptation, studies) measures a student on studies that it never saw."""


class Phase(NamedTuple):
    """One of the students: the studies that train it, and those that it is judged on.

    share: of the updates of the last student, which is published.
    """

    train: list[ExaminedStudy]
    judged: list[ExaminedStudy]
    share: float


def make_phases(
    studies: Sequence[ExaminedStudy], seed: int, seen: Collection[str] = ()
) -> list[Phase]:
    """Return the phases of a run: two halves that judge each other's student, then all studies.

    The gain of the published student, which has seen all labels, is estimated by that of the two
    others (two-fold cross-validation). They have half the labels and half the updates, so the
    estimate is rather too low. Of each half at most `MOST_JUDGED` / 2 studies judge, and none of a
    patient with a study named in `seen`: the served version has learned it. The studies of a single
    patient have no half to judge on.
    """
    last = Phase(list(studies), [], 1.0)
    first, second = halves(studies, seed)
    if not second:
        return [last]
    unseen = {study.name for study in unseen_studies(studies, seen)}
    judging = [
        judging_studies([study for study in half if study.name in unseen], MOST_JUDGED // 2)
        for half in (first, second)
    ]
    return [Phase(first, judging[1], 0.5), Phase(second, judging[0], 0.5), last]


def adapted_parameters(student: FastSAM3D) -> list[nn.Parameter]:
    """Freeze a student but for its mask decoder with the refiner; return what is trained."""
    student.requires_grad_(False)
    trained = list(student.mask_decoder.parameters())
    for parameter in trained:
        parameter.requires_grad_(True)
    return trained


class AdaptRun(TrainingLoop):
    """The training of the three students, one after the other.

    Each starts from the weights before the first adaptation, because all labels take part each
    time. masks: chooses the voxel sizes of the ROIs. judge: is called at the end of each phase but
    the last. seen: names of the studies that the served version has learned, which do not judge.
    """

    def __init__(
        self,
        folder: RunFolder,
        options: AdaptOptions,
        studies: Sequence[ExaminedStudy],
        served: Weights,
        masks: MaskSource,
        device: torch.device,
        judge: Judge,
        seen: Collection[str] = (),
    ) -> None:
        super().__init__(folder, options, device)
        self.options = options
        self.phases = make_phases(studies, options.seed, seen)
        self._judge = judge
        self._before = copy.deepcopy(served.before_adaptation).to(device).eval()
        self._before.requires_grad_(False)
        self._batches = EmbeddedBatches(
            self._before, [phase.train for phase in self.phases], options, masks.spacing_mm_at
        )
        self._step_seconds: deque[float] = deque(maxlen=TIMED_UPDATES)
        self._spent_seconds = 0.0
        self._lengths = self._lengths_of(options.updates_per_student)
        self._phase = 0
        self._start_student()
        self.signature = run_signature(
            options,
            list(studies),
            {
                "served": served.network_id,
                "policy": served.network.policy.to_dict(),
                "masks": masks.settings,
                "seen": sorted(seen),
            },
        )

    def _start_student(self) -> None:
        """Start with the student before adaptations, for the first phase or the next one."""
        self.student = copy.deepcopy(self._before).train()
        self._trained = adapted_parameters(self.student)
        self._optimizer = torch.optim.Adam(self._trained, lr=self.options.lr, betas=(0.9, 0.99))
        clicks = Stage2Options(clicks=self.options.clicks)
        self._loss = Stage2(self.student, None, clicks)
        self._rehearsal = Stage2(self.student, SameEncoder(self._before), clicks)

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Resume a stopped run with the same signature; facts: further statistics for clients."""
        state, note = self._stored_state()
        if state is not None:
            self._load(state)
        studies = {"train": len(self.phases[-1].train), "labelled": len(self.phases[-1].train)}
        studies["judged"] = sum(len(phase.judged) for phase in self.phases)
        options = self.options.to_dict()
        self.progress.facts |= {"options": options, "studies": studies, "resumed": note, **facts}
        self._write_stats()

    # --- the schedule -----------------------------------------------------------------------------

    @property
    def updates(self) -> int:
        return sum(self._lengths)

    def _lengths_of(self, per_student: int) -> list[int]:
        """Return the number of updates of each phase; per_student: that of the last one."""
        return [max(1, round(phase.share * per_student)) for phase in self.phases]

    def _place(self, update: int) -> tuple[int, int]:
        """Return the phase of an update, and its number within the phase; both from 0."""
        for phase, length in enumerate(self._lengths):
            if update < length:
                return phase, update
            update -= length
        return len(self.phases), 0

    @property
    def is_epoch_over(self) -> bool:
        return self._place(self.progress.update)[1] % self.options.iterations_per_epoch == 0

    @property
    def epochs(self) -> tuple[int, int]:
        per_epoch = self.options.iterations_per_epoch
        lengths = [-(-length // per_epoch) for length in self._lengths]
        phase, update = self._place(self.progress.update)
        return sum(lengths[:phase]) + update // per_epoch, sum(lengths)

    def _rate(self, phase: int, update: int) -> float:
        """Return the learning rate of an update within its phase."""
        length = self._lengths[phase]
        rise = (update + 1) / max(1.0, WARM_UP * length)
        fall = (length - update) / max(1.0, FALL * length)
        return self.options.lr * min(1.0, rise, fall)

    # --- step -------------------------------------------------------------------------------------

    def _batches_of_epoch(self) -> Iterable[Batch]:
        phase, update = self._place(self.progress.update)
        per_epoch = self.options.iterations_per_epoch
        for number in range(update, (update // per_epoch + 1) * per_epoch):
            if number < self._lengths[phase]:  # fewer may have been planned meanwhile
                yield self._batches.labelled(phase, number)

    def _step(self, batch: Batch) -> None:
        beside = None
        if self.options.rehearsal:  # before the time is taken: a new ROI is cut and encoded
            beside = self._batches.beside(*self._place(self.progress.update))
        start = time.perf_counter()
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(*self._place(self.progress.update))
        seed = step_seed(self.options.seed, self.progress.update)
        with decoder_autocast(self.device):
            losses: dict[str, Tensor] = self._loss(to_device(batch, self.device), seed)
        if beside is not None:
            with decoder_autocast(self.device):
                rehearsed = self._rehearsal(to_device(beside, self.device), seed)["loss"]
            losses["loss"] = losses["loss"] + self.options.rehearsal * rehearsed
            losses["kl"] = rehearsed.detach()
        if not math.isfinite(float(losses["loss"].detach())):
            raise InputError(
                f"the loss is {float(losses['loss'].detach())} in update "
                f"{self.progress.update + 1}; lower lr (now {self.options.lr:g})"
            )
        self._optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(self._trained, self.options.clip_norm)
        self._optimizer.step()
        self.progress.add({name: float(value.detach()) for name, value in losses.items()})
        self._clock.tick(self.progress)
        self._step_seconds.append(time.perf_counter() - start)
        self._spent_seconds += self._step_seconds[-1]
        if self.progress.update == FIRST_TIMED:
            self._plan(phase=0)

    def _write_stats(self, **results: Any) -> None:
        """See :class:`TrainingLoop`; before the updates are planned no time is left to tell."""
        if self.progress.update < FIRST_TIMED:
            results = {"remaining_time": None, **results}
        super()._write_stats(**results)

    def _plan(self, phase: int) -> None:
        """Plan how many updates of this phase and the later ones fit into the time that is left."""
        if not self._step_seconds:  # just resumed
            return
        left = 60 * self.options.max_minutes - self._spent_seconds
        shares = sum(later.share for later in self.phases[phase:])
        fitting = int(left / shares / statistics.median(self._step_seconds))
        wanted = self.options.updates_per_student
        planned = max(min(FEWEST_UPDATES, wanted), min(wanted, fitting))
        if planned < wanted:
            logger.info("%d of %d updates fit into max_minutes", planned, wanted)
        self._lengths[phase:] = self._lengths_of(planned)[phase:]

    # --- end of an epoch and of a phase -----------------------------------------------------------

    def _end_epoch(self) -> None:
        phase, update = self._place(self.progress.update - 1)
        row = self.progress.end_epoch(
            0,
            epoch=self.epochs[0],
            stage=2,
            student=phase + 1,
            iteration=self.progress.update,
            k=0,
            lr=self._rate(phase, update),
            seconds=round(self.progress.seconds, 1),
        )
        logger.info("student %d, epoch %d, loss %.4f", phase + 1, row["epoch"], row["loss"])
        self._draw(row)
        self.save()
        if self._is_phase_over:
            self._end_phase()

    @property
    def _is_phase_over(self) -> bool:
        """Whether this phase's student is trained but not judged yet; the last one never is."""
        return self._phase < min(self._place(self.progress.update)[0], len(self.phases) - 1)

    def _end_phase(self) -> None:
        """Judge the student of this phase, and start that of the next one."""
        judged = self.phases[self._phase].judged
        self._judge(self.candidate(), self.candidate_adaptation(), judged)
        self._phase += 1
        self._start_student()
        self._plan(self._phase)
        self.save()

    def train(self) -> None:
        """See :meth:`TrainingLoop.train`; a run that was stopped while it judged goes on there."""
        if self._is_phase_over:
            self._end_phase()
        super().train()

    def _state(self) -> dict[str, Any]:
        return {
            "phase": self._phase,
            "lengths": self._lengths,
            "spent_seconds": self._spent_seconds,
            "trained": [parameter.detach().clone() for parameter in self._trained],
            "optimizer": self._optimizer.state_dict(),
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self.progress = Progress(**state["progress"])
        self._phase, self._lengths = state["phase"], state["lengths"]
        self._spent_seconds = state["spent_seconds"]
        with torch.no_grad():
            for parameter, value in zip(self._trained, state["trained"], strict=True):
                parameter.copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])

    def candidate(self) -> FastSAM3D:
        """Return the student of the current phase, on the CPU."""
        return copy.deepcopy(self.student).cpu().eval().requires_grad_(False)

    def candidate_adaptation(self) -> Adaptation:
        """Return what that student keeps: the decoder before, and which images have the new one."""
        phase, _ = self._place(self.progress.update - 1)
        earlier = copy.deepcopy(self._before.mask_decoder).cpu()
        return Adaptation(earlier, self._batches.likeness(phase))
