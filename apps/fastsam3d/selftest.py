"""Does a server put its masks where the clicks are, however a scan is stored?

    python apps/fastsam3d/selftest.py --server http://127.0.0.1:8000 [--image ID] [--click i,j,k]

Stores one scan in the 48 ways in which three axes can be ordered and flipped, as .nii.gz and .nrrd,
sends each to the server as a session, clicks at the same places in the patient, and compares the
masks in space with that of the scan as it is. Exit code 0: all agree, and hold the clicks.
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

import nibabel as nib
import numpy as np
import requests
import SimpleITK as sitk
from nibabel.affines import apply_affine
from nibabel.orientations import apply_orientation, inv_ornt_aff
from tqdm import tqdm

from lib.errors import AppError
from lib.imaging.mask_file import write_mask
from lib.imaging.volume import read_volume

FORMATS = (".nii.gz", ".nrrd")
ORIENTATIONS = [
    np.column_stack([axes, flips])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product([1, -1], repeat=3)
]
"""All 48, each (3, 2) as nibabel's; the first leaves a scan as it is."""

LEAST_DICE = 0.95
OFF_CENTRE = (0.4, 0.45, 0.55)  # where a scan is clicked unless told otherwise: in it, off centre
TIMEOUT_S = 600


class SelftestError(AppError):
    """The test cannot go on; the message says why."""


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan (I, J, K), its affine (4, 4) to RAS mm, and clicks (N, 3) on its voxels."""

    array_ijk: np.ndarray
    affine_mm: np.ndarray
    clicks_ijk: np.ndarray

    def reoriented(self, orientation: np.ndarray) -> Scan:
        """The same scan and clicks in space, with its voxels stored in another order."""
        to_self = inv_ornt_aff(orientation, self.array_ijk.shape)
        return Scan(
            apply_orientation(self.array_ijk, orientation),
            self.affine_mm @ to_self,
            np.rint(apply_affine(np.linalg.inv(to_self), self.clicks_ijk)).astype(int),
        )


def phantom() -> Scan:
    """An organ of two unequal lobes, off the centre of a body in air; a click in each lobe."""
    shape, spacing_mm = (72, 64, 46), np.array([2.5, 2.8, 4.0])
    i, j, k = (np.indices(shape).transpose(1, 2, 3, 0) * spacing_mm).transpose(3, 0, 1, 2)
    hu = np.random.default_rng(0).normal(0, 8, shape)
    hu += np.where(((i - 90) / 80) ** 2 + ((j - 90) / 70) ** 2 < 1, 40, -1000)
    for centre_mm, radii_mm in (((65, 70, 110), (24, 18, 28)), ((88, 92, 84), (15, 19, 13))):
        away = [((x - c) / r) ** 2 for x, c, r in zip((i, j, k), centre_mm, radii_mm, strict=True)]
        hu[sum(away) < 1] = 180
    affine_mm = nib.affines.from_matvec(np.diag([-1, -1, 1] * spacing_mm), [90, 70, -110])
    return Scan(hu.astype(np.int16), affine_mm, np.array([[26, 25, 27], [35, 33, 21]]))


class Client:
    """The server's requests that the test needs."""

    def __init__(self, url: str, model: str) -> None:
        self.url = url.rstrip("/")
        self.model = model

    def download(self, image: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """Array and affine of one of the server's own images."""
        reply = self._request("GET", "/datastore/image", params={"image": image})
        name = reply.headers.get("content-disposition", "").rpartition("filename=")[2].strip('"')
        path = folder / f"image{'.nrrd' if name.endswith('.nrrd') else '.nii.gz'}"
        path.write_bytes(reply.content)
        volume = read_volume(path)
        return volume.array, volume.affine_mm

    def mask(self, path: Path, clicks_ijk: np.ndarray) -> sitk.Image:
        """The mask of clicks on an image of our own."""
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

    def _request(self, method: str, path: str, **arguments) -> requests.Response:
        try:
            reply = requests.request(method, self.url + path, timeout=TIMEOUT_S, **arguments)
        except requests.RequestException as error:
            raise SelftestError(f"{self.url} does not answer: {error}") from error
        if not reply.ok:
            raise SelftestError(f"{method} {path}: {reply.status_code} {reply.text}")
        return reply


Dice = dict[tuple[str, str], float]


def compare(client: Client, scan: Scan) -> tuple[Dice, int]:
    """Dice of each (orientation, format) with the scan as it is, whose mask holds so many clicks.

    Shows a progress bar on stderr.
    """
    dice: Dice = {}
    reference = None
    cases = [*itertools.product(ORIENTATIONS, FORMATS)]
    with tempfile.TemporaryDirectory() as folder:
        for orientation, extension in tqdm(cases, unit="click", disable=None):
            stored = scan.reoriented(orientation)
            path = Path(folder, f"scan{extension}")
            write_mask(stored.array_ijk, stored.affine_mm, path, compress=True)
            mask = client.mask(path, stored.clicks_ijk)
            reference = reference or mask
            name = "".join(nib.aff2axcodes(stored.affine_mm))
            dice[name, extension] = dice_in_space(mask, reference)
    held = sum(reference[click] > 0 for click in scan.clicks_ijk.tolist())
    return dice, held


def dice_in_space(mask: sitk.Image, reference: sitk.Image) -> float:
    """Dice of two masks in the patient, on the grid of the second."""
    moved = sitk.Resample(mask, reference, sitk.Transform(), sitk.sitkNearestNeighbor)
    a, b = (sitk.GetArrayViewFromImage(each) > 0 for each in (moved, reference))
    return 2 * float(np.sum(a & b)) / max(1.0, float(a.sum() + b.sum()))


def report(dice: Dice) -> str:
    """A line for each orientation."""
    names = [*dict.fromkeys(name for name, _ in dice)]
    lines = ["stored as  " + "  ".join(f"{extension:>8}" for extension in FORMATS)]
    for name in names:
        values = "  ".join(f"{dice[name, extension]:8.3f}" for extension in FORMATS)
        lines.append(f"{name:<9}  {values}")
    return "\n".join(lines)


def find_faults(dice: Dice, held: int, clicks: int) -> list[str]:
    """A sentence for each thing that is not as it should be."""
    faults = []
    failed = sum(value < LEAST_DICE for value in dice.values())
    if failed:
        faults.append(f"{failed} of {len(dice)} masks lie elsewhere than the first")
    if held < clicks:
        faults.append(
            f"the first mask holds {held} of {clicks} clicks: it lies elsewhere, or the model does "
            "not find what was clicked on; choose another --click"
        )
    return faults


def parse_click(text: str) -> list[int]:
    click = [int(number) for number in text.split(",")]
    if len(click) != 3:
        raise argparse.ArgumentTypeError("a click is i,j,k")
    return click


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all masks agree, 1 if not, or if the server does not answer or refuses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
            centre = np.rint(np.array(array.shape) * OFF_CENTRE).astype(int)
            scan = Scan(array, affine_mm, np.array([centre]))
        if options.click:
            scan = Scan(scan.array_ijk, scan.affine_mm, np.array(options.click))
        dice, held = compare(client, scan)
    except AppError as error:
        print(error, file=sys.stderr)
        return 1
    faults = find_faults(dice, held, len(scan.clicks_ijk))
    print(report(dice))
    print(
        f"{'FAILED' if faults else 'passed'}; least Dice {min(dice.values()):.3f}",
        *faults,
        sep="\n",
    )
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
