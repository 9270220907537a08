"""The series of a DICOM server: listed, fetched once, checked, and kept as files."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cachetools import TTLCache
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from pydicom.dataset import Dataset

from lib.datastore.pacs_client import PacsClient, limit_waiting
from lib.datastore.safe_store import SafeDatastore
from lib.datastore.series_sizes import SeriesSizes, size_of
from lib.errors import InputError
from lib.imaging.dicom_series import read_series
from lib.imaging.nifti_file import ImageMetadata, write_scan

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

INSTANCES = "series_instances"
"""INSTANCES: key in the stored information on an image, with the size of its series at the time."""

CHECK_VERSION = 3
"""CHECK_VERSION: raise it when series are read in another way, so that they are fetched again."""

FETCHING = "fetching-"
"""FETCHING: start of the names of folders into which series are downloaded."""

ABANDONED_SECONDS = 3600
"""ABANDONED_SECONDS: after this time nobody downloads into such a folder any more."""


class FetchedSeries(DICOMWebDatastore, SafeDatastore):
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
        self._sizes = SeriesSizes(lambda uid: self._pacs.find_series(uid))
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
        because it may be repaired on the DICOM server. A series of another size than it had then,
        as one whose slices still arrive there, is fetched again. An image that a client uploaded
        is its own file.
        """
        folder = self._series_folder(image_id)
        with self._locks[image_id]:  # several clients may ask for the same series at once
            image = SafeDatastore.get_image_uri(self, image_id)
            if os.path.exists(image) and (not folder.is_dir() or self._is_current(image_id)):
                return image
            if self._convert_to_nifti or not folder.is_dir():
                header = self._pacs.find_series(image_id)
                if header is None:
                    return ""
                self._fetch(header, folder)
        return SafeDatastore.get_image_uri(self, image_id) or str(folder)

    def _is_current(self, image_id: str) -> bool:
        """Return whether a fetched series is as this version reads it, and as large as it was."""
        info = self.get_image_info(image_id)
        if info.get(CHECKED) != CHECK_VERSION:
            return False
        size = self._sizes.get(image_id)
        return size in (0, info.get(INSTANCES, size))

    def _remove_half_fetched(self) -> None:
        """Remove what a killed server was fetching; a training may be fetching right now."""
        for folder in Path(self._datastore.image_path()).glob(f"{FETCHING}*"):
            if time.time() - folder.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def _pacs(self) -> PacsClient:
        return PacsClient(self._client)

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
            expected = size_of(header)
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
                    info = {**described(header), CHECKED: CHECK_VERSION, INSTANCES: expected}
                    self.add_image(image_id, str(image), info)


def described(header: Dataset) -> dict[str, str]:
    """Return what MONAI Label stores of a series, from its search result."""
    fields = {name: str(header.get(name) or "UNK") for name in INFO_FIELDS}
    return {"SeriesInstanceUID": str(header.SeriesInstanceUID), **fields}
