"""Check that a server puts its masks where the clicks are, however a scan is stored.

    python apps/fastsam3d/selftest.py --server http://127.0.0.1:8000 [--image ID] [--click i,j,k]

The command stores one scan in all 48 orders and flips of its axes, as .nii.gz and .nrrd. It sends
each file to the server as a session, clicks at the same positions in the patient, and compares the
masks in space with the mask of the first file. The exit code is 0 if all masks agree and the first
one contains the clicks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import requests
import SimpleITK as sitk
from nibabel.affines import apply_affine
from nibabel.orientations import apply_orientation, inv_ornt_aff
from tqdm import tqdm

from lib.errors import AppError
from lib.imaging.mask import dice
from lib.imaging.mask_file import write_mask
from lib.imaging.volume import read_volume

FORMATS = (".nii.gz", ".nrrd")
ORIENTATIONS = [
    np.column_stack([axes, flips])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product([1, -1], repeat=3)
]
"""ORIENTATIONS: all 48, each (3, 2) as in nibabel; the first one changes nothing."""

LEAST_DICE = 0.95
"""LEAST_DICE: masks with a lower Dice lie somewhere else."""

DEFAULT_CLICK = (0.4, 0.45, 0.55)
"""DEFAULT_CLICK: the position in a scan, as parts of its axes: inside, but off the centre."""

TIMEOUT_S = 600


class SelftestError(AppError):
    """The test cannot continue; the message says why."""


@dataclass(frozen=True, eq=False)
class ClickedScan:
    """A scan (I, J, K), its affine (4, 4) to RAS mm, and clicks (N, 3) at stored voxels."""

    array_ijk: np.ndarray
    affine_mm: np.ndarray
    clicks_ijk: np.ndarray

    def reoriented(self, orientation: np.ndarray) -> ClickedScan:
        """Return the same scan and clicks in space with the voxels stored in another order.

        orientation: (3, 2) as in nibabel.
        """
        to_self = inv_ornt_aff(orientation, self.array_ijk.shape)
        return ClickedScan(
            apply_orientation(self.array_ijk, orientation),
            self.affine_mm @ to_self,
            np.rint(apply_affine(np.linalg.inv(to_self), self.clicks_ijk)).astype(int),
        )


def phantom() -> ClickedScan:
    """Return an organ of two unequal lobes off the centre of a body, with a click in each lobe."""
    shape, spacing_mm = (72, 64, 46), np.array([2.5, 2.8, 4.0])
    i, j, k = (np.indices(shape).transpose(1, 2, 3, 0) * spacing_mm).transpose(3, 0, 1, 2)
    hu = np.random.default_rng(0).normal(0, 8, shape)
    hu += np.where(((i - 90) / 80) ** 2 + ((j - 90) / 70) ** 2 < 1, 40, -1000)
    for centre_mm, radii_mm in (((65, 70, 110), (24, 18, 28)), ((88, 92, 84), (15, 19, 13))):
        squares = [
            ((x - c) / r) ** 2 for x, c, r in zip((i, j, k), centre_mm, radii_mm, strict=True)
        ]
        hu[sum(squares) < 1] = 180
    affine_mm = nib.affines.from_matvec(np.diag([-1, -1, 1] * spacing_mm), [90, 70, -110])
    return ClickedScan(hu.astype(np.int16), affine_mm, np.array([[26, 25, 27], [35, 33, 21]]))


class Client:
    """The requests that the test sends to a server."""

    def __init__(self, url: str, model: str) -> None:
        self.url = url.rstrip("/")
        self.model = model

    def download(self, image: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """Return array (I, J, K) and affine (4, 4) to RAS mm of one of the server's images."""
        reply = self._request("GET", "/datastore/image", params={"image": image})
        name = reply.headers.get("content-disposition", "").rpartition("filename=")[2].strip('"')
        path = folder / f"image{'.nrrd' if name.endswith('.nrrd') else '.nii.gz'}"
        path.write_bytes(reply.content)
        volume = read_volume(path)
        return volume.array, volume.affine_mm

    def mask(self, path: Path, clicks_ijk: np.ndarray) -> sitk.Image:
        """Upload an image, click on voxels (N, 3), and return the mask."""
        params = {"foreground": clicks_ijk.tolist(), "result_extension": ".nrrd"}
        with self._session(path) as session, tempfile.NamedTemporaryFile(suffix=".nrrd") as file:
            reply = self._request(
                "POST",
                f"/infer/{self.model}",
                params={"image": path.name, "session_id": session, "output": "image"},
                data={"params": json.dumps(params)},
            )
            Path(file.name).write_bytes(reply.content)
            return sitk.ReadImage(file.name)

    @contextmanager
    def _session(self, path: Path) -> Iterator[str]:
        with path.open("rb") as file:
            session = self._request("PUT", "/session/", files={"files": (path.name, file)}).json()
        try:
            yield session["session_id"]
        finally:
            self._request("DELETE", f"/session/{session['session_id']}")

    def _request(self, method: str, path: str, **arguments: Any) -> requests.Response:
        try:
            reply = requests.request(method, self.url + path, timeout=TIMEOUT_S, **arguments)
        except requests.RequestException as error:
            raise SelftestError(f"{self.url} does not answer: {error}") from error
        if not reply.ok:
            raise SelftestError(f"{method} {path}: {reply.status_code} {reply.text}")
        return reply


DiceByFile = dict[tuple[str, str], float]
"""DiceByFile: the Dice of each (orientation, extension)."""


def compare(client: Client, scan: ClickedScan) -> tuple[DiceByFile, int]:
    """Return the Dice of each file's mask with the first one, and the number of clicks in that one.

    Shows a progress bar on stderr.
    """
    dice_by_file: DiceByFile = {}
    reference, hits = None, 0
    cases = [*itertools.product(ORIENTATIONS, FORMATS)]
    with tempfile.TemporaryDirectory() as folder:
        for orientation, extension in tqdm(cases, unit="click", disable=None):
            stored = scan.reoriented(orientation)
            path = Path(folder, f"scan{extension}")
            write_mask(stored.array_ijk, stored.affine_mm, path, compress=True)
            mask = client.mask(path, stored.clicks_ijk)
            if reference is None:
                reference = mask
                hits = sum(mask[click] > 0 for click in scan.clicks_ijk.tolist())
            name = "".join(nib.aff2axcodes(stored.affine_mm))
            dice_by_file[name, extension] = dice_in_space(mask, reference)
    return dice_by_file, hits


def dice_in_space(mask: sitk.Image, reference: sitk.Image) -> float:
    """Return the Dice of two masks in space, on the grid of the second one."""
    resampled = sitk.Resample(mask, reference, sitk.Transform(), sitk.sitkNearestNeighbor)
    return dice(*(sitk.GetArrayViewFromImage(each) > 0 for each in (resampled, reference)))


def report(dice_by_file: DiceByFile) -> str:
    """Return a table with a line for each orientation."""
    names = [*dict.fromkeys(name for name, _ in dice_by_file)]
    lines = ["stored as  " + "  ".join(f"{extension:>8}" for extension in FORMATS)]
    for name in names:
        values = "  ".join(f"{dice_by_file[name, extension]:8.3f}" for extension in FORMATS)
        lines.append(f"{name:<9}  {values}")
    return "\n".join(lines)


def find_faults(dice_by_file: DiceByFile, hits: int, clicks: int) -> list[str]:
    """Return a message for each check that failed.

    hits: the number of clicks inside the first mask. clicks: the number of all clicks.
    """
    faults = []
    failed = sum(value < LEAST_DICE for value in dice_by_file.values())
    if failed:
        faults.append(f"{failed} of {len(dice_by_file)} masks lie elsewhere than the first")
    if hits < clicks:
        faults.append(
            f"the first mask contains {hits} of {clicks} clicks: it lies elsewhere, or the model "
            "does not find the clicked structure; choose another --click"
        )
    return faults


def parse_click(text: str) -> list[int]:
    """Parse "i,j,k"; argparse reports the errors."""
    click = [int(number) for number in text.split(",")]
    if len(click) != 3:
        raise argparse.ArgumentTypeError("a click is i,j,k")
    return click


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if all masks agree, 1 if not or if the server gives no answer or an error."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--server", required=True, help="its address, http://127.0.0.1:8000")
    parser.add_argument("--image", help="one of the server's own images; default: a phantom")
    parser.add_argument(
        "--click",
        type=parse_click,
        action="append",
        metavar="I,J,K",
        help="a voxel of the image to click on; may be repeated",
    )
    parser.add_argument("--model", default="fastsam3d")
    options = parser.parse_args(arguments)
    client = Client(options.server, options.model)
    try:
        scan = phantom()
        if options.image:
            with tempfile.TemporaryDirectory() as folder:
                array, affine_mm = client.download(options.image, Path(folder))
            click = np.rint(np.array(array.shape) * DEFAULT_CLICK).astype(int)
            scan = ClickedScan(array, affine_mm, np.array([click]))
        if options.click:
            scan = ClickedScan(scan.array_ijk, scan.affine_mm, np.array(options.click))
        dice_by_file, hits = compare(client, scan)
    except AppError as error:
        print(error, file=sys.stderr)
        return 1
    faults = find_faults(dice_by_file, hits, len(scan.clicks_ijk))
    print(report(dice_by_file))
    print(
        f"{'FAILED' if faults else 'passed'}; least Dice {min(dice_by_file.values()):.3f}",
        *faults,
        sep="\n",
    )
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
