"""The routes by which clients open an image: it is read ahead, for the first click on it.

3D Slicer asks for the next sample or uploads a volume of its own; OHIF fetches the series from the
DICOM server, through this one. The stock routes run on the event loop, where all others wait.
"""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Request, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.endpoints import activelearning, datastore, session
from monailabel.endpoints import proxy as stock_proxy
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from lib.server.find_image import find_image

router = APIRouter()

UserRole = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))]

SERVICES = ("wado", "qido", "stow")
FRAME = re.compile(r"studies/[^/]+/series/([0-9.]+)/instances/[^/]+/frames/")


@router.post("/activelearning/{strategy}", summary="Next sample", tags=["ActiveLearning"])
def next_sample(strategy: str, user: UserRole, params: dict | None = None) -> Any:
    sample = activelearning.sample(strategy, params, user.username)
    if sample:
        app_instance().read_ahead(sample["id"], lambda: str(sample["path"]))
    return sample


@router.put("/session/", summary="Create new session with Image", tags=["Session"])
def create_session(
    background_tasks: BackgroundTasks,
    user: UserRole,
    files: Annotated[list[UploadFile], File()],
    uncompress: bool = False,
    expiry: int = 0,
) -> Any:
    created = session.create_session(background_tasks, uncompress, expiry, files)
    path = str(created["session_info"]["image"])
    app_instance().read_ahead(path, lambda: path)
    return created


@router.get("/datastore/image/info", summary="Get Image Info", tags=["Datastore"])
def image_info(image: str, user: UserRole) -> Any:
    info = datastore.get_image_info(image)
    app_instance().read_ahead(image, lambda: find_image(app_instance(), image))
    return info


@router.api_route("/proxy/dicom/{path:path}", methods=["GET", "POST"], include_in_schema=False)
async def proxy(request: Request, path: str, user: UserRole) -> Response:
    await request.body()  # kept with the request; nothing else waits for the client
    service, _, rest = path.partition("/")
    service, rest = (service, rest) if service in SERVICES else ("", path)
    await run_in_threadpool(_read_series_ahead, rest)
    fetching = stock_proxy.proxy_dicom(request, service, rest)
    return await run_in_threadpool(asyncio.run, fetching)  # it blocks until the answer is there


def _read_series_ahead(path: str) -> None:
    """Where a viewer loads the voxels of a series that can be clicked on, and not its headers."""
    frame = FRAME.match(path)
    instance = app_instance()
    studies = instance.datastore()
    if frame and isinstance(studies, DICOMWebDatastore) and frame[1] in studies.list_images():
        instance.read_ahead(frame[1], lambda: find_image(instance, frame[1]))
