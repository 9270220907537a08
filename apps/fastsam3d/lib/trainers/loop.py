"""The loop of a training in one process: steps, epochs, SIGTERM, saved states, statistics."""

from __future__ import annotations

import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from lib.errors import StoppedError

from . import processes
from .curves import EventWriter, draw_curves
from .request_options import RequestOptions
from .run_state import Clock, Progress, RunFolder, duration

SAVE_SECONDS = 30.0
"""SAVE_SECONDS: longest time between two saved states."""


class _Terminated(BaseException):
    """SIGTERM arrived. It is no Exception, so that no handler takes it for a fault of a study."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM end the block at once with StoppedError, but where the block has own handlers.

    Such are :meth:`TrainingLoop.stop_on_sigterm` and that of `processes.spawn`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except _Terminated:
        raise StoppedError from None
    finally:
        signal.signal(signal.SIGTERM, before)


class TrainingLoop(ABC):
    """What all trainers share; a trainer adds its networks, its step and the end of an epoch.

    signature: hash of everything that decides the result; a state of another one is not resumed.
    """

    signature: str

    def __init__(self, folder: RunFolder, options: RequestOptions, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self._common = options
        self.is_first = processes.rank() == 0
        self.progress = Progress()
        self._clock = Clock(SAVE_SECONDS)
        self._events = EventWriter(folder.events)
        self._stop_requested = False

    # --- what a trainer adds ----------------------------------------------------------------------

    @property
    @abstractmethod
    def updates(self) -> int:
        """The number of updates of the whole run."""

    @property
    @abstractmethod
    def is_epoch_over(self) -> bool:
        """Whether the last update was the last one of an epoch."""

    @property
    @abstractmethod
    def epochs(self) -> tuple[int, int]:
        """The epochs that are over, and all epochs."""

    @abstractmethod
    def _batches_of_epoch(self) -> Iterable[Any]:
        """Return the batches of an epoch, or of the rest of it."""

    @abstractmethod
    def _step(self, batch: Any) -> None:
        """Change the student once."""

    @abstractmethod
    def _end_epoch(self) -> None:
        """Add the epoch to the history, and save."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """Return what a resumed run needs beside the progress."""

    # --- the loop ---------------------------------------------------------------------------------

    def train(self) -> None:
        """Train until the last update, or until SIGTERM; the state is saved in both cases."""
        is_stopping = False
        with self.stop_on_sigterm():
            while not self.is_done and not is_stopping:
                for batch in self._batches_of_epoch():
                    self._step(batch)
                    if self.is_epoch_over:
                        self._end_epoch()
                    is_stopping = processes.any_of_all(self._stop_requested, self.device)
                    if not self.is_epoch_over and (is_stopping or self._clock.is_time_to_save()):
                        self.save()
                    if is_stopping:
                        break

    @property
    def is_done(self) -> bool:
        """True after the last update; publishing may still be due."""
        return self.progress.update >= self.updates

    @property
    def is_stopping(self) -> bool:
        """Whether SIGTERM arrived within `stop_on_sigterm`."""
        return self._stop_requested

    @contextmanager
    def stop_on_sigterm(self) -> Iterator[None]:
        """Let SIGTERM end the loop of all processes after the current update, or study judged."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_stop_requested", True))
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    # --- save -------------------------------------------------------------------------------------

    def _stored_state(self) -> tuple[dict[str, Any] | None, str]:
        """Return the state to resume from, if there is one, and a note for the user."""
        if not self._common.resume:
            return None, ""
        return self.folder.load_state(self.signature)

    def save(self) -> None:
        """Save the state, and the statistics for clients."""
        if self.is_first:
            self._clock.tick(self.progress)
            self.folder.save_state(self.signature, self.progress, self._state())
            self._clock.mark_saved()
            self._write_stats()

    def _write_stats(self, **results: Any) -> None:
        if self.is_first:
            self.folder.write_stats(self.progress, self.epochs, self.updates, **results)

    def _draw(self, row: Mapping[str, Any]) -> None:
        """Add an epoch to the curves."""
        self._events.add(row)
        draw_curves(self.progress.history, self.folder.curves)

    def end(self, *, keeps_state: bool, **results: Any) -> None:
        """Write the results; without the state the next training starts anew."""
        self._write_stats(total_time=duration(self.progress.seconds), **results)
        if not keeps_state:
            self.folder.remove_state()
        self._events.close()
