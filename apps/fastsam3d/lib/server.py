"""What the app changes in MONAI Label's HTTP server: the infer route, so that a refusal says why.

The stock route answers a bare 500 to bad JSON and to anything that a model raises, lets ``params``
overwrite the image, takes any path on the server for an image, ignores unknown sessions, and runs
the model on the event loop, so that the whole server waits.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, File, Form, HTTPException, UploadFile
from fastapi.background import BackgroundTasks
from monailabel.config import settings
from monailabel.endpoints.infer import ResultType, run_inference
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.utils.app import app_instance

from lib.errors import InputError
from lib.infers.fastsam3d import check_options

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/infer", tags=["Infer"])


def install(app: FastAPI) -> None:
    """Put our route before the stock one of the same path; the first that matches answers."""
    routes = app.router.routes
    stock = len(routes)
    app.include_router(router, prefix=settings.MONAI_LABEL_API_STR)
    ours = routes[stock:]
    del routes[stock:]
    routes[:0] = ours


@router.post("/{model}", summary="Mask from clicks")
def infer(
    background_tasks: BackgroundTasks,
    model: str,
    user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))],
    image: str = "",
    session_id: str = "",
    params: Annotated[str, Form()] = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    label: Annotated[UploadFile | None, File()] = None,
    output: ResultType | None = None,
) -> Any:
    """Runs in a thread of its own, so that other requests are answered meanwhile."""
    try:
        check_options(_parse_params(params))
        _check_target(app_instance(), model, image, session_id, has_file=file is not None)
        return run_inference(
            background_tasks, model, image, session_id, params, file, label, output
        )
    except InputError as error:
        logger.warning("%s on %s refused: %s", model, image or session_id or "a file", error)
        raise HTTPException(status_code=400, detail=str(error)) from error
    except HTTPException as error:
        logger.warning("%s on %s refused: %s", model, image or session_id, error.detail)
        raise
    except Exception as error:
        # the boundary of the server: whatever went wrong, the user learns what it was
        logger.exception("%s on %s failed", model, image or session_id or "a file")
        detail = f"the server failed on this request ({type(error).__name__}: {error}); see its log"
        raise HTTPException(status_code=500, detail=detail) from error


def _parse_params(text: str) -> dict[str, Any]:
    try:
        params = json.loads(text) if text else {}
    except json.JSONDecodeError as error:
        raise InputError(f"params is not JSON: {error}; send an object with the clicks") from error
    if not isinstance(params, dict):
        raise InputError(f"params is {params!r}; send a JSON object with the clicks")
    return params


def _check_target(
    instance: MONAILabelApp, model: str, image: str, session_id: str, has_file: bool
) -> None:
    """Refuse a model, image or session that is not there with 404."""
    models = list(instance.info()["models"])
    if model not in models:
        raise HTTPException(404, f"there is no model {model!r}; there are {', '.join(models)}")
    if session_id:
        is_name = os.path.basename(session_id) == session_id
        sessions = instance.sessions()
        if not is_name or sessions is None or not sessions.get_session(session_id):
            raise HTTPException(404, f"session {session_id!r} has expired; upload the image again")
    elif not image and not has_file:
        raise InputError("there is no image; name one, or a session, or send a file")
    elif image and not has_file:
        _check_image(instance, image)


def _check_image(instance: MONAILabelApp, image: str) -> None:
    # an id is never a path: MONAI Label would open any file of the server that the name leads to
    is_path = os.path.exists(image) or os.path.basename(image) != image
    if is_path or not _find_image(instance, image):
        raise HTTPException(404, f"there is no image {image!r} among the studies of this server")


def _find_image(instance: MONAILabelApp, image: str) -> str:
    try:
        return instance.datastore().get_image_uri(image)
    except Exception:
        # DICOMweb clients raise whatever their transport raises
        logger.exception("image %s cannot be had from the datastore", image)
        return ""
