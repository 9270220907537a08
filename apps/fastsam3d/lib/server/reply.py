"""Responses that hold a mask: the mask file alone, or after a JSON part."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from ipaddress import ip_address
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from lib.imaging.affine import RAS_TO_LPS
from lib.imaging.mask import BoxMask
from lib.imaging.mask_file import Body, MaskForm, mask_body

CHUNKS_PER_TURN = 4
"""CHUNKS_PER_TURN: chunks that are sent before other requests get their turn."""


def image_reply(mask: BoxMask, form: MaskForm, request: Request) -> Response:
    """Return the mask file, compressed on the way to a client on another machine.

    Only a client that accepts gzip gets it compressed, as browsers do.
    """
    headers = {"content-disposition": f'attachment; filename="mask{form.extension}"'}
    body = mask_body(mask, form)
    if is_far(request) and "gzip" in request.headers.get("accept-encoding", ""):
        body = body.gzipped()
        headers |= {"content-encoding": "gzip", "vary": "accept-encoding"}
    return stream(body, "application/octet-stream", headers)


def box_reply(
    mask: BoxMask, maps: Mapping[str, BoxMask], facts: Mapping[str, Any], request: Request
) -> Response:
    """Return the mask inside its box, uint8, i runs fastest; X-Mask-Box says where the box lies.

    The header is a JSON object: ``offset_ijk`` and ``size_ijk`` in stored voxels, ``affine_lps``,
    the (4, 4) matrix from an index in the box to LPS mm, ``arrays``, the names of the arrays of
    this size in the body, one after the other, and the facts. maps: further arrays, by name; the
    box holds theirs too.
    """
    for other in maps.values():
        mask = mask.covering(other.box_ijk)
    arrays = {"mask": mask, **{name: other.covering(mask.box_ijk) for name, other in maps.items()}}
    affine_lps = mask.box_affine_mm
    affine_lps[:3] = RAS_TO_LPS @ affine_lps[:3]
    place = {
        "offset_ijk": [start for start, _ in mask.box_ijk],
        "size_ijk": [stop - start for start, stop in mask.box_ijk],
        "affine_lps": affine_lps.tolist(),
        "arrays": list(arrays),
        **facts,
    }
    content = b"".join(array.values.tobytes(order="F") for array in arrays.values())
    body, headers = Body.of(content), {"X-Mask-Box": json.dumps(place)}
    if is_far(request) and "gzip" in request.headers.get("accept-encoding", ""):
        body = body.gzipped()
        headers |= {"content-encoding": "gzip", "vary": "accept-encoding"}
    return stream(body, "application/octet-stream", headers)


def multipart_reply(
    mask: BoxMask,
    maps: Mapping[str, BoxMask],
    form: MaskForm,
    params: Mapping[str, Any],
    request: Request,
) -> Response:
    """Return the parts ``params`` as JSON, ``image``, the mask file, and a file for each map.

    If the request leaves the compression open, the files are compressed for a client on another
    machine.
    """
    if form.compress is None and is_far(request):
        form = MaskForm(form.extension, form.dtype, compress=True)
    boundary = uuid.uuid4().hex
    head = (
        f"--{boundary}\r\n"
        'Content-Disposition: form-data; name="params"\r\n'
        "Content-Type: application/json\r\n\r\n"
        f"{json.dumps(params)}"
    )
    bodies = [Body.of(head.encode())]
    for part, array in {"image": mask, **maps}.items():
        name = f"{uuid.uuid4().hex}{form.extension}"  # Slicer stores the file under this name
        before = (
            f"\r\n--{boundary}\r\n"
            f'Content-Disposition: form-data; name="{part}"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        bodies += [Body.of(before.encode()), mask_body(array, form)]
    body = Body.chain([*bodies, Body.of(f"\r\n--{boundary}--\r\n".encode())])
    return stream(body, f"multipart/form-data; boundary={boundary}", {})


def is_far(request: Request) -> bool:
    """Return whether the client is on another machine, where gzip is faster than a raw mask."""
    try:
        return not ip_address(request.client.host if request.client else "").is_loopback
    except ValueError:
        return False


def stream(body: Body, media_type: str, headers: Mapping[str, str]) -> StreamingResponse:
    """Return a response that sends a body of known length chunk by chunk."""
    headers = {**headers, "content-length": str(body.length)}
    return StreamingResponse(_take_turns(body.chunks), media_type=media_type, headers=headers)


async def _take_turns(chunks: Iterable[bytes | memoryview]) -> AsyncIterator[bytes | memoryview]:
    """Yield the chunks and let the event loop answer other requests in between.

    Sending alone does not: it waits only for a slow client. StreamingResponse would read a plain
    iterable in worker threads, at one thread switch a chunk: for 512 x 512 x 300 voxels on two busy
    cores 76 ms instead of 47 ms.
    """
    for count, chunk in enumerate(chunks):
        yield chunk
        if count % CHUNKS_PER_TURN == 0:
            await asyncio.sleep(0)
