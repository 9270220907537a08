"""The steps before and after the network as dictionary transforms, in the order they run."""

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
from lib.infers.request import requested_size
from lib.infers.scale import RoiScale

Data = dict[str, Any]


class LoadVolumed:
    """Read ``image_path`` into ``volume``, from the cache unless the file changed.

    ``volume_key`` identifies the state of the file.
    """

    def __init__(self, volumes: ByteCache[Volume]) -> None:
        self._volumes = volumes

    def __call__(self, data: Data) -> Data:
        path = Path(data["image_path"])
        key = volume_key(path)
        data["volume"] = self._volumes.get_or_make(key, lambda: read_volume(path))
        data["volume_key"] = key
        return data


def volume_key(path: Path) -> Hashable:
    """Return a key that changes when the file, or any file of a DICOM folder, is replaced."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [file.stat() for file in files if file.exists()]
    # with ctime, because a tool that restores mtime cannot set it
    states = tuple((s.st_ino, s.st_ctime_ns, s.st_mtime_ns, s.st_size) for s in stats)
    return (str(path.resolve()), states)


class ParsePromptsd:
    """Parse ``foreground``, ``background`` and ``roi`` of the request into ``prompts``."""

    def __call__(self, data: Data) -> Data:
        volume: Volume = data["volume"]
        data["prompts"] = parse_prompts(data, volume.shape_ijk, volume.affine_mm)
        return data


class PlaceRoid:
    """Place the ROI around the clicks of ``prompts``, as ``roi_cube``.

    The option ``size`` of the request asks for a smaller or larger voxel.
    """

    def __init__(self, scale: RoiScale) -> None:
        self._scale = scale

    def __call__(self, data: Data) -> Data:
        volume: Volume = data["volume"]
        points_ijk = data["prompts"].points_ijk
        data["roi_cube"] = Roi.place(
            volume.shape_ijk,
            volume.affine_mm,
            points_ijk,
            size=self._scale.roi_size,
            spacing_mm=self._scale.spacing_mm(
                volume, data["volume_key"], points_ijk[0], requested_size(data)
            ),
        )
        return data


class PasteRoid:
    """Paste ``values`` (s, s, s) > ``threshold`` into the stored image, as ``pred``.

    The box of ``pred`` also holds the clicks, which may lie outside of the network's mask.
    """

    def __call__(self, data: Data) -> Data:
        volume, prompts = data["volume"], data["prompts"]
        values, box_ijk = data["roi_cube"].paste_box(
            data["values"], data["threshold"], within_ijk=prompts.within_ijk
        )
        mask = BoxMask(values, box_ijk, volume.shape_ijk, volume.affine_mm)
        data["pred"] = mask.including(allowed_voxels(prompts))
        return data


def allowed_voxels(prompts: Prompts) -> np.ndarray:
    """Return the clicked voxels (N, 3) inside the box that the mask is limited to."""
    allowed = [prompts.is_within(*voxel) for voxel in prompts.voxels_ijk]
    return prompts.voxels_ijk[allowed]


class LabelClickedVoxelsd:
    """Set the clicked voxels of ``pred`` to their label, and collect ``warnings`` for the user.

    Clicked voxels always get their label, so a foreground click never returns an empty mask, for
    which a viewer would keep showing its last one. A warning says when the network found nothing.
    Raises InputError if ``pred`` is still empty.
    """

    def __call__(self, data: Data) -> Data:
        prompts, mask = data["prompts"], data["pred"]
        data["warnings"] = [*data["volume"].warnings, *prompts.warnings]
        network_found_something = mask.values.any()
        for (i, j, k), label in zip(prompts.voxels_ijk, prompts.labels, strict=True):
            if prompts.is_within(i, j, k):
                mask.set_voxel(i, j, k, label)
        if not mask.values.any():
            raise InputError(_explain_empty_mask(prompts))
        if not network_found_something:
            data["warnings"].append(_explain_nothing_found(prompts))
        return data


def _explain_empty_mask(prompts: Prompts) -> str:
    if FOREGROUND not in prompts.labels:
        return "there are only background clicks; choose the label and click on the structure"
    return "the mask is empty: all clicks lie outside of the box or on each other; move them"


def _explain_nothing_found(prompts: Prompts) -> str:
    foreground = int((prompts.labels == FOREGROUND).sum())
    clicks = "this click" if foreground == 1 else f"these {foreground} clicks"
    cures = ["click again, further inside the structure"]
    if foreground < len(prompts.labels):
        cures.append("remove background clicks near it")
    if prompts.within_ijk is not None:
        cures.append("widen the box")
    return f"nothing was found at {clicks}, only the clicks are marked; {', or '.join(cures)}"


Transforms = list[Callable[[Data], Data]]
