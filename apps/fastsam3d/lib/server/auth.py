"""The roles that routes require, as FastAPI dependencies.

The site maps them to roles of its identity provider (``MONAI_LABEL_AUTH_ROLE_*``). Without
``MONAI_LABEL_AUTH_ENABLE`` every client is an administrator.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User

UserRole = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))]
AnnotatorRole = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))]
AdminRole = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))]
