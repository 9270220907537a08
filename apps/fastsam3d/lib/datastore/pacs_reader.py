"""Searching and fetching on a DICOMweb server, with what such servers do differently."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import requests
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset

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


class PacsReader:
    """Reads from a DICOMweb server; requests' exceptions say that it does not answer."""

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
            matches = self._client.search_for_series(
                search_filters=dict(search_filter), offset=offset or None
            )
        except requests.HTTPError:
            if offset:  # nothing lies behind the last result
                return []
            raise
        return [Dataset.from_json(match) for match in matches]

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
        instances: list[Dataset] = self._client.retrieve_series(
            study_uid, series_uid, media_types=media_types
        )
        return instances

    def referenced_series(self, study_uid: str, series_uid: str) -> list[str]:
        """Return the UIDs of the series that a DICOM-SEG segments.

        Raises InputError if it names none.
        """
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
