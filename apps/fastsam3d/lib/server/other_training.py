"""A training of another server, or of train.py, in the same model_dir: as a task for clients."""

from __future__ import annotations

import time
from typing import Any

from lib.errors import ConflictError
from lib.server.app_instance import app_instance


def other_training() -> dict[str, Any] | None:
    """Return the training of another process as MONAI Label describes a task; None without one.

    Call this only while no training of this server runs: the lock does not tell whose it is.
    """
    trainer = next(iter(app_instance().trainers.values()), None)
    found = trainer.running() if trainer else None
    if found is None:
        return None
    return {
        "id": f"{found['host']} {found['start']}",
        "status": "RUNNING",
        "request": {"model": found["model"]},
        "start_ts": found["start"],
        "details": [f"{found['model']} is trained on {found['host']} since {found['start']}"],
    }


def stop_other_training(seconds: float) -> dict[str, Any] | None:
    """Ask the training of another process to end, and wait for that; return its task, or None.

    Raises ConflictError if it still runs after so many seconds.
    """
    task = other_training()
    if task is None:
        return None
    next(iter(app_instance().trainers.values())).request_stop()
    deadline = time.monotonic() + seconds
    while other_training() is not None:
        if time.monotonic() > deadline:
            raise ConflictError(
                f"{task['details'][0]}, and has not ended within {seconds:.0f} s; it ends after "
                "the update, or the validation, under way"
            )
        time.sleep(0.2)
    return {**task, "status": "STOPPED"}
