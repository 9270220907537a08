"""Slices of a series that this server has fetched, for the viewer.

The PACS would read, unpack and wrap each slice again: Orthanc takes 24 ms of a processor's time for
each of a CT. A DICOM object never changes under its UID, so that the copy is as good.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import pydicom
from fastapi import Response
from pydicom.encaps import generate_pixel_data_frame
from pydicom.errors import InvalidDicomError

from lib.server.app_instance import ServedApp

FRAME = re.compile(
    r"studies/(?P<study>[^/]+)/series/(?P<series>[0-9.]+)"
    r"/instances/(?P<instance>[^/]+)/frames/(?P<number>[0-9]+)"
)
"""FRAME: the path of a slice's voxels."""

BOUNDARY = "slice"

SINGLE_PART = "application/octet-stream"
"""SINGLE_PART: start of an Accept header for a slice without the frame of a multipart reply.

Our configuration of OHIF sends it: the page then need not search each slice for its end.
"""

MULTIPART = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
"""MULTIPART: Accept header for a PACS, which need not know SINGLE_PART for a slice."""

_listing = Lock()


class SliceFrame(NamedTuple):
    """The voxels of a slice as they are stored: bytes, and the UID of their transfer syntax."""

    content: bytes
    transfer_syntax: str


def cached_frame(app: ServedApp, path: str, accept: str) -> Response | None:
    """Return the reply to a request for a slice, or None if its series is not on this server.

    path: below the DICOMweb root. accept: header of the request.
    """
    match = FRAME.fullmatch(path.strip("/"))
    image = app.datastore().get_image_info(match["series"]).get("path") if match else None
    if not match or not image:
        return None
    folder = Path(str(image).removesuffix(".nii.gz"))
    if not folder.is_dir():
        return None
    with _listing:  # a viewer asks for several slices at once; one request reads all headers
        slices = _slices(folder, folder.stat().st_mtime_ns)
    file = slices.get((match["study"], match["instance"]))
    frame = _read(file, int(match["number"])) if file else None
    return frame_reply(frame, accept) if frame else None


@lru_cache(64)
def _slices(folder: Path, mtime_ns: int) -> dict[tuple[str, str], Path]:
    """Return the file of each slice by StudyInstanceUID and SOPInstanceUID."""
    slices = {}
    for path in folder.iterdir():
        try:
            header = pydicom.dcmread(path, specific_tags=["StudyInstanceUID", "SOPInstanceUID"])
            slices[str(header.StudyInstanceUID), str(header.SOPInstanceUID)] = path
        except (InvalidDicomError, AttributeError, OSError):
            continue  # the PACS is asked for it
    return slices


def _read(path: Path, number: int) -> SliceFrame | None:
    """Return a frame of a file, from 1; None if it is not there as a viewer could use it."""
    try:
        dataset = pydicom.dcmread(path)
        syntax = dataset.file_meta.TransferSyntaxUID
        count = int(dataset.get("NumberOfFrames") or 1)
        if not 1 <= number <= count or syntax.is_deflated or not syntax.is_little_endian:
            return None
        if syntax.is_compressed:
            frames = list(generate_pixel_data_frame(dataset.PixelData, count))
            return SliceFrame(frames[number - 1], str(syntax))
        length = len(dataset.PixelData) // count
        content = dataset.PixelData[(number - 1) * length : number * length]
        return SliceFrame(content, str(pydicom.uid.ExplicitVRLittleEndian))
    except (InvalidDicomError, AttributeError, ValueError, OSError, IndexError):
        return None


def frame_reply(frame: SliceFrame, accept: str) -> Response:
    """Return the reply with a slice; accept: header of the request."""
    kind = f"{SINGLE_PART}; transfer-syntax={frame.transfer_syntax}"
    headers = {"Cache-Control": "no-store"}
    if accept.startswith(SINGLE_PART):
        return Response(frame.content, media_type=kind, headers=headers)
    head = f"--{BOUNDARY}\r\nContent-Type: {kind}\r\nContent-Length: {len(frame.content)}\r\n\r\n"
    body = head.encode() + frame.content + f"\r\n--{BOUNDARY}--\r\n".encode()
    related = f'multipart/related; type="{SINGLE_PART}"; boundary={BOUNDARY}'
    return Response(body, media_type=related, headers=headers)
