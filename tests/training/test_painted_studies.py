"""The training data as a folder of studies, and atlases as label maps."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from training.data import ClickSamples, SampleOptions
from training.painted_studies import PAINTED, write_painted, write_real
from training.sources import MAX_STRUCTURES, Case, load_atlases

from lib.imaging.volume import read_volume


def test_a_real_scan_is_written_on_its_own_grid(
    make_case: Callable[..., Case], tmp_path: Path
) -> None:
    case = make_case()
    write_real(tmp_path, [case, make_case(with_image=False)])
    image = read_volume(tmp_path / f"{case.name}.nii.gz")
    label = read_volume(tmp_path / "labels" / "final" / f"{case.name}.nii.gz")
    np.testing.assert_array_equal(image.array, case.image)
    np.testing.assert_array_equal(label.array, case.labels)
    np.testing.assert_allclose(label.affine_mm, case.affine_mm)


def test_painted_studies_have_labels_and_are_reproducible(
    make_case: Callable[..., Case], tmp_path: Path
) -> None:
    small = SampleOptions(roi_size=32, scene=PAINTED.scene, synthetic=PAINTED.synthetic, scenes=2)
    for folder in ("first", "again"):
        write_painted(tmp_path / folder, ClickSamples([make_case()], small, seed=4), count=3)
    names = sorted(path.name for path in (tmp_path / "first").glob("*.nii.gz"))
    assert len(names) == 3
    for name in names:
        image, again = (read_volume(tmp_path / folder / name) for folder in ("first", "again"))
        label = read_volume(tmp_path / "first" / "labels" / "final" / name)
        np.testing.assert_array_equal(image.array, again.array)
        assert image.shape_ijk == label.shape_ijk == (32, 32, 32)
        assert label.array.max() > 0


def test_the_largest_structures_of_an_atlas_are_taken(tmp_path: Path) -> None:
    labels = np.zeros((40, 30, 50), dtype=np.int16)
    for number in range(300):  # the first ones are the smallest
        labels.reshape(-1)[number * 190 : number * 190 + 66 + number % 120] = 1000 + number
    nib.save(nib.Nifti1Image(labels, np.diag([1, 1, 1, 1])), tmp_path / "aal.nii.gz")
    (case,) = load_atlases(tmp_path)
    assert case.image is None
    assert len(case.boxes) == MAX_STRUCTURES
    assert load_atlases(tmp_path / "nowhere") == []
