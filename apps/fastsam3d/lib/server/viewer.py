"""The OHIF viewer at ``/viewer/``: the built app, its configuration, and our extension.

The app's files come compressed from a cache (`lib.server.viewer_package`). The extension's modules
lie in ``apps/fastsam3d/viewer`` and are served as they are. Every path that is no file is the app
itself, which reads the address in the browser.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from lib.errors import NotFoundError
from lib.imaging.affine import RAS_TO_LPS
from lib.server.app_instance import app_instance
from lib.server.auth import UserRole
from lib.server.cached_frames import SINGLE_PART
from lib.server.find_image import check_exists, find_image
from lib.server.folder_series import image_of_series
from lib.server.pacs_proxy import prefetch_series
from lib.server.viewer_licences import licence_notices
from lib.server.viewer_package import PREFIX, ViewerError, ViewerFile, viewer_files

EXTENSION_FOLDER = Path(__file__).resolve().parents[2] / "viewer"
EXTENSION = "extension"
"""EXTENSION: folder below PREFIX with the modules of EXTENSION_FOLDER."""

HIDDEN_MODES = (
    "@ohif/mode-segmentation",
    "@ohif/mode-tmtv",
    "@ohif/mode-microscopy",
    "@ohif/mode-preclinical-4d",
    "@ohif/mode-ultrasound-pleura-bline",
)
"""HIDDEN_MODES: OHIF's modes that the study list leaves out."""

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
}

HASHED_NAME = re.compile(r"(.*\.)?[0-9a-f]{16}\.(js|wasm|woff2)")
"""HASHED_NAME: a file whose name changes with its content, so that a browser keeps it for good."""

SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        # OHIF's bundles start with inline scripts, and its codecs are WebAssembly in workers
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "worker-src 'self' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "frame-ancestors 'self'",
    )
)
"""SECURITY_POLICY: the page may contact this server only."""

router = APIRouter(tags=["Others"])


@router.get(PREFIX.rstrip("/"), include_in_schema=False)
def redirect(user: UserRole) -> Response:
    return RedirectResponse(PREFIX)


@router.get(PREFIX + "app-config.js", include_in_schema=False)
def app_config(http: Request, user: UserRole) -> Response:
    """Return OHIF's configuration: this server's DICOMweb routes, and our mode and extension."""
    config = json.dumps(configuration(), indent=1)
    script = f"window.config = {config};\n{ADDRESSES}{DEFAULT_MODE}"
    return _reply(http, "app-config.js", script.encode(), immutable=False)


@router.get(PREFIX + "series/{series_uid}", include_in_schema=False)
def series(series_uid: str, user: UserRole) -> dict[str, str]:
    """Return the ID that requests name the image of a series with, and prefetch that image."""
    app = app_instance()
    image = check_exists(app, image_of_series(app.datastore(), series_uid) or series_uid)
    prefetch_series(app, image)
    return {"image": image}


@router.get(PREFIX + "series/{series_uid}/grid", include_in_schema=False)
def grid(series_uid: str, user: UserRole) -> dict[str, Any]:
    """Return the grid on which the image of a series is stored: shape, and affine to LPS mm."""
    app = app_instance()
    image = image_of_series(app.datastore(), series_uid) or series_uid
    volume = app.prefetch.read(find_image(app, image))
    affine_lps = volume.affine_mm.copy()
    affine_lps[:3] = RAS_TO_LPS @ affine_lps[:3]
    return {"shape_ijk": volume.shape_ijk, "affine_lps": affine_lps.tolist()}


@router.get(PREFIX + "licences.txt", include_in_schema=False)
def licences(http: Request, user: UserRole) -> Response:
    """Return the licence notices of what the viewer bundles."""
    try:
        text = licence_notices()
    except ViewerError as error:
        raise NotFoundError(str(error)) from error
    return _reply(http, "licences.txt", text.encode(), immutable=False)


@router.get(PREFIX + "{path:path}", include_in_schema=False)
def get_viewer(http: Request, path: str, user: UserRole) -> Response:
    """Return a file of the extension or of the app, and the app itself for any other path."""
    folder, _, name = path.partition("/")
    if folder == EXTENSION:
        return _reply(http, name, extension_file(name), immutable=False)
    try:
        files = viewer_files()
    except ViewerError as error:
        raise NotFoundError(str(error)) from error
    is_file = path in files
    return _packed_reply(http, path if is_file else "index.html", files)


def configuration() -> dict[str, Any]:
    """Return what OHIF reads as ``window.config``; ADDRESSES completes it in the browser."""
    extension = f"{PREFIX}{EXTENSION}/"
    return {
        "routerBasename": PREFIX.rstrip("/"),
        "extensions": [f"{extension}extension.js"],
        "modes": [f"{extension}mode.js"],
        # the study list offers ours, and OHIF's for a look without prompts
        "modesConfiguration": {mode: {"hide": {"$set": True}} for mode in HIDDEN_MODES},
        "showStudyList": True,
        "showWarningMessageForCrossOrigin": False,
        "showCPUFallbackMessage": True,
        "showLoadingIndicator": True,
        "strictZSpacingForVolumeViewport": True,
        "investigationalUseDialog": {"option": "never"},
        "maxNumberOfWebWorkers": 3,
        "maxNumRequests": {"interaction": 100, "thumbnail": 5, "prefetch": 25},
        "defaultDataSourceName": "dicomweb",
        "dataSources": [
            {
                "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
                "sourceName": "dicomweb",
                "configuration": {
                    "friendlyName": "Studies of this server",
                    "name": "dicomweb",
                    "qidoSupportsIncludeField": False,
                    "imageRendering": "wadors",
                    "thumbnailRendering": "wadors",
                    "enableStudyLazyLoad": True,
                    "supportsFuzzyMatching": False,
                    "supportsWildcard": True,
                    "dicomUploadEnabled": False,
                    "omitQuotationForMultipartRequest": True,
                    "acceptHeader": [f"{SINGLE_PART}; transfer-syntax=*"],
                    # bits without compression, which every reader of DICOM-SEG can decode
                    "segmentation": {
                        "store": {
                            "defaultMode": "bitmap",
                            "transferSyntaxUID": "1.2.840.10008.1.2.1",
                        }
                    },
                },
            }
        ],
    }


ADDRESSES = """\
for (const name of ['wadoUriRoot', 'qidoRoot', 'wadoRoot'])
  window.config.dataSources[0].configuration[name] = `${window.location.origin}/dicom-web`;
"""
"""ADDRESSES: OHIF needs whole addresses; only the browser knows how it reached this server."""


DEFAULT_MODE = """\
try {
  localStorage['studyList.defaultWorkflow'] ??= '@fastsam3d/mode';
} catch {
  // the browser keeps nothing: a study is opened with the button of the mode
}
"""
"""DEFAULT_MODE: a double click in the study list opens our mode, until the user chooses another."""


def extension_file(name: str) -> bytes:
    """Return one of our modules; raises NotFoundError."""
    path = EXTENSION_FOLDER / name
    if not re.fullmatch(r"\w{1,80}\.(js|css)", name) or not path.is_file():
        raise NotFoundError(f"there is no file {name!r} of the viewer's extension")
    return path.read_bytes()


# --- replies --------------------------------------------------------------------------------------


def _packed_reply(http: Request, name: str, files: dict[str, ViewerFile]) -> Response:
    """Return a file of the app as it is in the cache, without unpacking it for a browser."""
    file = files[name]
    headers = _headers(name, file.digest, bool(HASHED_NAME.fullmatch(name)))
    if _has_copy(http, headers):
        return Response(status_code=304, headers=headers)
    content = file.path.read_bytes()
    if file.is_gzipped and "gzip" in http.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
    elif file.is_gzipped:
        content = gzip.decompress(content)
    return Response(content, headers=headers, media_type=_media_type(name))


def _reply(http: Request, name: str, content: bytes, immutable: bool) -> Response:
    headers = _headers(name, _digest(content), immutable)
    if _has_copy(http, headers):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=_media_type(name))


@cache
def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _headers(name: str, digest: str, immutable: bool) -> dict[str, str]:
    keep = "public, max-age=31536000, immutable" if immutable else "no-cache"
    return {
        "ETag": f'"{digest}"',
        "Cache-Control": keep,
        "Vary": "Accept-Encoding",
        "Content-Security-Policy": SECURITY_POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
    }


def _has_copy(http: Request, headers: dict[str, str]) -> bool:
    return headers["ETag"] in http.headers.get("if-none-match", "")


def _media_type(name: str) -> str:
    return MEDIA_TYPES.get(Path(name).suffix, "application/octet-stream")
