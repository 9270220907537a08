"""The routes by which clients open, upload and describe an image.

An opened image is prefetched for the first click on it: 3D Slicer requests the next sample or
uploads a volume of its own. The stock routes run on the event loop and block all other requests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import FileResponse
from monailabel.endpoints import activelearning, datastore

from lib.datastore.fetched_series import CHECKED, INSTANCES
from lib.datastore.label_files import EXTENSIONS, check_header
from lib.datastore.uncertain_first import SCORE
from lib.errors import InputError, NotFoundError
from lib.server.app_instance import UploadSession, UploadSessions, app_instance
from lib.server.auth import AnnotatorRole, UserRole, user_name
from lib.server.find_image import check_exists, find_image
from lib.server.form_json import check_text, parse_object
from lib.server.names import check_name
from lib.server.uploads import check_image, is_same_scan, received, received_session, split_name

router = APIRouter()

OWN_KEYS = ("strategy", SCORE, CHECKED, INSTANCES, "path")
"""OWN_KEYS: what the server itself notes on an image; Next Sample reads it."""


@router.post("/activelearning/{strategy}", summary="Next sample", tags=["ActiveLearning"])
def next_sample(request: Request, strategy: str, user: UserRole, params: dict | None = None) -> Any:
    params = params or {}
    check_text(params, "the body")
    name = user_name(request, params.get("client_id")) or user.username
    sample = activelearning.sample(strategy, {**params, "client_id": name}, user.username)
    if sample:
        app_instance().prefetch(sample["id"], lambda: str(sample["path"]))
    return sample


@router.put("/session/", summary="Create a session with an image", tags=["Session"])
def create_session(
    user: UserRole,
    files: Annotated[list[UploadFile], File()],
    uncompress: bool = False,
    expiry: int = 0,
) -> Any:
    """One image file, or the slices of one DICOM series."""
    if uncompress:
        raise InputError("archives are not unpacked; send the image itself, or its DICOM files")
    sessions = _sessions()
    with received_session(files) as path:
        session_id, session = sessions.add_session(str(path), max(expiry, 0), False)
    app_instance().prefetch(session.image, lambda: session.image)
    return {"session_id": session_id, "session_info": session.to_json()}


@router.get("/session/{session_id}", summary="Describe a session", tags=["Session"])
def get_session(session_id: str, user: UserRole, update_ts: bool = False) -> Any:
    return _session(session_id, update_ts).to_json()


@router.delete("/session/{session_id}", summary="Remove a session", tags=["Session"])
def remove_session(session_id: str, user: UserRole) -> Any:
    described = _session(session_id, False).to_json()
    _sessions().remove_session(session_id)
    return described


@router.put("/datastore/", include_in_schema=False)
@router.put("/datastore/image", summary="Upload an image", tags=["Datastore"])
def add_image(
    request: Request,
    user: AnnotatorRole,
    file: Annotated[UploadFile, File()],
    image: str | None = None,
    params: Annotated[str, Form()] = "{}",
) -> dict[str, str]:
    """The ID is ``image``, or the name of the file without its extension.

    An image never replaces another. The same image again, as 3D Slicer sends it with each label, is
    no error.
    """
    info = _check_image_info(parse_object(params, "params"))
    stem, extension = split_name(file.filename or "")
    image_id = check_name(image or stem, "image")
    if name := user_name(request, info.get("client_id")):
        info["user"] = name
    store = app_instance().datastore()
    with received(file, extension) as path:
        check_image(path)
        existing = store.get_image_uri(image_id)
        if existing and is_same_scan(path, Path(existing)):
            return {"image": image_id}
        return {"image": store.add_new_image(image_id, path, info)}


@router.get("/datastore/image", summary="Download an image", tags=["Datastore"])
@router.head("/datastore/image", include_in_schema=False)
def download_image(image: str, user: UserRole) -> FileResponse:
    path = Path(find_image(app_instance(), image))
    if path.is_dir():
        raise NotFoundError(f"image {image!r} is a series of slices; load it from its DICOM server")
    if path.name.lower().endswith(EXTENSIONS):
        check_header(path)  # a link may lead to any file of the server
    return FileResponse(path, filename=path.name)


@router.get("/datastore/image/info", summary="Describe an image", tags=["Datastore"])
def image_info(image: str, user: UserRole) -> Any:
    info = datastore.get_image_info(check_exists(app_instance(), check_name(image, "image")))
    app_instance().prefetch(image, lambda: find_image(app_instance(), image))
    return info


@router.put("/datastore/image/info", summary="Change an image's description", tags=["Datastore"])
def update_image_info(image: str, user: AnnotatorRole, info: Annotated[str, Form()] = "{}") -> Any:
    _check_image_info(parse_object(info, "info"))
    image = check_name(image, "image")
    return datastore.update_image_info(image, info or "{}", user.username)


def _check_image_info(info: dict[str, Any]) -> dict[str, Any]:
    """Return a description of an image; raises InputError if it sets one of OWN_KEYS."""
    own = [key for key in OWN_KEYS if key in info]
    if own:
        raise InputError(f"{', '.join(own)} of an image is set by the server; leave it out")
    return info


def _sessions() -> UploadSessions:
    sessions = app_instance().sessions()
    if sessions is None:
        raise InputError("this server has no sessions; set MONAI_LABEL_SESSIONS=true")
    return sessions


def _session(session_id: str, update_ts: bool) -> UploadSession:
    session = _sessions().get_session(session_id, update_ts=update_ts)
    if not session:
        raise NotFoundError(f"Session ({session_id[:80]}) Not Found")
    return session
