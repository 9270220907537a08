"""Which image a request is about."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi import UploadFile
from monailabel.interfaces.app import MONAILabelApp

from lib.errors import InputError, NotFoundError


@contextmanager
def image_file(
    instance: MONAILabelApp, image: str, session_id: str, file: UploadFile | None
) -> Iterator[str]:
    """The path of the image that a request is about, for as long as the request takes."""
    if session_id:
        yield find_session(instance, session_id)
    elif file is not None:
        suffix = "".join(Path(file.filename or "").suffixes) or ".nii.gz"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"image{suffix}")
            with path.open("wb") as stored:
                shutil.copyfileobj(file.file, stored)
            yield str(path)
    elif image:
        yield find_image(instance, image)
    else:
        raise InputError("there is no image; name one, or a session, or send a file")


def find_session(instance: MONAILabelApp, session_id: str) -> str:
    """Its image's path; raises NotFoundError."""
    is_name = os.path.basename(session_id) == session_id
    sessions = instance.sessions()
    session = sessions.get_session(session_id) if is_name and sessions is not None else None
    if not session:
        raise NotFoundError(f"session {session_id!r} has expired; upload the image again")
    return str(session.image)


def find_image(instance: MONAILabelApp, image: str) -> str:
    """The path of one of the studies; raises NotFoundError."""
    # an id is never a path: MONAI Label would open any file of the server that the name leads to
    is_name = os.path.basename(image) == image
    path = instance.datastore().get_image_uri(image) if is_name else ""
    if not path or not os.path.exists(path):
        raise NotFoundError(f"there is no image {image!r} among the studies of this server")
    return str(path)
