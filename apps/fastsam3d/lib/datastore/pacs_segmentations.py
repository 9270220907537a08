"""The DICOM-SEG series of a DICOM server, by the series that they segment.

Nothing is stored on this server.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset

from lib.datastore.dicom_seg_reader import label_values, read_segmentation
from lib.datastore.pacs_client import PacsClient
from lib.errors import NotFoundError
from lib.imaging.dicom_frames import value


@dataclass(frozen=True)
class PacsSegmentation:
    """A DICOM-SEG series.

    series_uid: its SeriesInstanceUID. description: SeriesDescription, or "". date: YYYYMMDD, or "".
    """

    series_uid: str
    description: str
    date: str


class PacsSegmentations:
    """Lists and reads DICOM-SEG series.

    requests' exceptions say that the DICOM server does not answer.
    """

    def __init__(self, pacs: PacsClient) -> None:
        self._pacs = pacs

    def of(self, image_id: str) -> list[PacsSegmentation]:
        """Return the DICOM-SEG series on a series, the newest first.

        Those that name no series are left out.
        """
        found = [
            PacsSegmentation(
                str(header.SeriesInstanceUID),
                str(header.get("SeriesDescription") or ""),
                str(header.get("SeriesDate") or header.get("StudyDate") or ""),
            )
            for header in self._headers(image_id)
        ]
        return sorted(found, key=lambda each: each.date, reverse=True)

    def _headers(self, image_id: str) -> Iterator[Dataset]:
        image = self._pacs.find_series(image_id)
        if image is None:  # an image that a client uploaded
            return
        study_uid = str(image.StudyInstanceUID)
        for _, _, header in self._pacs.segmentations({image_id}, {}, study_uid):
            yield header

    def read(
        self, image_id: str, series_uid: str, image: sitk.Image
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Return label map (I, J, K) and structures, ``{name, idx}``, of a DICOM-SEG series.

        image: the image that it segments. Raises NotFoundError if the image has no such DICOM-SEG,
        and InputError if it is no label map on the image's grid.
        """
        header = self._pacs.find_series(series_uid)
        study_uid = str(header.StudyInstanceUID) if header else ""
        if not header or image_id not in self._pacs.referenced_series(study_uid, series_uid):
            raise NotFoundError(f"image {image_id!r} has no DICOM-SEG {series_uid[:80]!r}")
        instances = self._pacs.retrieve(study_uid, series_uid)
        labels = read_segmentation(instances, image)
        return labels, _names(instances)


def _names(instances: list[Dataset]) -> list[dict[str, Any]]:
    names: dict[int, str] = {}
    for dataset in instances:
        values = label_values(dataset)
        for segment in value(dataset, "SegmentSequence") or []:
            number = values.get(int(segment.SegmentNumber))
            if number:
                names[number] = str(segment.get("SegmentLabel") or f"segment {number}")
    return [{"name": name, "idx": number} for number, name in sorted(names.items())]
