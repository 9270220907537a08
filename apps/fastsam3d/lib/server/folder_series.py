"""A volume of a folder as a DICOM series: its UIDs, its headers and its slices.

No DICOM file is written. Each slice is one plane of stored k, its pixels are the stored voxels in
their order, and its header says where they lie in LPS mm, so that the viewer's grid is the file's
own grid for every order and direction of the axes.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from monailabel.datastore.dicom import DICOMWebDatastore
from nibabel.affines import voxel_sizes
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import CTImageStorage, MRImageStorage

from lib.errors import InputError
from lib.imaging.affine import RAS_TO_LPS
from lib.imaging.volume import Volume
from lib.server.app_instance import Studies

Json = dict[str, Any]
"""Json: a dataset in the DICOM JSON model (PS3.18, annex F)."""

INT16 = (-(2**15), 2**15 - 1)

LARGEST_SHEAR_VOXELS = 0.1
"""LARGEST_SHEAR_VOXELS: how far a voxel may be from its place in an upright series."""

CT_WINDOW = (40.0, 400.0)
"""CT_WINDOW: centre and width of the grey scale for a CT at first, in HU."""

WINDOW_PERCENTILES = (1.0, 99.0)
"""WINDOW_PERCENTILES: the grey scale of other scans at first."""

SAMPLES = 100_000
"""SAMPLES: about how many voxels the percentiles are taken from."""


@dataclass(frozen=True)
class PixelScale:
    """How values become 16-bit pixels: value = slope * pixel + intercept.

    Integers of a range below 65536 are exact; anything else is rounded by at most slope / 2.
    window: centre and width of the grey scale at first, in values.
    """

    slope: float
    intercept: float
    window: tuple[float, float]

    def pixels(self, values: np.ndarray) -> np.ndarray:
        """Return values of any shape as int16 pixels."""
        if self.slope == 1 and self.intercept == 0:
            return values.astype("<i2")
        scaled = np.rint((values.astype(np.float64) - self.intercept) / self.slope)
        return np.clip(scaled, *INT16).astype("<i2")


_scales: WeakKeyDictionary[Volume, PixelScale] = WeakKeyDictionary()


def pixel_scale(volume: Volume) -> PixelScale:
    """Return how a volume's values become pixels; the answer lives as long as the volume."""
    scale = _scales.get(volume)
    if scale is None:
        scale = _scales[volume] = _choose_scale(volume)
    return scale


def _choose_scale(volume: Volume) -> PixelScale:
    array = volume.array
    low, high = float(array.min()), float(array.max())
    window = CT_WINDOW
    if not volume.is_ct:
        some = array.reshape(-1, order="A")[:: max(1, array.size // SAMPLES)]
        darkest, brightest = np.percentile(some, WINDOW_PERCENTILES)
        window = ((darkest + brightest) / 2, max(float(brightest - darkest), 1e-6))
    if array.dtype.kind in "iu" and high - low <= INT16[1] - INT16[0]:
        is_int16 = INT16[0] <= low and high <= INT16[1]
        return PixelScale(1.0, 0.0 if is_int16 else low - INT16[0], window)
    slope = (high - low) / (INT16[1] - INT16[0])
    return PixelScale(slope, low - INT16[0] * slope, window)


# --- UIDs -----------------------------------------------------------------------------------------


@lru_cache(65536)
def make_uid(*parts: str) -> str:
    """Return a UID that the same parts always give (PS3.5, annex B.2: from a UUID)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, '|'.join(parts)).int}"


def series_uids(studies: Studies) -> dict[str, str]:
    """Return the image ID by SeriesInstanceUID, of the images of a folder."""
    place = _place(studies)
    return {make_uid(place, "series", image): image for image in studies.list_images()}


def study_uid(studies: Studies, image: str) -> str:
    return make_uid(_place(studies), "study", image)


def image_of_series(studies: Studies, series_uid: str) -> str:
    """Return the image ID of a series of a folder; "" if there is none, or on a DICOM server."""
    if isinstance(studies, DICOMWebDatastore):
        return ""
    return series_uids(studies).get(series_uid, "")


def _place(studies: Studies) -> str:
    """Return the folder of the images, which sets their UIDs apart from those of another folder."""
    images = studies.list_images()
    return str(Path(studies.get_image_uri(images[0])).parent) if images else ""


# --- headers --------------------------------------------------------------------------------------


def dataset(**values: Any) -> Json:
    """Return a dataset in the DICOM JSON model; each value is one value or a list of them."""
    elements: Json = {}
    for keyword, value in values.items():
        tag = tag_for_keyword(keyword)
        assert tag is not None, keyword
        vr, entries = dictionary_VR(tag), value if isinstance(value, list) else [value]
        if vr == "PN":
            entries = [{"Alphabetic": entry} for entry in entries]
        elements[f"{tag:08X}"] = {"vr": vr, "Value": entries} if value != "" else {"vr": vr}
    return elements


def instance_uid(series_uid: str, k: int) -> str:
    return make_uid(series_uid, str(k))


def modality_of(volume: Volume) -> str:
    """Return CT for values in Hounsfield units, else MR, as the viewer shows both."""
    return "CT" if volume.is_ct else "MR"


def headers(volume: Volume, image: str, studies: Studies, series_uid: str) -> list[Json]:
    """Return the headers of all slices, in the order of k.

    Raises InputError for a sheared grid, which no DICOM series has.
    """
    scale = pixel_scale(volume)
    columns, rows, count = volume.shape_ijk
    affine_lps = volume.affine_mm.copy()
    affine_lps[:3] = RAS_TO_LPS @ affine_lps[:3]
    axes, spacing_mm = slice_axes(affine_lps, volume.shape_ijk, image)
    same = dataset(
        SOPClassUID=CTImageStorage if volume.is_ct else MRImageStorage,
        StudyInstanceUID=study_uid(studies, image),
        SeriesInstanceUID=series_uid,
        FrameOfReferenceUID=make_uid(series_uid, "frame"),
        PatientName=image,
        PatientID=image,
        StudyDescription=image,
        SeriesDescription=image,
        StudyDate="",
        StudyTime="",
        StudyID="",
        AccessionNumber="",
        Modality=modality_of(volume),
        SeriesNumber=1,
        ImageType=["DERIVED", "SECONDARY"],
        Rows=rows,
        Columns=columns,
        PixelSpacing=[spacing_mm[1], spacing_mm[0]],
        SliceThickness=spacing_mm[2],
        SpacingBetweenSlices=spacing_mm[2],
        ImageOrientationPatient=[*axes[:, 0].tolist(), *axes[:, 1].tolist()],
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        BitsAllocated=16,
        BitsStored=16,
        HighBit=15,
        PixelRepresentation=1,
        RescaleSlope=scale.slope,
        RescaleIntercept=scale.intercept,
        RescaleType="HU" if volume.is_ct else "US",
        WindowCenter=scale.window[0],
        WindowWidth=scale.window[1],
    )
    places = affine_lps[:3, 3] + np.outer(np.arange(count), affine_lps[:3, 2])
    return [
        same
        | dataset(
            SOPInstanceUID=instance_uid(series_uid, k),
            InstanceNumber=k + 1,
            ImagePositionPatient=places[k].tolist(),
        )
        for k in range(count)
    ]


def slice_axes(
    affine_lps: np.ndarray, shape_ijk: tuple[int, ...], name: str
) -> tuple[np.ndarray, list[float]]:
    """Return the unit vectors of i, j and k as columns (3, 3), and the spacing in mm.

    affine_lps: (4, 4) stored index -> LPS mm. Raises InputError if the axes are not at right
    angles: a series of slices cannot say so, and its masks would be in other places.
    """
    spacing_mm = voxel_sizes(affine_lps)
    axes = affine_lps[:3, :3] / spacing_mm
    upright = axes.copy()
    upright[:, 1] -= (axes[:, 0] @ axes[:, 1]) * axes[:, 0]
    upright[:, 1] /= np.linalg.norm(upright[:, 1])
    normal = np.cross(upright[:, 0], upright[:, 1])
    upright[:, 2] = normal * np.sign(normal @ axes[:, 2])
    shift_voxels = np.abs(axes - upright).max(axis=0) * np.array(shape_ijk) * spacing_mm
    if (shift_voxels / spacing_mm.min()).max() > LARGEST_SHEAR_VOXELS:
        raise InputError(
            f'image "{name}" has axes that are not at right angles; resample it to show it here'
        )
    return upright, spacing_mm.tolist()
