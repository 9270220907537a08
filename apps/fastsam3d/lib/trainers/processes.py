"""The processes of a run: a single one, one per GPU, or those that torchrun starts."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessException
from torch.multiprocessing.spawn import spawn as spawn_processes

TIMEOUT = timedelta(hours=2)
"""TIMEOUT: longest time that the other processes wait while the first one validates."""


def rank() -> int:
    """Return the number of this process among the processes of all machines."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes on all machines."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def any_of_all(value: bool, device: torch.device) -> bool:
    """Return whether `value` is true in any of the processes, which all call this together.

    device: that of this process, over which the processes communicate.
    """
    if world_size() == 1:
        return value
    flag = torch.tensor(int(value), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())


def is_under_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "LOCAL_RANK" in os.environ


def is_launcher() -> bool:
    """Return whether this process starts the run: always, except for torchrun's further ones."""
    return not is_under_torchrun() or os.environ["RANK"] == "0"


def own_device(device: str) -> torch.device:
    """Return the device of this process; `cuda` gives each process a GPU of its own."""
    if device != "cuda":
        return torch.device(device)
    number = int(os.environ.get("LOCAL_RANK", 0)) if dist.is_initialized() else 0
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def process_count(processes: int, device: str) -> int:
    """Return the number of processes to start; `processes` 0 stands for one per GPU."""
    if processes:
        return processes
    return max(1, torch.cuda.device_count()) if device == "cuda" else 1


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the process group that torchrun, or `spawn`, has set up in the environment."""
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, init_method="env://", timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def spawn(run: Callable[..., Any], count: int, *arguments: Any) -> bool:
    """Call ``run(*arguments)`` in `count` processes on this machine, and wait for them.

    SIGTERM is passed on to them. Return whether all calls returned: False if SIGTERM ended a
    process. Raise what torch raises if a call fails otherwise.
    """
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    context = spawn_processes(_worker, args=(count, port, run, arguments), nprocs=count, join=False)
    with _passed_on_sigterm(context.processes) as is_stopping:
        try:
            while not context.join():
                pass
        except ProcessException:
            if not is_stopping():  # one that SIGTERM ended early makes the others fail
                raise
            return False
    return True


@contextmanager
def _passed_on_sigterm(workers: Sequence[BaseProcess]) -> Iterator[Callable[[], bool]]:
    """Send SIGTERM on to the workers; yield a function that returns whether it arrived."""
    arrived = threading.Event()

    def pass_on(*_: object) -> None:
        arrived.set()
        for worker in workers:
            worker.terminate()

    if threading.current_thread() is not threading.main_thread():
        yield arrived.is_set
        return
    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield arrived.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def _worker(
    local_rank: int, count: int, port: int, run: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(
        RANK=str(local_rank),
        LOCAL_RANK=str(local_rank),
        WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    run(*arguments)


def end_with_parent(interval: float = 2.0) -> None:
    """Watch the parent process from now on; send SIGTERM to this process once it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(interval)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
