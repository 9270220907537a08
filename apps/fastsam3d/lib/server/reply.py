"""Replies that hold a mask: the mask's file alone, or with what is said beside it."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from lib.imaging.mask import BoxMask
from lib.imaging.mask_file import Body, MaskForm, mask_body

TURNS = 4  # stretches between two looks at what other clients want


class StretchResponse(Response):
    """Sends a body stretch by stretch, and lets other requests be answered in between."""

    def __init__(self, body: Body, media_type: str, headers: Mapping[str, str]) -> None:
        super().__init__(
            media_type=media_type, headers={**headers, "content-length": str(body.length)}
        )
        self._stretches = body.chunks

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        for count, stretch in enumerate(self._stretches):
            await send({"type": "http.response.body", "body": stretch, "more_body": True})
            if count % TURNS == 0:  # sending waits only for a client that is slow
                await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def image_reply(mask: BoxMask, form: MaskForm, request: Request) -> Response:
    """The mask's file alone."""
    headers = {"content-disposition": f'attachment; filename="mask{form.extension}"'}
    body = mask_body(mask, form)
    if is_far(request) and "gzip" in request.headers.get("accept-encoding", ""):
        body = body.gzipped()
        headers |= {"content-encoding": "gzip", "vary": "accept-encoding"}
    return StretchResponse(body, "application/octet-stream", headers)


def multipart_reply(
    mask: BoxMask, form: MaskForm, said: Mapping[str, Any], request: Request
) -> Response:
    """``params``, what is said beside the mask, as JSON, then ``image``, the mask's file.

    Where a request does not say whether to compress, the mask for a client that is far is.
    """
    if form.compress is None and is_far(request):
        form = MaskForm(form.extension, form.dtype, compress=True)
    boundary = uuid.uuid4().hex
    name = f"{uuid.uuid4().hex}{form.extension}"  # Slicer keeps the file under this name
    before = (
        f"--{boundary}\r\n"
        'Content-Disposition: form-data; name="params"\r\n'
        "Content-Type: application/json\r\n\r\n"
        f"{json.dumps(said)}\r\n"
        f"--{boundary}\r\n"
        f'Content-Disposition: form-data; name="image"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = mask_body(mask, form).between(before.encode(), f"\r\n--{boundary}--\r\n".encode())
    return StretchResponse(body, f"multipart/form-data; boundary={boundary}", {})


def is_far(request: Request) -> bool:
    """Whether a network lies between, over which a raw mask would take longer than compressing."""
    try:
        return not ip_address(request.client.host if request.client else "").is_loopback
    except ValueError:
        return False
