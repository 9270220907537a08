"""The audit log: one line of JSON for each request that changes something.

It holds who, when, what and from where, and no name of a patient: IDs of images, which are file
names at some sites, are there as the first 16 digits of their SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

UNCHANGED = ("GET", "HEAD", "OPTIONS")
"""UNCHANGED: methods that change nothing."""

NO_CHANGE_ROUTES = (
    "/infer/{model}",
    "/activelearning/{strategy}",
    "/proxy/dicom/{path:path}",
    "/viewer/series/{series_uid}/work",
)
"""NO_CHANGE_ROUTES: routes whose other methods change nothing either."""

HASHED = ("image", "label", "id", "session_id")
"""HASHED: parameters with an ID; the others of SHOWN are kept as they are."""

SHOWN = ("tag", "version", "model", "allow_empty", "base")


class AuditLog:
    """Appends lines to a file that only the account of the server may read."""

    def __init__(self, path: Path | None) -> None:
        """path: None for no log."""
        self._path = path

    def record(
        self,
        method: str,
        route: str,
        parameters: Mapping[str, Any],
        user: str,
        client: str,
        status: int,
    ) -> None:
        """Write a line if the request may have changed something.

        route: the path as the table of routes has it. parameters: of the path and the query.
        client: the address. status: of the reply. A log that cannot be written is reported in the
        log of the server.
        """
        if self._path is None or method in UNCHANGED or route in NO_CHANGE_ROUTES:
            return
        fields: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "user": user,
            "client": client,
            "request": f"{method} {route}",
            "status": status,
        }
        fields |= {key: id_hash(str(parameters[key])) for key in HASHED if key in parameters}
        fields |= {key: str(parameters[key])[:64] for key in SHOWN if key in parameters}
        line = json.dumps(fields, ensure_ascii=False).encode() + b"\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(handle, line)
            finally:
                os.close(handle)
        except OSError as error:
            logger.error("the audit log %s cannot be written: %s", self._path, error)


def id_hash(identifier: str) -> str:
    """Return what stands for an ID in the log."""
    return hashlib.sha256(identifier.encode("utf-8", "replace")).hexdigest()[:16]
