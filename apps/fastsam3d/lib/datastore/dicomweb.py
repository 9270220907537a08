"""A datastore on a DICOMweb server that checks each series and never loses a label."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import requests
import SimpleITK as sitk
from cachetools import TTLCache, cached
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.utils.dicom import dicom_web_download_series, dicom_web_upload_dcm
from monailabel.interfaces.datastore import DefaultLabelTag
from pydicom.dataset import Dataset

from lib.datastore.dicom_seg import write_segmentation
from lib.datastore.safe_store import SafeDatastore, SavedLabel
from lib.errors import InputError, SavingError
from lib.imaging.dicom_series import read_series

logger = logging.getLogger(__name__)

MODALITIES = ("CT", "MR", "PT")
"""MODALITIES: series of these modalities are listed; MONAI Label lists CT only.

A site changes this with MONAI_LABEL_DICOMWEB_SEARCH_FILTER.
"""

CHECKED = "geometry_checked"
"""CHECKED: key in the stored information on an image whose geometry was checked.

Images that MONAI Label's own datastore left in the cache lack it.
"""

FETCHING = "fetching-"
"""FETCHING: start of the names of folders into which series are downloaded."""

ABANDONED_SECONDS = 3600
"""ABANDONED_SECONDS: after this time nobody downloads into such a folder any more."""


class CheckedDICOMWebDatastore(DICOMWebDatastore, SafeDatastore):
    """Stores each series in the cache as a NIfTI file on exactly the grid of its slices.

    The methods raise InputError for a series that cannot be used, and requests' exceptions if the
    DICOM server does not answer.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        super().__init__(*args, **kwargs)
        if not self.read_only:
            os.chmod(self._datastore_path, 0o700)  # scans of patients
            self._remove_half_fetched()

    @cached(cache=TTLCache(maxsize=16, ttl=settings.MONAI_LABEL_DICOMWEB_CACHE_EXPIRY))
    def list_images(self) -> list[str]:
        """Return the SeriesInstanceUIDs."""
        filters: Sequence[Mapping[str, Any]] = [{"Modality": name} for name in MODALITIES]
        if "MONAI_LABEL_DICOMWEB_SEARCH_FILTER" in settings.model_fields_set:
            filters = [self._search_filter]
        return [
            str(series.SeriesInstanceUID)
            for search_filter in filters
            for series in self._search(search_filter)
        ]

    def get_image_uri(self, image_id: str) -> str:
        """Return the path of a series' file, or "" if there is no such series.

        The path is that of the folder of slices if the site configured MONAI Label without
        conversion to NIfTI. A series is fetched once; a series that fails the checks is not kept,
        because it may be repaired on the DICOM server. An image that a client uploaded is its own
        file.
        """
        folder = self._series_folder(image_id)
        with self._locks[image_id]:  # several clients may ask for the same series at once
            image = SafeDatastore.get_image_uri(self, image_id)
            is_checked = self.get_image_info(image_id).get(CHECKED) or not folder.is_dir()
            if os.path.exists(image) and is_checked:
                return image
            if self._convert_to_nifti or not folder.is_dir():
                matches = self._search_series(image_id)
                if not matches:
                    return ""
                self._fetch(matches[0], folder)
        return SafeDatastore.get_image_uri(self, image_id) or str(folder)

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Return the path of an image's label, or "" if there is none.

        A label that was saved on this server comes before one on the DICOM server. label_id: the
        image's ID or, together with image_id, the SeriesInstanceUID of a DICOM-SEG on the image.
        """
        path = SafeDatastore.get_label_uri(self, image_id or label_id, label_tag)
        if path or not image_id:
            return path
        # the base class saves the label in the datastore and returns the path of a temporary copy
        os.unlink(DICOMWebDatastore.get_label_uri(self, label_id, label_tag, image_id))
        path = SafeDatastore.get_label_uri(self, image_id, label_tag)
        _resample_to(path, self.get_image_uri(image_id))
        return path

    def save_label(
        self,
        image_id: str,
        label_filename: str,
        label_tag: str,
        label_info: dict[str, Any],
        label_id: str = "",
    ) -> str:
        """Check and save a label; see `store_label`."""
        self.store_label(image_id, label_filename, label_tag, label_info or {})
        return image_id

    def _label_was_saved(self, image_id: str, tag: str, saved: SavedLabel) -> None:
        """Send a final label to the DICOM server too, as DICOM-SEG.

        The label of an image that a client uploaded is not sent, because the DICOM server has no
        such series. Raises SavingError if the label is on disk but could not be sent.
        """
        if tag != DefaultLabelTag.FINAL or not self._series_folder(image_id).is_dir():
            return
        image, path = self.get_image_uri(image_id), SafeDatastore.get_label_uri(self, image_id, tag)
        try:
            uid = self._send_segmentation(image, path, saved.version.info.get("label_info") or [])
        except Exception as error:
            # any error: the user must learn that the label is safe, and where it is
            is_readable = isinstance(error, InputError | requests.RequestException)
            raise SavingError(
                f"the label was kept in {path} on the server, but is not on the DICOM server: "
                f"{error if is_readable else type(error).__name__}"
            ) from error
        self.update_label_info(image_id, tag, {"SeriesInstanceUID": uid})

    def _remove_half_fetched(self) -> None:
        """Remove what a killed server was fetching; a training may be fetching right now."""
        for folder in Path(self._datastore.image_path()).glob(f"{FETCHING}*"):
            if time.time() - folder.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)

    def _series_folder(self, image_id: str) -> Path:
        """Return the folder of a series' slices."""
        return Path(self._datastore.image_path(), image_id).resolve()

    def _search(self, search_filter: Mapping[str, Any]) -> list[Dataset]:
        matches = self._client.search_for_series(search_filters=dict(search_filter))
        return [Dataset.from_json(match) for match in matches]

    def _search_series(self, uid: str) -> list[Dataset]:
        matches = self._search({"SeriesInstanceUID": uid})
        # some servers ignore the filter
        return [match for match in matches if match.SeriesInstanceUID == uid]

    def _fetch(self, header: Dataset, folder: Path) -> None:
        """Download a series, check it, and put its slices and its NIfTI file into the cache.

        header: the search result of the series. Nothing stays in the cache if a check fails.
        """
        image_id = folder.name
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=FETCHING) as temporary:
            slices = Path(temporary, "slices")
            self._download(str(header.StudyInstanceUID), image_id, slices)
            expected = int(header.get("NumberOfSeriesRelatedInstances") or 0)
            received = len(list(slices.iterdir()))
            if expected > received:
                raise InputError(
                    f"the DICOM server sent {received} of the {expected} slices of series "
                    f'"{image_id}"; try again'
                )
            series = read_series(slices)
            if folder.exists():
                folder.rename(Path(temporary, "earlier"))
            slices.rename(folder)
            if self._convert_to_nifti:
                image = Path(temporary, f"{image_id}.nii.gz")
                sitk.WriteImage(series, str(image))
                self.add_image(image_id, str(image), {**self._dicom_info(image_id), CHECKED: True})

    def _download(self, study_uid: str, series_uid: str, folder: Path) -> None:
        if self._fetch_by_frame:
            dicom_web_download_series(study_uid, series_uid, folder, self._client, True)
            return
        folder.mkdir()
        # request the slices as stored: SimpleITK decodes them, and not every server can
        as_stored = (("application/dicom", "*"),)
        slices = self._client.retrieve_series(study_uid, series_uid, media_types=as_stored)
        for index, instance in enumerate(slices):
            instance.save_as(folder / f"{index:06d}.dcm")

    def _send_segmentation(
        self, image: str, label: str, label_info: Sequence[Mapping[str, Any]]
    ) -> str:
        """Store a label as DICOM-SEG on the DICOM server; return its SeriesInstanceUID."""
        segmentation = write_segmentation(image, label, label_info)
        try:
            uid: str = dicom_web_upload_dcm(segmentation, self._client)
        finally:
            os.unlink(segmentation)
        if not uid:
            raise InputError("the DICOM server refused the DICOM-SEG; see its log")
        return uid

    def _download_labeled_data(self) -> None:
        """Download the labels on the DICOM server before a training.

        The base class also removes every label that is not on the DICOM server.
        """
        for image_id, label_id in self._segmentations():
            try:
                self.get_image_uri(image_id)
                self.get_label_uri(label_id, DefaultLabelTag.FINAL, image_id)
            except InputError as error:
                logger.warning("label %s is left out: %s", label_id, error)

    def _segmentations(self) -> Iterator[tuple[str, str]]:
        """Yield (image ID, label ID) of each DICOM-SEG on a listed series."""
        for match in self._search({"Modality": "SEG"}):
            study, label_id = str(match.StudyInstanceUID), str(match.SeriesInstanceUID)
            header = Dataset.from_json(self._client.retrieve_series_metadata(study, label_id)[0])
            for reference in header.get("ReferencedSeriesSequence", []):
                if reference.SeriesInstanceUID in self.list_images():
                    yield str(reference.SeriesInstanceUID), label_id


def _resample_to(label: str, image: str) -> None:
    """Rewrite a label file on the grid of its image; a DICOM-SEG has the labelled slices only."""
    mask, grid = sitk.ReadImage(label), sitk.ReadImage(image)
    resampled = sitk.Resample(mask, grid, sitk.Transform(), sitk.sitkNearestNeighbor)
    sitk.WriteImage(resampled, label, useCompression=True)
