"""The routes of the click path: a mask from clicks, and saving it as a label."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Request, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.responses import FileResponse, Response
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.endpoints import datastore
from monailabel.endpoints.infer import ResultType
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.utils.app import app_instance

from lib.datastore.dicom_seg import write_segmentation
from lib.errors import InputError, NotFoundError
from lib.imaging.mask_file import MaskForm, write_temporary
from lib.infers.request import MASK, check_options
from lib.server.find_image import find_image, image_file
from lib.server.reply import image_reply, multipart_reply

router = APIRouter()

LABEL_FILES = (".nii.gz", ".nii", ".nrrd", ".bin")  # .bin: the image's voxels without a header


# --- routes ---------------------------------------------------------------------------------------
# Each runs in a thread of its own, so that other requests are answered meanwhile.

UserRole = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))]
AnnotatorRole = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))]


@router.post("/infer/{model}", summary="Mask from clicks", tags=["Infer"])
def infer(
    http: Request,
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
    with image_file(instance, image, session_id, file) as path:
        said = instance.infer({**request, "model": model, "image": path, MASK: True})["params"]
        mask, form = said.pop(MASK), MaskForm.of(request, path)
        if output == ResultType.dicom_seg:
            label_info = request.get("label_info") or []
            file_path = write_temporary(mask, MaskForm(".nii.gz"))
            return _segmentation(background_tasks, path, file_path, label_info)
    if output == ResultType.json:
        return said
    if output == ResultType.image:
        return _with_warnings(image_reply(mask, form, http), said["warnings"])
    return _with_warnings(multipart_reply(mask, form, said, http), said["warnings"])


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
    find_image(app_instance(), image)
    if not re.fullmatch(r"[\w-]*", tag):  # it names a folder
        raise InputError(f"tag is {tag!r}; a tag has letters, digits, - and _ only")
    if not str(label.filename).endswith(LABEL_FILES):
        raise InputError(f"label is {label.filename!r}; send one of {', '.join(LABEL_FILES)}")
    return datastore.save_label(background_tasks, image, params, tag, label, user.username)


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
    models = instance.models
    if model not in models:
        raise NotFoundError(f"there is no model {model!r}; there are {', '.join(models)}")


def _check_segmentation(instance: MONAILabelApp, is_own: bool) -> None:
    if is_own or not isinstance(instance.datastore(), DICOMWebDatastore):
        raise InputError(
            "a DICOM-SEG needs a series of a DICOM server; ask for output=image instead"
        )


# --- masks ----------------------------------------------------------------------------------------


def _with_warnings(reply: Response, warnings: Sequence[str]) -> Response:
    """A reply that is a mask alone has its warnings in a header, where our OHIF finds them."""
    if warnings:
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
