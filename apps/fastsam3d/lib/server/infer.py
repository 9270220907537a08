"""The route of the click path: a mask from clicks.

It is a plain function, which FastAPI runs in worker threads, so that other requests are answered
meanwhile.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, File, Form, Request, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.responses import FileResponse, Response
from monailabel.datastore.dicom import DICOMWebDatastore

from lib.datastore.dicom_seg import write_segmentation
from lib.errors import BusyError, InputError, NotFoundError
from lib.imaging.mask import BoxMask
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
from lib.server.auth import UserRole, user_name
from lib.server.find_image import image_file, start_mask
from lib.server.form_json import parse_object
from lib.server.interaction_entry import describe_interaction
from lib.server.reply import box_reply, image_reply, multipart_reply

router = APIRouter()

OutputKind = Literal["image", "json", "all", "dicom_seg", "box"]
"""OutputKind: what a reply holds; ``all``, the default, is the mask file and the facts."""

LONGEST_WARNING = 4000
"""LONGEST_WARNING: characters of the header X-Warning; clients and proxies limit all headers."""


# --- routes ---------------------------------------------------------------------------------------


async def click_place() -> AsyncIterator[None]:
    """Take a place among the requests that wait or compute; raises BusyError if there is none.

    A coroutine, because a request without a place must not take one of the threads either, which
    the other routes need.
    """
    places = app_instance().click_places
    if not places.acquire(blocking=False):
        raise BusyError(
            "too many clicks wait on this server; click again in some seconds (the site may raise "
            "--conf max_waiting_clicks)"
        )
    try:
        yield
    finally:
        places.release()


@router.post(
    "/infer/{model}",
    summary="Mask from clicks",
    tags=["Infer"],
    # "function": the place is free before the mask is sent, which may take long
    dependencies=[Depends(click_place, scope="function")],
)
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
        mask, maps = result.pop(MASK), result.pop(MAPS)
        if output == "dicom_seg":
            label_info = request.get("label_info") or []
            mask_path = write_temporary(mask, MaskForm(".nii.gz"))
            reply: Any = _segmentation_reply(background_tasks, path, mask_path, label_info)
            reply = _add_next_click(reply, result)
        else:
            reply = _mask_reply(output, http, mask, maps, result, request, path)
        if studies_image:
            sent = {**request, "model": model}
            name = user_name(http, request.get("client_id"))
            if start:
                app.journal.masks(studies_image).keep(Path(start))
            app.journal.append(describe_interaction(studies_image, sent, result, mask, start, name))
    return reply


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


def _mask_reply(
    output: OutputKind | None,
    http: Request,
    mask: BoxMask,
    maps: Mapping[str, BoxMask],
    result: Mapping[str, Any],
    request: Mapping[str, Any],
    image: str,
) -> Any:
    """Return the reply of every kind but ``dicom_seg``; image: the path of the image."""
    if output == "json":
        return result
    form = requested_form(request, image)
    if form.dtype == "int8" and (mask.values > 127).any():
        raise InputError("result_dtype int8 holds numbers up to 127 only; choose uint8")
    if output == "box":
        mask = mask.including(shown_box_corners(request, mask.shape_ijk))
        facts = {key: result[key] for key in ("next_click",) if key in result}
        reply = box_reply(mask, maps, facts, http)
    elif output == "image":
        reply = _add_next_click(image_reply(mask, form, http), result)
    else:
        reply = multipart_reply(mask, maps, form, result, http)
    return _add_warnings(reply, result["warnings"])


def _add_next_click(reply: Response, result: Mapping[str, Any]) -> Response:
    """Put ``next_click`` into the header X-Next-Click, as JSON, where a reply is a file alone."""
    if "next_click" in result:
        reply.headers["X-Next-Click"] = json.dumps(result["next_click"])
    return reply


def _add_warnings(reply: Response, warnings: Sequence[str]) -> Response:
    """Put the warnings into the header X-Warning, where the OHIF panel finds them."""
    if warnings:
        # an image file may bring its own warnings; a line break would begin another header
        printable = re.sub(r"[^ -~\u00a0-\uffff]+", " ", "; ".join(warnings))[:LONGEST_WARNING]
        text = printable.encode("latin-1", "replace")  # the encoding of HTTP headers
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
