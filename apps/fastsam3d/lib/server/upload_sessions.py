"""Sessions of uploaded volumes: MONAI Label's, with private folders and atomic descriptions."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from monailabel.utils.sessions import SessionInfo, Sessions

from lib.atomic_file import write_text_atomically
from lib.server.names import is_name

logger = logging.getLogger(__name__)


class PrivateSessions(Sessions):
    """Sessions that other accounts of the machine cannot read.

    A description that a crash left broken is a session that has expired.
    """

    def __init__(self, store_path: str = "", expiry: int = 3600) -> None:
        super().__init__(store_path, expiry)
        os.makedirs(self.store_path, mode=0o700, exist_ok=True)
        os.chmod(self.store_path, 0o700)

    def get_session(
        self, session_id: str, update_ts: bool = True, fetch_cache: bool = True
    ) -> SessionInfo | None:
        """Return a session; None if there is none of this name."""
        if not is_name(session_id):
            return None
        try:
            return super().get_session(session_id, update_ts, fetch_cache)
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("session %s is broken, and is removed: %s", session_id, error)
            self.remove_session(session_id)
            return None

    def remove_session(self, session_id: str) -> None:
        """Remove a session and its files; a name that is a path is none."""
        if is_name(session_id):
            super().remove_session(session_id)

    def remove_expired(self) -> int:
        """Remove what has expired, and what is no whole session; return how many."""
        names = [path.name for path in Path(self.store_path).iterdir() if path.is_dir()]
        expired = []
        for name in names:
            session = self.get_session(name, update_ts=False, fetch_cache=False)
            if session is None or 0 < session.expiry < time.time() - session.last_access_ts:
                expired.append(name)
        for name in expired:
            self.remove_session(name)
        return len(expired)

    def _write_meta_info(self, session_id: str, session_info: Any) -> None:
        path = Path(self.store_path, session_id, "meta.info")
        write_text_atomically(path, session_info.to_str())
