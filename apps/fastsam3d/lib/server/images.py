"""The routes by which clients open, upload and describe an image.

An opened image is prefetched for the first click on it: 3D Slicer requests the next sample or
uploads a volume of its own. The stock routes run on the event loop and block all other requests.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, File, Form, UploadFile
from fastapi.background import BackgroundTasks
from monailabel.endpoints import activelearning, datastore, session

from lib.server.app_instance import app_instance
from lib.server.auth import AnnotatorRole, UserRole
from lib.server.find_image import find_image
from lib.server.form_json import parse_object

router = APIRouter()


@router.post("/activelearning/{strategy}", summary="Next sample", tags=["ActiveLearning"])
def next_sample(strategy: str, user: UserRole, params: dict | None = None) -> Any:
    sample = activelearning.sample(strategy, params, user.username)
    if sample:
        app_instance().prefetch(sample["id"], lambda: str(sample["path"]))
    return sample


@router.put("/session/", summary="Create a session with an image", tags=["Session"])
def create_session(
    background_tasks: BackgroundTasks,
    user: UserRole,
    files: Annotated[list[UploadFile], File()],
    uncompress: bool = False,
    expiry: int = 0,
) -> Any:
    created = session.create_session(background_tasks, uncompress, expiry, files)
    path = str(created["session_info"]["image"])
    app_instance().prefetch(path, lambda: path)
    return created


@router.put("/datastore/", include_in_schema=False)
@router.put("/datastore/image", summary="Upload an image", tags=["Datastore"])
def add_image(
    background_tasks: BackgroundTasks,
    user: AnnotatorRole,
    file: Annotated[UploadFile, File()],
    image: str | None = None,
    params: Annotated[str, Form()] = "{}",
) -> Any:
    parse_object(params, "params")
    return datastore.add_image(background_tasks, image, params, file, user.username)


@router.get("/datastore/image/info", summary="Describe an image", tags=["Datastore"])
def image_info(image: str, user: UserRole) -> Any:
    info = datastore.get_image_info(image)
    app_instance().prefetch(image, lambda: find_image(app_instance(), image))
    return info


@router.put("/datastore/image/info", summary="Change an image's description", tags=["Datastore"])
def update_image_info(image: str, user: AnnotatorRole, info: Annotated[str, Form()] = "{}") -> Any:
    parse_object(info, "info")
    return datastore.update_image_info(image, info or "{}", user.username)
