"""A request without its clicks: the names of its options, the form of the reply, the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lib.errors import InputError
from lib.imaging.mask_file import DTYPES, EXTENSIONS, MaskForm, own_extension
from lib.options import find_device

CLICKS = ("foreground", "background", "roi", "coordinates", "size")
REPLY = (
    "result_extension",
    "result_dtype",
    "result_compress",
    "restore_label_idx",
    "shown_box",
)
CLIENT = ("device", "label", "label_info", "client_id", "reset_state")
OPTIONS = (*CLICKS, *REPLY, *CLIENT)
"""OPTIONS: keys that a client may send.

CLICKS: the clicks, the box, and the size of the answer. REPLY: the form of the reply. CLIENT: what
Slicer and OHIF add.
"""

SIZES = (-2, -1, 0, 1, 2)
"""SIZES: values of the option ``size``: the next smaller or larger answers to the same clicks."""

MASK = "mask"
"""MASK: key that the server's own route sets to true, to get the mask itself and no file.

The reply then holds the `BoxMask` under the same key. Clients cannot send it.
"""


def check_options(params: Mapping[str, Any]) -> None:
    """Raise InputError for options that a client may not set."""
    unknown = sorted(set(params) - set(OPTIONS))
    if unknown:
        raise InputError(
            f"unknown option {', '.join(map(repr, unknown))}; the options are {', '.join(OPTIONS)}"
        )


def check_reply_form(request: Mapping[str, Any]) -> None:
    """Raise InputError for a form of the reply that does not exist."""
    for key, choices in (("result_extension", EXTENSIONS), ("result_dtype", DTYPES)):
        value = request.get(key)
        if value is not None and value not in choices:
            raise InputError(f"{key} is {value!r}; choose one of {', '.join(choices)}")
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


def shown_box_corners(request: Mapping[str, Any], shape_ijk: Sequence[int]) -> np.ndarray:
    """Return two corner voxels (2, 3) of the box that the client shows; (0, 3) if it shows none.

    The option ``shown_box`` is the header X-Mask-Box of an earlier reply. The next reply covers
    that box too, so that the client clears what is no longer part of the mask. Raises InputError
    for anything else, and for a box outside the image of shape_ijk.
    """
    box = request.get("shown_box")
    if box is None:
        return np.empty((0, 3), dtype=np.intp)
    try:
        offset, size = (np.array(box[key]) for key in ("offset_ijk", "size_ijk"))
        is_box = all(x.shape == (3,) and x.dtype.kind == "i" for x in (offset, size))
    except (KeyError, TypeError, ValueError):
        is_box = False
    if not is_box or (offset < 0).any() or (size < 0).any() or (offset + size > shape_ijk).any():
        raise InputError(
            f"shown_box is {str(box)[:60]}; send the header X-Mask-Box of an earlier reply"
        )
    return np.stack([offset, offset + size - 1]) if size.all() else np.empty((0, 3), dtype=np.intp)


def requested_device(value: Any) -> str:
    """Return the torch name of the device in a request; raise InputError if there is none.

    value: a name for `find_device`, or a list whose first entry counts, as MONAI Label sends it.
    "cuda" is the default of MONAI Label's clients and, as for MONAI Label itself, means the best
    device; so do None and "".
    """
    name = value[0] if isinstance(value, list) and value else value
    return find_device("" if name is None or name == "cuda" else str(name))
