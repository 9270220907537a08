"""Slices of a series that the server has come from its own disk, as the PACS would send them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

import torso
from ct_series import write_ct_series
from lib.server.cached_frames import MULTIPART, SINGLE_PART, cached_frame


class App:
    """An app whose only stored series lies in a folder."""

    def __init__(self, folder: Path, series_uid: str) -> None:
        self.paths = {series_uid: {"path": f"{folder}.nii.gz"}}

    def datastore(self) -> SimpleNamespace:
        return SimpleNamespace(get_image_info=lambda image: self.paths.get(image, {}))


@pytest.fixture
def slices(tmp_path: Path) -> list[Path]:
    affine_mm = torso.centred_affine((30, 26, 3), (10.0, 11.0, 20.0), "LPS")
    hu, _ = torso.sample((30, 26, 3), affine_mm, seed=1)
    return [Path(path) for path in write_ct_series(hu, affine_mm, tmp_path / "series", seed=62)]


def place(header: pydicom.Dataset, number: int = 1) -> str:
    return (
        f"studies/{header.StudyInstanceUID}/series/{header.SeriesInstanceUID}"
        f"/instances/{header.SOPInstanceUID}/frames/{number}"
    )


def test_each_slice_has_its_own_voxels(slices: list[Path]) -> None:
    header = pydicom.dcmread(slices[0])
    app = App(slices[0].parent, str(header.SeriesInstanceUID))
    for path in slices:
        header = pydicom.dcmread(path)
        reply = cached_frame(app, place(header), f"{SINGLE_PART}; transfer-syntax=*")
        assert reply is not None and reply.body == header.PixelData
        assert reply.headers["content-type"].endswith(f"transfer-syntax={ExplicitVRLittleEndian}")
        part = cached_frame(app, place(header), MULTIPART)
        assert part is not None and part.headers["content-type"].startswith("multipart/related")
        assert part.body.partition(b"\r\n\r\n")[2].startswith(header.PixelData)


def test_requests_at_once_read_the_headers_once(
    slices: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = [pydicom.dcmread(path) for path in slices]
    app = App(slices[0].parent, str(headers[0].SeriesInstanceUID))
    read, listed = pydicom.dcmread, []

    def note(path: Path, **options: object) -> pydicom.Dataset:
        if "specific_tags" in options:
            listed.append(path)
            time.sleep(0.05)
        return read(path, **options)

    monkeypatch.setattr(pydicom, "dcmread", note)
    with ThreadPoolExecutor(len(slices)) as pool:
        replies = list(pool.map(lambda header: cached_frame(app, place(header), ""), headers))
    assert all(replies)
    assert sorted(listed) == sorted(slices)


def test_a_compressed_slice_stays_compressed(slices: list[Path]) -> None:
    header = pydicom.dcmread(slices[1])
    pixels = header.pixel_array
    header.compress(RLELossless)
    header.save_as(slices[1])
    app = App(slices[0].parent, str(header.SeriesInstanceUID))
    reply = cached_frame(app, place(header), SINGLE_PART)
    assert reply is not None and str(RLELossless) in reply.headers["content-type"]
    header.PixelData = pydicom.encaps.encapsulate([reply.body])
    np.testing.assert_array_equal(header.pixel_array, pixels)


def test_what_is_not_here_is_left_to_the_pacs(slices: list[Path]) -> None:
    header = pydicom.dcmread(slices[0])
    app = App(slices[0].parent, str(header.SeriesInstanceUID))
    assert cached_frame(app, place(header), "") is not None
    assert cached_frame(app, place(header, 2), "") is None
    assert cached_frame(app, place(header).replace("/frames/1", "/rendered"), "") is None
    for tag in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        other = pydicom.dcmread(slices[0])
        setattr(other, tag, "1.2.3")
        assert cached_frame(app, place(other), "") is None
    slices[0].write_bytes(b"no DICOM")
    assert cached_frame(app, place(header), "") is None
