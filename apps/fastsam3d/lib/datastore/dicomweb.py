"""A datastore on a DICOMweb server that checks each series and never loses a label."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import requests
import SimpleITK as sitk
from cachetools import TTLCache
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from pydicom.dataset import Dataset

from lib.datastore.dicom_seg import write_segmentation
from lib.datastore.dicom_seg_reader import read_segmentation
from lib.datastore.pacs_client import PacsClient, limit_waiting
from lib.datastore.pacs_segmentations import PacsSegmentations
from lib.datastore.safe_store import SafeDatastore, SavedLabel
from lib.errors import InputError, SavingError
from lib.imaging.dicom_series import read_series
from lib.imaging.nifti_file import ImageMetadata, write_scan

logger = logging.getLogger(__name__)

MODALITIES = ("CT", "MR", "PT")
"""MODALITIES: series of these modalities are listed; MONAI Label lists CT only.

A site changes this with MONAI_LABEL_DICOMWEB_SEARCH_FILTER.
"""

INFO_FIELDS = ("StudyDate", "StudyTime", "Modality", "RetrieveURL", "PatientID", "StudyInstanceUID")
"""INFO_FIELDS: what is stored of a series, under the names of MONAI Label."""

CHECKED = "series_checked"
"""CHECKED: key in the stored information on an image, with the CHECK_VERSION that made it.

Images that MONAI Label's own datastore left in the cache lack it.
"""

CHECK_VERSION = 2
"""CHECK_VERSION: raise it when series are read in another way, so that they are fetched again."""

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
        self._lists: TTLCache[str, list[str]] = TTLCache(
            2, settings.MONAI_LABEL_DICOMWEB_CACHE_EXPIRY
        )
        self._lists_lock = threading.Lock()
        self._list_locks = {name: threading.Lock() for name in ("images", "labeled")}
        self._label_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        super().__init__(*args, **kwargs)
        limit_waiting(self._client)
        if not self.read_only:
            os.chmod(self._datastore_path, 0o700)  # scans of patients
            self._remove_half_fetched()

    def list_images(self) -> list[str]:
        """Return the SeriesInstanceUIDs."""
        return list(self._remembered("images", self._find_images))

    def _find_images(self) -> list[str]:
        if "MONAI_LABEL_DICOMWEB_SEARCH_FILTER" in settings.model_fields_set:
            return [str(s.SeriesInstanceUID) for s in self._pacs.search(self._search_filter)]
        series = (s for name in MODALITIES for s in self._pacs.search({"Modality": name}))
        # some servers do not filter, and some do not tell the modality
        is_image = (*MODALITIES, "")
        uids = (str(s.SeriesInstanceUID) for s in series if (s.get("Modality") or "") in is_image)
        return list(dict.fromkeys(uids))

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

    def _remembered(self, name: str, find: Callable[[], list[str]]) -> list[str]:
        """Return a list of the DICOM server that is searched again when it is old."""
        with self._list_locks[name]:  # one thread searches, the others wait for its result
            with self._lists_lock:
                found: list[str] | None = self._lists.get(name)
            if found is None:
                found = find()
                with self._lists_lock:
                    self._lists[name] = found
            return found

    def has_image(self, image_id: str) -> bool:
        """Return whether there is such a series, here or on the DICOM server; fetch nothing."""
        is_known = SafeDatastore.has_image(self, image_id) or image_id in self.list_images()
        return is_known or self._pacs.find_series(image_id) is not None

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
            is_checked = not folder.is_dir() or (
                self.get_image_info(image_id).get(CHECKED) == CHECK_VERSION
            )
            if os.path.exists(image) and is_checked:
                return image
            if self._convert_to_nifti or not folder.is_dir():
                header = self._pacs.find_series(image_id)
                if header is None:
                    return ""
                self._fetch(header, folder)
        return SafeDatastore.get_image_uri(self, image_id) or str(folder)

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
            info = {**_described(header), "SeriesInstanceUID": label_id}
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

    def _remove_half_fetched(self) -> None:
        """Remove what a killed server was fetching; a training may be fetching right now."""
        for folder in Path(self._datastore.image_path()).glob(f"{FETCHING}*"):
            if time.time() - folder.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def _pacs(self) -> PacsClient:
        return PacsClient(self._client)

    def segmentations(self) -> PacsSegmentations:
        """Return the DICOM-SEG series of the DICOM server, whether they are used here or not."""
        return PacsSegmentations(self._pacs)

    def _series_folder(self, image_id: str) -> Path:
        """Return the folder of a series' slices."""
        return Path(self._datastore.image_path(), image_id).resolve()

    def _fetch(self, header: Dataset, folder: Path) -> None:
        """Download a series, check it, and put its slices and its NIfTI file into the cache.

        header: the search result of the series. Nothing stays in the cache if a check fails.
        """
        image_id = folder.name
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=FETCHING) as temporary:
            slices = Path(temporary, image_id)  # messages name the series
            study_uid = str(header.StudyInstanceUID)
            self._pacs.download(study_uid, image_id, slices, self._fetch_by_frame)
            expected = int(header.get("NumberOfSeriesRelatedInstances") or 0)
            received = len(list(slices.iterdir()))
            if expected > received:
                raise InputError(
                    f"the DICOM server sent {received} of the {expected} slices of series "
                    f'"{image_id}"; try again'
                )
            series = read_series(slices)
            image = Path(temporary, f"{image_id}.nii.gz")
            if self._convert_to_nifti:
                write_scan(series.image, image, ImageMetadata(series.modality, series.warnings))
            with self._exclusive():  # another server may have fetched it, too
                if folder.exists():
                    folder.rename(Path(temporary, "earlier"))
                slices.rename(folder)
                if self._convert_to_nifti:
                    info = {**_described(header), CHECKED: CHECK_VERSION}
                    self.add_image(image_id, str(image), info)

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


def _described(header: Dataset) -> dict[str, str]:
    """Return what MONAI Label stores of a series, from its search result."""
    fields = {name: str(header.get(name) or "UNK") for name in INFO_FIELDS}
    return {"SeriesInstanceUID": str(header.SeriesInstanceUID), **fields}


def _age(header: Dataset) -> tuple[str, ...]:
    """Return what sorts series by their age."""
    tags = ("SeriesDate", "SeriesTime", "StudyDate", "StudyTime")
    return tuple(str(header.get(tag) or "") for tag in tags)
