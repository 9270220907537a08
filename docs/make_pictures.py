"""Draw docs/images/click.png: the masks of a few clicks on the sample CT.

.venv/bin/python docs/make_pictures.py [--server http://127.0.0.1:8000] [--image ct_torso]

The masks come from a running server (make serve), so the picture shows the served weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import matplotlib
import nibabel as nib
import numpy as np
import requests
import SimpleITK as sitk
from scipy import ndimage

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
matplotlib.use("Agg")

from benchmarks.display import SOFT_TISSUE_HU, VIEWS  # noqa: E402 (adds the app to the path)
from matplotlib import pyplot as plt  # noqa: E402 (the backend comes first)

from lib.imaging.mask import dice  # noqa: E402

BUILD = HERE.parent / "sample-data" / "build"
STRUCTURES = ("liver", "kidney_right", "spleen", "aorta")
COLOURS = ("tab:orange", "tab:cyan", "tab:green", "tab:pink")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="http://127.0.0.1:8000")
    parser.add_argument("--image", default="ct_torso")
    parser.add_argument("--clicks", type=int, default=5, help="clicks on each structure")
    options = parser.parse_args()

    image = nib.load(BUILD / "studies" / f"{options.image}.nii.gz")
    labels = np.asarray(nib.load(BUILD / "labels" / f"{options.image}.nii.gz").dataobj)
    names = json.loads((BUILD / "labels" / "labels.json").read_text())[f"{options.image}.nii.gz"]
    value_of = {name: int(value) for value, name in names.items()}

    figure, axes = plt.subplots(len(STRUCTURES), 3, figsize=(9, 11), facecolor="black")
    for row, structure, colour in zip(axes, STRUCTURES, COLOURS, strict=True):
        target = labels == value_of[structure]
        mask = np.zeros_like(target)
        clicks = {"foreground": [], "background": []}
        for _ in range(options.clicks):
            add_click(clicks, mask, target)
            mask = segment(options.server, options.image, clicks)
        draw_row(row, image, mask, target, clicks, colour, structure)
    figure.tight_layout()
    (HERE / "images").mkdir(exist_ok=True)
    figure.savefig(HERE / "images" / "click.png", dpi=90, facecolor="black")


def innermost_voxel(target: np.ndarray) -> list[int]:
    """Return the voxel [i, j, k] of a structure (I, J, K) that is furthest from its surface."""
    depth = ndimage.distance_transform_edt(target)
    return [int(index) for index in np.unravel_index(depth.argmax(), depth.shape)]


def add_click(clicks: dict[str, list], mask: np.ndarray, target: np.ndarray) -> None:
    """Add a click in the middle of the larger error: the missing voxels, or the excess ones.

    clicks: `foreground` and `background`, lists of [i, j, k]. mask, target: (I, J, K) bool.
    """
    missing, excess = target & ~mask, mask & ~target
    is_missing = missing.sum() >= excess.sum()
    error = missing if is_missing else excess
    clicks["foreground" if is_missing else "background"].append(innermost_voxel(error))


def segment(server: str, image: str, clicks: dict[str, list]) -> np.ndarray:
    """Return the mask (I, J, K) bool that the server computes from the clicks."""
    params = {**clicks, "result_extension": ".nrrd"}
    reply = requests.post(
        f"{server}/infer/fastsam3d",
        params={"image": image, "output": "image"},
        data={"params": json.dumps(params)},
        timeout=120,
    )
    reply.raise_for_status()
    with tempfile.NamedTemporaryFile(suffix=".nrrd") as file:
        file.write(reply.content)
        file.flush()
        return sitk.GetArrayFromImage(sitk.ReadImage(file.name)).transpose().astype(bool)


def draw_row(row, image, mask, target, clicks, colour, structure) -> None:
    """Draw a structure in the three planes through its first click: mask filled, border dashed."""
    first_ijk = clicks["foreground"][0]
    volume, zooms = np.asarray(image.dataobj), image.header.get_zooms()
    low, high = SOFT_TISSUE_HU
    for axis, (view, (across, up)) in zip(row, VIEWS.items(), strict=True):
        cut = [slice(None)] * 3
        through = ({0, 1, 2} - {across, up}).pop()
        cut[through] = first_ijk[through]
        plane = tuple(cut)
        options = {"origin": "upper" if up == 1 else "lower", "aspect": zooms[up] / zooms[across]}
        axis.imshow(volume[plane].T, cmap="gray", vmin=low, vmax=high, **options)
        if mask[plane].any():
            axis.contourf(mask[plane].T, levels=[0.5, 1], colors=[colour], alpha=0.5)
        if target[plane].any():
            axis.contour(target[plane].T, levels=[0.5], colors="white", linestyles="--")
        axis.plot(first_ijk[across], first_ijk[up], "+", color="red", markersize=12)
        axis.set_title(f"{structure}, {view}, Dice {dice(mask, target):.2f}", color="white", size=8)
        axis.axis("off")


if __name__ == "__main__":
    main()
