"""The routes by which the viewer lists and draws labels: of this server, and of the PACS."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import requests
import SimpleITK as sitk
from fastapi import APIRouter, Request, Response

from lib.datastore.dicomweb import CheckedDICOMWebDatastore
from lib.datastore.pacs_segmentations import PacsSegmentation
from lib.errors import InputError
from lib.imaging.dicom_series import read_series
from lib.imaging.mask import BoxMask
from lib.infers.initial_mask import boxed, read_initial
from lib.infers.prompts import MAX_STRUCTURE
from lib.server.app_instance import ServedApp, app_instance
from lib.server.auth import UserRole
from lib.server.find_image import check_exists, find_image, start_mask
from lib.server.folder_series import image_of_series
from lib.server.reply import box_reply
from lib.server.viewer_package import PREFIX

logger = logging.getLogger(__name__)

router = APIRouter(tags=["Others"])

DICOM_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
"""DICOM_UID: a tag of this form names a DICOM-SEG series of the PACS."""


@router.get(PREFIX + "series/{series_uid}/labels", include_in_schema=False)
def stored_labels(series_uid: str, user: UserRole, pacs: bool = True) -> list[dict[str, Any]]:
    """Return tag, version, user and structures of the labels that this server has.

    structures: ``{name, idx}`` each. With pacs, the DICOM-SEG series of a PACS follow with their
    description; their tag is the SeriesInstanceUID. Those that this server made of its labels are
    left out, and all of them if the PACS does not answer.
    """
    app = app_instance()
    studies = app.datastore()
    image = check_exists(app, image_of_series(studies, series_uid) or series_uid)
    labels, own = [], set()
    for tag in studies.get_labels_by_image_id(image):
        info = studies.get_label_info(image, tag)
        current, earlier = studies.label_versions(image, tag)
        versions = [*earlier, *([current] if current else [])]
        own |= {version.info.get("SeriesInstanceUID") for version in versions}
        labels.append(
            {
                "tag": tag,
                "version": current.number if current else 0,
                "user": current.user if current else "",
                "structures": info.get("label_info") or [],
            }
        )
    if pacs and isinstance(studies, CheckedDICOMWebDatastore):
        labels += [
            {"tag": each.series_uid, "description": each.description, "structures": []}
            for each in _of_others(studies, image)
            if each.series_uid not in own
        ]
    return labels


def _of_others(studies: CheckedDICOMWebDatastore, image: str) -> list[PacsSegmentation]:
    try:
        return studies.segmentations().of(image)
    except requests.RequestException as error:
        logger.warning("the DICOM-SEG of image %s are not listed: %s", image, error)
        return []


@router.get(PREFIX + "series/{series_uid}/labels/{tag}", include_in_schema=False)
def stored_label(http: Request, series_uid: str, tag: str, user: UserRole) -> Response:
    """Return a label as an infer request with output=box returns its mask.

    The reply has ``structures`` beside the box, and the ``version`` of a label of this server.
    """
    app = app_instance()
    studies = app.datastore()
    image = image_of_series(studies, series_uid) or series_uid
    path = find_image(app, image)
    if DICOM_UID.fullmatch(tag) and isinstance(studies, CheckedDICOMWebDatastore):
        mask, structures = _of_pacs(app, studies, image, path, tag)
        return box_reply(mask, {}, {"structures": structures}, http)
    current, _ = studies.label_versions(image, tag)
    with start_mask(app, image, tag, None) as label:
        mask = read_initial(str(label), app.prefetch.read(path), f"label {tag!r}")
    structures = studies.get_label_info(image, tag).get("label_info") or []
    version = current.number if current else 0
    return box_reply(mask, {}, {"structures": structures, "version": version}, http)


def _of_pacs(
    app: ServedApp, studies: CheckedDICOMWebDatastore, image: str, path: str, series_uid: str
) -> tuple[BoxMask, list[dict[str, Any]]]:
    """Return a DICOM-SEG of the PACS as a mask, and its structures."""
    volume = app.prefetch.read(path)
    scan = read_series(path).image if Path(path).is_dir() else sitk.ReadImage(path)
    labels, structures = studies.segmentations().read(image, series_uid, scan)
    if labels.max() > MAX_STRUCTURE:
        raise InputError(f"the DICOM-SEG has the value {labels.max()}; at most {MAX_STRUCTURE} fit")
    return boxed(labels.astype(np.uint8, copy=False), volume), structures
