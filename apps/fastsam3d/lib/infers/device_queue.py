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
from lib.options import find_device

Value = TypeVar("Value")


class DeviceQueue:
    """Runs one function at a time on a device, for all models, in the order of the calls.

    Two functions at once would share the same cores and add up their memory. Every click is one
    call, so clients take turns, however many clicks a request replays. All calls run in a single
    thread, because PyTorch keeps a team of workers for each thread that calls it.
    """

    _queues: dict[str, DeviceQueue] = {}

    def __init__(self, device: torch.device) -> None:
        initializer = _use_cores if device.type == "cpu" else None
        self._thread = ThreadPoolExecutor(1, f"queue-{device}", initializer=initializer)

    @classmethod
    def on(cls, device: torch.device) -> DeviceQueue:
        """Return the queue of a device; all callers share it.

        Raises InputError if the machine does not have the device.
        """
        # setdefault is atomic, so that two threads cannot make two queues
        return cls._queues.setdefault(find_device(str(device)), cls(device))

    def run(
        self, stages: Stopwatch, stage: str, function: Callable[..., Value], *arguments: Any
    ) -> Value:
        """Call the function after all earlier calls; return or raise what it does.

        stages: the time in the queue is added as "Wait", the time of the function as `stage`.
        """
        submitted = time.perf_counter()

        def work() -> Value:
            stages.add("Wait", time.perf_counter() - submitted)
            with stages.measure(stage):
                return function(*arguments)

        return self._thread.submit(work).result()


def _use_cores() -> None:
    """Set one worker for each core of this process; two workers on one core wait for each other."""
    give_memory_back()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(core_count())


def core_count() -> int:
    """Return the number of physical cores that this process may use."""
    return min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))
