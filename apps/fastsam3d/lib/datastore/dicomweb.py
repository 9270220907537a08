"""The studies of a DICOMweb server, with every series checked, and labels that are never lost."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import requests
import SimpleITK as sitk
from cachetools import TTLCache, cached
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.datastore.utils.convert import binary_to_image
from monailabel.datastore.utils.dicom import dicom_web_download_series, dicom_web_upload_dcm
from monailabel.interfaces.datastore import DefaultLabelTag
from pydicom.dataset import Dataset

from lib.datastore.dicom_seg import write_segmentation
from lib.errors import InputError, NotFoundError, SavingError
from lib.imaging.dicom_series import read_series

logger = logging.getLogger(__name__)

MODALITIES = ("CT", "MR", "PT")
"""What is listed unless the site sets MONAI_LABEL_DICOMWEB_SEARCH_FILTER; MONAI Label's is CT."""

CHECKED = "geometry_checked"
"""Noted with each image of a series; what MONAI Label's own store left in the cache lacks it."""


class CheckedDICOMWebDatastore(DICOMWebDatastore):
    """A series is its NIfTI file in the cache, on the very grid of its slices.

    The methods raise InputError for a series that cannot be used, and requests' exceptions where
    the DICOM server does not answer.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        super().__init__(*args, **kwargs)

    @cached(cache=TTLCache(maxsize=16, ttl=settings.MONAI_LABEL_DICOMWEB_CACHE_EXPIRY))
    def list_images(self) -> list[str]:
        filters: Sequence[Mapping[str, Any]] = [{"Modality": name} for name in MODALITIES]
        if "MONAI_LABEL_DICOMWEB_SEARCH_FILTER" in settings.model_fields_set:
            filters = [self._search_filter]
        return [str(found.SeriesInstanceUID) for each in filters for found in self._search(each)]

    def get_image_uri(self, image_id: str) -> str:
        """The series as a file (or a folder, where the site wants no NIfTI); "" if there is none.

        A series is fetched once. One that was refused is not kept: it may be repaired. An image
        that a client uploaded is its file.
        """
        folder = self._series_folder(image_id)
        with self._locks[image_id]:  # many clients may ask for a series at once
            image = LocalDatastore.get_image_uri(self, image_id)
            is_checked = self.get_image_info(image_id).get(CHECKED) or not folder.is_dir()
            if os.path.exists(image) and is_checked:
                return image
            if self._convert_to_nifti or not folder.is_dir():
                found = self._search_series(image_id)
                if not found:
                    return ""
                self._fetch(found[0], folder)
        return LocalDatastore.get_image_uri(self, image_id) or str(folder)

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """The label of an image as it was saved here, else as the DICOM server has it, else "".

        label_id: the image's, or with image_id the UID of a DICOM-SEG on it.
        """
        kept = LocalDatastore.get_label_uri(self, image_id or label_id, label_tag)
        if kept or not image_id:
            return kept
        os.unlink(super().get_label_uri(label_id, label_tag, image_id))  # a copy of what it kept
        kept = LocalDatastore.get_label_uri(self, image_id, label_tag)
        _spread_over(kept, self.get_image_uri(image_id))
        return kept

    def save_label(
        self,
        image_id: str,
        label_filename: str,
        label_tag: str,
        label_info: dict[str, Any],
        label_id: str = "",
    ) -> str:
        """Keep a label on disk and, where it is final, store it as DICOM-SEG beside its series.

        That of an image that a client uploaded stays here: the DICOM server has no such series.
        Raises NotFoundError for an image that there is not, and SavingError where the DICOM server
        did not get the label, which is on disk then.
        """
        image = self.get_image_uri(image_id)
        if not image:
            raise NotFoundError(f"there is no image {image_id!r} on the DICOM server")
        if label_filename.endswith(".bin"):  # voxels without a header
            label_filename = _give_header(label_filename, image)
        label_id = LocalDatastore.save_label(self, image_id, label_filename, label_tag, label_info)
        if label_tag == DefaultLabelTag.FINAL and self._series_folder(image_id).is_dir():
            kept = self.get_label_uri(label_id, label_tag)
            try:
                uid = self._send_segmentation(image, kept, label_info.get("label_info") or [])
            except Exception as error:
                # whatever it was: the user learns that the label is safe, and where
                told = isinstance(error, InputError | requests.RequestException)
                raise SavingError(
                    f"the label was kept in {kept} on the server, but is not on the DICOM server: "
                    f"{error if told else type(error).__name__}"
                ) from error
            self.update_label_info(label_id, label_tag, {"SeriesInstanceUID": uid})
        return label_id

    def _series_folder(self, image_id: str) -> Path:
        """Of the slices."""
        return Path(self._datastore.image_path(), image_id).resolve()

    def _search(self, search_filter: Mapping[str, Any]) -> list[Dataset]:
        found = self._client.search_for_series(search_filters=dict(search_filter))
        return [Dataset.from_json(each) for each in found]

    def _search_series(self, uid: str) -> list[Dataset]:
        found = self._search({"SeriesInstanceUID": uid})
        return [each for each in found if each.SeriesInstanceUID == uid]  # some servers ignore it

    def _fetch(self, found: Dataset, folder: Path) -> None:
        """Bring a series and its NIfTI file into the cache, whole and checked, or not at all."""
        image_id = folder.name
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetching-") as temporary:
            slices = Path(temporary, "slices")
            self._download(str(found.StudyInstanceUID), image_id, slices)
            expected = int(found.get("NumberOfSeriesRelatedInstances") or 0)
            received = len(list(slices.iterdir()))
            if expected > received:
                raise InputError(
                    f"the DICOM server sent {received} of the {expected} slices of series "
                    f'"{image_id}"; try again'
                )
            series = read_series(slices)
            shutil.rmtree(folder, ignore_errors=True)
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
        # as they are stored: not every server can decode what it stores, and SimpleITK can
        as_stored = (("application/dicom", "*"),)
        slices = self._client.retrieve_series(study_uid, series_uid, media_types=as_stored)
        for index, instance in enumerate(slices):
            instance.save_as(folder / f"{index:06d}.dcm")

    def _send_segmentation(
        self, image: str, label: str, label_info: Sequence[Mapping[str, Any]]
    ) -> str:
        """The UID of the new series."""
        segmentation = write_segmentation(image, label, label_info)
        try:
            uid: str = dicom_web_upload_dcm(segmentation, self._client)
        finally:
            os.unlink(segmentation)
        if not uid:
            raise InputError("the DICOM server refused the DICOM-SEG; see its log")
        return uid

    def _download_labeled_data(self) -> None:
        """Before a training: what others labelled.

        MONAI Label's own also removes every label that it does not find on the DICOM server.
        """
        for image_id, label_id in self._segmentations():
            try:
                self.get_image_uri(image_id)
                self.get_label_uri(label_id, DefaultLabelTag.FINAL, image_id)
            except InputError as error:
                logger.warning("label %s is left out: %s", label_id, error)

    def _segmentations(self) -> Iterator[tuple[str, str]]:
        """(image, label) of each DICOM-SEG on a listed series."""
        for found in self._search({"Modality": "SEG"}):
            study, label_id = str(found.StudyInstanceUID), str(found.SeriesInstanceUID)
            header = Dataset.from_json(self._client.retrieve_series_metadata(study, label_id)[0])
            for reference in header.get("ReferencedSeriesSequence", []):
                if reference.SeriesInstanceUID in self.list_images():
                    yield str(reference.SeriesInstanceUID), label_id


def _give_header(voxels: str, image: str) -> str:
    try:
        return binary_to_image(image, voxels)
    except ValueError as error:
        raise InputError(
            f"the label has {os.path.getsize(voxels)} voxels, not those of its image; "
            "save it on the grid of the image"
        ) from error


def _spread_over(label: str, image: str) -> None:
    """Put a label file onto the grid of its image; as read from a DICOM-SEG it ends with it."""
    found, grid = sitk.ReadImage(label), sitk.ReadImage(image)
    spread = sitk.Resample(found, grid, sitk.Transform(), sitk.sitkNearestNeighbor)
    sitk.WriteImage(spread, label, useCompression=True)
