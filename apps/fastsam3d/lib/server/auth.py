"""The roles that routes require, as FastAPI dependencies, and who a request comes from.

The site maps the roles to those of its identity provider (``MONAI_LABEL_AUTH_ROLE_*``). Without
``MONAI_LABEL_AUTH_ENABLE`` every client whom the doors let in is an administrator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User


def _with_role(role: str) -> Callable[[Request, User], User]:
    def user(request: Request, account: Annotated[User, Depends(RBAC(role))]) -> User:
        name = getattr(request.state, "user", "")  # who signed in at the doors
        return account.model_copy(update={"username": name}) if name else account

    # FastAPI evaluates annotations in the globals of the module, where ``role`` is unknown
    user.__annotations__ = {
        "request": Request,
        "account": Annotated[User, Depends(RBAC(role))],
        "return": User,
    }
    return user


UserRole = Annotated[User, Depends(_with_role(settings.MONAI_LABEL_AUTH_ROLE_USER))]
AnnotatorRole = Annotated[User, Depends(_with_role(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))]
AdminRole = Annotated[User, Depends(_with_role(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))]

LONGEST_NAME = 64
"""LONGEST_NAME: characters of a client's name that are kept."""


def user_name(request: Request, client_id: object = "") -> str:
    """Return who sends a request: the name that signed in, else the client's own name, or "".

    client_id: the name that 3D Slicer and OHIF send with their parameters; nobody checks it.
    """
    signed_in = str(getattr(request.state, "user", ""))
    return signed_in or (client_id[:LONGEST_NAME] if isinstance(client_id, str) else "")
