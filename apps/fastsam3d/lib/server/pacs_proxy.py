"""The way from a viewer to the images: DICOMweb of the PACS, or of a folder of files.

Requests to the PACS keep their query, their body and the headers of FORWARDED, and go over one
client that keeps its connections open. Replies are streamed. The stock route makes an event loop
and a connection for each slice, drops the query, and holds each reply in memory.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import httpx
from cachetools import TTLCache
from fastapi import APIRouter, Request
from fastapi.background import BackgroundTasks
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore

from lib.errors import InputError, NotFoundError
from lib.server import folder_dicomweb
from lib.server.app_instance import ServedApp, app_instance
from lib.server.auth import UserRole
from lib.server.cached_frames import FRAME, MULTIPART, SINGLE_PART, cached_frame
from lib.server.find_image import find_image

router = APIRouter(tags=["Others"])

CONNECTIONS = 32
"""CONNECTIONS: to the PACS at once; Orthanc answers 50 by default."""

READ_TIMES = 4
"""READ_TIMES: limit until the PACS sends the next bytes, in times of the limit to connect."""

FORWARDED = ("accept", "accept-encoding", "content-type", "content-length", "if-none-match")
"""FORWARDED: headers of a request that the PACS gets; no cookie or key of this server does."""

RETURNED = ("content-type", "content-length", "content-encoding", "etag", "last-modified")
"""RETURNED: headers of the reply that the viewer gets."""

SERVICES = ("wado", "qido", "stow")
"""SERVICES: the DICOMweb services that may start a path of the stock viewer."""

RETRIEVED = re.compile(
    r".*/(metadata|rendered|thumbnail|frames/.*|bulkdata.*)"
    r"|studies/[^/]+(/series/[^/]+(/instances/[^/]+)?)?"
)
"""RETRIEVED: paths of WADO-RS; all others of a GET request are searches (QIDO-RS)."""

OPENED = re.compile(r"studies/[^/]+/series/([0-9.]+)/(metadata|instances/[^/]+/frames/)")
"""OPENED: what a viewer asks for when it opens a series; the group is the SeriesInstanceUID."""

PLAIN_PATH = re.compile(r"[\w.,:;=+@~/-]*", re.ASCII)
"""PLAIN_PATH: characters of DICOMweb paths; none that a server decodes once more."""

REPEAT_SECONDS = 30
"""REPEAT_SECONDS: a series whose slices are loaded is prefetched again only after this time."""

_opened: TTLCache[str, None] = TTLCache(1024, REPEAT_SECONDS)


@router.api_route("/dicom-web/{path:path}", methods=["GET", "POST"], include_in_schema=False)
async def dicom_web(request: Request, path: str, user: UserRole) -> Response:
    """Pass a request to the PACS; on a folder of files, answer it from the files."""
    app = app_instance()
    accept = request.headers.get("accept", "")
    if isinstance(app.datastore(), DICOMWebDatastore):
        if request.method == "GET" and FRAME.match(path):
            frame = await run_in_threadpool(cached_frame, app, path, accept)
            if frame is not None:
                return frame
        return await pass_on(request, service_of(request.method, path), path)
    if request.method != "GET":
        raise InputError("these studies are files: save a label with PUT /datastore/label")
    query = {"accept": accept, **request.query_params}
    return await run_in_threadpool(folder_dicomweb.answer, app, path, query)


@router.api_route("/proxy/dicom/{path:path}", methods=["GET", "POST"], include_in_schema=False)
async def proxy(request: Request, path: str, user: UserRole) -> Response:
    """The stock viewer's way, whose paths start with the service."""
    if not isinstance(app_instance().datastore(), DICOMWebDatastore):
        raise NotFoundError("the studies of this server are files; there is no DICOM server")
    service, _, rest = path.partition("/")
    if service not in SERVICES:
        service, rest = "", path
    if service == "qido" and rest.endswith("metadata"):
        service = "wado"
    return await pass_on(request, service, rest)


def service_of(method: str, path: str) -> str:
    """Return the DICOMweb service of a request: wado, qido or stow."""
    if method == "POST":
        return "stow"
    return "wado" if RETRIEVED.fullmatch(path.strip("/")) else "qido"


async def pass_on(request: Request, service: str, path: str) -> Response:
    """Send a request to the PACS and stream its reply.

    The reply of a search is read to its end first, so that a PACS that breaks off is an error with
    a reason. Raises httpx.HTTPError if the PACS does not answer.
    """
    opened = OPENED.match(path)
    if opened and opened[1] not in _opened:  # each slice of a series comes here
        _opened[opened[1]] = None
        await run_in_threadpool(prefetch_series, app_instance(), opened[1])
    headers = {name: value for name, value in request.headers.items() if name in FORWARDED}
    if headers.get("accept", "").startswith(SINGLE_PART):
        headers["accept"] = MULTIPART
    headers.setdefault("accept-encoding", "identity")  # else the client asks for what it can unpack
    if "googleapis.com" in settings.MONAI_LABEL_STUDIES:
        headers["authorization"] = f"Bearer {await run_in_threadpool(_google_token)}"
    sent = _client().build_request(
        request.method,
        pacs_url(service, path) + (f"?{request.url.query}" if request.url.query else ""),
        headers=headers,
        content=request.stream() if request.method == "POST" else None,
    )
    reply = await _client().send(sent, stream=True)
    returned = {name: reply.headers[name] for name in RETURNED if name in reply.headers}
    if service == "qido":
        try:
            found = b"".join([piece async for piece in reply.aiter_raw()])
        finally:
            await reply.aclose()
        if reply.is_server_error:  # whatever its body is, the viewer gets a reason
            reply.raise_for_status()
        return Response(found, reply.status_code, returned)
    close = BackgroundTasks()
    close.add_task(reply.aclose)
    return StreamingResponse(reply.aiter_raw(), reply.status_code, returned, background=close)


def pacs_url(service: str, path: str) -> str:
    """Return the address of a path on the PACS, whose services may have a prefix each.

    Raises InputError for a path that leaves the DICOMweb services: the account of the server may
    do more on the PACS than its clients.
    """
    if not PLAIN_PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise InputError(f"{path[:80]!r} is no path of a DICOMweb service")
    prefix = {
        "wado": settings.MONAI_LABEL_WADO_PREFIX,
        "qido": settings.MONAI_LABEL_QIDO_PREFIX,
        "stow": settings.MONAI_LABEL_STOW_PREFIX,
    }.get(service)
    parts = [settings.MONAI_LABEL_STUDIES.rstrip("/"), prefix, path.lstrip("/")]
    return "/".join(part for part in parts if part)


def prefetch_series(app: ServedApp, image: str) -> None:
    """Prefetch an image, if it is one of the studies, when a viewer loads its voxels."""
    if image in app.datastore().list_images():
        app.prefetch(image, lambda: find_image(app, image))


@cache
def _client() -> httpx.AsyncClient:
    """Return the one client; the first request, on the server's event loop, makes it."""
    user, password = (
        settings.MONAI_LABEL_DICOMWEB_USERNAME,
        settings.MONAI_LABEL_DICOMWEB_PASSWORD,
    )
    seconds = settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT
    return httpx.AsyncClient(
        auth=httpx.BasicAuth(user, password) if user and password else None,
        limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
        timeout=httpx.Timeout(seconds, read=READ_TIMES * seconds),
        follow_redirects=False,
    )


@cache
def _google_credentials() -> Any:
    import google.auth

    scopes = ["https://www.googleapis.com/auth/cloud-platform"]
    credentials, _ = google.auth.default(scopes=scopes)
    return credentials


def _google_token() -> str:
    """Return an access token for a DICOM store of Google's Healthcare API."""
    import google.auth.transport.requests

    credentials = _google_credentials()
    if not credentials.valid:
        credentials.refresh(google.auth.transport.requests.Request())
    return str(credentials.token)
