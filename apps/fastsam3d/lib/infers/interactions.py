"""The entry ``interactions`` of ``/info/``: what a model takes and what it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lib.infers.places import COORDINATES
from lib.infers.prompt_list import MAX_PLACES, MAX_PROMPTS, SUBTYPES
from lib.infers.prompts import MAX_STRUCTURE
from lib.infers.request import MASK, OUTPUTS, SIZES


def describe_interactions(labels: Sequence[str], codes: Mapping[str, str]) -> dict[str, Any]:
    """Return the prompts, options and outputs of the interactive models.

    labels: names of the structures; the first one has the ``semantic_id`` 1. codes: SNOMED CT code
    of a label, by its name, where the site gives one.
    """
    return {
        "prompts": [{"type": "spatial", "subtypes": list(SUBTYPES)}],
        "coordinates": list(COORDINATES),
        "background": 0,
        "max_semantic_id": MAX_STRUCTURE,
        "max_prompts": MAX_PROMPTS,
        "max_places": MAX_PLACES,
        "start": ["initial_mask", "start_from"],
        "overwrite": [False, True],
        "size": list(SIZES),
        "outputs": [MASK, *OUTPUTS],
        "labels": [
            _describe_label(name, number, codes.get(name))
            for number, name in enumerate(labels, start=1)
        ],
    }


def _describe_label(name: str, number: int, code: str | None) -> dict[str, Any]:
    label: dict[str, Any] = {"name": name, "semantic_id": number}
    if code is not None:
        label["code"] = {"scheme": "SCT", "value": code}
    return label
