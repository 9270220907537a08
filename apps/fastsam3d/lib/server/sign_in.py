"""Signing in with the key of the site: 3D Slicer by its own request, people by a small page."""

from __future__ import annotations

import html
from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from lib.server.auth import UserRole
from lib.server.credentials import COOKIE, TOKEN_SECONDS
from lib.server.doors import DoorPolicy, client_of

router = APIRouter(tags=["Auth"])

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>FastSAM3D: sign in</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{{font-family:sans-serif;background:#151a24;color:#eee;display:grid;place-items:center;
min-height:90vh}}form{{display:grid;gap:.8rem;min-width:18rem}}input,button{{font-size:1rem;
padding:.5rem}}p{{color:#fb8}}</style></head>
<body><form method="post" action="sign-in"><h1>FastSAM3D</h1><p>{message}</p>
<label>Your name<br><input name="user" autocomplete="username" autofocus></label>
<label>Key of this server<br><input name="key" type="password" autocomplete="current-password">
</label><input name="next" type="hidden" value="{target}"><button>Sign in</button></form>
</body></html>"""
"""PAGE: the whole page; it loads nothing."""

WRONG_KEY = "this is not the key of this server; ask who runs it"

TOO_MANY = "there were too many wrong keys; wait a minute and try again"


@router.get("/auth/", summary="Does the server want its key?")
def auth_enabled(request: Request) -> dict[str, Any]:
    """3D Slicer asks for a user and a password then; the password is the key."""
    policy = _policy(request)
    enabled = policy is not None and policy.credentials.is_set
    return {"enabled": enabled, "client_id": "fastsam3d", "realm": ""}


@router.post("/auth/token", summary="A token for the key")
def make_token(
    request: Request, username: Annotated[str, Form()], password: Annotated[str, Form()]
) -> dict[str, str]:
    token = _token(request, username, password)
    return {"access_token": token, "token_type": "bearer"}


@router.get("/auth/token/valid", summary="Is the token valid?")
def valid_token(user: UserRole) -> dict[str, Any]:
    return dict(user.model_dump())


@router.get("/sign-in", include_in_schema=False)
def sign_in_page(next: str = "/") -> HTMLResponse:
    return _page("", next)


@router.post("/sign-in", include_in_schema=False)
def sign_in(
    request: Request,
    user: Annotated[str, Form()] = "",
    key: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = "/",
) -> Response:
    """Set the cookie and go on to the page ``next`` of this server."""
    try:
        token = _token(request, user, key)
    except HTTPException as error:
        return _page(str(error.detail), next, error.status_code)
    root = str(request.scope.get("root_path", ""))
    reply = RedirectResponse(root + _local(next), 303)
    reply.set_cookie(
        COOKIE,
        token,
        max_age=TOKEN_SECONDS,
        path=root or "/",
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return reply


@router.post("/sign-out", include_in_schema=False)
def sign_out(request: Request) -> Response:
    reply = RedirectResponse(f"{request.scope.get('root_path', '')}/sign-in", 303)
    reply.delete_cookie(COOKIE, path=str(request.scope.get("root_path", "")) or "/")
    return reply


def _policy(request: Request) -> DoorPolicy | None:
    policy: DoorPolicy | None = getattr(request.app.state, "doors", None)
    return policy


def _token(request: Request, user: str, key: str) -> str:
    """Return a token; raises HTTPException if the key is wrong, or was wrong too often."""
    policy = _policy(request)
    if policy is None or not policy.credentials.is_set:
        raise HTTPException(400, "this server has no key, so nobody signs in")
    client = client_of(request.scope)
    if not policy.failed_sign_ins.take(client, cost=0):
        raise HTTPException(429, TOO_MANY)
    if not policy.credentials.is_key(key):
        policy.failed_sign_ins.take(client)
        raise HTTPException(401, WRONG_KEY)
    request.state.user = user
    return policy.credentials.make_token(user)


def _page(message: str, target: str, status: int = 200) -> HTMLResponse:
    text = PAGE.format(message=html.escape(message), target=html.escape(_local(target)))
    return HTMLResponse(text, status, {"Cache-Control": "no-store"})


def _local(target: str) -> str:
    """Return a path of this server; the address of another one becomes the first page."""
    is_local = target.startswith("/") and not target.startswith("//")
    return target if is_local and "\\" not in target and target.isprintable() else "/"
