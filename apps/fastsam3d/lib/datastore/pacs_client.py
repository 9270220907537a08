"""A client of a DICOMweb server, with what such servers do differently, and wrongly.

All errors of such a server are requests' exceptions here, also an answer that is no DICOM.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from dicomweb_client import DICOMwebClient
from monailabel.config import settings
from monailabel.datastore.utils.dicom import dicom_web_download_series, dicom_web_upload_dcm
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from requests.adapters import HTTPAdapter, Retry

from lib.errors import InputError
from lib.imaging.dicom_checks import is_decodable

logger = logging.getLogger(__name__)

AS_STORED = (("application/dicom", "*"),)
"""AS_STORED: asks for slices as they are stored; they are decoded here, as not every server can."""

UNCOMPRESSED = (("application/dicom", "1.2.840.10008.1.2.1"),)
"""UNCOMPRESSED: asks for explicit little endian, which every server can send."""

NOT_AS_STORED = (400, 406, 415, 501)
"""NOT_AS_STORED: the status codes of servers that do not know the transfer syntax ``*``."""

MOST_PAGES = 10_000
"""MOST_PAGES: a server that always has further results ends a search here."""

BUSY = Retry(
    total=2,
    connect=0,
    read=False,
    status_forcelist=(429, 503),
    allowed_methods=("GET",),
    backoff_factor=1,
    respect_retry_after_header=False,
    raise_on_status=False,
)
"""BUSY: a server that is too busy for a GET request is asked twice more, within seconds."""

WAITS = 4
"""WAITS: the server may be silent for so many times the timeout of the settings, 30 s by default,
as archives fetch old series from tapes."""

MISUNDERSTOOD = (
    AttributeError,
    EOFError,
    IndexError,
    InvalidDicomError,
    KeyError,
    NotImplementedError,
    TypeError,
    ValueError,
    struct.error,
)
"""MISUNDERSTOOD: what the libraries raise for an answer that is no DICOM."""


class PatientAdapter(HTTPAdapter):
    """Sends requests that end when the server is silent; without a limit a thread waits forever."""

    def send(self, *arguments: Any, **options: Any) -> requests.Response:
        seconds = settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT
        if options.get("timeout") is None:
            options["timeout"] = (seconds, WAITS * seconds)
        return super().send(*arguments, **options)


def limit_waiting(client: DICOMwebClient) -> None:
    """Let each request of a client end when the server is silent or busy for long."""
    client.set_http_retry_params(retry=False)  # its own takes half a minute
    for scheme in ("http://", "https://"):
        client._session.mount(scheme, PatientAdapter(max_retries=BUSY))


@contextmanager
def understood() -> Iterator[None]:
    """Raise requests' exceptions for answers that are no DICOM."""
    try:
        yield
    except (requests.RequestException, InputError):
        raise
    except MISUNDERSTOOD as error:
        kind = type(error).__name__
        raise requests.exceptions.ContentDecodingError(f"no DICOM ({kind}: {error})") from error


class PacsClient:
    """Searches, fetches and stores on a DICOMweb server."""

    def __init__(self, client: DICOMwebClient) -> None:
        self._client = client

    def search(self, search_filter: Mapping[str, Any]) -> Iterator[Dataset]:
        """Yield the series that fit a filter, each once.

        A server may cap its answers, so the search goes on behind the last result until nothing new
        comes. Servers that know no offset send the same results again.
        """
        seen: set[str] = set()
        offset = 0
        for _ in range(MOST_PAGES):
            page = self._page(search_filter, offset)
            offset += len(page)
            new = [match for match in page if str(match.get("SeriesInstanceUID", "")) not in seen]
            if not new:
                return
            for match in new:
                uid = str(match.get("SeriesInstanceUID", ""))
                if uid not in seen:
                    seen.add(uid)
                    yield match

    def _page(self, search_filter: Mapping[str, Any], offset: int) -> list[Dataset]:
        try:
            with understood():
                matches = self._client.search_for_series(
                    search_filters=dict(search_filter), offset=offset or None
                )
                return [Dataset.from_json(match) for match in matches]
        except requests.HTTPError:
            if offset:  # nothing lies behind the last result
                return []
            raise

    def find_series(self, uid: str) -> Dataset | None:
        """Return the search result of a series; None if there is none."""
        # some servers ignore the filter
        matches = self.search({"SeriesInstanceUID": uid})
        return next((match for match in matches if match.get("SeriesInstanceUID") == uid), None)

    def retrieve(self, study_uid: str, series_uid: str) -> list[Dataset]:
        """Return the instances of a series: as stored, or uncompressed if that cannot be used."""
        try:
            instances = self._retrieve(study_uid, series_uid, AS_STORED)
        except requests.HTTPError as error:
            if error.response is None or error.response.status_code not in NOT_AS_STORED:
                raise
            logger.info("the DICOM server does not send series as stored: %s", error)
            return self._retrieve(study_uid, series_uid, None)
        if all(is_decodable(instance) for instance in instances):
            return instances
        try:
            return self._retrieve(study_uid, series_uid, UNCOMPRESSED)
        except requests.HTTPError as error:
            logger.warning("the DICOM server does not decompress series %s: %s", series_uid, error)
            return instances  # the checks name the compression

    def _retrieve(
        self, study_uid: str, series_uid: str, media_types: tuple[tuple[str, str], ...] | None
    ) -> list[Dataset]:
        with understood():
            instances: list[Dataset] = self._client.retrieve_series(
                study_uid, series_uid, media_types=media_types
            )
        return instances

    def download(self, study_uid: str, series_uid: str, folder: Path, by_frame: bool) -> None:
        """Write the instances of a series into a folder that does not exist yet.

        by_frame: fetch headers and voxels one by one, for servers that send no whole series.
        """
        if by_frame:
            with understood():
                dicom_web_download_series(study_uid, series_uid, folder, self._client, True)
            return
        folder.mkdir()
        for index, instance in enumerate(self.retrieve(study_uid, series_uid)):
            with understood():
                instance.save_as(folder / f"{index:06d}.dcm")

    def store(self, path: str) -> str:
        """Store a DICOM file; return the SeriesInstanceUID that the server has it under.

        Raises InputError if the server refuses it.
        """
        with understood():
            uid: str = dicom_web_upload_dcm(path, self._client)
        if not uid:
            raise InputError("the DICOM server refused the DICOM-SEG; see its log")
        return uid

    def segmentations(
        self, listed: set[str], skipped: dict[str, str], study_uid: str = ""
    ) -> Iterator[tuple[str, str, Dataset]]:
        """Yield image ID, label ID and search result of each DICOM-SEG on a listed series.

        listed: SeriesInstanceUIDs. skipped: gets the reason for each DICOM-SEG that cannot be asked
        about. study_uid: of the study to search, "" for all.
        """
        of_study = {"StudyInstanceUID": study_uid} if study_uid else {}
        for header in self.search({"Modality": "SEG", **of_study}):
            if header.get("Modality", "SEG") != "SEG":  # some servers do not filter
                continue
            if study_uid not in ("", str(header.StudyInstanceUID)):
                continue
            label_id = str(header.SeriesInstanceUID)
            try:
                references = self.referenced_series(str(header.StudyInstanceUID), label_id)
            except Exception as error:  # one label never hides all others
                skipped[f"label {label_id}"] = str(error)
                logger.warning("label %s is left out: %s", label_id, error)
                continue
            for image_id in references:
                if image_id in listed:
                    yield image_id, label_id, header

    def referenced_series(self, study_uid: str, series_uid: str) -> list[str]:
        """Return the UIDs of the series that a DICOM-SEG segments.

        Raises InputError if it names none.
        """
        with understood():
            metadata = self._client.retrieve_series_metadata(study_uid, series_uid)
            headers = [Dataset.from_json(each) for each in metadata]
        uids = {
            str(reference.get("SeriesInstanceUID"))
            for header in headers
            for reference in header.get("ReferencedSeriesSequence") or []
        }
        if not uids:
            raise InputError("the DICOM-SEG does not name the series that it segments")
        return sorted(uids)
