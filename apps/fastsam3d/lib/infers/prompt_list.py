"""The ordered list of prompts of a request: points, scribbles, lassos and boxes.

Each entry is ``{"type": "spatial", "subtype": …, "prompt": …, "semantic_id_key": {"semantic_id":
n}, "aux": {}}``. The form is the one that MONAI Label's working group for interactive apps
discusses (its issues 1868 to 1870 and 1903 to 1906).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from lib.errors import InputError
from lib.infers.places import Frame, parse_numbers, shorten
from lib.infers.prompts import MAX_STRUCTURE, Prompt, Prompts, Subtype

MAX_PROMPTS = 200
MAX_PLACES = 1000
"""MAX_PROMPTS, MAX_PLACES: limits of a list, and of the places of one path."""

FLAT = 0.5
"""FLAT: a box that is thinner along an axis, in voxels, lies in a plane; so does a lasso."""

PLANE_TOLERANCE = 0.1
"""PLANE_TOLERANCE: largest distance, in voxels, of a lasso in mm from its plane."""

SUBTYPES: tuple[str, ...] = get_args(Subtype)
FORMS = {
    "point": "one place [x, y, z]",
    "scribble": "a path [[x, y, z], …]",
    "lasso": "a closed path [[x, y, z], …] of at least three places",
    "bounding_box": "two opposite corners [[x, y, z], [x, y, z]]",
}


def parse_prompt_list(prompts: Any, frame: Frame) -> Prompts:
    """Parse `request["prompts"]`.

    Raises InputError, which names a prompt by its number from 1, if the value is not a list, if it
    is empty or too long, and if a prompt is not of the form above: another type, places that are
    no numbers or lie outside the image, a lasso of fewer than three places or out of one plane, a
    box without an area.
    """
    if not isinstance(prompts, list | tuple):
        raise InputError(f"prompts is {shorten(prompts)}; expected a list of prompts")
    if not prompts:
        raise InputError("prompts is empty; mark the structure to segment")
    if len(prompts) > MAX_PROMPTS:
        raise InputError(f"{len(prompts)} prompts are too many; send at most {MAX_PROMPTS}")
    return Prompts(
        tuple(
            _parse_prompt(prompt, f"prompt {number}", frame)
            for number, prompt in enumerate(prompts, start=1)
        )
    )


def _parse_prompt(prompt: Any, name: str, frame: Frame) -> Prompt:
    """Parse one entry; name: "prompt N", with which each message starts."""
    if not isinstance(prompt, Mapping):
        raise InputError(f"{name} is {shorten(prompt)}; expected an object with type and prompt")
    subtype = _parse_subtype(prompt, name)
    name = f"{name} ({subtype})"
    structure = _parse_structure(prompt.get("semantic_id_key"), name)
    points = _parse_places(prompt.get("prompt"), subtype, name)
    points_ijk = frame.to_ijk(points)
    inside = frame.is_inside(points_ijk)
    if not inside.all():
        place = frame.describe(points[~inside][0])
        raise InputError(
            f"{name}: {place} lies outside {frame.describe_image()}; mark places inside the image"
        )
    if subtype == "lasso":
        _check_lasso(points_ijk, name, frame)
    if subtype == "bounding_box":
        _check_box(points_ijk, name)
    return Prompt(subtype, tuple(map(tuple, points_ijk.tolist())), structure)


def _parse_subtype(prompt: Mapping[str, Any], name: str) -> Subtype:
    kind, subtype = prompt.get("type"), prompt.get("subtype")
    if kind == "text":
        raise InputError(
            f"{name} is a text; this model takes spatial prompts only, so mark a place"
        )
    if kind != "spatial":
        raise InputError(f"{name} has the type {shorten(kind)}; send 'spatial'")
    if subtype not in SUBTYPES:
        choices = ", ".join(SUBTYPES)
        raise InputError(f"{name} has the subtype {shorten(subtype)}; choose one of {choices}")
    return subtype


def _parse_structure(key: Any, name: str) -> int:
    number = key.get("semantic_id") if isinstance(key, Mapping) else None
    if type(number) is not int or not 0 <= number <= MAX_STRUCTURE:
        raise InputError(
            f"{name} has the semantic_id_key {shorten(key)}; send {{'semantic_id': n}} with n from "
            f"1 to {MAX_STRUCTURE} for a structure, or 0 for background"
        )
    return number


def _parse_places(value: Any, subtype: Subtype, name: str) -> np.ndarray:
    """Return the places of a prompt as they were sent, (N, 3) float64."""
    places = [value] if subtype == "point" else value
    if not isinstance(places, list | tuple) or not places:
        raise InputError(f"{name} is {shorten(value)}; expected {FORMS[subtype]}")
    if len(places) > MAX_PLACES:
        raise InputError(f"{name} has {len(places)} places; send at most {MAX_PLACES}")
    points = []
    for place in places:
        numbers = parse_numbers(place, 3)
        if numbers is None:
            raise InputError(
                f"{name}: {shorten(place)} is not a place of three finite numbers; "
                f"expected {FORMS[subtype]}"
            )
        points.append(numbers)
    if subtype == "bounding_box" and len(points) != 2:
        raise InputError(f"{name} has {len(points)} places; expected {FORMS[subtype]}")
    return np.array(points, dtype=np.float64)


def _check_box(corners_ijk: np.ndarray, name: str) -> None:
    """Raise InputError unless a box (2, 3) is at most along one axis flat."""
    sides = np.abs(corners_ijk[1] - corners_ijk[0])
    if np.count_nonzero(sides < FLAT) > 1:
        size = " × ".join(f"{side:.3g}" for side in sides)
        raise InputError(
            f"{name} has a size of {size} voxels, which is no area; draw it around the structure"
        )


def _check_lasso(points_ijk: np.ndarray, name: str, frame: Frame) -> None:
    """Raise InputError unless a lasso (N, 3) encloses an area in one plane.

    With stored indices the plane is a slice. In mm it may be any plane, as viewers also show planes
    that are oblique to the stored axes.
    """
    distinct = len(np.unique(points_ijk, axis=0))
    if distinct < 3:
        raise InputError(
            f"{name} has {distinct} different places; draw a closed path of at least three"
        )
    # the singular values of the places about their mean are the extents along three axes
    scaled = (points_ijk - points_ijk.mean(axis=0)) * frame.voxel_mm() / frame.voxel_mm().min()
    _, (_, width, _), axes = np.linalg.svd(scaled, full_matrices=False)
    if width < FLAT:
        raise InputError(f"{name} is a line; draw a closed path around an area")
    area = _area(scaled @ axes[:2].T)
    if area < FLAT**2:
        raise InputError(
            f"{name} encloses an area of {area:.2f} voxels; draw it around an area, without going "
            "back on itself"
        )
    in_slice = np.ptp(points_ijk, axis=0).min() < FLAT
    in_plane = frame.is_mm and np.abs(scaled @ axes[2]).max() <= PLANE_TOLERANCE
    if not in_slice and not in_plane:
        raise InputError(f"{name} leaves its plane; draw it in one slice")


def _area(corners: np.ndarray) -> float:
    """Return the area of a polygon (N, 2) by the shoelace formula; loops of both turns cancel."""
    x, y = corners.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
