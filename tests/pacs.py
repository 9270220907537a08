"""A DICOM server for tests: an Orthanc that is started for them and stopped after."""

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
    """Run Orthanc with its storage in ``folder``; skip the test if Orthanc is not installed."""
    try:
        with running_orthanc(folder / "orthanc", free_port()) as pacs:
            yield pacs
    except OrthancError as error:
        if "missing" not in str(error):
            raise
        pytest.skip(str(error))


def stored_instances(pacs: Orthanc, series_uid: str) -> list[pydicom.Dataset]:
    """Return all instances of a series."""
    query = {"Level": "Instance", "Query": {"SeriesInstanceUID": series_uid}}
    keys = requests.post(f"{pacs.url}/tools/find", json=query, timeout=30).json()
    files = [requests.get(f"{pacs.url}/instances/{key}/file", timeout=30) for key in keys]
    return [pydicom.dcmread(io.BytesIO(file.content)) for file in files]


def delete_series(pacs: Orthanc, series_uid: str) -> None:
    """Remove a series, so that tests that share the DICOM server do not meet it."""
    (entry,) = requests.post(f"{pacs.url}/tools/lookup", data=series_uid, timeout=30).json()
    requests.delete(f"{pacs.url}{entry['Path']}", timeout=30).raise_for_status()
