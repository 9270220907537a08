"""The doors: what is checked of every request before any route sees it.

In this order: where it comes from, how many there were, whether the client knows the key, and how
long its body is. The checks need no thread, so that they answer while clicks compute.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from cachetools import LRUCache
from fastapi import HTTPException
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lib.options import Options
from lib.server.audit import AuditLog
from lib.server.credentials import Credentials
from lib.server.routes import is_open

MAX_FORM_BYTES = 8 * 2**20
"""MAX_FORM_BYTES: limit of a body that is no multipart form, and so holds no file."""

CLIENTS = 4096
"""CLIENTS: addresses whose requests are counted at a time."""

SIGN_INS_PER_MINUTE = 10
"""SIGN_INS_PER_MINUTE: wrong passwords that a client may try."""

STATUSES = (401, 403, 413, 429)
"""STATUSES: the HTTP statuses of the doors themselves."""


@dataclass(frozen=True)
class Refusal:
    """A reply to a request that may not come in: HTTP status, sentence, further headers."""

    status: int
    detail: str
    headers: Mapping[str, str] | None = None


class RateLimit:
    """Counts the requests of each client: so many at once, and then so many a minute."""

    def __init__(self, per_minute: int) -> None:
        """per_minute: 0 for no limit."""
        self._per_minute = per_minute
        self._left: LRUCache[str, tuple[float, float]] = LRUCache(CLIENTS)

    def take(self, client: str, cost: float = 1) -> bool:
        """Count a request, or none with cost 0; return whether it is within the limit."""
        if not self._per_minute:
            return True
        now = time.monotonic()
        left, since = self._left.get(client, (float(self._per_minute), now))
        left = min(self._per_minute, left + (now - since) * self._per_minute / 60)
        is_allowed = left >= 1
        self._left[client] = (left - cost if is_allowed else left, now)
        return is_allowed


class DoorPolicy:
    """What the site allows, and the counts of its clients."""

    def __init__(self, options: Options, audit: AuditLog) -> None:
        self.credentials = Credentials(options.api_key)
        self.audit = audit
        self.cors_origins = options.cors_origins
        self.failed_sign_ins = RateLimit(SIGN_INS_PER_MINUTE)
        self._is_local_only = not options.api_key and not options.allow_open
        self._max_upload_bytes = options.max_upload_mb * 2**20
        self._requests = RateLimit(options.requests_per_minute)

    def refusal(self, scope: Scope) -> Refusal | None:
        """Return why a request may not come in; None if it may.

        The name of the user goes into the state of the request.
        """
        headers, client = Headers(scope=scope), client_of(scope)
        user = self.credentials.user(headers.get("authorization", ""), headers.get("cookie", ""))
        scope.setdefault("state", {})["user"] = user or ""
        if self._is_local_only and not (is_local(client) and is_local(_host(headers))):
            return Refusal(
                403,
                "this server has no key, so it answers its own machine only; start it with "
                "--conf api_key KEY (or FASTSAM3D_API_KEY=KEY), or with --conf allow_open true to "
                "let every machine in",
            )
        if not self._is_own_page(headers):
            return Refusal(
                403,
                f"pages of {headers['origin'][:80]!r} may not use this server; start it with "
                "--conf cors_origins ORIGIN to allow them",
            )
        if not self._requests.take(client):
            return Refusal(
                429,
                "there are too many requests from this address; wait a minute, or raise "
                "--conf requests_per_minute",
                {"Retry-After": "60"},
            )
        if user is None and not is_open(scope["method"], route_path(scope)):
            return Refusal(
                401,
                "this server needs its key; send the header Authorization: Bearer KEY, or sign in "
                "at /sign-in",
                {"WWW-Authenticate": "Bearer"},
            )
        return self.body_refusal(headers, int_or_zero(headers.get("content-length", "")))

    def body_refusal(self, headers: Headers, length: int) -> Refusal | None:
        """Return the refusal of a body of ``length`` bytes, as far as it has arrived."""
        has_files = headers.get("content-type", "").startswith("multipart/")
        limit = self._max_upload_bytes if has_files else MAX_FORM_BYTES
        if length <= limit:
            return None
        option = "; raise --conf max_upload_mb to allow it" if has_files else ""
        return Refusal(413, f"the request is larger than {limit // 2**20} MB{option}")

    def _is_own_page(self, headers: Headers) -> bool:
        """Return whether no page of another site sends the request."""
        origin = headers.get("origin")
        if origin is None or origin in self.cors_origins:
            return True
        # behind a proxy the server does not know its own name, but the browser does
        is_same = headers.get("sec-fetch-site") == "same-origin"
        return is_same or urlsplit(origin).netloc == headers.get("host", "")


class Doors:
    """ASGI middleware that refuses what the policy does not let in, and writes the audit log."""

    def __init__(self, app: ASGIApp, policy: DoorPolicy) -> None:
        self._app = app
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # there are no websockets
        refusal = self._policy.refusal(scope)
        if refusal is None and self._must_sign_in(scope):
            target = quote(route_path(scope) + _query(scope), safe="")
            page = f"{scope.get('root_path', '')}/sign-in?next={target}"
            await RedirectResponse(page, 303)(scope, receive, send)
        elif refusal is not None:
            await refuse(refusal)(scope, receive, send)
            self._record(scope, refusal.status)
        else:
            await self._pass(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 500

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, self._limited(scope, receive), watched_send)
        finally:
            self._record(scope, status)

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Return a receiver that refuses a body as soon as it is too long."""
        headers, length = Headers(scope=scope), 0

        async def limited() -> Message:
            nonlocal length
            message = await receive()
            length += len(message.get("body", b""))
            refusal = self._policy.body_refusal(headers, length)
            if refusal is not None:  # FastAPI turns other exceptions into a 400
                raise HTTPException(refusal.status, refusal.detail)
            return message

        return limited

    def _must_sign_in(self, scope: Scope) -> bool:
        """Return whether a person without the key opens a page of a viewer."""
        headers, credentials = Headers(scope=scope), self._policy.credentials
        is_page = scope["method"] == "GET" and "text/html" in headers.get("accept", "")
        is_viewer = route_path(scope).startswith(VIEWERS)
        if not (credentials.is_set and is_page and is_viewer):
            return False
        user = credentials.user(headers.get("authorization", ""), headers.get("cookie", ""))
        return user is None

    def _record(self, scope: Scope, status: int) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        parameters: dict[str, Any] = {**Request(scope).query_params, **scope.get("path_params", {})}
        user = scope["state"]["user"]
        self._policy.audit.record(
            scope["method"], route, parameters, user, client_of(scope), status
        )


VIEWERS = ("/ohif/", "/viewer/")
"""VIEWERS: a person who opens a page below these paths is asked to sign in first."""


def refuse(refusal: Refusal) -> Response:
    """Return the reply for a refusal."""
    return JSONResponse({"detail": refusal.detail}, refusal.status, dict(refusal.headers or {}))


def audit_log(options: Options, app_folder: str | Path) -> AuditLog:
    """Return the audit log that the site asks for."""
    if options.audit_log == "off":
        return AuditLog(None)
    return AuditLog(Path(options.audit_log or Path(app_folder, "logs", "audit.jsonl")))


def client_of(scope: Scope) -> str:
    """Return the address of the client; "" for one on a socket of this machine."""
    return str(scope["client"][0]) if scope.get("client") else ""


def is_local(host: str) -> bool:
    """Return whether a host is this machine; host: an address, ``localhost`` or ""."""
    if host in ("", "localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def route_path(scope: Scope) -> str:
    """Return the path as the router sees it, without the prefix of a proxy."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :]
    return path


def int_or_zero(text: str) -> int:
    """Return the number in a header; 0 if there is none."""
    return int(text) if text.isdecimal() else 0


def _host(headers: Headers) -> str:
    """Return the name that the client used for this server, without the port."""
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:
        return "invalid"


def _query(scope: Scope) -> str:
    query = scope.get("query_string", b"").decode("latin-1")
    return f"?{query}" if query else ""
