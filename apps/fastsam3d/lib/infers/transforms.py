"""The steps before and after the network as dictionary transforms, in the order they run."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lib.cache import ByteCache
from lib.errors import InputError
from lib.imaging.mask import BoxMask
from lib.imaging.volume import Volume, read_volume
from lib.infers.initial_mask import (
    file_digest,
    read_initial,
    split_by_distance,
    start_of,
    structure_box,
)
from lib.infers.outputs import make_outputs
from lib.infers.prompt_parser import parse_prompts
from lib.infers.prompts import Prompt, Prompts
from lib.infers.request import (
    INITIAL_MASK,
    START_FROM,
    requested_outputs,
    requested_overwrite,
    requested_size,
)
from lib.infers.scale import RoiScale
from lib.infers.semantic_mask import compose
from lib.infers.structures import RoiPlacer, RoiStructure, structures_of

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
    """Parse the prompts of the request into ``prompts``."""

    def __call__(self, data: Data) -> Data:
        volume: Volume = data["volume"]
        data["prompts"] = parse_prompts(data, volume.shape_ijk, volume.affine_mm)
        return data


class ReadInitialMaskd:
    """Read the file ``initial_mask`` of the request into ``initial``, from the cache if known.

    ``initial`` is a BoxMask of structures' numbers, or None if the request has no such file.
    """

    def __init__(self, masks: ByteCache[BoxMask]) -> None:
        self._masks = masks

    def __call__(self, data: Data) -> Data:
        path, volume = data.get(INITIAL_MASK), data["volume"]
        data["initial"] = None
        if path:
            key = (file_digest(path), data["volume_key"])
            name = INITIAL_MASK if data.get(START_FROM) is None else START_FROM
            data["initial"] = self._masks.get_or_make(key, lambda: read_initial(path, volume, name))
        return data


class PlaceRoisd:
    """Find the structures that the prompts are about, each with its ROI, as ``structures``.

    A structure with prompts far from its given mask is there twice: the given mask, and the part
    that these prompts mark, which has a ROI of its own. The option ``size`` of the request asks for
    smaller or larger voxels of the ROIs.
    """

    def __init__(self, scale: RoiScale, low_res_size: int) -> None:
        self._scale = scale
        self._low_res_size = low_res_size

    def __call__(self, data: Data) -> Data:
        prompts, initial = data["prompts"], data["initial"]
        placer = RoiPlacer(self._scale, data["volume"], data["volume_key"], requested_size(data))
        data["structures"] = []
        for number in structures_of(prompts, initial):
            own: tuple[Prompt, ...] = prompts.about(number)
            far: tuple[Prompt, ...] = ()
            start_box_ijk = structure_box(initial, number) if initial else None
            if start_box_ijk is not None:
                own, far = split_by_distance(own, initial, number)
            roi = placer.place(own, start_box_ijk)
            start = start_of(initial, number, roi, self._low_res_size)
            data["structures"].append(RoiStructure(number, roi, own, start))
            if far:
                roi = placer.place(far, None)
                data["structures"].append(RoiStructure(number, roi, far, None))
        warnings = dict.fromkeys((*prompts.warnings, *placer.warnings))
        data["prompts"] = replace(prompts, warnings=tuple(warnings))
        return data


class PasteStructuresd:
    """Paste the masks of all ``structures`` into the stored image, as ``pred``.

    Marked voxels always get their structure, so a foreground click never returns an empty mask, for
    which a viewer would keep showing its last one. ``warnings`` for the user are collected; one
    says when the network found nothing. Raises InputError if ``pred`` has no voxel of a structure
    of the request.
    """

    def __call__(self, data: Data) -> Data:
        prompts, structures = data["prompts"], data["structures"]
        marked = compose(
            structures, prompts, data["volume"], data["initial"], requested_overwrite(data)
        )
        data["pred"] = marked.mask
        data["warnings"] = [*data["volume"].warnings, *prompts.warnings]
        numbers = list(dict.fromkeys(structure.number for structure in structures))
        if not any((marked.mask.values == number).any() for number in numbers):
            raise InputError(
                "the mask is empty: all prompts lie outside of the box or on each other; move them"
            )
        for number in numbers:
            if number not in marked.found:
                data["warnings"].append(_explain_nothing_found(prompts, number))
            elif number in marked.covered:
                data["warnings"].append(
                    f"all that was found of structure {number} belongs to other structures; move "
                    "its prompts, or send overwrite true to take voxels of a given mask"
                )
        if marked.hidden:
            data["warnings"].append(
                f"{marked.hidden} marked voxels belong to protected structures and stay as they "
                "are; send overwrite true to change them"
            )
        return data


def _explain_nothing_found(prompts: Prompts, structure: int) -> str:
    own = prompts.about(structure)
    foreground = sum(prompt.is_foreground for prompt in own)
    marks = "this click" if foreground == 1 else f"these {foreground} clicks"
    if any(prompt.subtype != "point" for prompt in own):
        marks = "these prompts"
    cures = ["click again, further inside the structure"]
    if foreground < len(own):
        cures.append("remove background clicks near it")
    if prompts.within_ijk is not None:
        cures.append("widen the box")
    return f"nothing was found at {marks}, only the clicks are marked; {', or '.join(cures)}"


class MakeOutputsd:
    """Compute what the option ``outputs`` of the request asks for, as ``outputs_made``."""

    def __call__(self, data: Data) -> Data:
        names = requested_outputs(data)
        data["outputs_made"] = make_outputs(data["structures"], data["pred"], data["volume"], names)
        return data


Transforms = list[Callable[[Data], Data]]
