"""One FIFO queue for each device that networks run on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import psutil
import torch

from lib.infers.allocator import give_memory_back
from lib.infers.stopwatch import Stopwatch

Value = TypeVar("Value")


class Computing:
    """Computes one thing at a time on a device, for all models, in the order of the requests.

    Two at a time would only share the same cores, and their memory would add up. As every click is
    a step of its own, the clients take turns, whatever one of them asks for. All happens in one
    thread, because PyTorch keeps a team of workers for each thread that calls it.
    """

    _queues: dict[str, Computing] = {}

    def __init__(self, device: torch.device) -> None:
        prepare = _use_cores if device.type == "cpu" else None
        self._thread = ThreadPoolExecutor(1, f"computing-{device}", initializer=prepare)

    @classmethod
    def on(cls, device: torch.device) -> Computing:
        """The queue of a device; the same one for all who ask."""
        # setdefault is one step, so that two threads cannot make two
        return cls._queues.setdefault(str(device), cls(device))

    def run(
        self, stages: Stopwatch, stage: str, function: Callable[..., Value], *arguments: Any
    ) -> Value:
        """What the function returns or raises, once its turn has come.

        stages: is told how long that took, as Wait, and the function, as ``stage``.
        """
        asked = time.perf_counter()

        def work() -> Value:
            stages.add("Wait", time.perf_counter() - asked)
            with stages.measure(stage):
                return function(*arguments)

        return self._thread.submit(work).result()


def _use_cores() -> None:
    """A worker for each core of this process: two on one core wait for each other."""
    give_memory_back()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(core_count())


def core_count() -> int:
    """Physical cores that this process may use."""
    return min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))
