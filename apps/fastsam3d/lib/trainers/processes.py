"""The processes of a run: one, one per GPU, or those that torchrun starts on several machines."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lib.errors import InputError

PATIENCE = timedelta(hours=2)
"""How long the others wait while the first process validates."""


def rank() -> int:
    """Of this process among all machines' processes."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and "LOCAL_RANK" in os.environ


def own_device(device: str) -> torch.device:
    """`cuda` is the GPU of this process; others are taken as they are."""
    if device != "cuda":
        return torch.device(device)
    number = int(os.environ.get("LOCAL_RANK", 0)) if dist.is_initialized() else 0
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def wanted_processes(processes: int, device: str) -> int:
    """processes: the option; 0 stands for one per GPU."""
    if processes:
        return processes
    return max(1, torch.cuda.device_count()) if device == "cuda" else 1


@contextmanager
def joined(device: str) -> Iterator[None]:
    """As one of the processes that torchrun, or `spawn`, has started."""
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, init_method="env://", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def spawn(run: Callable[..., Any], count: int, *arguments: Any) -> None:
    """Call ``run(*arguments)`` in so many processes of this machine."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    torch.multiprocessing.spawn(_worker, args=(count, port, run, arguments), nprocs=count)


def _worker(local_rank: int, count: int, port: int, run: Callable, arguments: tuple) -> None:
    os.environ.update(
        RANK=str(local_rank),
        LOCAL_RANK=str(local_rank),
        WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    run(*arguments)


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Raises InputError while another process trains in this folder; ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                "another training of this model is running; wait for it, or stop it"
            ) from error
        yield


def end_with_parent(interval: float = 2.0) -> None:
    """From now on: once the process that started this one is gone, end as if stopped."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(interval)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
