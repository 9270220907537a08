"""What the app changes in MONAI Label's HTTP server: refusals say why, requests do not wait.

The stock server answers a bare 500 to bad JSON and to anything that a task or the studies raise.
Its routes let ``params`` overwrite the image, take any path on the server for an image, ignore
unknown sessions, start trainings that cannot be, and run on the event loop, where all others wait.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import requests
from fastapi import APIRouter, Depends, FastAPI, File, Form, Request, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.responses import FileResponse, JSONResponse, Response
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.endpoints import activelearning, datastore, train
from monailabel.endpoints.infer import ResultType, send_response
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelException
from monailabel.interfaces.utils.app import app_instance

from lib import ohif
from lib.datastore import write_segmentation
from lib.errors import InputError, NotFoundError, SavingError
from lib.infers.fastsam3d import check_options

logger = logging.getLogger(__name__)

router = APIRouter()

LABEL_FILES = (".nii.gz", ".nii", ".nrrd", ".bin")  # .bin: the image's voxels without a header


def install(app: FastAPI) -> None:
    """Put our routes before the stock ones, as the first that matches answers; answer errors."""
    routes = app.router.routes
    stock = len(routes)
    for each in (router, ohif.router):
        app.include_router(each, prefix=settings.MONAI_LABEL_API_STR)
    ours = routes[stock:]
    del routes[stock:]
    routes[:0] = ours
    for kind, (status, describe) in ERRORS.items():
        app.add_exception_handler(kind, _answer(status, describe))
    # the stack was made at start-up without these handlers; the next request makes it anew
    app.middleware_stack = None


# --- routes ---------------------------------------------------------------------------------------
# Each runs in a thread of its own, so that other requests are answered meanwhile.

UserRole = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))]
AnnotatorRole = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))]
AdminRole = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))]


@router.post("/infer/{model}", summary="Mask from clicks", tags=["Infer"])
def infer(
    background_tasks: BackgroundTasks,
    model: str,
    user: UserRole,
    image: str = "",
    session_id: str = "",
    params: Annotated[str, Form()] = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    output: ResultType | None = None,
) -> Any:
    """The image is that of the session, or the file that is sent along, or one of the studies."""
    instance = app_instance()
    request = _parse_params(params)
    check_options(request)
    _check_model(instance, model)
    if output == ResultType.dicom_seg:
        _check_segmentation(instance, session_id or file is not None)
    with _image_file(instance, image, session_id, file) as path:
        result = instance.infer({**request, "model": model, "image": path})
        if output == ResultType.dicom_seg:
            label_info = request.get("label_info") or []
            return _segmentation(background_tasks, path, result["file"], label_info)
    reply = send_response(instance.datastore(), result, output, background_tasks)
    return _with_warnings(reply, result["params"]["warnings"])


@router.put("/datastore/label", summary="Save a label", tags=["Datastore"])
def save_label(
    background_tasks: BackgroundTasks,
    user: AnnotatorRole,
    label: Annotated[UploadFile, File()],
    image: str,
    tag: str = "",
    params: Annotated[str, Form()] = "{}",
) -> Any:
    """The tag is ``final`` unless one is given; a label that has this tag already is replaced."""
    _parse_params(params)
    _find_image(app_instance(), image)
    if not re.fullmatch(r"[\w-]*", tag):  # it names a folder
        raise InputError(f"tag is {tag!r}; a tag has letters, digits, - and _ only")
    if not str(label.filename).endswith(LABEL_FILES):
        raise InputError(f"label is {label.filename!r}; send one of {', '.join(LABEL_FILES)}")
    return datastore.save_label(background_tasks, image, params, tag, label, user.username)


@router.post("/activelearning/{strategy}", summary="Next sample", tags=["ActiveLearning"])
def next_sample(strategy: str, user: UserRole, params: dict | None = None) -> Any:
    return activelearning.sample(strategy, params, user.username)


@router.post("/train/", include_in_schema=False)
def train_all(user: AdminRole, params: dict | None = None, run_sync: bool = False) -> Any:
    _check_trainer(app_instance())
    return train.run(params, run_sync)


@router.post("/train/{model}", summary="Train a model", tags=["Train"])
def train_model(
    model: str,
    user: AdminRole,
    params: dict | None = None,
    run_sync: bool = False,
    enqueue: bool = False,
) -> Any:
    _check_trainer(app_instance(), model)
    return train.run_model(model, params, run_sync, enqueue)


# --- checks ---------------------------------------------------------------------------------------


def _parse_params(text: str) -> dict[str, Any]:
    try:
        params = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:  # an endless number, endless brackets
        raise InputError(f"params is not JSON: {error}; send an object") from error
    if not isinstance(params, dict):
        raise InputError(f"params is {params!r}; send a JSON object")
    return params


def _check_model(instance: MONAILabelApp, model: str) -> None:
    models = list(instance.info()["models"])
    if model not in models:
        raise NotFoundError(f"there is no model {model!r}; there are {', '.join(models)}")


def _check_trainer(instance: MONAILabelApp, model: str | None = None) -> None:
    trainers = list(instance.info()["trainers"])
    if not trainers:
        raise NotFoundError("there is nothing to train: this server has no trainer")
    if model is not None and model not in trainers:
        raise NotFoundError(f"there is no trainer {model!r}; there are {', '.join(trainers)}")


def _check_segmentation(instance: MONAILabelApp, is_own: bool) -> None:
    if is_own or not isinstance(instance.datastore(), DICOMWebDatastore):
        raise InputError(
            "a DICOM-SEG needs a series of a DICOM server; ask for output=image instead"
        )


# --- images and masks -----------------------------------------------------------------------------


@contextmanager
def _image_file(
    instance: MONAILabelApp, image: str, session_id: str, file: UploadFile | None
) -> Iterator[str]:
    """The path of the image that a request is about, for as long as the request takes."""
    if session_id:
        yield _find_session(instance, session_id)
    elif file is not None:
        suffix = "".join(Path(file.filename or "").suffixes) or ".nii.gz"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"image{suffix}")
            with path.open("wb") as stored:
                shutil.copyfileobj(file.file, stored)
            yield str(path)
    elif image:
        yield _find_image(instance, image)
    else:
        raise InputError("there is no image; name one, or a session, or send a file")


def _find_session(instance: MONAILabelApp, session_id: str) -> str:
    is_name = os.path.basename(session_id) == session_id
    sessions = instance.sessions()
    session = sessions.get_session(session_id) if is_name and sessions is not None else None
    if not session:
        raise NotFoundError(f"session {session_id!r} has expired; upload the image again")
    return str(session.image)


def _find_image(instance: MONAILabelApp, image: str) -> str:
    # an id is never a path: MONAI Label would open any file of the server that the name leads to
    is_name = os.path.basename(image) == image
    path = instance.datastore().get_image_uri(image) if is_name else ""
    if not path or not os.path.exists(path):
        raise NotFoundError(f"there is no image {image!r} among the studies of this server")
    return str(path)


def _with_warnings(reply: Any, warnings: Sequence[str]) -> Any:
    """A reply that is a mask alone has its warnings in a header, where our OHIF finds them."""
    if warnings and isinstance(reply, Response):
        text = "; ".join(warnings).encode("latin-1", "replace")  # what a header can hold
        reply.headers["X-Warning"] = text.decode("latin-1")
    return reply


def _segmentation(
    background_tasks: BackgroundTasks, image: str, mask: str, label_info: list[dict[str, Any]]
) -> FileResponse:
    """A mask file as DICOM-SEG; neither file stays behind."""
    try:
        segmentation = write_segmentation(image, mask, label_info)
    finally:
        os.unlink(mask)
    background_tasks.add_task(os.unlink, segmentation)
    return FileResponse(segmentation, media_type="application/dicom", filename="mask.dcm")


# --- what is answered when something is raised ----------------------------------------------------

Describe = Callable[[Any], str]

ERRORS: dict[type[Exception], tuple[int, Describe]] = {
    InputError: (400, str),
    NotFoundError: (404, str),
    SavingError: (500, str),
    ImageNotFoundException: (404, lambda error: error.msg),
    MONAILabelException: (400, lambda error: error.msg),
    requests.RequestException: (
        502,
        lambda error: (
            f"the DICOM server does not answer as it should ({type(error).__name__}); "
            "check that it runs, and see the log of this one"
        ),
    ),
    Exception: (
        500,
        lambda error: f"the server failed on this request ({type(error).__name__}); see its log",
    ),
}
"""The most special class of an error decides: HTTP status, and the sentence for the user."""


def _answer(
    status: int, describe: Describe
) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
    async def answer(request: Request, error: Exception) -> JSONResponse:
        detail = describe(error)
        reason = f" [{error}]" if status > 500 else ""  # of a 500, the log has the traceback
        logger.warning("%s %s refused: %s%s", request.method, request.url, detail, reason)
        return JSONResponse({"detail": detail}, status)

    return answer
