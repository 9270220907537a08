"""Each error class has an HTTP status, and its client gets a reason."""

import errno
import inspect
import re

import pytest
import requests
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)

from lib import errors
from lib.server.install import ERRORS, install

CASES = [
    (errors.InputError("too thin"), 400, "too thin"),
    (errors.NotFoundError("no image"), 404, "no image"),
    (errors.ConflictError("a training is running"), 409, "a training is running"),
    (errors.BusyError("too many clicks"), 503, "too many clicks"),
    (errors.ReadOnlyError("no right to write"), 403, "no right to write"),
    (OSError(errno.ENOSPC, "full"), 507, "the disk of the server is full .No space left on dev"),
    (OSError(errno.EDQUOT, "full"), 507, "the disk of the server is full .Disk quota exceeded"),
    (OSError(errno.EROFS, "ro"), 403, r"may not write or read a file \(Read-only file system\)"),
    (PermissionError(errno.EACCES, "no"), 403, r"check the rights of its account, and that the"),
    (OSError(errno.EIO, "broken"), 500, r"the server failed on this request \(OSError\)"),
    (errors.SavingError("kept in /labels"), 500, "kept in /labels"),
    (errors.WeightsError("no file a.pth"), 500, "no file a.pth"),
    (ImageNotFoundException("Image x"), 404, "Image x"),
    (LabelNotFoundException("Label x"), 404, "Label x"),
    (MONAILabelException(MONAILabelError.INVALID_INPUT, "no strategy"), 400, "no strategy"),
    (requests.ConnectionError("refused"), 502, "the DICOM server does not answer .*ConnectionErr"),
    (KeyError("i"), 500, r"the server failed on this request \(KeyError\); see its log"),
]


@pytest.fixture(scope="module")
def client():
    """A client of an app whose routes raise the errors of CASES."""
    app = FastAPI()

    def add_route(number, error):
        @app.get(f"/{number}")
        def fail():
            raise error

    install(app)
    for number, (error, _, _) in enumerate(CASES):
        add_route(number, error)
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: type(CASES[n][0]).__name__)
def test_status_and_reason(client, number):
    _, status, reason = CASES[number]
    reply = client.get(f"/{number}")
    assert reply.status_code == status
    assert re.search(reason, reply.json()["detail"])
    assert ("Retry-After" in reply.headers) == (status == 503)


def test_every_error_class_of_the_app_has_a_status():
    """No error of the app falls back to the entry of Exception, which hides the reason."""
    for _, kind in inspect.getmembers(errors, inspect.isclass):
        assert next(base for base in kind.__mro__ if base in ERRORS) is not Exception, kind


def test_a_missing_parameter_is_named(client):
    reply = client.put("/datastore/label/info?label=x")
    assert reply.status_code == 400
    assert reply.json()["detail"] == "the request is invalid: query tag: Field required"
