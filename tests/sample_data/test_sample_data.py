"""The sample data: the analytic torso, DICOM series, the real scans, and the command."""

import hashlib
import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from scipy.ndimage import binary_erosion

import prepare
import torso
from atomic import replacing
from ct_series import write_ct_series
from real_scans import Member, WheelError, extract_members
from torso.anatomy import structures

SHAPE_IJK = (64, 50, 42)
SPACING_MM = (6.0, 6.0, 8.0)
TINY_SCAN = prepare.TorsoScan("studies/ct_torso.nii.gz", (32, 26, 15), (12.0, 12.0, 22.0))
SERIES_SHAPE_IJK = (12, 9, 7)


def value_of(name: str) -> int:
    return {label: value for value, label in torso.LABELS.items()}[name]


def rotated(affine_mm: np.ndarray, axis: np.ndarray, angle_deg: float) -> np.ndarray:
    """Return the affine rotated about the world's origin."""
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(angle_deg)
    turn = np.eye(4)
    turn[:3, :3] += np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return turn @ affine_mm


def voxel_centres(shape_ijk: tuple[int, int, int], affine_mm: np.ndarray) -> np.ndarray:
    """Return RAS mm [I, J, K, 3] of all voxel centres."""
    return apply_affine(affine_mm, np.moveaxis(np.indices(shape_ijk), 0, -1))


@pytest.fixture(scope="module")
def coarse() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A coarse noisy torso: HU, labels, affine."""
    affine = torso.centred_affine(SHAPE_IJK, SPACING_MM)
    return *torso.sample(SHAPE_IJK, affine, seed=4), affine


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    """HU of the same torso without noise."""
    affine = torso.centred_affine(SHAPE_IJK, SPACING_MM)
    return torso.sample(SHAPE_IJK, affine, noise_hu=0)[0]


# --- the torso ------------------------------------------------------------------------------------


SEED_SHAPE_IJK = (40, 32, 26)
SEED_AFFINE_MM = torso.centred_affine(SEED_SHAPE_IJK, (9.6, 9.4, 13.0))


@pytest.fixture(scope="module")
def seed_4() -> tuple[np.ndarray, np.ndarray]:
    """HU and labels on a small grid."""
    return torso.sample(SEED_SHAPE_IJK, SEED_AFFINE_MM, seed=4)


def test_same_seed_same_bytes(seed_4) -> None:
    image, labels = seed_4
    again, again_labels = torso.sample(SEED_SHAPE_IJK, SEED_AFFINE_MM, seed=4)
    assert image.dtype == np.int16 and labels.dtype == np.uint8
    assert image.tobytes() == again.tobytes() and labels.tobytes() == again_labels.tobytes()


def test_seed_changes_the_noise_and_nothing_else(seed_4) -> None:
    image, labels = seed_4
    other, other_labels = torso.sample(SEED_SHAPE_IJK, SEED_AFFINE_MM, seed=5)
    change = (image.astype(float) - other)[labels == value_of("liver")]
    assert np.array_equal(labels, other_labels)
    assert abs(change.mean()) < 2
    assert change.std() == pytest.approx(12 * np.sqrt(2), rel=0.1)


def test_noise_is_correlated_between_neighbours() -> None:
    shape = (60, 50, 20)
    affine = torso.centred_affine(shape, (1.0, 1.0, 1.0))
    affine[:3, 3] += (90, 0, 10)  # into the liver
    noisy, _ = torso.sample(shape, affine, seed=1, supersample=1)
    clean, _ = torso.sample(shape, affine, supersample=1, noise_hu=0)
    noise = noisy.astype(float) - clean
    across = np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1]
    along = np.corrcoef(noise[..., 1:].ravel(), noise[..., :-1].ravel())[0, 1]
    assert across > 0.3 and along > 0.3


@pytest.mark.parametrize("angle_deg", [pytest.param(0.0, marks=pytest.mark.slow), 23.0])
def test_labels_are_those_of_the_voxel_centres(angle_deg: float) -> None:
    shape = (52, 37, 43)
    affine = rotated(torso.centred_affine(shape, (7.0, 7.5, 8.0), "PIR"), (1, 2, 0.5), angle_deg)
    labels = torso.sample(shape, affine)[1]
    expected, _ = torso.evaluate(voxel_centres(shape, affine))
    # Coordinates are rounded to float32, so a centre on a surface may fall to either side.
    assert np.mean(labels != expected) < 1e-4
    assert len(np.unique(labels)) > 25


@pytest.mark.parametrize(
    "axes",
    ["PIR", "LAS", *(pytest.param(a, marks=pytest.mark.slow) for a in ("RAS", "ASL", "SLP"))],
)
def test_every_orientation_shows_the_same_torso(coarse, clean, axes: str) -> None:
    _, labels, affine = coarse
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(axes))
    turned = apply_orientation(labels, turn)
    other_affine = affine @ inv_ornt_aff(turn, SHAPE_IJK)
    assert nib.aff2axcodes(other_affine) == tuple(axes)
    spacing = np.linalg.norm(other_affine[:3, :3], axis=0)
    assert np.allclose(torso.centred_affine(turned.shape, spacing, axes), other_affine)
    other_image, other_labels = torso.sample(turned.shape, other_affine, noise_hu=0)
    assert np.mean(other_labels != turned) < 1e-4
    assert np.mean(np.abs(other_image - apply_orientation(clean, turn)) > 1) < 1e-4


def test_voxels_at_a_border_hold_the_mean_of_their_parts(coarse, clean) -> None:
    _, labels, affine = coarse
    sharp, _ = torso.sample(SHAPE_IJK, affine, noise_hu=0, supersample=1)
    border = np.argwhere(np.abs(clean.astype(int) - sharp) > 20)[::37]
    assert len(border) > 300
    offsets = np.stack(np.meshgrid(*[[-0.25, 0.25]] * 3), axis=-1).reshape(-1, 3)
    parts_mm = apply_affine(affine, border[:, None] + offsets)
    expected = torso.evaluate(parts_mm)[1].mean(axis=1)
    assert np.abs(clean[tuple(border.T)] - expected).max() <= 0.51
    inside = binary_erosion(labels == value_of("spleen"), np.ones((3, 3, 3)))
    assert inside.any() and np.array_equal(clean[inside], sharp[inside])


def test_supersampling_misses_little() -> None:
    shape = (40, 32, 28)
    affine = torso.centred_affine(shape, (9.0, 9.0, 11.0))
    offsets = np.stack(np.meshgrid(*[[-0.25, 0.25]] * 3), axis=-1).reshape(-1, 3)
    centres = np.moveaxis(np.indices(shape), 0, -1)[..., None, :]
    full = torso.evaluate(apply_affine(affine, centres + offsets))[1].mean(axis=-1)
    image, labels = torso.sample(shape, affine, noise_hu=0)
    assert np.mean((np.abs(image - full) > 30)[labels > 0]) < 0.03


@pytest.mark.parametrize(
    ("name", "expected_hu"),
    [
        ("lung_right", -845),
        ("lung_left", -845),
        ("liver", 110),
        ("spleen", 120),
        ("kidney_right", 175),
        ("kidney_left", 175),
        ("aorta", 170),
        ("vena_cava", 150),
        ("liver_lesion", 60),
        ("lung_nodule", 30),
        ("gallbladder", 8),
        ("vertebra_L2", 200),
    ],
)
def test_organs_have_their_hu(name: str, expected_hu: float) -> None:
    value = value_of(name)
    box = np.stack([p.shape.box_mm for p in structures() if p.layers[0][1].label == name])
    low, high = np.clip(box[:, 0].min(axis=0), -250, 250), np.clip(box[:, 1].max(axis=0), -250, 250)
    low[2] = max(low[2], high[2] - 120)
    spacing = np.maximum((high - low) / 60, 0.5)
    shape = tuple(np.ceil((high - low) / spacing).astype(int))
    affine = nib.affines.from_matvec(np.diag(spacing), low)
    image, labels = torso.sample(shape, affine, supersample=1)
    inside = binary_erosion(labels == value, iterations=4)
    assert inside.sum() > 100
    assert image[inside].mean() == pytest.approx(expected_hu, abs=12)


def test_left_and_right_and_up_and_down(coarse) -> None:
    _, labels, affine = coarse
    middle = {
        name: apply_affine(affine, np.argwhere(labels == value)).mean(axis=0)
        for value, name in torso.LABELS.items()
        if (labels == value).any()
    }
    for right, left in (
        ("liver", "spleen"),
        ("kidney_right", "kidney_left"),
        ("vena_cava", "aorta"),
    ):
        assert middle[right][0] > middle[left][0] + 15
    assert middle["liver"][0] > 20 and middle["heart"][0] < -5
    assert middle["vertebra_L1"][1] < middle["aorta"][1] < middle["sternum"][1]
    assert middle["lung_left"][2] > middle["liver"][2] > middle["kidney_right"][2]
    assert middle["vertebra_T7"][2] > middle["vertebra_L4"][2] + 200


def test_no_structure_is_cut_off_by_its_box() -> None:
    generator = np.random.default_rng(0)
    for part in structures():
        low, high = np.clip(part.shape.box_mm, -300, 300) + np.array([[-4.0], [4.0]])
        points = low + (high - low) * generator.random((30_000, 3))
        outside = ((points < part.shape.box_mm[0]) | (points > part.shape.box_mm[1])).any(axis=1)
        distance = part.shape.field(*points[outside].T.astype(np.float32))
        assert (distance >= 0).all(), part.layers[0][1].name


# --- DICOM ----------------------------------------------------------------------------------------


def series_affine(axes: str, angle_deg: float = 0.0) -> np.ndarray:
    affine = torso.centred_affine(SERIES_SHAPE_IJK, (1.5, 1.25, 2.75), axes)
    affine[:3, 3] += (12.5, -31.0, 104.25)
    return rotated(affine, (3, -1, 2), angle_deg)


def series_image(seed: int = 3) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(-1024, 3072, SERIES_SHAPE_IJK).astype(np.int16)


def read_series(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return voxels [I, J, K] and RAS affine of the series in ``folder``, read by SimpleITK."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    steps = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    lps = nib.affines.from_matvec(steps, image.GetOrigin())
    return sitk.GetArrayFromImage(image).T, np.diag([-1, -1, 1, 1]) @ lps


@pytest.mark.parametrize(
    ("axes", "angle_deg"),
    [("LPS", 0), ("RAS", 0), ("PIR", 0), ("LIA", 0), ("LPS", 31), ("PIR", -17)],
)
def test_series_reads_back(tmp_path: Path, axes: str, angle_deg: float) -> None:
    image, affine = series_image(), series_affine(axes, angle_deg)
    left_handed = np.linalg.det(affine[:3, :3]) < 0
    paths = write_ct_series(image, affine, tmp_path)
    voxels, read_affine = read_series(tmp_path)
    if left_handed:  # readers stack the slices in the opposite order
        image = image[:, :, ::-1]
        affine = affine @ inv_ornt_aff([[0, 1], [1, 1], [2, -1]], SERIES_SHAPE_IJK)
    assert len(paths) == SERIES_SHAPE_IJK[2]
    assert voxels.dtype == np.int16 and np.array_equal(voxels, image)
    assert np.allclose(read_affine, affine, atol=1e-4)


REQUIRED = """
    SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID Modality
    ImageType PixelSpacing ImageOrientationPatient ImagePositionPatient SamplesPerPixel
    PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation
    RescaleIntercept RescaleSlope RescaleType PixelData PatientPosition
"""
MAY_BE_EMPTY = """
    PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber
    ReferringPhysicianName SeriesNumber InstanceNumber AcquisitionNumber SliceThickness KVP
    Manufacturer PositionReferenceIndicator ContentDate ContentTime
"""


def test_slices_have_every_attribute_and_their_uids(tmp_path: Path) -> None:
    paths = write_ct_series(series_image(), series_affine("LPS"), tmp_path, seed=8)
    slices = [pydicom.dcmread(path) for path in paths]
    for dataset in slices:
        assert all(dataset.get(name) not in (None, "") for name in REQUIRED.split())
        assert all(name in dataset for name in MAY_BE_EMPTY.split())
        assert dataset.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert dataset.SOPClassUID == pydicom.uid.CTImageStorage
    assert len({dataset.SOPInstanceUID for dataset in slices}) == len(slices)
    for shared in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert len({dataset[shared].value for dataset in slices}) == 1
    assert [dataset.InstanceNumber for dataset in slices] == list(range(1, len(slices) + 1))
    assert slices[0].PixelSpacing == [1.25, 1.5]  # between rows (along j) first


def test_uids_depend_on_seed_and_description(tmp_path: Path) -> None:
    def first(folder: str, **options) -> bytes:
        return write_ct_series(series_image(), series_affine("LPS"), tmp_path / folder, **options)[
            0
        ]

    one, same = first("one", description="a"), first("same", description="a")
    other, stranger = first("other", description="b"), first("stranger", seed=1, description="a")
    assert one.read_bytes() == same.read_bytes()
    one, other, stranger = (pydicom.dcmread(path) for path in (one, other, stranger))
    assert one.StudyInstanceUID == other.StudyInstanceUID != stranger.StudyInstanceUID
    assert one.SeriesInstanceUID != other.SeriesInstanceUID
    assert one.SOPInstanceUID != other.SOPInstanceUID


def test_series_refuse_input_that_dicom_cannot_store(tmp_path: Path) -> None:
    sheared = series_affine("LPS")
    sheared[0, 2] += 1.0
    with pytest.raises(ValueError, match="right angles"):
        write_ct_series(series_image(), sheared, tmp_path)
    with pytest.raises(ValueError, match="-2000"):
        write_ct_series(np.full((3, 4, 5), -2000), np.eye(4), tmp_path)
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        write_ct_series(np.zeros((3, 4)), np.eye(4), tmp_path)
    assert not list(tmp_path.iterdir())


# --- real scans -----------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path: Path) -> tuple[Path, tuple[Member, ...]]:
    """A small archive in place of the wheel, and its members."""
    label = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(np.array([[[0, 41], [50, 50]]], np.uint8), np.eye(4)), label)
    contents = {
        "x.dist-info/LICENSE": ("LICENSE-tptbox.txt", b"a licence"),
        "x/mask.nii.gz": ("labels/ct_spine.nii.gz", label.read_bytes()),
        "x/image.nii.gz": ("studies/ct_spine.nii.gz", b"an image"),
    }
    path = tmp_path / "fake.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for source, (_, content) in contents.items():
            archive.writestr(source, content)
    members = (
        Member(source, hashlib.sha256(content).hexdigest(), target)
        for source, (target, content) in contents.items()
    )
    return path, tuple(members)


def test_real_scans_come_out_of_the_wheel(tmp_path: Path, wheel) -> None:
    path, members = wheel
    out = tmp_path / "out"
    out.mkdir()
    prepare.build_real(out, path, members=members)
    assert (out / "studies/ct_spine.nii.gz").read_bytes() == b"an image"
    assert (out / "LICENSE-tptbox.txt").read_bytes() == b"a licence"
    names = json.loads((out / "labels/labels.json").read_text())
    assert names == {"ct_spine.nii.gz": {"41": "vertebral_arch", "50": "vertebral_body"}}
    path.unlink()
    prepare.build_real(out, path, members=members)  # all files exist: the wheel is not opened again
    (out / "studies/ct_spine.nii.gz").unlink()
    with pytest.raises(WheelError, match=r"fake\.whl"):
        prepare.build_real(out, path, members=members)


def test_nothing_is_extracted_from_a_changed_wheel(tmp_path: Path, wheel) -> None:
    path, members = wheel
    out = tmp_path / "out"
    out.mkdir()
    changed = (*members[:2], Member(members[2].source, "0" * 64, members[2].target))
    with pytest.raises(WheelError, match="SHA-256"):
        extract_members(path, changed, out)
    with pytest.raises(WheelError, match="no/such/file"):
        extract_members(path, (*members, Member("no/such/file", "", "x")), out)
    path.write_bytes(b"not a zip file")
    with pytest.raises(WheelError, match="not the expected wheel"):
        extract_members(path, members, out)
    assert not list(out.iterdir())


# --- the script -----------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "DEFAULT_SCAN", TINY_SCAN)


def tree(out: Path) -> dict[str, tuple[int, str]]:
    """Return modification time and digest of every file below ``out``."""
    return {
        str(path.relative_to(out)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in out.rglob("*")
        if path.is_file()
    }


def test_the_command_keeps_files_unless_forced(tmp_path: Path, tiny) -> None:
    arguments = ["--out", str(tmp_path), "--no-real"]
    assert prepare.main(arguments) == 0
    first = tree(tmp_path)
    slices = {f"dicom/ct_torso/slice-{k:04d}.dcm" for k in range(TINY_SCAN.shape_ijk[2])}
    files = {"studies/ct_torso.nii.gz", "labels/ct_torso.nii.gz", "labels/labels.json"}
    assert set(first) == slices | files
    assert prepare.main(arguments) == 0
    assert tree(tmp_path) == first
    (tmp_path / "labels/ct_torso.nii.gz").unlink()
    prepare.main(arguments)
    prepare.main([*arguments, "--force"])
    again = tree(tmp_path)
    assert {name: digest for name, (_, digest) in again.items()} == {
        name: digest for name, (_, digest) in first.items()
    }
    assert all(again[name][0] > first[name][0] for name in first)


def test_the_command_writes_one_torso_in_three_formats(tmp_path: Path, tiny, capsys) -> None:
    prepare.main(["--out", str(tmp_path), "--no-real"])
    image = nib.load(tmp_path / "studies/ct_torso.nii.gz")
    label = nib.load(tmp_path / "labels/ct_torso.nii.gz")
    voxels, affine = read_series(tmp_path / "dicom/ct_torso")
    assert image.get_data_dtype() == np.int16 and nib.aff2axcodes(image.affine) == ("L", "P", "S")
    assert image.header["qform_code"] > 0 and image.header["sform_code"] > 0
    assert np.array_equal(voxels, np.asarray(image.dataobj))
    assert np.allclose(affine, image.affine, atol=1e-4)
    assert np.array_equal(label.affine, image.affine) and label.shape == image.shape
    names = json.loads((tmp_path / "labels/labels.json").read_text())["ct_torso.nii.gz"]
    values = np.unique(np.asarray(label.dataobj))
    assert {int(value) for value in names} == set(values[values > 0].tolist())
    assert names[str(value_of("liver"))] == "liver"
    assert str(tmp_path / "studies/ct_torso.nii.gz") in capsys.readouterr().out


def test_the_command_continues_without_the_real_scans(tmp_path: Path, tiny, monkeypatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip finds nothing, as without a network
    with pytest.warns(UserWarning, match="--wheel") as warnings:
        assert prepare.main(["--out", str(tmp_path)]) == 0
    assert len(warnings) == 1
    assert (tmp_path / "studies/ct_torso.nii.gz").is_file()
    assert not list(tmp_path.glob(".partial-*"))


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_failed_replacement_changes_nothing(tmp_path: Path, as_folder: bool) -> None:
    target = tmp_path / "target"
    content = target
    if as_folder:
        target.mkdir()
        content = target / "file"
    content.write_text("old")
    with pytest.raises(RuntimeError), replacing(target, tmp_path) as partial:
        partial.mkdir() if as_folder else partial.write_text("half")
        raise RuntimeError
    assert content.read_text() == "old" and list(tmp_path.iterdir()) == [target]
