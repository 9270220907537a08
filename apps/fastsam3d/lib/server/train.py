"""The routes of trainings and of the weights that they publish: start, watch, stop, roll back.

The stock routes start trainings that must fail, queue a second training behind the first, and kill
a training on stop before it can save.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

import psutil
import torch
from fastapi import APIRouter
from fastapi.responses import FileResponse
from monailabel.endpoints import train
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import processes, tasks

from lib.errors import AppError, ConflictError, InputError, NotFoundError, StoppedError
from lib.server.app_instance import ModelTrainer, app_instance
from lib.server.auth import AdminRole, UserRole
from lib.server.form_json import check_text
from lib.server.new_labels import NewLabels
from lib.server.other_training import other_training, stop_other_training
from lib.weights.versions import describe_versions

logger = logging.getLogger(__name__)

router = APIRouter()

START_SECONDS = 5.0
"""START_SECONDS: time in which a task that was submitted gets its process."""

STOP_SECONDS = 120.0
"""STOP_SECONDS: a stopped training that has not ended by then is killed.

It ends after the update, or the validation, under way.
"""

ADAPTATION = "fastsam3d_adapt"
"""ADAPTATION: name of the trainer that the option ``adapt_every`` starts."""

_start_lock = threading.Lock()


# --- routes ---------------------------------------------------------------------------------------


@router.post("/train/", include_in_schema=False)
def train_all(user: AdminRole, params: dict | None = None, run_sync: bool = False) -> Any:
    """OHIF's request: ``params`` are options for a trainer by its name, or for those of the models.

    A trainer with another name than a model, such as ``fastsam3d_adapt``, starts by its name only.
    """
    _check_is_async(run_sync)
    params = params or {}
    check_text(params, "the body")
    trainers = _trainers()
    if params and set(params) <= set(trainers):
        by_name = params
    else:
        by_name = {name: params for name in trainers if name in app_instance().configs}
    if len(by_name) > 1:
        raise InputError(
            f"the body names {', '.join(by_name)}, but one training runs at a time; send one name"
        )
    for name, options in by_name.items():
        if not isinstance(options, dict):
            raise InputError(f"{name} is {str(options)[:80]!r}; send an object of train options")
    return {
        name: {"result": _start(name, options), "detail": None} for name, options in by_name.items()
    }


@router.post("/train/{model}", summary="Train a model", tags=["Train"])
def train_model(
    model: str,
    user: AdminRole,
    params: dict | None = None,
    run_sync: bool = False,
    enqueue: bool = False,
) -> Any:
    """Only one training runs at a time. ``enqueue`` of MONAI Label's clients has no effect."""
    _check_is_async(run_sync)
    check_text(params, "the body")
    return _start(model, params or {})


@router.get("/train/", summary="Status of the training", tags=["Train"])
def train_status(user: UserRole, all: bool = False, check_if_running: bool = False) -> Any:
    """If a training failed, the last of its ``details`` is the reason.

    With ``check_if_running``, a training that is about to start counts as running. A training of
    another server with the same ``model_dir`` is the status here, too.
    """
    active = _active_tasks()
    if check_if_running and active:
        return _as_of_now(active[0])
    elsewhere = None if _is_busy() else other_training()
    if elsewhere:
        own = map(_as_of_now, tasks("train"))
        return [*own, elsewhere] if all and not check_if_running else elsewhere
    status = train.status(all, check_if_running)
    if not isinstance(status, list):
        return _with_reason(status)
    # the trainers know the reason of their last run alone
    last = {task["request"]["model"]: number for number, task in enumerate(status)}
    return [
        _with_reason(task, is_last=last[task["request"]["model"]] == number)
        for number, task in enumerate(status)
    ]


@router.delete("/train/", summary="Stop the training", tags=["Train"])
def train_stop(user: AdminRole) -> Any:
    """The training ends after the update under way and saves its state; the reply comes then.

    The next training with the same options resumes it. It may be one of another server.
    """
    if not _is_busy():
        return stop_other_training(STOP_SECONDS)
    stopped = _stop()
    return _as_of_now(stopped) if stopped else None


@router.get("/train/{model}/curves.png", summary="Curves of a training", tags=["Train"])
def train_curves(model: str, user: UserRole) -> FileResponse:
    path = _trainer(model).curves
    if not path.is_file():
        raise NotFoundError(f"there are no curves: {model} was not trained here yet")
    return FileResponse(path, media_type="image/png")


@router.get("/weights/{model}", summary="Versions of a model", tags=["Train"])
def versions(model: str, user: UserRole) -> Any:
    """The version that is served, and the versions to which one can roll back."""
    served = _served(model)
    return describe_versions(served(), served.published)


@router.post("/weights/{model}/rollback", summary="Serve an older version", tags=["Train"])
def rollback(model: str, user: AdminRole, version: int | None = None) -> Any:
    """``version`` is one of the listed ones; 0 is the weights that the server started with.

    The default is the version that the served one replaced.
    """
    served = _served(model)
    served.published.rollback(version)
    return describe_versions(served(), served.published)


# --- what the routes are about --------------------------------------------------------------------


def _trainers() -> Mapping[str, ModelTrainer]:
    trainers = app_instance().trainers
    if not trainers:
        raise NotFoundError("there is nothing to train: this server has no trainer")
    return trainers


def _trainer(model: str) -> ModelTrainer:
    trainers = _trainers()
    if model not in trainers:
        raise NotFoundError(f"there is no trainer {model!r}; there are {', '.join(trainers)}")
    return trainers[model]


def _served(model: str) -> Any:
    """Return the served weights of a model that can be trained."""
    configs = app_instance().configs
    if model not in configs:
        raise NotFoundError(f"there is no model {model!r}; there are {', '.join(configs)}")
    served = getattr(configs[model], "served", None)
    if served is None:
        raise NotFoundError(f"{model} is never trained here, so it has no versions")
    return served


# --- start and stop -------------------------------------------------------------------------------


def _with_reason(task: dict[str, Any], is_last: bool = True) -> dict[str, Any]:
    """Return a task as clients show it: one that failed ends with the reason, if it is known.

    is_last: the task is the last one of its trainer.
    """
    task = _as_of_now(task)
    if task["status"] != "ERROR":
        return task
    trainer, details = _trainer(task["request"]["model"]), task["details"]
    # MONAI Label may miss the last lines of a process, so the statistics are asked too
    told = [*details, trainer.stats().get("reason", "")] if is_last else details
    if any(StoppedError.MESSAGE in line for line in told):
        return {**task, "status": "STOPPED"}  # by another server
    reason = trainer.error if is_last else ""
    if reason and not any(reason in line for line in details):
        details.append(reason)
    return task


def _as_of_now(task: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a task, whose details another thread may add to while a reply is written."""
    return {**task, "details": list(task["details"])} if "details" in task else dict(task)


def _check_is_async(run_sync: bool) -> None:
    """Raise InputError for a training in the process of the server, which nobody could stop."""
    if run_sync:
        raise InputError(
            "run_sync=true would train inside of the server, where clicks wait for it; send the "
            "request without run_sync, and follow the training with GET /train/"
        )


def _start(model: str, options: dict[str, Any]) -> Any:
    """Start a training and return its task; on a CPU it tells how long the training will take.

    Raises as `_launch` does.
    """
    checked, started = _launch(model, options)
    task = _as_of_now(started)
    seconds = _trainer(model).estimate_seconds(checked, app_instance().datastore())
    if seconds is None:
        return task
    return {**task, **_describe_duration(seconds, getattr(checked, "accept", False))}


def _launch(model: str, options: dict[str, Any]) -> tuple[object, dict[str, Any]]:
    """Start a training in a process; return its parsed options and its task.

    Raises InputError before the process starts if the training cannot succeed, and ConflictError
    if another one runs.
    """
    named = options.get("model", model)
    if named != model:  # MONAI Label would start a task of that name
        raise InputError(
            f"the body names the model {str(named)[:80]!r}, but this request trains {model!r}; "
            "leave it out, or send the request to /train/ and that name"
        )
    if app_instance().options.device:  # the site's device is not the client's to change
        options = {key: value for key, value in options.items() if key != "device"}
    checked = _trainer(model).check(options, app_instance().datastore())
    with _start_lock:  # of two requests at once, the second one finds the task of the first
        if _is_busy() and not _active_tasks():
            raise ConflictError("the training that was stopped still saves; try again in a moment")
        elsewhere = None if _is_busy() else other_training()
        if _is_busy() or elsewhere:
            where = f": {elsewhere['details'][0]}" if elsewhere else ""
            raise ConflictError(
                "a training is running; wait for its end, or stop it first (it can be resumed)"
                f"{where}"
            )
        # The process inherits this: its waiting threads sleep, and leave the cores to clicks.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        task, _ = AsyncTask.run("train", request={"model": model}, params=options, enqueue=True)
    if model == ADAPTATION:
        _count_labels_anew()
    return checked, task


def adapt_if_due(image: str) -> None:
    """Count the label of an image; start the adaptation after `adapt_every` images.

    Counted are the images since the last adaptation that a server started, by itself or not. The
    option is that of this server. If the adaptation cannot start, the next label tries again.
    """
    every = app_instance().options.adapt_every
    if not every:
        return
    try:
        count = _new_labels().add(image)
        if count >= every:
            _launch(ADAPTATION, {})
            logger.info("%s starts after %d new labels", ADAPTATION, count)
    except AppError as error:
        logger.info("%s waits for the next label: %s", ADAPTATION, error)
    except OSError as error:  # the label is saved; its reply does not depend on this
        logger.warning("%s could not start, the next label tries again: %s", ADAPTATION, error)


def _count_labels_anew() -> None:
    """Forget the labels that the adaptation which has just started learns from."""
    try:
        _new_labels().clear()
    except OSError as error:  # it starts once more than necessary
        logger.warning("the new labels are still counted: %s", error)


def _new_labels() -> NewLabels:
    return NewLabels(_trainer(ADAPTATION).shared_folder)


def _describe_duration(seconds: float, accepts: bool) -> dict[str, Any]:
    """Return an estimated duration for the reply to a client.

    accepts: the training may only have to publish what the last one asked about. Whether labels
    changed since is known when all studies were read.
    """
    about = f"about {max(1, round(seconds / 60))} min on this CPU"
    if accepts:
        about = f"at most {about}, and seconds if nothing changed since the last training asked"
    return {
        "estimate_seconds": round(seconds),
        "estimate": f"{about}, from the time of the networks measured now",
    }


def _active_tasks() -> list[dict[str, Any]]:
    return [task for task in tasks("train") if task["status"] in ("SUBMITTED", "RUNNING")]


def _is_busy() -> bool:
    """Return whether a training of this server is due, runs, or saves its state after a stop."""
    is_alive = (process.poll() is None for process in list(processes("train").values()))
    return bool(_active_tasks()) or any(is_alive)


def _stop() -> dict[str, Any] | None:
    """Stop the running training and return its task, or None if no training is running.

    One that somebody has stopped already is waited for.
    """
    active = _active_tasks()
    if not active:
        return _wait_for_stopped()
    task = active[0]
    deadline = time.monotonic() + START_SECONDS
    while task["id"] not in processes("train") and time.monotonic() < deadline:
        time.sleep(0.1)  # a submitted task has no process yet
    process = processes("train").get(task["id"])
    task["status"] = "STOPPED"
    task["end_ts"] = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    if process is not None:
        _end(process)
    return task


def _wait_for_stopped() -> dict[str, Any] | None:
    """Wait for a training that was stopped and still saves; return its task, or None."""
    for number, process in list(processes("train").items()):
        if process.poll() is None:
            with suppress(subprocess.TimeoutExpired):  # whoever stopped it kills it then
                process.wait(STOP_SECONDS)
            return next((task for task in tasks("train") if task["id"] == number), None)
    return None


def _end(process: subprocess.Popen) -> None:
    """Let a training save and end; kill it if it still runs after STOP_SECONDS.

    Its child processes end with it.
    """
    children = _children(process.pid)
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        logger.warning("the training did not end within %.0f s, and is killed", STOP_SECONDS)
        process.kill()
        process.wait()
    for child in children:
        if child.is_running():
            child.kill()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
