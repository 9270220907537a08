"""The routes about the server itself: is it there, what it offers, what it did."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse, Response
from monailabel.endpoints import info as stock_info

from lib.errors import NotFoundError
from lib.server.app_instance import app_instance
from lib.server.auth import UserRole
from lib.server.json_reply import json_reply
from lib.server.names import check_name
from lib.server.routes import ROUTES

router = APIRouter()

PAGE = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>FastSAM3D</title>
<style>body{{font-family:sans-serif;margin:3rem auto;max-width:50rem}}td{{padding:.2rem .8rem}}
</style></head><body><h1>FastSAM3D for MONAI Label</h1>{body}</body></html>"""
"""PAGE: the frame of the pages below, which load nothing from elsewhere."""


@router.get("/healthz", summary="Does the server answer?", tags=["App"])
async def health() -> dict[str, str]:
    """It needs no thread, so that it answers while clicks compute."""
    return {"status": "ok"}


@router.get("/info/", summary="Models, labels and weights", tags=["App"])
def app_info(user: UserRole) -> Any:
    return stock_info.app_info()


@router.get("/datastore/", summary="Images and labels", tags=["Datastore"])
def studies(user: UserRole, output: Literal["stats", "all", "train"] = "stats") -> Response:
    """``stats``: numbers; ``all``: the list; ``train``: pairs of files for a training."""
    store = app_instance().datastore()
    if output == "all":
        return json_reply(store.json())
    return json_reply(store.datalist() if output == "train" else store.status())


@router.get("/interactions/{image}", summary="Journal of an image", tags=["Datastore"])
def interactions(image: str, user: UserRole) -> Response:
    """Each mask that was asked for: prompts, options, hashes of weights and mask, time and user."""
    app = app_instance()
    entries = app.journal.read(check_name(image, "image"))
    if not entries and image not in app.datastore().list_images():
        raise NotFoundError(f"there is no image {image!r} among the studies of this server")
    return json_reply({"image": image, "interactions": entries})


@router.get("/", include_in_schema=False)
def first_page(user: UserRole) -> HTMLResponse:
    links = {
        "/viewer/": "the viewer: open a study and press on an organ",
        "/ohif/": "the stock viewer of MONAI Label",
        "/docs": "the routes",
        "/openapi.json": "OpenAPI",
    }
    items = "".join(f'<li><a href=".{path}">{name}</a></li>' for path, name in links.items())
    return HTMLResponse(PAGE.format(body=f"<ul>{items}</ul>"))


@router.get("/docs", include_in_schema=False)
def list_routes(user: UserRole) -> HTMLResponse:
    rows = "".join(f"<tr><td><code>{html.escape(name)}</code></td></tr>" for name in ROUTES)
    body = f'<p>Their parameters: <a href="openapi.json">openapi.json</a></p><table>{rows}</table>'
    return HTMLResponse(PAGE.format(body=body))


@router.get("/favicon.ico", include_in_schema=False)
def icon() -> FileResponse:
    folder = Path(stock_info.__file__).parent / "static"
    return FileResponse(folder / "favicon.ico", media_type="image/x-icon")
