"""Find the image that a request is about, and the mask that it starts from."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import UploadFile

from lib.errors import InputError, NotFoundError
from lib.server.app_instance import ServedApp


@contextmanager
def image_file(
    app: ServedApp, image: str, session_id: str, file: UploadFile | None
) -> Iterator[str]:
    """Yield the path of the image: of the session, of the sent file, or of a study, in this order.

    The copy of a sent file is removed at the end. Raises InputError if the request has none of the
    three, and NotFoundError if the session or the study does not exist.
    """
    if session_id:
        yield find_session(app, session_id)
    elif file is not None:
        with _sent_file(file, "image") as path:
            yield path
    elif image:
        yield find_image(app, image)
    else:
        raise InputError("there is no image; name one, or a session, or send a file")


@contextmanager
def start_mask(
    app: ServedApp, image: str, tag: Any, file: UploadFile | None
) -> Iterator[str | None]:
    """Yield the path of the mask to start from: the sent file, or a stored label; None if neither.

    image: the ID of a study, or "" if the image is not one. tag: of its label. The copy of a sent
    file is removed at the end. Raises InputError if the request has both, or a tag for an image
    that is no study, and NotFoundError if there is no such label.
    """
    if tag is None:
        if file is None:
            yield None
        else:
            with _sent_file(file, "mask") as path:
                yield path
        return
    if file is not None:
        raise InputError("the request has initial_mask and also start_from; send one of them")
    if not image:
        raise InputError("start_from names a label of a study; send initial_mask for other images")
    path = app.datastore().get_label_uri(image, tag) if is_tag(tag) else ""
    if not path or not os.path.exists(path):
        raise NotFoundError(f"image {image!r} has no label with the tag {tag!r}")
    yield str(path)


def is_tag(tag: Any) -> bool:
    """Return whether a value may be the tag of a label: it is the name of a folder."""
    return isinstance(tag, str) and re.fullmatch(r"[\w-]+", tag) is not None


@contextmanager
def _sent_file(file: UploadFile, name: str) -> Iterator[str]:
    """Yield the path of a private copy of a sent file, with its extension."""
    suffix = "".join(Path(file.filename or "").suffixes) or ".nii.gz"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}{suffix}")
        with path.open("wb") as copy:
            shutil.copyfileobj(file.file, copy)
        yield str(path)


def find_session(app: ServedApp, session_id: str) -> str:
    """Return the path of a session's image; raises NotFoundError."""
    is_name = os.path.basename(session_id) == session_id
    sessions = app.sessions()
    session = sessions.get_session(session_id) if is_name and sessions is not None else None
    if not session:
        raise NotFoundError(f"session {session_id!r} has expired; upload the image again")
    return str(session.image)


def find_image(app: ServedApp, image: str) -> str:
    """Return the path of one of the studies; raises NotFoundError."""
    # An ID is never a path: MONAI Label would open any file of the server that the path leads to.
    is_name = os.path.basename(image) == image
    path = app.datastore().get_image_uri(image) if is_name else ""
    if not path or not os.path.exists(path):
        raise NotFoundError(f"there is no image {image!r} among the studies of this server")
    return str(path)
