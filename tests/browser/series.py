"""DICOM series of the synthetic torso: CT acquired in three planes, and an oblique MR."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import MRImageStorage
from scipy.spatial.transform import Rotation

import torso
from ct_series import write_ct_series

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
OBLIQUE = Rotation.from_euler("xyz", (17, -11, 23), degrees=True).as_matrix()


@dataclass(frozen=True)
class SampleSeries:
    """A DICOM series of the torso, with three different lengths and three different spacings.

    axes: the directions of i, j, k; right-handed, as readers stack slices, so that (i, j, k) is the
        voxel's index in every reader. turned: oblique to the patient.
    """

    name: str
    modality: str
    axes: str
    shape_ijk: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    seed: int
    turned: bool = False

    @property
    def affine_mm(self) -> np.ndarray:
        """(4, 4), stored index -> RAS mm."""
        affine_mm = torso.centred_affine(self.shape_ijk, self.spacing_mm, self.axes)
        if self.turned:
            affine_mm[:3] = OBLIQUE @ affine_mm[:3]
        return affine_mm

    def to_lps(self, point_ijk: tuple[int, ...]) -> list[float]:
        """Return the point of a voxel in LPS mm, which OHIF uses."""
        return (LPS_TO_RAS @ self.affine_mm @ (*point_ijk, 1))[:3].tolist()

    def to_voxel(self, point_lps: list[float]) -> np.ndarray:
        """Return the voxel (3,) float64 of a point in LPS mm; the inverse of `to_lps`."""
        return np.linalg.solve(LPS_TO_RAS @ self.affine_mm, (*point_lps, 1))[:3]

    def distance_mm(self, voxel: tuple[int, int, int]) -> np.ndarray:
        """Return the distance (I, J, K) of every voxel from one."""
        offsets_ijk = np.moveaxis(np.indices(self.shape_ijk), 0, -1) - np.array(voxel)
        return np.linalg.norm(offsets_ijk @ self.affine_mm[:3, :3].T, axis=-1)

    def write(self, folder: Path, patient: int | None = None) -> tuple[str, str]:
        """Write the slices into ``folder``; return StudyInstanceUID and SeriesInstanceUID.

        patient: decides on the UIDs; the series' seed by default.
        """
        image, _ = torso.sample(self.shape_ijk, self.affine_mm, seed=self.seed, supersample=1)
        paths = write_ct_series(
            image,
            self.affine_mm,
            folder,
            seed=self.seed if patient is None else patient,
            description=self.name,
        )
        for path in paths if self.modality == "MR" else []:
            _make_mr(path)
        header = pydicom.dcmread(paths[0], stop_before_pixels=True)
        return str(header.StudyInstanceUID), str(header.SeriesInstanceUID)


def _make_mr(path: Path) -> None:
    """Turn a CT slice into an MR slice, whose values have no rescale slope and intercept."""
    dataset = pydicom.dcmread(path)
    dataset.Modality = "MR"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "SE", "NONE", ""
    dataset.MRAcquisitionType, dataset.EchoTime, dataset.RepetitionTime = "2D", 90, 3000
    dataset.EchoTrainLength, dataset.MagneticFieldStrength = 1, 1.5
    dataset.WindowCenter, dataset.WindowWidth = 1000, 800
    for name in ("KVP", "RescaleIntercept", "RescaleSlope", "RescaleType"):
        delattr(dataset, name)
    dataset.save_as(path)


SERIES = (
    SampleSeries("axial CT", "CT", "LPS", (96, 80, 60), (4.0, 4.2, 5.0), seed=11),
    SampleSeries("sagittal CT", "CT", "PIR", (80, 72, 64), (4.2, 4.4, 6.0), seed=12),
    SampleSeries("coronal CT", "CT", "LIP", (96, 72, 56), (4.0, 4.4, 5.5), seed=13),
    SampleSeries("oblique MR", "MR", "LPS", (88, 80, 56), (4.4, 4.2, 5.5), seed=14, turned=True),
)
