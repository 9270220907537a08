"""The routes by which the viewer restores unsaved work from the journal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, Response, UploadFile
from monailabel.interfaces.datastore import DefaultLabelTag

from lib.datastore.journal import Interaction
from lib.datastore.label_files import check_header
from lib.datastore.unsaved_work import UnsavedWork, own_work, work_of_others
from lib.errors import InputError, NotFoundError
from lib.infers.initial_mask import file_digest, read_initial
from lib.infers.request import check_options
from lib.server.app_instance import ServedApp, app_instance
from lib.server.auth import UserRole, user_name
from lib.server.find_image import check_exists, find_image
from lib.server.folder_series import image_of_series
from lib.server.form_json import parse_object
from lib.server.interaction_entry import OPTIONS, PROMPT_KEYS
from lib.server.names import check_name
from lib.server.reply import box_reply
from lib.server.uploads import received, split_name
from lib.server.viewer_package import PREFIX

router = APIRouter(tags=["Others"])

MOST_OTHERS = 5
"""MOST_OTHERS: users whose unsaved work is offered."""

MOST_PROMPTS = 1000
"""MOST_PROMPTS: of a structure that a client may record."""


@router.get(PREFIX + "series/{series_uid}/work", include_in_schema=False)
def unsaved_work(
    request: Request, series_uid: str, user: UserRole, client_id: str = ""
) -> dict[str, Any]:
    """Return ``own``, the unsaved work of who asks, and ``others``, the newest of other users.

    client_id: names the client where nobody signs in.
    """
    app = app_instance()
    image = image_of_series(app.datastore(), series_uid) or check_name(series_uid, "the series")
    check_exists(app, image)
    name = user_name(request, client_id)
    entries = app.journal.read(image)
    current, earlier = app.datastore().label_versions(image, DefaultLabelTag.FINAL.value)
    versions = [*([current] if current else []), *earlier]
    others = work_of_others(entries, current, name)[:MOST_OTHERS]
    return {
        "own": _described(own_work(entries, versions, name)),
        "others": [_described(work) for work in others],
    }


@router.post(PREFIX + "series/{series_uid}/work", include_in_schema=False)
def record_work(
    request: Request,
    series_uid: str,
    user: UserRole,
    params: Annotated[str, Form()],
    initial_mask: Annotated[UploadFile | None, File()] = None,
) -> dict[str, str]:
    """Put prompts into the journal whose mask is drawn without a request for it, as after undo.

    params: as of ``POST /infer/{model}``, with the name of the structure as ``label``.
    """
    app = app_instance()
    image = image_of_series(app.datastore(), series_uid) or check_name(series_uid, "the series")
    find_image(app, image)
    fields = parse_object(params, "params")
    check_options(fields)
    if initial_mask is None:
        _append(app, request, image, fields, "")
        return {"image": image}
    _, extension = split_name(Path(initial_mask.filename or "").name)
    with received(initial_mask, extension) as path:
        check_header(path)
        app.journal.masks(image).keep(path)
        _append(app, request, image, fields, file_digest(path))
    return {"image": image}


@router.get(PREFIX + "series/{series_uid}/masks/{digest}", include_in_schema=False)
def kept_mask(http: Request, series_uid: str, digest: str, user: UserRole) -> Response:
    """Return a mask that a request started from, as an infer request with output=box does."""
    app = app_instance()
    image = image_of_series(app.datastore(), series_uid) or check_name(series_uid, "the series")
    volume = app.prefetch.read(find_image(app, image))
    path = app.journal.masks(image).find(digest)
    if path is None:
        raise NotFoundError(f"the mask {digest[:16]} of image {image!r} is not kept any more")
    return box_reply(read_initial(str(path), volume), {}, {}, http)


def _append(
    app: ServedApp, http: Request, image: str, fields: dict[str, Any], mask_sha256: str
) -> None:
    label = fields.get("label")
    if not label or not isinstance(label, str):
        raise InputError(f"label is {str(label)[:80]!r}; send the name of the structure")
    interaction = Interaction(
        image=image,
        label=label,
        prompts=_checked(fields.get("prompts")),
        options={key: fields[key] for key in OPTIONS if fields.get(key) is not None},
        weights_sha256="",
        mask_sha256="",
        user=user_name(http, fields.get("client_id")),
        initial_mask_sha256=mask_sha256,
    )
    app.journal.append(interaction)


def _checked(prompts: Any) -> list[dict[str, Any]]:
    """Return what the journal keeps of prompts; raises InputError if they are none."""
    is_list = isinstance(prompts, list) and len(prompts) <= MOST_PROMPTS
    if not is_list or not all(
        isinstance(prompt, dict) and set(PROMPT_KEYS) <= prompt.keys() for prompt in prompts
    ):
        raise InputError(f"prompts is {str(prompts)[:80]}; send a list of prompts")
    return [{key: prompt[key] for key in PROMPT_KEYS} for prompt in prompts]


def _described(work: UnsavedWork) -> dict[str, Any]:
    return {
        "user": work.user,
        "time": work.time,
        "structures": [
            {
                "name": entry["label"],
                "prompts": entry["prompts"],
                "size": entry["options"].get("size") or 0,
                "number": _number(entry),
                "mask": entry.get("initial_mask_sha256") or "",
            }
            for entry in work.structures
        ],
    }


def _number(entry: Any) -> int:
    """Return the number of a structure in the mask that it starts from; 1 if the client says none.

    The journal keeps what clients sent, whatever it was.
    """
    info = entry["options"].get("label_info")
    first = info[0] if isinstance(info, list) and info else {}
    number = first.get("idx") if isinstance(first, dict) else None
    return number if isinstance(number, int) and number > 0 else 1
