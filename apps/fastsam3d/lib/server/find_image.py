"""Find the image that a request is about, and the mask that it starts from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import UploadFile

from lib.datastore.label_files import check_header
from lib.errors import InputError, NotFoundError
from lib.server.app_instance import ServedApp
from lib.server.names import is_name, is_tag
from lib.server.uploads import received, split_name


@contextmanager
def image_file(
    app: ServedApp, image: str, session_id: str, file: UploadFile | None
) -> Iterator[str]:
    """Yield the path of the image: of the session, of the sent file, or of a study, in this order.

    The copy of a sent file is removed at the end. Raises InputError if the request has none of the
    three, or if its file is of another kind, and NotFoundError if the session or the study does not
    exist.
    """
    if session_id:
        yield find_session(app, session_id)
    elif file is not None:
        with _sent_file(file) as path:
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
    if tag is not None:
        if file is not None:
            raise InputError("the request has initial_mask and also start_from; send one of them")
        yield _stored_label(app, image, tag)
    elif file is not None:
        with _sent_file(file) as path:
            yield path
    else:
        yield None


def _stored_label(app: ServedApp, image: str, tag: Any) -> str:
    if not image:
        raise InputError("start_from names a label of a study; send initial_mask for other images")
    path = app.datastore().find_label(image, tag) if is_tag(tag) else ""
    if not path or not os.path.exists(path):
        raise NotFoundError(f"image {image!r} has no label with the tag {str(tag)[:80]!r}")
    return path


@contextmanager
def _sent_file(file: UploadFile) -> Iterator[str]:
    """Yield the path of a private copy of a sent file; raises InputError for other kinds."""
    _, extension = split_name(Path(file.filename or "").name or "image.nii.gz")
    with received(file, extension) as path:
        check_header(path)
        yield str(path)


def find_session(app: ServedApp, session_id: str) -> str:
    """Return the path of a session's image; raises NotFoundError."""
    sessions = app.sessions()
    is_known = is_name(session_id) and sessions is not None
    session = sessions.get_session(session_id) if is_known and sessions else None
    if not session:
        raise NotFoundError(f"session {session_id!r} has expired; upload the image again")
    return str(session.image)


def check_exists(app: ServedApp, image: str) -> str:
    """Return the ID of one of the studies, of which nothing is fetched; raises NotFoundError."""
    if not is_name(image) or not app.datastore().has_image(image):
        raise NotFoundError(f"there is no image {image!r} among the studies of this server")
    return image


def find_image(app: ServedApp, image: str) -> str:
    """Return the path of one of the studies; raises NotFoundError."""
    # An ID is never a path: MONAI Label would open any file of the server that the path leads to.
    path = app.datastore().get_image_uri(image) if is_name(image) else ""
    if not path or not os.path.exists(path):
        raise NotFoundError(f"there is no image {image!r} among the studies of this server")
    return str(path)
