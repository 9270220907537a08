"""The DICOMweb routes of a folder of files, as far as the viewer asks for them.

Search for studies and series (QIDO-RS), metadata and frames (WADO-RS), PS3.18. One image is one
study with one series.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import SimpleITK as sitk
from cachetools import LRUCache
from fastapi.responses import JSONResponse, Response
from pydicom.datadict import tag_for_keyword
from pydicom.uid import ExplicitVRLittleEndian

from lib.errors import NotFoundError
from lib.server.app_instance import ServedApp
from lib.server.cached_frames import SliceFrame, frame_reply
from lib.server.find_image import find_image
from lib.server.folder_series import (
    Json,
    dataset,
    headers,
    instance_uid,
    modality_of,
    pixel_scale,
    series_uids,
    study_uid,
)

SEARCH_KEYS = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "PatientName",
    "StudyDescription",
    "AccessionNumber",
)
"""SEARCH_KEYS: attributes that a search may name, by keyword or by tag."""

MODALITY_KEY = "0008|0060"
"""MODALITY_KEY: ITK's name of DICOM's Modality in the header of a file."""

_modalities: LRUCache[tuple[str, int], str] = LRUCache(4096)
"""_modalities: by path and time of change, of the files that were opened."""


def answer(app: ServedApp, path: str, query: Mapping[str, str]) -> Response:
    """Return the reply to a GET request of DICOMweb.

    path: below the DICOMweb root. query: its ``accept`` counts as the header. Raises NotFoundError
    for what is not there, and InputError for an image that cannot be read.
    """
    for pattern, handle in ROUTES:
        match = pattern.fullmatch(path.strip("/"))
        if match:
            return handle(app, match.groupdict(), query)
    raise NotFoundError(f"a folder of files has nothing at {path!r}")


# --- search ---------------------------------------------------------------------------------------


def _search_studies(app: ServedApp, place: Mapping[str, str], query: Mapping[str, str]) -> Response:
    found = [_study(app, image, uid) for uid, image in series_uids(app.datastore()).items()]
    found = [study for study in found if _matches(study, query)]
    first = _number(query, "offset", 0)
    page = found[first : first + _number(query, "limit", len(found))]
    counted = [study | _count(app, study) for study in page]
    return _json(counted)


def _search_series(app: ServedApp, place: Mapping[str, str], query: Mapping[str, str]) -> Response:
    found = []
    for uid, image in series_uids(app.datastore()).items():
        series = _study(app, image, uid)
        if place.get("study", study_uid(app.datastore(), image)) == _value(
            series, "StudyInstanceUID"
        ) and _matches(series, query):
            found.append(series | _count(app, series))
    return _json(found)


def _study(app: ServedApp, image: str, series_uid: str) -> Json:
    """Return what both searches tell, without reading the file."""
    return dataset(
        StudyInstanceUID=study_uid(app.datastore(), image),
        SeriesInstanceUID=series_uid,
        PatientName=image,
        PatientID=image,
        StudyDescription=image,
        SeriesDescription=image,
        SeriesNumber=1,
        StudyDate="",
        StudyTime="",
        AccessionNumber="",
    )


def _count(app: ServedApp, study: Json) -> Json:
    """Return the numbers of instances and the modality, from the header of the file alone.

    A file that does not store its modality has none until its voxels have been read.
    """
    path = app.datastore().get_image_uri(str(_value(study, "PatientID")))
    count, modality = 0, ""
    if os.path.isfile(path):
        mtime_ns = os.stat(path).st_mtime_ns
        count, modality = _header_facts(path, mtime_ns)
        modality = modality or _modalities.get((path, mtime_ns), "")
    counts = dataset(
        NumberOfStudyRelatedSeries=1,
        NumberOfStudyRelatedInstances=count,
        NumberOfSeriesRelatedInstances=count,
    )
    # the viewer's list fails at an attribute without a value
    known = dataset(ModalitiesInStudy=[modality], Modality=modality) if modality else {}
    return counts | known


@lru_cache(4096)
def _header_facts(path: str, mtime_ns: int) -> tuple[int, str]:
    """Return a file's number of slices, 0 if it cannot be read, and its modality, "" if unknown.

    mtime_ns: of the file; a changed file is read again.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return 0, ""
    count = int(reader.GetSize()[2]) if reader.GetDimension() >= 3 else 0
    has_modality = reader.HasMetaDataKey(MODALITY_KEY)
    return count, reader.GetMetaData(MODALITY_KEY).strip() if has_modality else ""


def _matches(study: Json, query: Mapping[str, str]) -> bool:
    """Return whether a study has what the query asks for; * and ? are wildcards."""
    for keyword in SEARCH_KEYS:
        wanted = query.get(keyword) or query.get(f"{tag_for_keyword(keyword):08X}")
        stored = str(_value(study, keyword)).lower()
        if wanted and not any(fnmatch.fnmatchcase(stored, w) for w in wanted.lower().split(",")):
            return False
    return True


def _value(study: Json, keyword: str) -> Any:
    (value,) = study[f"{tag_for_keyword(keyword):08X}"].get("Value", [""])
    return value["Alphabetic"] if isinstance(value, dict) else value


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, "")
    return int(text) if text.isdecimal() else default


# --- metadata and frames --------------------------------------------------------------------------


def _metadata(app: ServedApp, place: Mapping[str, str], query: Mapping[str, str]) -> Response:
    series_uid, image = _find(app, place)
    path = find_image(app, image)
    volume = app.prefetch.read(path)
    _modalities[path, os.stat(path).st_mtime_ns] = modality_of(volume)
    return _json(headers(volume, image, app.datastore(), series_uid))


def _frame(app: ServedApp, place: Mapping[str, str], query: Mapping[str, str]) -> Response:
    series_uid, image = _find(app, place)
    volume = app.prefetch.read(find_image(app, image))
    k = _slice_numbers(series_uid, volume.shape_ijk[2]).get(place["instance"])
    if k is None:
        raise NotFoundError(f"there is no slice {place['instance']!r} in image {image!r}")
    pixels = pixel_scale(volume).pixels(volume.array[:, :, k])
    frame = SliceFrame(pixels.tobytes(order="F"), ExplicitVRLittleEndian)
    return frame_reply(frame, query.get("accept", ""))


@lru_cache(16)
def _slice_numbers(series_uid: str, count: int) -> dict[str, int]:
    """Return k by SOPInstanceUID."""
    return {instance_uid(series_uid, k): k for k in range(count)}


def _find(app: ServedApp, place: Mapping[str, str]) -> tuple[str, str]:
    """Return SeriesInstanceUID and image ID of a study, or of a series; raises NotFoundError."""
    studies = app.datastore()
    for uid, image in series_uids(studies).items():
        if place["study"] == study_uid(studies, image) and place.get("series", uid) == uid:
            return uid, image
    raise NotFoundError(f"there is no study {place['study']!r} in this folder")


def _json(datasets: list[Json]) -> JSONResponse:
    return JSONResponse(datasets, media_type="application/dicom+json")


STUDY = "studies/(?P<study>[^/]+)"
SERIES = STUDY + "/series/(?P<series>[^/]+)"

Handler = Callable[[ServedApp, Mapping[str, str], Mapping[str, str]], Response]

ROUTES: tuple[tuple[re.Pattern[str], Handler], ...] = (
    (re.compile("studies"), _search_studies),
    (re.compile("series"), _search_series),
    (re.compile(f"{STUDY}/series"), _search_series),
    (re.compile(f"{STUDY}/metadata"), _metadata),
    (re.compile(f"{SERIES}/metadata"), _metadata),
    (re.compile(f"{SERIES}/instances/(?P<instance>[^/]+)/frames/1"), _frame),
)
