"""A datastore on a DICOMweb server that checks each series and never loses a label."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import requests
import SimpleITK as sitk
from monailabel.interfaces.datastore import DefaultLabelTag
from pydicom.dataset import Dataset

from lib.datastore.dicom_seg import write_segmentation
from lib.datastore.dicom_seg_reader import read_segmentation
from lib.datastore.fetched_series import FetchedSeries, described
from lib.datastore.pacs_segmentations import PacsSegmentations
from lib.datastore.safe_store import SafeDatastore, SavedLabel
from lib.errors import InputError, SavingError
from lib.imaging.dicom_series import read_series

logger = logging.getLogger(__name__)


class CheckedDICOMWebDatastore(FetchedSeries):
    """The series of a DICOM server and their labels, which are kept here and sent there.

    The methods raise InputError for a series that cannot be used, and requests' exceptions if the
    DICOM server does not answer.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._label_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        super().__init__(*args, **kwargs)

    def get_labeled_images(
        self, label_tag: str | None = None, labels: list[str] | None = None
    ) -> list[str]:
        """Return the series with a label on the DICOM server or here, where it may be new."""
        on_server = self._remembered("labeled", self._find_labeled)
        return [*{*on_server, *SafeDatastore.get_labeled_images(self, label_tag, labels)}]

    def _find_labeled(self) -> list[str]:
        return [found[0] for found in self._pacs.segmentations(set(self.list_images()), {})]

    def get_unlabeled_images(
        self, label_tag: str | None = None, labels: list[str] | None = None
    ) -> list[str]:
        """Return the series without a label, which *Next Sample* offers."""
        labeled = set(self.get_labeled_images(label_tag, labels))
        return [image_id for image_id in self.list_images() if image_id not in labeled]

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Return the path of an image's label, or "" if there is none.

        A label that was saved on this server comes before one on the DICOM server. label_id: the
        image's ID or, together with image_id, the SeriesInstanceUID of a DICOM-SEG on the image.
        """
        path = SafeDatastore.get_label_uri(self, image_id or label_id, label_tag)
        if path or not image_id:
            return path
        header = self._pacs.find_series(label_id)
        if header is None:
            return ""
        self._fetch_label(header, image_id, label_tag)
        return SafeDatastore.get_label_uri(self, image_id, label_tag)

    def _fetch_label(self, header: Dataset, image_id: str, tag: str) -> None:
        """Store a DICOM-SEG of the DICOM server as the label of its image.

        header: the search result of the DICOM-SEG. Raises InputError if it is no label map.
        """
        label_id = str(header.SeriesInstanceUID)
        path = self.get_image_uri(image_id)
        image = read_series(path).image if os.path.isdir(path) else sitk.ReadImage(path)
        instances = self._pacs.retrieve(str(header.StudyInstanceUID), label_id)
        labels = read_segmentation(instances, image)
        label = sitk.GetImageFromArray(labels.transpose())
        label.CopyInformation(image)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"{image_id}.nii.gz")
            sitk.WriteImage(label, str(file))
            info = {**described(header), "SeriesInstanceUID": label_id}
            SafeDatastore.save_label(self, image_id, str(file), tag, info)

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

    def segmentations(self) -> PacsSegmentations:
        """Return the DICOM-SEG series of the DICOM server, whether they are used here or not."""
        return PacsSegmentations(self._pacs)

    def _send_segmentation(
        self, image: str, label: str, label_info: Sequence[Mapping[str, Any]]
    ) -> str:
        """Store a label as DICOM-SEG on the DICOM server; return its SeriesInstanceUID."""
        segmentation = write_segmentation(image, label, label_info)
        try:
            return self._pacs.store(segmentation)
        finally:
            os.unlink(segmentation)

    def _download_labeled_data(self) -> None:
        """Download the labels on the DICOM server; the base class also removes all others."""
        self.fetch_labels()

    def find_label(self, image_id: str, tag: str) -> str:
        """Return the path of an image's label, or "" if there is none.

        A final label that others stored on the DICOM server is fetched if there is none here.
        Raises InputError if it cannot be used.
        """
        path = self.get_label_uri(image_id, tag)
        if path or tag != DefaultLabelTag.FINAL:
            return path
        header = self._pacs.find_series(image_id)
        if header is None:  # an image that a client uploaded
            return ""
        skipped = self._fetch_newest(image_id, str(header.StudyInstanceUID))
        path = self.get_label_uri(image_id, tag)
        if skipped and not path:
            reasons = "; ".join(f"{label}: {reason}" for label, reason in skipped.items())
            raise InputError(f"no label of the DICOM server can be used ({reasons})")
        return path

    def fetch_labels(self) -> dict[str, str]:
        """Download the labels on the DICOM server of images that have none here.

        Of several labels of an image, the newest that can be read is used. Returns the others:
        name -> reason.
        """
        return self._fetch_newest()

    def _fetch_newest(self, only_image_id: str = "", study_uid: str = "") -> dict[str, str]:
        """Download the labels of all images, or of one; see `fetch_labels`.

        study_uid: the study in which the labels are searched; "" for all.
        """
        skipped: dict[str, str] = {}
        segmentations = self._pacs.segmentations(set(self.list_images()), skipped, study_uid)
        found = sorted(segmentations, key=lambda each: _age(each[2]), reverse=True)
        for image_id, label_id, header in found:
            if only_image_id not in ("", image_id):
                continue
            with self._label_locks[image_id]:
                if SafeDatastore.get_label_uri(self, image_id, DefaultLabelTag.FINAL):
                    continue  # saved here, or a newer one of the DICOM server
                try:
                    self._fetch_label(header, image_id, DefaultLabelTag.FINAL)
                except Exception as error:  # one label never ends the download of all
                    is_readable = isinstance(error, InputError | requests.RequestException)
                    reason = str(error) if is_readable else f"{type(error).__name__}: {error}"
                    skipped[f"label {label_id}"] = reason
                    logger.warning("label %s is left out: %s", label_id, reason)
        return skipped


def _age(header: Dataset) -> tuple[str, ...]:
    """Return what sorts series by their age."""
    tags = ("SeriesDate", "SeriesTime", "StudyDate", "StudyTime")
    return tuple(str(header.get(tag) or "") for tag in tags)
