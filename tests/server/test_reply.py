"""Replies hold the mask's file, for clients nearby and far away."""

import asyncio
import cgi
import gzip
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from fastapi import BackgroundTasks, Request

from lib.imaging.mask import BoxMask
from lib.imaging.mask_file import Body, MaskForm
from lib.server.reply import box_reply, image_reply, multipart_reply, stream

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.1) @ np.diag([-0.7, 0.9, 2.5]), [10, -20, 30]
)


BOX_IJK = ((3, 11), (2, 9), (5, 20))


def box_mask():
    values = np.random.default_rng(0).integers(0, 2, (8, 7, 15), dtype=np.uint8)
    return BoxMask(values, BOX_IJK, (13, 11, 23), OBLIQUE)


def request_from(host, accept="gzip, deflate, br"):
    headers = [(b"accept-encoding", accept.encode())] if accept else []
    return Request({"type": "http", "client": (host, 50000), "headers": headers})


NEAR, FAR = request_from("127.0.0.1"), request_from("10.3.2.1")


HTTP = {"type": "http", "asgi": {"spec_version": "2.3"}}  # as uvicorn says


def run(coroutine):
    """Run a coroutine in a thread: the browser's tests leave an event loop in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


async def no_message():
    """Wait for a message from a client that sends none."""
    await asyncio.Event().wait()


def sent(response):
    """Return headers and body as a client gets them."""
    messages = []

    async def send(message):
        messages.append(message)

    run(response(HTTP, no_message, send))
    start, *parts = messages
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    content = b"".join(part["body"] for part in parts)
    assert start["status"] == 200
    assert int(headers["content-length"]) == len(content)
    assert [part["more_body"] for part in parts] == [True] * (len(parts) - 1) + [False]
    return headers, content


def read(content, extension, folder):
    path = folder / f"read{extension}"
    path.write_bytes(content)
    return sitk.ReadImage(str(path))


def assert_is_the_mask(image):
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(), box_mask().whole())
    for index in ((0, 0, 0), (12, 0, 0), (0, 10, 0), (0, 0, 22)):
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        ras = nib.affines.apply_affine(OBLIQUE, index)
        np.testing.assert_allclose(lps * [-1, -1, 1], ras, atol=1e-4)


def test_a_client_on_the_same_machine_gets_the_raw_mask(tmp_path):
    headers, content = sent(image_reply(box_mask(), MaskForm(".nrrd", compress=False), NEAR))
    assert "content-encoding" not in headers
    assert content.endswith(b"\n\n" + box_mask().whole().tobytes(order="F"))
    assert headers["content-disposition"] == 'attachment; filename="mask.nrrd"'
    assert_is_the_mask(read(content, ".nrrd", tmp_path))


def test_a_browser_on_another_machine_gets_gzip():
    raw = sent(image_reply(box_mask(), MaskForm(".nrrd", compress=False), NEAR))[1]
    headers, content = sent(image_reply(box_mask(), MaskForm(".nrrd", compress=False), FAR))
    assert (headers["content-encoding"], headers["vary"]) == ("gzip", "accept-encoding")
    assert gzip.decompress(content) == raw
    without_gzip = request_from("10.3.2.1", accept="")
    assert sent(image_reply(box_mask(), MaskForm(".nrrd"), without_gzip))[1] == raw


def test_a_box_lies_where_its_header_says():
    headers, content = sent(box_reply(box_mask(), {}, {}, NEAR))
    place = json.loads(headers["x-mask-box"])
    values = np.frombuffer(content, np.uint8).reshape(place["size_ijk"], order="F")
    start = place["offset_ijk"]
    whole = np.zeros_like(box_mask().whole())
    slices = tuple(slice(a, a + n) for a, n in zip(start, values.shape, strict=True))
    whole[slices] = values
    np.testing.assert_array_equal(whole, box_mask().whole())
    for index in ((0, 0, 0), (3, 1, 2)):
        lps = nib.affines.apply_affine(np.array(place["affine_lps"]), index)
        ras = nib.affines.apply_affine(OBLIQUE, np.add(start, index))
        np.testing.assert_allclose(lps * [-1, -1, 1], ras)


@pytest.mark.parametrize(
    ("request_", "compress", "encoding"),
    [
        (NEAR, None, b"raw"),
        (FAR, None, b"gzip"),
        (FAR, False, b"raw"),
        (NEAR, True, b"gzip"),
    ],
)
def test_slicers_reply(tmp_path, request_, compress, encoding):
    """Read the reply with the class that MONAI Label's client reads it with."""
    params_sent = {"warnings": ["ä"], "latencies": {"pre": 0.1}}
    form = MaskForm(".nrrd", compress=compress)
    headers, content = sent(multipart_reply(box_mask(), {}, form, params_sent, request_))
    fields = cgi.FieldStorage(
        io.BytesIO(content), environ={"REQUEST_METHOD": "POST"}, headers=headers
    )
    params, image = fields.list
    assert (params.name, json.loads(params.value)) == ("params", params_sent)
    assert image.name == "image" and Path(image.filename).suffix == ".nrrd"
    assert b"encoding: " + encoding in image.value[:500]
    assert_is_the_mask(read(image.value, ".nrrd", tmp_path))


def chunks(count, made):
    """Yield chunks of four bytes, and note each in ``made``."""
    for number in range(count):
        made.append(number)
        yield b"mask"


def test_other_requests_are_answered_between_the_chunks():
    order = []

    async def send(message):
        order.append(message["type"])

    async def both():
        response = stream(Body(400, chunks(100, [])), "application/octet-stream", {})
        reply = asyncio.create_task(response(HTTP, no_message, send))
        while not order:  # the reply has begun
            await asyncio.sleep(0)
        order.append("other request")
        await reply

    run(both())
    place = order.index("other request")
    assert 0 < place < 100


def test_a_client_that_hangs_up_ends_the_reply():
    made, order = [], []
    response = stream(Body(400_000, chunks(100_000, made)), "application/octet-stream", {})
    response.background = BackgroundTasks()
    response.background.add_task(order.append, "background task")

    async def send(message):
        order.append(message["type"])

    async def receive():
        while len(made) < 10:
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    run(response(HTTP, receive, send))
    assert 10 <= len(made) < 100
    assert order[-1] == "background task"


def test_background_tasks_run_after_the_last_byte():
    order = []
    response = image_reply(box_mask(), MaskForm(".nrrd"), NEAR)
    response.background = BackgroundTasks()
    response.background.add_task(order.append, "background task")

    async def send(message):
        order.append(message.get("more_body"))

    run(response(HTTP, no_message, send))
    assert order[-2:] == [False, "background task"]
