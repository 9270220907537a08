"""The steps around the network as dictionary transforms, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np

from lib.cache import ByteCache
from lib.errors import InputError
from lib.imaging.mask import BoxMask
from lib.imaging.roi import Roi
from lib.imaging.volume import Volume, read_volume
from lib.infers.prompts import FOREGROUND, Prompts, parse_prompts

Data = dict[str, Any]


class LoadVolumed:
    """``image_path`` -> ``volume`` and ``volume_key``; decoded once while the file is the same."""

    def __init__(self, volumes: ByteCache[Volume]) -> None:
        self._volumes = volumes

    def __call__(self, data: Data) -> Data:
        path = Path(data["image_path"])
        key = volume_key(path)
        data["volume"] = self._volumes.get_or_make(key, lambda: read_volume(path))
        data["volume_key"] = key
        return data


def volume_key(path: Path) -> Hashable:
    """Changes when the file, or any file of a DICOM folder, is replaced."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [file.stat() for file in files if file.exists()]
    # ctime too: a tool that restores mtime cannot set it
    marks = tuple((stat.st_ino, stat.st_ctime_ns, stat.st_mtime_ns, stat.st_size) for stat in stats)
    return (str(path.resolve()), marks)


class ParsePromptsd:
    """``foreground``, ``background``, ``roi`` of the request -> ``prompts``, all on ``volume``."""

    def __call__(self, data: Data) -> Data:
        data["prompts"] = parse_prompts(data, data["volume"].shape_ijk)
        return data


class PlaceRoid:
    """The clicks -> ``roi_cube``, the ROI around them."""

    def __init__(self, size: int, spacing_mm: float) -> None:
        self._size = size
        self._spacing_mm = spacing_mm

    def __call__(self, data: Data) -> Data:
        volume: Volume = data["volume"]
        data["roi_cube"] = Roi.place(
            volume.shape_ijk,
            volume.affine_mm,
            data["prompts"].points_ijk,
            size=self._size,
            spacing_mm=self._spacing_mm,
        )
        return data


class PasteRoid:
    """``values``, (s, s, s) on the ROI, and ``threshold`` -> ``pred``, the mask on the stored grid.

    Its box holds the clicks, which may lie a little outside of what the network marked.
    """

    def __call__(self, data: Data) -> Data:
        volume, prompts = data["volume"], data["prompts"]
        found, box_ijk = data["roi_cube"].paste_box(
            data["values"], data["threshold"], within_ijk=prompts.within_ijk
        )
        mask = BoxMask(found, box_ijk, volume.shape_ijk, volume.affine_mm)
        data["pred"] = mask.including(allowed_voxels(prompts))
        return data


def allowed_voxels(prompts: Prompts) -> np.ndarray:
    """(N, 3), the clicked voxels inside of the box that the mask is limited to."""
    allowed = [prompts.is_within(*voxel) for voxel in prompts.voxels_ijk]
    return prompts.voxels_ijk[allowed]


class HonourClicksd:
    """Clicked voxels of ``pred`` are what the clicks say, whatever the network says of them.

    So no answer to a foreground click is empty: a viewer would go on showing its last mask. What
    the network did not find is said in ``warnings``. Raises InputError where ``pred`` stays empty.
    """

    def __call__(self, data: Data) -> Data:
        prompts, mask = data["prompts"], data["pred"]
        data["warnings"] = list(prompts.warnings)
        found = mask.values.any()
        for (i, j, k), label in zip(prompts.voxels_ijk, prompts.labels, strict=True):
            if prompts.is_within(i, j, k):
                mask.set_voxel(i, j, k, label)
        if not mask.values.any():
            raise InputError(_explain_empty(prompts))
        if not found:
            data["warnings"].append(_explain_unfound(prompts))
        return data


def _explain_empty(prompts: Prompts) -> str:
    if FOREGROUND not in prompts.labels:
        return "there are only background clicks; choose the label and click on the structure"
    return "the mask is empty: all clicks lie outside of the box, or on each other; move them"


def _explain_unfound(prompts: Prompts) -> str:
    foreground = int((prompts.labels == FOREGROUND).sum())
    clicks = "this click" if foreground == 1 else f"these {foreground} clicks"
    cures = ["click again, further inside the structure"]
    if foreground < len(prompts.labels):
        cures.append("remove background clicks near it")
    if prompts.within_ijk is not None:
        cures.append("widen the box")
    return f"nothing was found at {clicks}, only the clicks are marked; {', or '.join(cures)}"


Transforms = list[Callable[[Data], Data]]
