"""A DICOM server for tests: an Orthanc of its own, where it is installed."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
import pytest
import requests

from orthanc import Orthanc, OrthancError, running_orthanc
from serving import free_port


@contextmanager
def running_pacs(folder: Path) -> Iterator[Orthanc]:
    """Start Orthanc with its storage in `folder`, and stop it after; skip where it is missing."""
    try:
        with running_orthanc(folder / "orthanc", free_port()) as pacs:
            yield pacs
    except OrthancError as error:
        if "missing" not in str(error):
            raise
        pytest.skip(str(error))


def stored(pacs: Orthanc, series_uid: str) -> list[pydicom.Dataset]:
    """Every instance of a series."""
    query = {"Level": "Instance", "Query": {"SeriesInstanceUID": series_uid}}
    found = requests.post(f"{pacs.url}/tools/find", json=query, timeout=30).json()
    files = [f"{pacs.url}/instances/{each}/file" for each in found]
    return [pydicom.dcmread(io.BytesIO(requests.get(file, timeout=30).content)) for file in files]
