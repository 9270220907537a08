"""The routes of labels: save, load, describe; list the versions of a label and restore one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Header, Request, UploadFile
from fastapi.responses import FileResponse
from monailabel.endpoints import datastore
from monailabel.interfaces.datastore import DefaultLabelTag

from lib.datastore.label_files import EXTENSIONS, RAW_EXTENSION
from lib.datastore.safe_store import SavedLabel
from lib.datastore.unsaved_work import LAST_INTERACTION
from lib.errors import InputError, NotFoundError
from lib.server.app_instance import app_instance
from lib.server.auth import AnnotatorRole, UserRole, user_name
from lib.server.find_image import check_exists, find_image
from lib.server.form_json import parse_object
from lib.server.names import check_name, check_tag
from lib.server.train import adapt_if_due
from lib.server.uploads import received

router = APIRouter(tags=["Datastore"])

LABEL_FILES = (*EXTENSIONS, RAW_EXTENSION)
"""LABEL_FILES: extensions of a saved label; .bin holds the image's voxels without a header."""

LONGEST_NUMBER = 18
"""LONGEST_NUMBER: digits of a version."""

OWN_KEYS = ("version", "time", "sha256", "voxels")
"""OWN_KEYS: what the server itself notes on a label."""


@router.put("/datastore/label", summary="Save a label")
def save_label(
    request: Request,
    user: AnnotatorRole,
    label: Annotated[UploadFile, File()],
    image: str,
    tag: str = "",
    params: Annotated[str, Form()] = "{}",
    base: int | None = None,
    allow_empty: bool = False,
    if_match: Annotated[str, Header()] = "",
) -> dict[str, Any]:
    """The default tag is ``final``. A label that has the same tag stays as an earlier version.

    ``base``, or the header If-Match, is the version that the client has loaded, 0 for none; a newer
    one is not replaced then. An empty label replaces another one only with ``allow_empty``.
    """
    info = _check_label_info(parse_object(params, "params"))
    app = app_instance()
    find_image(app, image)
    tag, extension = check_tag(tag), _label_extension(str(label.filename))
    name = user_name(request, info.get("client_id"))
    entries = app.journal.read(image)
    info["interactions"] = len(entries)
    info[LAST_INTERACTION] = entries[-1]["time"] if entries else ""
    with received(label, extension) as path:
        saved = app.datastore().store_label(
            image, path, tag, info, user=name, base=_base(base, if_match), allow_empty=allow_empty
        )
    if tag == DefaultLabelTag.FINAL.value:
        adapt_if_due(image)
    return _described(image, tag, saved)


@router.get("/datastore/label", summary="Download a label")
@router.head("/datastore/label", include_in_schema=False)
def download_label(label: str, tag: str, user: UserRole) -> FileResponse:
    """The header ETag is the version, for ``If-Match`` when the label is saved again."""
    path = app_instance().datastore().get_label_uri(_label(label), check_tag(tag))
    if not path or not Path(path).is_file():
        raise NotFoundError(f"there is no label {tag!r} of image {label!r}")
    current, _ = app_instance().datastore().label_versions(label, check_tag(tag))
    headers = {"ETag": f'"{current.number}"'} if current else {}
    return FileResponse(path, filename=Path(path).name, headers=headers)


@router.get("/datastore/label/info", summary="Describe a label")
def label_info(label: str, tag: str, user: UserRole) -> Any:
    """Empty if the image has no such label."""
    check_exists(app_instance(), _label(label))
    return datastore.get_label_info(_label(label), check_tag(tag))


@router.put("/datastore/label/info", summary="Change a label's description")
def update_label_info(
    label: str, tag: str, user: AnnotatorRole, info: Annotated[str, Form()] = "{}"
) -> Any:
    _check_description(parse_object(info, "info"))
    return datastore.update_label_info(_label(label), check_tag(tag), info or "{}", user.username)


@router.put("/datastore/updatelabelinfo", include_in_schema=False)
def update_label_info_of_old_clients(
    label: str, tag: str, user: AnnotatorRole, params: Annotated[str, Form()] = "{}"
) -> Any:
    _check_description(parse_object(params, "params"))
    return datastore.update_label_info(_label(label), check_tag(tag), params or "{}", user.username)


@router.get("/datastore/label/versions", summary="Versions of a label")
def label_versions(image: str, user: UserRole, tag: str = "") -> dict[str, Any]:
    """``current`` is null if there is no label; ``versions`` is what was replaced, newest first."""
    tag = check_tag(tag)
    current, earlier = app_instance().datastore().label_versions(_label(image), tag)
    if not current and not earlier:  # those of a removed image stay
        check_exists(app_instance(), image)
    return {
        "image": image,
        "tag": tag,
        "current": current.described() if current else None,
        "versions": [version.described() for version in earlier],
    }


@router.post("/datastore/label/restore", summary="Restore an earlier version of a label")
def restore_label(
    request: Request, image: str, version: int, user: AnnotatorRole, tag: str = ""
) -> dict[str, Any]:
    """The restored label is a new version; the one that it replaces stays too."""
    app, tag = app_instance(), check_tag(tag)
    find_image(app, image)
    saved = app.datastore().restore_label(image, tag, version, user_name(request))
    return _described(image, tag, saved)


def _label(text: str) -> str:
    return check_name(text, "the ID of the label")


def _label_extension(file_name: str) -> str:
    for extension in LABEL_FILES:
        if file_name.lower().endswith(extension):
            return extension
    raise InputError(f"label is {file_name[-80:]!r}; send one of {', '.join(LABEL_FILES)}")


def _check_label_info(info: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters; raises InputError if their ``label_info`` is no list of segments."""
    names = info.get("label_info") or []
    if not isinstance(names, list) or not all(_is_segment(entry) for entry in names):
        raise InputError(
            f'label_info is {str(names)[:80]}; send a list such as [{{"name": "liver", "idx": 1}}]'
        )
    return info


def _check_description(info: dict[str, Any]) -> None:
    """Raise InputError if a changed description of a label sets one of OWN_KEYS, or is none."""
    own = [key for key in OWN_KEYS if key in info]
    if own:
        raise InputError(f"{', '.join(own)} of a label is set by the server; leave it out")
    _check_label_info(info)


def _is_segment(entry: Any) -> bool:
    """Return whether an entry describes a segment: its name a text, its number an integer."""
    if not isinstance(entry, dict):
        return False
    name, number = entry.get("name", ""), entry.get("idx", 0)
    is_number = isinstance(number, int) and not isinstance(number, bool) and number >= 0
    try:
        json.dumps(entry, allow_nan=False)  # no viewer reads Python's NaN and Infinity
    except ValueError:
        return False
    return isinstance(name, str) and is_number


def _base(base: int | None, if_match: str) -> int | None:
    """Return the version that the client has loaded; None if it does not say."""
    text = if_match.strip().removeprefix("W/").strip('"')
    if base is not None or text in ("", "*"):
        return base
    if not text.isdecimal() or len(text) > LONGEST_NUMBER:
        raise InputError(f'If-Match is {if_match[:80]!r}; send the ETag of the label, as "3"')
    return int(text)


def _described(image: str, tag: str, saved: SavedLabel) -> dict[str, Any]:
    replaced = saved.replaced.described() if saved.replaced else None
    return {
        "image": image,
        "label": image,
        "tag": tag,
        "version": saved.version.number,
        "time": saved.version.time,
        "user": saved.version.user,
        "replaced": replaced,
    }
