"""A request without its clicks: the names of its options, the form of the reply, the device."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lib.errors import InputError
from lib.imaging.mask_file import DTYPES, EXTENSIONS, MaskForm, own_extension
from lib.options import find_device

CLICK_LISTS = ("foreground", "background")
PROMPTS = ("prompts", *CLICK_LISTS, "roi", "coordinates", "size")
START_FROM = "start_from"
"""START_FROM: key of the tag of a stored label that a request starts from."""

START = (START_FROM, "overwrite")
REPLY = (
    "result_extension",
    "result_dtype",
    "result_compress",
    "restore_label_idx",
    "shown_box",
    "outputs",
)
CLIENT = ("device", "label", "label_info", "client_id", "page", "reset_state")
OPTIONS = (*PROMPTS, *START, *REPLY, *CLIENT)
"""OPTIONS: keys that a client may send.

PROMPTS: the prompts, and the size of the answer. START: what is there already. REPLY: the form and
content of the reply. CLIENT: what Slicer, OHIF and the viewer add.
"""

OUTPUTS = ("probability", "uncertainty", "next_click")
"""OUTPUTS: what a reply may hold beside the mask."""

SIZES = (-2, -1, 0, 1, 2)
"""SIZES: values of the option ``size``: the next smaller or larger answers to the same clicks."""

MASK = "mask"
"""MASK: key that the server's own route sets to true, to get the mask itself and no file.

The reply then holds the `BoxMask` under the same key. Clients cannot send it.
"""

MAPS = "maps"
"""MAPS: key of the reply beside MASK: the maps that ``outputs`` asked for, each a `BoxMask`."""

INITIAL_MASK = "initial_mask"
"""INITIAL_MASK: key under which the server's own route gives the path of the mask to start from.

Clients send the file itself, or the tag of a stored label in ``start_from``.
"""


def check_options(params: Mapping[str, Any]) -> None:
    """Raise InputError for options that a client may not set."""
    unknown = sorted(set(params) - set(OPTIONS))
    if unknown:
        raise InputError(
            f"unknown option {', '.join(map(repr, unknown))}; the options are {', '.join(OPTIONS)}"
        )
    names = params.get("label_info")
    if names is not None and not isinstance(names, list):
        raise InputError(
            f'label_info is {str(names)[:80]}; send a list such as [{{"name": "liver", "idx": 1}}]'
        )


def check_reply_form(request: Mapping[str, Any]) -> None:
    """Raise InputError for a form of the reply that does not exist."""
    for key, choices in (("result_extension", EXTENSIONS), ("result_dtype", DTYPES)):
        value = request.get(key)
        if value is not None and value not in choices:
            raise InputError(f"{key} is {value!r}; choose one of {', '.join(choices)}")
    _parse_shown_box(request)
    requested_outputs(request)
    if request.get("result_compress") not in (None, True, False):
        raise InputError(f"result_compress is {request['result_compress']!r}; send true or false")


def requested_form(request: Mapping[str, Any], image: str) -> MaskForm:
    """Return the form of the mask file that a checked request asks for.

    image: the path of the image, whose extension is the default.
    """
    return MaskForm(
        request.get("result_extension") or own_extension(image),
        request.get("result_dtype") or "uint8",
        request.get("result_compress"),
    )


def requested_size(request: Mapping[str, Any]) -> int:
    """Return the option ``size``, 0 if there is none; raise InputError for a value not in SIZES."""
    size = request.get("size")
    if size is None:
        return 0
    if isinstance(size, bool) or size not in SIZES:
        raise InputError(f"size is {size!r}; choose one of {', '.join(map(str, SIZES))}")
    return int(size)


def requested_overwrite(request: Mapping[str, Any]) -> bool:
    """Return whether prompts may take voxels of other structures; raise InputError if unclear."""
    overwrite = request.get("overwrite")
    if overwrite not in (None, True, False):
        raise InputError(f"overwrite is {overwrite!r}; send true or false")
    return bool(overwrite)


def requested_outputs(request: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the option ``outputs``, in the order of OUTPUTS; raise InputError for others.

    The mask, which ``/info/`` lists too, may be named: each reply holds it.
    """
    outputs = request.get("outputs")
    outputs = [] if outputs is None else outputs
    known = (MASK, *OUTPUTS)
    if not isinstance(outputs, list | tuple) or not all(output in known for output in outputs):
        raise InputError(f"outputs is {outputs!r}; send a list of {', '.join(OUTPUTS)}")
    return tuple(output for output in OUTPUTS if output in outputs)


def shown_box_corners(request: Mapping[str, Any], shape_ijk: Sequence[int]) -> np.ndarray:
    """Return two corner voxels (2, 3) of the box that the client shows; (0, 3) if it shows none.

    The option ``shown_box`` is the header X-Mask-Box of an earlier reply, as the text that it is or
    as the object in it. The next reply covers that box too, so that the client clears what is no
    longer part of the mask. Raises InputError for anything else, and for a box outside the image of
    shape_ijk.
    """
    box = _parse_shown_box(request)
    if box is None:
        return np.empty((0, 3), dtype=np.intp)
    offset, size = box
    ends = [start + count for start, count in zip(offset, size, strict=True)]
    if any(end > length for end, length in zip(ends, shape_ijk, strict=True)):
        raise _shown_box_error(request)
    if not all(size):
        return np.empty((0, 3), dtype=np.intp)
    return np.array([offset, [end - 1 for end in ends]], dtype=np.intp)


def _parse_shown_box(request: Mapping[str, Any]) -> tuple[list[int], list[int]] | None:
    """Return offset and size of the box in ``shown_box``; raise InputError if it is not a box."""
    box = request.get("shown_box")
    if box is None:
        return None
    if isinstance(box, str):
        try:
            box = json.loads(box)
        except (ValueError, RecursionError) as error:
            raise _shown_box_error(request) from error
    if not isinstance(box, Mapping):
        raise _shown_box_error(request)
    offset, size = (_parse_sizes(box.get(key)) for key in ("offset_ijk", "size_ijk"))
    if offset is None or size is None:
        raise _shown_box_error(request)
    return offset, size


def _parse_sizes(numbers: Any) -> list[int] | None:
    """Return three integers from 0 up; None for anything else."""
    is_triple = isinstance(numbers, list) and len(numbers) == 3
    if not is_triple or not all(type(number) is int and number >= 0 for number in numbers):
        return None
    return list(numbers)


def _shown_box_error(request: Mapping[str, Any]) -> InputError:
    box = repr(request["shown_box"])[:60]
    return InputError(f"shown_box is {box}; send the header X-Mask-Box of an earlier reply")


def requested_device(value: Any) -> str:
    """Return the torch name of the device in a request; raise InputError if there is none.

    value: a name for `find_device`, or a list whose first entry counts, as MONAI Label sends it.
    "cuda" is the default of MONAI Label's clients and, as for MONAI Label itself, means the best
    device; so do None and "".
    """
    name = value[0] if isinstance(value, list) and value else value
    return find_device("" if name is None or name == "cuda" else str(name))
