"""Write a volume as a DICOM CT series, one file per slice."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

from torso import HU_RANGE

DATE, TIME = "20240101", "120000"


@dataclass(frozen=True)
class _Grid:
    """The grid of a series in the patient, in DICOM's LPS millimetres."""

    origin: np.ndarray  # centre of voxel (0, 0, 0)
    steps: np.ndarray  # [3, 3], column a leads to the next voxel along index a

    @property
    def spacing(self) -> np.ndarray:
        return np.linalg.norm(self.steps, axis=0)

    @property
    def directions(self) -> np.ndarray:
        return self.steps / self.spacing


def write_ct_series(
    image_ijk: np.ndarray,
    affine_mm: np.ndarray,
    folder: Path,
    *,
    seed: int = 0,
    description: str = "CT",
    patient_name: str = "Synthetic^Torso",
) -> list[Path]:
    """Write HU [I, J, K] as K slices into ``folder`` and return their paths in the order of k.

    Within a slice, i counts the columns and j the rows. ``affine_mm`` [4, 4] maps (i, j, k) to RAS
    mm; it may be oblique but not sheared. Slices are numbered in the order of k. Readers stack them
    along the cross product of i and j, so a left-handed affine reads back with k reversed, at the
    same place in the patient. ``seed`` and ``description`` determine all UIDs: the series of one
    seed form one study, and each needs its own description.

    Raises ValueError for a sheared affine, a shape that is not 3D, or HU beyond twelve bits.
    """
    grid = _grid(np.asarray(affine_mm, float))
    _check_image(image_ijk)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(image_ijk.shape[2]):
        dataset = _slice(image_ijk[:, :, k], grid, k, (str(seed), description))
        dataset.PatientName = patient_name
        paths.append(folder / f"slice-{k:04d}.dcm")
        dataset.save_as(paths[-1], write_like_original=False)
    return paths


def _grid(affine_mm: np.ndarray) -> _Grid:
    affine_lps = np.diag([-1.0, -1.0, 1.0]) @ affine_mm[:3]  # from RAS
    steps = affine_lps[:, :3]
    grid = _Grid(affine_lps[:, 3], steps)
    if not np.allclose(grid.directions.T @ grid.directions, np.eye(3), atol=1e-4):
        raise ValueError(f"a DICOM series needs axes at right angles, but the affine has {steps}")
    return grid


def _check_image(image_ijk: np.ndarray) -> None:
    if image_ijk.ndim != 3:
        raise ValueError(f"a CT series needs a 3D volume, got shape {image_ijk.shape}")
    low, high = int(image_ijk.min()), int(image_ijk.max())
    if low < HU_RANGE[0] or high > HU_RANGE[1]:
        raise ValueError(f"HU {low} to {high} exceed the range {HU_RANGE} of twelve stored bits")


def _slice(hu_ij: np.ndarray, grid: _Grid, k: int, entropy: tuple[str, str]) -> FileDataset:
    """Return the dataset of slice k, complete except for the patient's name."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[*entropy, "instance", str(k)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    _set_study(dataset, entropy)
    _set_acquisition(dataset, grid, k)
    _set_geometry(dataset, grid, k)
    _set_pixels(dataset, hu_ij)
    return dataset


def _set_study(dataset: FileDataset, entropy: tuple[str, str]) -> None:
    """Set the modules of patient, study, series, frame of reference and equipment."""
    seed, description = entropy
    dataset.PatientID = f"SYNTHETIC-{seed}"
    dataset.PatientBirthDate = ""
    dataset.PatientSex = "O"
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[seed, "study"])
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = DATE
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = TIME
    dataset.StudyID = "1"
    dataset.StudyDescription = "Synthetic sample data"
    dataset.AccessionNumber = ""
    dataset.ReferringPhysicianName = ""
    dataset.Modality = "CT"
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[*entropy, "series"])
    dataset.SeriesNumber = 1
    dataset.SeriesDescription = description
    dataset.BodyPartExamined = "CHESTABDOMEN"
    dataset.PatientPosition = "HFS"
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=[seed, "frame of reference"])
    dataset.PositionReferenceIndicator = ""
    dataset.Manufacturer = "synthetic"


def _set_acquisition(dataset: FileDataset, grid: _Grid, k: int) -> None:
    """Set the modules of general image, CT image and SOP."""
    axial = int(np.argmax(np.abs(grid.directions[:, 2]))) == 2
    kind = ["ORIGINAL", "PRIMARY", "AXIAL"] if axial else ["DERIVED", "SECONDARY", "REFORMATTED"]
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.InstanceNumber = k + 1
    dataset.AcquisitionNumber = 1
    dataset.AcquisitionDate, dataset.AcquisitionTime = DATE, TIME
    dataset.ImageType = kind
    dataset.KVP = 120


def _set_geometry(dataset: FileDataset, grid: _Grid, k: int) -> None:
    """Set the module of the image plane: the place of the slice in the patient."""
    columns_along, rows_along, _ = grid.directions.T
    normal = np.cross(columns_along, rows_along)
    position = grid.origin + k * grid.steps[:, 2]
    dataset.ImagePositionPatient = _decimals(position)
    dataset.ImageOrientationPatient = _decimals([*columns_along, *rows_along])
    dataset.PixelSpacing = _decimals([grid.spacing[1], grid.spacing[0]])  # rows, then columns
    dataset.SliceThickness, dataset.SpacingBetweenSlices = _decimals([grid.spacing[2]] * 2)
    dataset.SliceLocation = _decimals([normal @ position])[0]


def _set_pixels(dataset: FileDataset, hu_ij: np.ndarray) -> None:
    """Set the module of the pixels: twelve unsigned bits in sixteen, HU = stored - 1024."""
    stored = (np.asarray(hu_ij, np.int32).T - HU_RANGE[0]).astype("<u2")
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.RescaleIntercept, dataset.RescaleSlope = HU_RANGE[0], 1
    dataset.RescaleType = "HU"
    dataset.WindowCenter, dataset.WindowWidth = 40, 400
    dataset.PixelData = stored.tobytes()


def _decimals(values) -> list[DSfloat]:
    """Return decimal strings of at most 16 characters; -0 and rounding errors become 0."""
    return [DSfloat(round(float(value), 12) + 0.0, auto_format=True) for value in values]
