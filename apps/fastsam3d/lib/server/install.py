"""What the app changes in MONAI Label's HTTP server: refusals say why, requests do not wait.

The stock server answers a bare 500 to bad JSON and to anything that a task or the studies raise.
Its routes let ``params`` overwrite the image, take any path on the server for an image, ignore
unknown sessions, start trainings that cannot be, and run on the event loop, where all others wait.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import requests
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelException

from lib.errors import ConflictError, InputError, NotFoundError, SavingError
from lib.server import images, infer, ohif, train

logger = logging.getLogger(__name__)


def install(app: FastAPI) -> None:
    """Put our routes before the stock ones, as the first that matches answers; answer errors."""
    routes = app.router.routes
    stock = len(routes)
    for each in (infer.router, images.router, train.router, ohif.router):
        app.include_router(each, prefix=settings.MONAI_LABEL_API_STR)
    ours = routes[stock:]
    del routes[stock:]
    routes[:0] = ours
    for kind, (status, describe) in ERRORS.items():
        app.add_exception_handler(kind, _answer(status, describe))
    # the stack was made at start-up without these handlers; the next request makes it anew
    app.middleware_stack = None


# --- what is answered when something is raised ----------------------------------------------------

Describe = Callable[[Any], str]

ERRORS: dict[type[Exception], tuple[int, Describe]] = {
    InputError: (400, str),
    NotFoundError: (404, str),
    ConflictError: (409, str),
    SavingError: (500, str),
    ImageNotFoundException: (404, lambda error: error.msg),
    MONAILabelException: (400, lambda error: error.msg),
    requests.RequestException: (
        502,
        lambda error: (
            f"the DICOM server does not answer as it should ({type(error).__name__}); "
            "check that it runs, and see the log of this one"
        ),
    ),
    Exception: (
        500,
        lambda error: f"the server failed on this request ({type(error).__name__}); see its log",
    ),
}
"""The most special class of an error decides: HTTP status, and the sentence for the user."""


def _answer(
    status: int, describe: Describe
) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
    async def answer(request: Request, error: Exception) -> JSONResponse:
        detail = describe(error)
        reason = f" [{error}]" if status > 500 else ""  # of a 500, the log has the traceback
        logger.warning("%s %s refused: %s%s", request.method, request.url, detail, reason)
        return JSONResponse({"detail": detail}, status)

    return answer
