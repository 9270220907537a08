"""Put the app's routes, doors and error messages into MONAI Label's HTTP server.

None of the stock routes stays. The stock server returns a bare 500 for invalid JSON and for any
error of a task or of the studies. The stock routes let ``params`` overwrite the image, accept any
path on the server as an image, ignore unknown sessions, start trainings that must fail, and block
the event loop.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any, cast

import httpx
import requests
from fastapi import FastAPI, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from monailabel.config import settings
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelException,
)
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from lib.atomic_file import is_forbidden, is_full
from lib.errors import (
    AppError,
    BusyError,
    ConflictError,
    InputError,
    NotFoundError,
    ReadOnlyError,
)
from lib.server import (
    images,
    infer,
    labels,
    ohif,
    pacs_proxy,
    sign_in,
    system,
    train,
    viewer,
    viewer_labels,
    viewer_work,
)
from lib.server.doors import DoorPolicy, Doors
from lib.server.routes import OPENAPI, check_routes

logger = logging.getLogger(__name__)


ROUTERS = (
    system.router,
    sign_in.router,
    infer.router,
    images.router,
    labels.router,
    train.router,
    ohif.router,
    pacs_proxy.router,
    viewer_labels.router,
    viewer_work.router,  # before the paths below /viewer/ that are files
    viewer.router,
)
"""ROUTERS: what the server offers; `lib.server.routes.ROUTES` lists their routes."""


def install(app: FastAPI, policy: DoorPolicy | None = None) -> None:
    """Replace the routes of a running server by those of the app, behind the doors.

    policy: what the site allows; None leaves the doors open, for tests of single routes. Raises
    RuntimeError if a route is not in the table of routes, or the other way round.
    """
    check_routes(ROUTERS)
    kept = [route for route in app.router.routes if getattr(route, "path", "") == OPENAPI]
    app.router.routes[:] = kept
    for router in ROUTERS:
        app.include_router(router, prefix=settings.MONAI_LABEL_API_STR)
    for error_class, (status, describe) in ERRORS.items():
        app.add_exception_handler(error_class, _make_handler(status, describe))
    app.add_exception_handler(HTTPException, _handle_http_exception)
    if policy is not None:
        app.state.doors = policy
        app.user_middleware[:] = _middleware(policy)  # MONAI Label's lets pages of any origin in
    # FastAPI built its middleware at start-up, without these; the next request rebuilds it
    app.middleware_stack = None


def _middleware(policy: DoorPolicy) -> list[Middleware]:
    doors = Middleware(Doors, policy=policy)
    if not policy.cors_origins:
        return [doors]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(policy.cors_origins),
        allow_methods=["*"],
        allow_headers=["*"],
        allow_credentials=True,
        expose_headers=["X-Mask-Box", "X-Next-Click", "X-Warning", "ETag"],
    )
    return [cors, doors]


# --- errors ---------------------------------------------------------------------------------------

Describe = Callable[[Any], str]


def _describe_validation(error: RequestValidationError) -> str:
    """Return one line for all parameters of a request that FastAPI could not read."""
    lines = []
    for problem in error.errors():
        place = " ".join(map(str, problem["loc"]))
        reason = problem.get("ctx", {}).get("error", "")
        lines.append(f"{place}: {problem['msg']}" + (f" ({reason})" if reason else ""))
    return f"the request is invalid: {'; '.join(lines)}"


def _describe_dicom_error(error: requests.RequestException | httpx.HTTPError) -> str:
    return (
        f"the DICOM server does not answer as it should ({type(error).__name__}); "
        "check that it runs, and see the log of this one"
    )


class FullDiskError(OSError):
    """Stands in ERRORS for each OSError that means a full disk; it is never raised itself."""


def _describe_full_disk(error: OSError) -> str:
    return (
        f"the disk of the server is full ({os.strerror(error.errno or errno.ENOSPC)}); nothing was "
        "changed. Free space there and send the request again"
    )


class ForbiddenError(OSError):
    """Stands in ERRORS for each OSError that means missing rights; it is never raised itself."""


def _describe_forbidden(error: OSError) -> str:
    return (
        f"the server may not write or read a file ({os.strerror(error.errno or errno.EACCES)}); "
        "check the rights of its account, and that the disk is mounted for writing"
    )


def _describe_unexpected(error: Exception) -> str:
    return f"the server failed on this request ({type(error).__name__}); see its log"


ERRORS: dict[type[Exception], tuple[int, Describe]] = {
    InputError: (400, str),
    NotFoundError: (404, str),
    ConflictError: (409, str),
    ReadOnlyError: (403, str),
    BusyError: (503, str),
    AppError: (500, str),
    RequestValidationError: (400, _describe_validation),
    ImageNotFoundException: (404, lambda error: error.msg),
    LabelNotFoundException: (404, lambda error: error.msg),
    MONAILabelException: (400, lambda error: error.msg),
    requests.RequestException: (502, _describe_dicom_error),
    httpx.HTTPError: (502, _describe_dicom_error),
    FullDiskError: (507, _describe_full_disk),
    ForbiddenError: (403, _describe_forbidden),
    OSError: (500, _describe_unexpected),
    Exception: (500, _describe_unexpected),
}
"""ERRORS: the HTTP status and the message for each error class; the most derived class decides."""

RETRY_SECONDS = 2
"""RETRY_SECONDS: time after which a client that found the server busy may ask again."""


def _make_handler(
    status: int, describe: Describe
) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
    async def handle(request: Request, error: Exception) -> JSONResponse:
        if is_full(error):
            return _reply(request, error, *ERRORS[FullDiskError])
        if is_forbidden(error):
            return _reply(request, error, *ERRORS[ForbiddenError])
        return _reply(request, error, status, describe)

    return handle


async def _handle_http_exception(request: Request, error: Exception) -> Response:
    """Reply as FastAPI does; a body that does not fit on the disk is not the client's fault.

    The parser of forms names no cure for a field, as ``params``, that is too large.
    """
    if isinstance(error.__context__, MultiPartException) and "maximum size" in str(
        error.__context__.message
    ):
        too_large = "a field of the form, as params, is larger than 1 MB; send fewer prompts"
        return JSONResponse({"detail": too_large}, 413)
    if error.__cause__ is not None and is_full(error.__cause__):
        return _reply(request, error.__cause__, *ERRORS[FullDiskError])
    return await http_exception_handler(request, cast(HTTPException, error))


def _reply(request: Request, error: BaseException, status: int, describe: Describe) -> JSONResponse:
    detail = describe(error)
    is_own = isinstance(error, AppError)  # its detail is all that is known
    cause = f" [{error}]" if status > 500 and not is_own else ""  # 500 has a traceback in the log
    logger.warning("%s %s refused: %s%s", request.method, request.url, detail, cause)
    headers = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else None
    return JSONResponse({"detail": detail}, status, headers)
