"""Find the image that a request is about."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi import UploadFile

from lib.datastore.label_files import check_header
from lib.errors import InputError, NotFoundError
from lib.server.app_instance import ServedApp
from lib.server.names import is_name
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
        _, extension = split_name(Path(file.filename or "").name or "image.nii.gz")
        with received(file, extension) as path:
            check_header(path)
            yield str(path)
    elif image:
        yield find_image(app, image)
    else:
        raise InputError("there is no image; name one, or a session, or send a file")


def find_session(app: ServedApp, session_id: str) -> str:
    """Return the path of a session's image; raises NotFoundError."""
    sessions = app.sessions()
    is_known = is_name(session_id) and sessions is not None
    session = sessions.get_session(session_id) if is_known and sessions else None
    if not session:
        raise NotFoundError(f"session {session_id!r} has expired; upload the image again")
    return str(session.image)


def find_image(app: ServedApp, image: str) -> str:
    """Return the path of one of the studies; raises NotFoundError."""
    # An ID is never a path: MONAI Label would open any file of the server that the path leads to.
    path = app.datastore().get_image_uri(image) if is_name(image) else ""
    if not path or not os.path.exists(path):
        raise NotFoundError(f"there is no image {image!r} among the studies of this server")
    return str(path)
