"""The allow-list: every route that the server has, and who may use it.

MONAI Label's own routes are not installed. A new route needs a line here, or the server does not
start.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.routing import compile_path

OPEN = "open"
"""OPEN: for everyone who reaches the server: no data of patients, no change."""

KEY = "key"
"""KEY: for who knows the key, where the site has set one."""

ROUTES: dict[str, str] = {
    # the server
    "GET /": KEY,
    "GET /docs": KEY,
    "GET /favicon.ico": OPEN,
    "GET /healthz": OPEN,
    "GET /info/": KEY,
    # signing in: 3D Slicer, and a page for the viewers
    "GET /auth/": OPEN,
    "POST /auth/token": OPEN,
    "GET /auth/token/valid": KEY,
    "GET /sign-in": OPEN,
    "POST /sign-in": OPEN,
    "POST /sign-out": OPEN,
    # the files of the viewers
    "GET /ohif/{path:path}": OPEN,
    "GET /viewer": OPEN,
    "GET /viewer/app-config.js": OPEN,
    "GET /viewer/licences.txt": OPEN,
    "GET /viewer/{path:path}": OPEN,
    # what the viewers show of a patient
    "GET /viewer/series/{series_uid}": KEY,
    "GET /viewer/series/{series_uid}/grid": KEY,
    "GET /viewer/series/{series_uid}/labels": KEY,
    "GET /viewer/series/{series_uid}/work": KEY,
    "POST /viewer/series/{series_uid}/work": KEY,
    "GET /viewer/series/{series_uid}/masks/{digest}": KEY,
    "GET /viewer/series/{series_uid}/labels/{tag}": KEY,
    "GET /dicom-web/{path:path}": KEY,
    "POST /dicom-web/{path:path}": KEY,
    # masks
    "POST /infer/{model}": KEY,
    "GET /interactions/{image}": KEY,
    # images
    "GET /datastore/": KEY,
    "PUT /datastore/": KEY,
    "GET /datastore/image": KEY,
    "HEAD /datastore/image": KEY,
    "PUT /datastore/image": KEY,
    "GET /datastore/image/info": KEY,
    "PUT /datastore/image/info": KEY,
    "POST /activelearning/{strategy}": KEY,
    "PUT /session/": KEY,
    "GET /session/{session_id}": KEY,
    "DELETE /session/{session_id}": KEY,
    "GET /proxy/dicom/{path:path}": KEY,
    "POST /proxy/dicom/{path:path}": KEY,
    # labels
    "GET /datastore/label": KEY,
    "HEAD /datastore/label": KEY,
    "PUT /datastore/label": KEY,
    "GET /datastore/label/info": KEY,
    "PUT /datastore/label/info": KEY,
    "PUT /datastore/updatelabelinfo": KEY,
    "GET /datastore/label/versions": KEY,
    "POST /datastore/label/restore": KEY,
    # trainings
    "POST /train/": KEY,
    "POST /train/{model}": KEY,
    "GET /train/": KEY,
    "DELETE /train/": KEY,
    "GET /train/{model}/curves.png": KEY,
    "GET /weights/{model}": KEY,
    "POST /weights/{model}/rollback": KEY,
}
"""ROUTES: ``METHOD path`` as FastAPI writes it, and OPEN or KEY."""

OPENAPI = "/openapi.json"
"""OPENAPI: the description of the routes, which FastAPI itself serves; it needs the key."""


def check_routes(routers: Iterable[APIRouter]) -> None:
    """Raise RuntimeError unless the routers have exactly the routes of the table."""
    names = [
        f"{method} {route.path}"
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    ]
    wrong = set(names) ^ set(ROUTES) or {name for name in names if names.count(name) > 1}
    if wrong:
        raise RuntimeError(f"routes and their table ROUTES differ in {', '.join(sorted(wrong))}")


_PATHS = [
    (name.split(" ", 1)[0], compile_path(name.split(" ", 1)[1])[0], access)
    for name, access in ROUTES.items()
]


def is_open(method: str, path: str) -> bool:
    """Return whether everyone may send this request; path: as the router sees it.

    A path that also fits a route with KEY, as those below ``/viewer/``, needs the key.
    """
    method = "GET" if method == "HEAD" else method
    fitting = {
        access for allowed, regex, access in _PATHS if method == allowed and regex.match(path)
    }
    return fitting == {OPEN}
