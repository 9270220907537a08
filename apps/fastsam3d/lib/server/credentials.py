"""The key of the site, and the signed tokens that stand for it in a cookie or in 3D Slicer."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from http.cookies import CookieError, SimpleCookie

COOKIE = "fastsam3d"
"""COOKIE: name of the cookie with a token; scripts cannot read it, other sites cannot send it."""

TOKEN_SECONDS = 30 * 24 * 3600
"""TOKEN_SECONDS: how long a token is valid; a new key ends all of them at once."""

LONGEST_USER = 64
"""LONGEST_USER: characters of a user's name that are kept."""


class Credentials:
    """Checks keys and tokens in constant time."""

    def __init__(self, key: str) -> None:
        """key: empty if the site has none; every client is let in then."""
        self._key = key.encode()

    @property
    def is_set(self) -> bool:
        """Whether the site has a key."""
        return bool(self._key)

    def is_key(self, text: str) -> bool:
        """Return whether a text is the key."""
        return self.is_set and hmac.compare_digest(text.encode("utf-8", "replace"), self._key)

    def make_token(self, user: str) -> str:
        """Return a token that lets a user in without the key, for TOKEN_SECONDS."""
        content = json.dumps({"user": user[:LONGEST_USER], "time": int(time.time())})
        body = base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")
        return f"{body}.{self._sign(body)}"

    def user_of_token(self, token: str) -> str | None:
        """Return the user of a valid token, else None."""
        body, _, signature = token.partition(".")
        if not self.is_set or not hmac.compare_digest(
            signature.encode("utf-8", "replace"), self._sign(body).encode()
        ):
            return None
        content = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        is_fresh = time.time() - content["time"] < TOKEN_SECONDS
        return str(content["user"]) if is_fresh else None

    def user(self, authorization: str, cookie: str) -> str | None:
        """Return the user of a request, "" if only the key is known, or None without the right.

        authorization: the header of that name. cookie: the header ``Cookie``.
        """
        if not self.is_set:
            return ""
        scheme, _, token = authorization.strip().partition(" ")
        if scheme.lower() == "bearer":
            token = token.strip()
            as_utf8 = token.encode("latin-1", "replace").decode("utf-8", "replace")
            is_key = self.is_key(token) or self.is_key(as_utf8)  # clients differ in the encoding
            return "" if is_key else self.user_of_token(token)
        try:
            morsel = SimpleCookie(cookie).get(COOKIE)
        except CookieError:
            return None
        return self.user_of_token(morsel.value) if morsel else None

    def _sign(self, body: str) -> str:
        text = b"sign-in " + body.encode("utf-8", "replace")
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()
