"""Prompts of a request, in either form: an ordered list, or the click lists of stock clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lib.errors import InputError
from lib.infers.click_lists import parse_box, parse_click_lists
from lib.infers.places import Frame
from lib.infers.prompt_list import parse_prompt_list
from lib.infers.prompts import Prompts


def parse_prompts(
    request: Mapping[str, Any], shape_ijk: Sequence[int], affine_mm: np.ndarray | None = None
) -> Prompts:
    """Parse ``prompts``, or ``foreground`` and ``background``; and the box in ``roi``.

    shape_ijk: the shape of the stored image. affine_mm: (4, 4), stored index -> RAS mm; identity by
    default. The places are in the frame that ``coordinates`` names. Raises InputError if both forms
    are used, and for what either cannot hold: see `parse_prompt_list`, `parse_click_lists` and
    `parse_box`.
    """
    frame = Frame.of(request, shape_ijk, affine_mm)
    prompts = request.get("prompts")
    if prompts is None:
        parsed = parse_click_lists(request, frame)
    elif request.get("foreground") or request.get("background"):
        raise InputError("the request has prompts and also foreground or background; send one form")
    else:
        parsed = parse_prompt_list(prompts, frame)
    return replace(parsed, within_ijk=parse_box(request.get("roi"), shape_ijk))
