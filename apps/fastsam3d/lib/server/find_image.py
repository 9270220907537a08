"""Find the image that a request is about."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
        suffix = "".join(Path(file.filename or "").suffixes) or ".nii.gz"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"image{suffix}")
            with path.open("wb") as copy:
                shutil.copyfileobj(file.file, copy)
            yield str(path)
    elif image:
        yield find_image(app, image)
    else:
        raise InputError("there is no image; name one, or a session, or send a file")


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
