"""The routes of the click path: a mask from clicks, and saving a mask as a label.

The routes are plain functions, which FastAPI runs in worker threads, so that other requests are
answered meanwhile.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.responses import FileResponse, Response
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.endpoints import datastore

from lib.datastore.dicom_seg import write_segmentation
from lib.errors import InputError, NotFoundError
from lib.imaging.mask_file import MaskForm, write_temporary
from lib.infers.outputs import MAPS as MAP_NAMES
from lib.infers.request import (
    INITIAL_MASK,
    MAPS,
    MASK,
    check_options,
    requested_form,
    requested_outputs,
    shown_box_corners,
)
from lib.server.app_instance import ServedApp, app_instance
from lib.server.auth import AnnotatorRole, UserRole
from lib.server.find_image import find_image, image_file, start_mask
from lib.server.form_json import parse_object
from lib.server.reply import box_reply, image_reply, multipart_reply

router = APIRouter()

OutputKind = Literal["image", "json", "all", "dicom_seg", "box"]
"""OutputKind: what a reply holds; ``all``, the default, is the mask file and the facts."""

LABEL_FILES = (".nii.gz", ".nii", ".nrrd", ".bin")
"""LABEL_FILES: extensions of a saved label; .bin holds the image's voxels without a header."""


# --- routes ---------------------------------------------------------------------------------------


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
    initial_mask: Annotated[UploadFile | None, File()] = None,
    output: OutputKind | None = None,
) -> Any:
    """Compute a mask on the image of the session, the sent file, or a study, in this order."""
    app = app_instance()
    request = parse_object(params, "params")
    check_options(request)
    _check_model(app, model)
    _check_room_for_maps(request, output)
    if output == "dicom_seg":
        _check_has_series(app, is_uploaded=bool(session_id) or file is not None)
    studies_image = "" if session_id or file else image
    with (
        image_file(app, image, session_id, file) as path,
        start_mask(app, studies_image, request.get("start_from"), initial_mask) as start,
    ):
        own = {"model": model, "image": path, MASK: True, INITIAL_MASK: start}
        result = app.infer({**request, **own})["params"]
        mask, maps, form = result.pop(MASK), result.pop(MAPS), requested_form(request, path)
        if output == "dicom_seg":
            label_info = request.get("label_info") or []
            mask_path = write_temporary(mask, MaskForm(".nii.gz"))
            return _segmentation_reply(background_tasks, path, mask_path, label_info)
    if output == "json":
        return result
    if output == "box":
        mask = mask.including(shown_box_corners(request, mask.shape_ijk))
        facts = {key: result[key] for key in ("next_click",) if key in result}
        return _add_warnings(box_reply(mask, maps, facts, http), result["warnings"])
    if output == "image":
        return _add_warnings(image_reply(mask, form, http), result["warnings"])
    return _add_warnings(multipart_reply(mask, maps, form, result, http), result["warnings"])


@router.put("/datastore/label", summary="Save a label", tags=["Datastore"])
def save_label(
    background_tasks: BackgroundTasks,
    user: AnnotatorRole,
    label: Annotated[UploadFile, File()],
    image: str,
    tag: str = "",
    params: Annotated[str, Form()] = "{}",
) -> Any:
    """The default tag is ``final``; a label that has the same tag already is replaced."""
    parse_object(params, "params")
    find_image(app_instance(), image)
    if not re.fullmatch(r"[\w-]*", tag):  # the tag is the name of a folder
        raise InputError(f"tag is {tag!r}; a tag has letters, digits, - and _ only")
    if not str(label.filename).endswith(LABEL_FILES):
        raise InputError(f"label is {label.filename!r}; send one of {', '.join(LABEL_FILES)}")
    return datastore.save_label(background_tasks, image, params, tag, label, user.username)


@router.put("/datastore/label/info", summary="Change a label's description", tags=["Datastore"])
def update_label_info(
    label: str, tag: str, user: AnnotatorRole, info: Annotated[str, Form()] = "{}"
) -> Any:
    parse_object(info, "info")
    return datastore.update_label_info(label, tag, info or "{}", user.username)


@router.put("/datastore/updatelabelinfo", include_in_schema=False)
def update_label_info_of_old_clients(
    label: str, tag: str, user: AnnotatorRole, params: Annotated[str, Form()] = "{}"
) -> Any:
    parse_object(params, "params")
    return datastore.update_label_info(label, tag, params or "{}", user.username)


# --- checks ---------------------------------------------------------------------------------------


def _check_model(app: ServedApp, model: str) -> None:
    if model not in app.models:
        raise NotFoundError(f"there is no model {model!r}; there are {', '.join(app.models)}")


def _check_has_series(app: ServedApp, is_uploaded: bool) -> None:
    if is_uploaded or not isinstance(app.datastore(), DICOMWebDatastore):
        raise InputError(
            "a DICOM-SEG needs a series of a DICOM server; ask for output=image instead"
        )


def _check_room_for_maps(request: Mapping[str, Any], output: OutputKind | None) -> None:
    maps = [name for name in requested_outputs(request) if name in MAP_NAMES]
    if maps and output not in (None, "all", "box"):
        raise InputError(
            f"output={output} has no room for {', '.join(maps)}; ask for output=all or output=box"
        )


# --- replies --------------------------------------------------------------------------------------


def _add_warnings(reply: Response, warnings: Sequence[str]) -> Response:
    """Put the warnings into the header X-Warning, where the OHIF panel finds them."""
    if warnings:
        text = "; ".join(warnings).encode("latin-1", "replace")  # the encoding of HTTP headers
        reply.headers["X-Warning"] = text.decode("latin-1")
    return reply


def _segmentation_reply(
    background_tasks: BackgroundTasks, image: str, mask: str, label_info: list[dict[str, Any]]
) -> FileResponse:
    """Return a mask file as DICOM-SEG; both temporary files are removed."""
    try:
        segmentation = write_segmentation(image, mask, label_info)
    finally:
        os.unlink(mask)
    background_tasks.add_task(os.unlink, segmentation)
    return FileResponse(segmentation, media_type="application/dicom", filename="mask.dcm")
