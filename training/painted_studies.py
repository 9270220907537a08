"""Write the training data as studies for the distillation.

    python -m training.painted_studies --data DIR --out DIR

The app's trainer takes a folder of studies as a server does: images, and their labels in
``labels/final``. Real scans are written unchanged. Painted studies are samples of the pretraining:
synthetic images of label maps and of scenes of shapes. They are the larger part.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from lib.errors import AppError, InputError
from lib.imaging.intensity import normalize

from .data import ClickSamples, SampleOptions
from .pretrain import ATLASES
from .sources import Case, load_atlases, load_cases

LARGEST_SPREAD = 3.0
"""LARGEST_SPREAD: largest standard deviation of a painted study's normalised values.

Real ROIs have about 1, CTs with much air up to 4.
"""

PAINTED_SPACING_MM = 1.5
"""PAINTED_SPACING_MM: voxel size of painted studies; the app's trainer uses the same ROI voxel."""

PAINTED = SampleOptions(scene=0.4, synthetic=1.0, field_of_view=0.1)


def write_study(
    folder: Path, name: str, image: np.ndarray, labels: np.ndarray, affine_mm: np.ndarray
) -> None:
    """Write an image (I, J, K) and its label map; affine_mm: (4, 4), stored index to RAS mm."""
    for path, array in (
        (folder / f"{name}.nii.gz", image),
        (folder / "labels" / "final" / f"{name}.nii.gz", labels),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine_mm), path)


def write_painted(folder: Path, samples: ClickSamples, count: int) -> None:
    """Write `count` ROIs of the pretraining, each as a study."""
    affine_mm = np.diag([PAINTED_SPACING_MM] * 3 + [1.0])
    for number in tqdm(range(count), unit="study", mininterval=5):
        generator = np.random.default_rng([samples.seed, 2, number])
        image, is_ct, labels, _ = samples.draw_roi(generator)
        while not _is_plausible(image, is_ct):
            image, is_ct, labels, _ = samples.draw_roi(generator)
        # lib.imaging.intensity recognises a CT by its air; other images have no negative values
        stored = np.clip(image, -1024, 3071) if is_ct else 1000 * image / max(image.max(), 1e-6)
        write_study(folder, f"painted_{number:04}", stored.astype(np.int16), labels, affine_mm)


def _is_plausible(image: np.ndarray, is_ct: bool) -> bool:
    """Return whether the normalised values are in a usual range.

    Images of nearly only air or of one intensity exceed it.
    """
    try:
        return float(normalize(image, is_ct).std()) < LARGEST_SPREAD
    except InputError:  # no contrast
        return False


def write_real(folder: Path, cases: list[Case]) -> None:
    """Write all cases that have an image."""
    for case in cases:
        if case.image is not None:
            write_study(folder, case.name, case.image, case.labels, case.affine_mm)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.csv")
    parser.add_argument("--atlases", type=Path, default=ATLASES, help="folder of mricron-data")
    parser.add_argument("--out", type=Path, required=True, help="folder of studies to write")
    parser.add_argument("--painted", type=int, default=160, help="number of painted studies")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    try:
        cases = [*load_cases(options.data), *load_atlases(options.atlases)]
    except AppError as error:
        sys.exit(f"painted_studies: {error}")
    write_real(options.out, cases)
    write_painted(options.out, ClickSamples(cases, PAINTED, options.seed), options.painted)


if __name__ == "__main__":
    main()
