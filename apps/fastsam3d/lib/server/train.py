"""The routes of trainings and of what they publish: start, watch, stop, roll back.

The stock routes start what cannot end well, queue a second training behind the first, and kill one
that is stopped without letting it save.
"""

from __future__ import annotations

import os
import subprocess
import time
from datetime import datetime
from typing import Annotated, Any

import psutil
import torch
from fastapi import APIRouter, Depends
from fastapi.responses import FileResponse
from monailabel.config import settings
from monailabel.endpoints import train
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import processes, tasks

from lib.errors import ConflictError, NotFoundError
from lib.weights.versions import published_facts

router = APIRouter()

UserRole = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))]
AdminRole = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))]

STOP_SECONDS = 5.0
"""A training that is stopped has this long to save where it is; its last state is 30 s old."""


@router.post("/train/", include_in_schema=False)
def train_all(user: AdminRole, params: dict | None = None, run_sync: bool = False) -> Any:
    """What OHIF sends; ``params`` are options for all trainers, or those of each by its name."""
    params = params or {}
    trainers = _trainers()
    by_name = {name: params.get(name, {}) for name in trainers}
    if not set(params) <= set(trainers):
        by_name = dict.fromkeys(trainers, params)
    return {
        name: {"result": _start(name, options, run_sync), "detail": None}
        for name, options in by_name.items()
    }


@router.post("/train/{model}", summary="Train a model", tags=["Train"])
def train_model(
    model: str,
    user: AdminRole,
    params: dict | None = None,
    run_sync: bool = False,
    enqueue: bool = False,
) -> Any:
    """One at a time; ``enqueue``, which MONAI Label's clients may send, changes nothing."""
    return _start(model, params or {}, run_sync)


@router.get("/train/", summary="Status of the training", tags=["Train"])
def train_status(user: UserRole, all: bool = False, check_if_running: bool = False) -> Any:
    """As ever; where a training failed, the last of its ``details`` says why.

    One that was asked for and is about to start counts as running.
    """
    if check_if_running and _under_way():
        return _under_way()[0]
    status = train.status(all, check_if_running)
    for task in status if isinstance(status, list) else [status]:
        if task["status"] == "ERROR":
            reason = _trainers(task["request"]["model"])[task["request"]["model"]].error
            if reason and not any(reason in line for line in task["details"]):
                task["details"].append(reason)
    return status


@router.delete("/train/", summary="Stop the training", tags=["Train"])
def train_stop(user: AdminRole) -> Any:
    """It saves where it is and ends; the next one with the same options goes on from there."""
    return _stop()


@router.get("/train/{model}/curves.png", summary="Curves of a training", tags=["Train"])
def train_curves(model: str, user: UserRole) -> FileResponse:
    path = _trainers(model)[model].curves
    if not path.is_file():
        raise NotFoundError(f"there are no curves: {model} was not trained here yet")
    return FileResponse(path, media_type="image/png")


@router.get("/weights/{model}", summary="Versions of a model", tags=["Train"])
def versions(model: str, user: UserRole) -> Any:
    """Which version is served, and to which one can roll back."""
    served = _served(model)
    return published_facts(served(), served.published)


@router.post("/weights/{model}/rollback", summary="Serve an older version", tags=["Train"])
def rollback(model: str, user: AdminRole, version: int | None = None) -> Any:
    """``version`` is one of those listed, 0 the weights that the server was started with; by
    default it is the one that the served one replaced.
    """
    served = _served(model)
    served.published.rollback(version)
    return published_facts(served(), served.published)


def _trainers(model: str | None = None) -> dict[str, Any]:
    """By name; raises NotFoundError where there is none, or not this one."""
    trainers = app_instance().trainers
    if not trainers:
        raise NotFoundError("there is nothing to train: this server has no trainer")
    if model is not None and model not in trainers:
        raise NotFoundError(f"there is no trainer {model!r}; there are {', '.join(trainers)}")
    return trainers


def _served(model: str) -> Any:
    """The weights of a model that can be trained."""
    configs = app_instance().configs
    if model not in configs:
        raise NotFoundError(f"there is no model {model!r}; there are {', '.join(configs)}")
    served = getattr(configs[model], "served", None)
    if served is None:
        raise NotFoundError(f"{model} is never trained here, so it has no versions")
    return served


def _start(model: str, options: dict[str, Any], run_sync: bool) -> Any:
    """Raises InputError for what is known to fail, before a process is started for it."""
    instance = app_instance()
    _trainers(model)[model].check(options, instance.datastore())
    if _under_way():
        raise ConflictError(
            "a training is running; wait for its end, or stop it first (it can be resumed)"
        )
    # its process inherits this: threads that wait for one another sleep, and leave clicks the cores
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    started, _ = AsyncTask.run(
        "train", request={"model": model}, params=options, force_sync=run_sync, enqueue=True
    )
    return started


def _under_way() -> list[dict[str, Any]]:
    return [task for task in tasks("train") if task["status"] in ("SUBMITTED", "RUNNING")]


def _stop() -> dict[str, Any] | None:
    """The task that was stopped; None where none was running."""
    if not _under_way():
        return None
    task = _under_way()[0]
    deadline = time.monotonic() + STOP_SECONDS
    while task["id"] not in processes("train") and time.monotonic() < deadline:
        time.sleep(0.1)  # it is about to start
    process = processes("train").get(task["id"])
    task["status"] = "STOPPED"
    task["end_ts"] = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    if process is not None:
        _end(process)
    return task


def _end(process: subprocess.Popen) -> None:
    """Let it save and end; kill it, and those that it started, where it does not."""
    helpers = _children(process.pid)
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for helper in helpers:
        if helper.is_running():
            helper.kill()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
