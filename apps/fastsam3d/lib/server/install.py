"""Put the app's routes and error messages into MONAI Label's HTTP server.

The stock server returns a bare 500 for invalid JSON and for any error of a task or of the studies.
The stock routes let ``params`` overwrite the image, accept any path on the server as an image,
ignore unknown sessions, start trainings that must fail, and block the event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import requests
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelException,
)

from lib.errors import AppError, ConflictError, InputError, NotFoundError
from lib.server import images, infer, ohif, pacs_proxy, train, viewer

logger = logging.getLogger(__name__)


def install(app: FastAPI) -> None:
    """Add the routes and the error handlers to a running server.

    The routes go before the stock ones, because the first route that matches is used.
    """
    routes = app.router.routes
    stock_count = len(routes)
    for module in (infer, images, train, ohif, pacs_proxy, viewer):
        app.include_router(module.router, prefix=settings.MONAI_LABEL_API_STR)
    own = routes[stock_count:]
    del routes[stock_count:]
    routes[:0] = own
    for error_class, (status, describe) in ERRORS.items():
        app.add_exception_handler(error_class, _make_handler(status, describe))
    # FastAPI built its middleware at start-up, without these handlers; the next request rebuilds it
    app.middleware_stack = None


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


def _describe_unexpected(error: Exception) -> str:
    return f"the server failed on this request ({type(error).__name__}); see its log"


ERRORS: dict[type[Exception], tuple[int, Describe]] = {
    InputError: (400, str),
    NotFoundError: (404, str),
    ConflictError: (409, str),
    AppError: (500, str),
    RequestValidationError: (400, _describe_validation),
    ImageNotFoundException: (404, lambda error: error.msg),
    LabelNotFoundException: (404, lambda error: error.msg),
    MONAILabelException: (400, lambda error: error.msg),
    requests.RequestException: (502, _describe_dicom_error),
    httpx.HTTPError: (502, _describe_dicom_error),
    Exception: (500, _describe_unexpected),
}
"""ERRORS: the HTTP status and the message for each error class; the most derived class decides."""


def _make_handler(
    status: int, describe: Describe
) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
    async def handle(request: Request, error: Exception) -> JSONResponse:
        detail = describe(error)
        cause = f" [{error}]" if status > 500 else ""  # for 500 the server logs a traceback
        logger.warning("%s %s refused: %s%s", request.method, request.url, detail, cause)
        return JSONResponse({"detail": detail}, status)

    return handle
