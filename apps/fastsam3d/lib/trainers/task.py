"""What all trainers share as MONAI Label train tasks: studies, judging, publishing, errors."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from monailabel.interfaces.tasks.train import TrainTask

from lib.atomic_file import can_write
from lib.errors import InputError, StoppedError
from lib.networks import Adaptation, FastSAM3D
from lib.weights.files import Weights
from lib.weights.served import ServedWeights

from . import processes, run_lock
from .data.studies import Datastore, ExaminedStudy, examine, find_studies
from .data.study_split import unseen_studies
from .loop import TrainingLoop, stoppable
from .request_options import RequestOptions
from .run_state import NOT_ENDED, RunFolder
from .seen_studies import seen_studies
from .served_judge import MaskSource, mean_dice
from .verdict import Verdict, decide

logger = logging.getLogger(__name__)

INTERRUPTED = (
    "the training ended without a message, as when it is killed because memory is short; train "
    "again to go on where it was"
)


class PublishingTask(TrainTask):
    """Train the served student and publish the result if it is better on studies it never saw.

    options_class: the options of the trainer. needs_labels: whether studies without a label are of
    no use. judges_in_halves: whether each half of the studies that judge has a student of its own.
    """

    options_class: type[RequestOptions]
    judges_in_halves = False

    def __init__(
        self,
        name: str,
        description: str,
        folder: Path,
        served: ServedWeights,
        mask_source: MaskSource,
        device: str = "",
    ) -> None:
        """name: of the trainer. folder: of the run. mask_source: makes the masks that judge.

        device: of the server, for requests that name none.
        """
        super().__init__(description)
        self.name = name
        self._folder = RunFolder(folder)
        self._served = served
        self._mask_source = mask_source
        self._default_device = device

    def config(self) -> dict[str, Any]:
        """Return the options in the clients' table, with their defaults."""
        return self.options_class.config()

    def stats(self) -> dict[str, Any]:
        """Return the statistics of the current or last run."""
        stats = self._folder.read_stats()
        # a run that has just locked the folder has not written its name yet
        running = (self.running() or {"model": None})["model"]
        if stats.get("reason") == NOT_ENDED and running not in (self.name, ""):
            stats |= {"reason": INTERRUPTED, "error": INTERRUPTED}
        return stats

    @property
    def error(self) -> str:
        """The reason why the last run failed; empty if it did not."""
        return str(self.stats().get("error", ""))

    @property
    def curves(self) -> Path:
        """The picture of the run's curves; it exists after the first epoch."""
        return self._folder.curves

    # --- what a trainer adds ----------------------------------------------------------------------

    @abstractmethod
    def check(self, request: Mapping[str, Any], datastore: Datastore) -> RequestOptions:
        """Return the options; raise InputError for anything known to fail before training."""

    @abstractmethod
    def estimate_seconds(self, options: Any, datastore: Datastore) -> float | None:
        """Estimate the duration of a whole training here; None where nothing was measured."""

    @abstractmethod
    def _train_on(
        self, options: Any, studies: list[ExaminedStudy], skipped: dict[str, str]
    ) -> dict[str, Any]:
        """Train on examined studies; return whether a student was published, and why."""

    # --- train ------------------------------------------------------------------------------------

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train, and publish the student if it is better; return whether it was, and why.

        Raise InputError for faults that a user can correct; the statistics hold its message too.
        """
        options = self.check(request, datastore)
        is_launcher = processes.is_launcher()
        lock = run_lock.only_run(self.shared_folder, self.name) if is_launcher else nullcontext()
        # The lock comes first: the statistics are those of the run that has it.
        with lock, self._record_errors(options), stoppable():
            studies, skipped = self._find_studies(options, datastore)
            return self._train_on(options, studies, skipped)

    def running(self) -> dict[str, Any] | None:
        """Return trainer, host and start of the training in this folder of models, of any process.

        None if none runs.
        """
        return run_lock.running(self.shared_folder)

    def request_stop(self) -> None:
        """Ask that training to end after the update under way."""
        run_lock.request_stop(self.shared_folder)

    @property
    def shared_folder(self) -> Path:
        """The folder of the runs of all trainers of the model."""
        return self._folder.folder.parent

    def _options(self, request: Mapping[str, Any], datastore: Datastore) -> Any:
        """Parse the options; raise InputError if they are invalid or there are no images."""
        device = {"device": self._default_device} if self._default_device else {}
        options = self.options_class.from_request({**device, **request})
        if not datastore.list_images():
            raise InputError("there are no studies to train on; add images to the datastore")
        check_writable(self._folder.folder)
        return options

    def _needs_labels(self, options: Any) -> bool:
        """Return whether studies without a label are of no use."""
        return True

    def _find_studies(
        self, options: RequestOptions, datastore: Datastore
    ) -> tuple[list[ExaminedStudy], dict[str, str]]:
        """Return the studies, and the skipped ones: name -> reason."""
        studies, skipped = find_studies(datastore)
        if self._needs_labels(options):
            studies = [study for study in studies if study.is_labelled]
            if not studies:
                raise InputError(
                    "there are no labels to train on; save some, or train with a teacher"
                )
        usable, unusable = examine(studies)
        if self._needs_labels(options):
            skipped |= {x.name: "its label is empty" for x in usable if not x.is_labelled}
            usable = [study for study in usable if study.is_labelled]
        skipped |= unusable
        for name, reason in skipped.items():
            logger.warning("%s is skipped: %s", name, reason)
        if not usable:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
            raise InputError(f"none of the studies can be used ({reasons})")
        return usable, skipped

    # --- judge and publish ------------------------------------------------------------------------

    def _measure(
        self,
        loop: TrainingLoop,
        student: FastSAM3D,
        served: Weights,
        studies: Sequence[ExaminedStudy],
        options: RequestOptions,
        teacher: Weights | None = None,
        adaptation: Adaptation | None = None,
    ) -> None:
        """Add to the facts of a run the Dice of a student and of a served one on some studies.

        Both meet the same first clicks and random numbers. The run is saved after each study.
        Studies that were measured before, by a run that was stopped or waits for an answer, are not
        measured again. It ends early if another version is served meanwhile. adaptation: what an
        adapted student would be published with. Raise StoppedError at a stop, between two studies.
        """
        device, settings = str(loop.device), self._mask_source.settings
        judged = loop.progress.facts.setdefault("judged", {})
        if (judged.get("served"), judged.get("masks")) != (served.network_id, settings):
            judged |= {"served": served.network_id, "masks": settings, "dice": {}}
        missing = [study for study in studies if study.name not in judged["dice"]]
        if not missing:
            return
        logger.info("judging the new student on %d studies", len(missing))
        targets = self._mask_source.masks(teacher, device) if teacher else None
        name = f"new student of {self.name}"
        new = Weights(student, name, "new student", adaptation=adaptation)
        pair = [self._mask_source.masks(each, device) for each in (new, served)]
        with _quiet(), loop.stop_on_sigterm():
            for study in missing:
                if loop.is_stopping:
                    raise StoppedError
                if self._served().network_id != served.network_id:
                    return  # nothing that is measured against this one counts
                try:
                    values = [mean_dice(masks, targets, [study], options.seed)[0] for masks in pair]
                except (InputError, OSError) as error:  # removed or replaced meanwhile
                    loop.progress.skip(study.name, f"it did not judge: {error}")
                    continue
                judged["dice"][study.name] = [round(value, 4) for value in values]
                loop.save()

    def _decide(
        self, loop: TrainingLoop, options: RequestOptions, studies: Sequence[ExaminedStudy]
    ) -> Verdict:
        """Return the verdict from the Dice that `_measure` added; studies: all of the run."""
        judged = loop.progress.facts.setdefault("judged", {"dice": {}})
        if judged.get("served", self._served().network_id) != self._served().network_id:
            reason = "another version is served than when the new student was judged; train again"
            return Verdict("again", reason, 0.0, None)
        pairs, patients = self._judged(loop, studies)
        verdict = decide(
            [new for new, _ in pairs],
            [served for _, served in pairs],
            options.min_gain,
            options.accept,
            self._why_few(
                studies, "labelled studies" if self._needs_labels(options) else "studies"
            ),
            self.judges_in_halves,
            patients,
        )
        judged |= {"gain": verdict.gain, "lower": verdict.lower}
        return verdict

    @staticmethod
    def _judged(
        loop: TrainingLoop, studies: Sequence[ExaminedStudy]
    ) -> tuple[list[list[float]], list[str]]:
        """Return the Dice of both students in each study that judged, and whose study it is.

        studies: all of the run.
        """
        dice: dict[str, list[float]] = loop.progress.facts["judged"]["dice"]
        patient_of = {study.name: study.patient for study in studies}
        return list(dice.values()), [patient_of.get(name, name) for name in dice]

    def _why_few(self, studies: Sequence[ExaminedStudy], kind: str) -> str:
        """Return how many studies the served version has not learned, or that one patient has all.

        Empty if it learned none, and there are several patients.
        """
        if len(studies) > 1 and len({study.patient for study in studies}) == 1:
            return f"all {kind} have the same PatientID"
        seen = {study.name for study in seen_studies(studies, self._served)}
        number = self._served.published.read().served
        new = len(unseen_studies(studies, seen))
        return f"of {len(studies)} {kind} {new} took no part in version {number}" if seen else ""

    def _publish(
        self,
        loop: TrainingLoop,
        student: FastSAM3D,
        verdict: Verdict,
        metadata: Mapping[str, str],
        options: RequestOptions,
        adaptation: Adaptation | None = None,
    ) -> dict[str, Any]:
        """Publish a student if the verdict says so; write the results of the run.

        A stop is too late from here on: what is published is also told.
        """
        with loop.stop_on_sigterm():
            number = None
            if verdict.answer == "publish":
                try:
                    version = self._served.published.publish(
                        student, metadata, options.keep_versions, adaptation
                    )
                except OSError as error:
                    raise InputError(
                        f"the trained student could not be written ({error}); make room on the "
                        "disk and train again: the run goes on where it stopped"
                    ) from error
                number = version.number
            asks = verdict.answer == "ask"
            result = {"published": number is not None, "reason": verdict.reason, "version": number}
            loop.end(keeps_state=asks or verdict.answer == "again", asks=asks, **result)
        logger.info("%s: %s", "published" if number else "not published", verdict.reason)
        return result

    # --- errors -----------------------------------------------------------------------------------

    @contextmanager
    def _record_errors(self, options: RequestOptions) -> Iterator[None]:
        """Write errors to the statistics, for clients; turn out-of-memory into an InputError."""
        if processes.is_launcher():
            self._folder.begin_stats()
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
            advice = f"out of memory on {options.device}: {self._memory_advice(options)}"
            self._folder.write_reason(advice)
            raise InputError(advice) from error

    def _memory_advice(self, options: Any) -> str:
        return f"lower train_batch_size (now {options.train_batch_size})"


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave the lines about each simulated click out of the log, whose end clients show."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in text for words in ("out of memory", "not enough memory", "can't allocate memory")
    )


def check_writable(folder: Path) -> None:
    """Raise InputError if a folder cannot be written, or cannot be made where it is missing."""
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    if not can_write(existing):
        raise InputError(
            f"{existing} cannot be written, so no training can be kept; make it writable, or start "
            "the server with another folder: --conf model_dir DIR"
        )
