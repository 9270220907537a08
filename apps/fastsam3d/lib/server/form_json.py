"""JSON objects in form fields, which MONAI Label's clients send beside files."""

from __future__ import annotations

import json
from typing import Any

from lib.errors import InputError

DEEPEST = 20
"""DEEPEST: levels of lists and objects in a form field. A prompt needs six."""


def parse_object(text: str, field: str) -> dict[str, Any]:
    """Parse the JSON object in a form field; an empty field is an empty object.

    Raises InputError if the text is not JSON, not an object, or nested deeper than DEEPEST.
    """
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:  # too many digits, or brackets nested too deeply
        raise InputError(f"{field} is not JSON: {error}; send an object") from error
    if not isinstance(value, dict):
        raise InputError(f"{field} is {value!r}; send a JSON object")
    check_text(value, field)
    if _is_deeper(value, DEEPEST):
        raise InputError(
            f"{field} is nested more than {DEEPEST} levels deep; send a flatter object"
        )
    return value


def check_text(value: Any, field: str) -> None:
    """Raise InputError if a JSON value holds half of a surrogate pair, which no file can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{field} holds text that is not Unicode: {error.reason}") from error


def _is_deeper(value: Any, levels: int) -> bool:
    """Return whether lists and objects are nested deeper than so many levels."""
    layer = [value]
    for _ in range(levels):
        layer = [
            item
            for each in layer
            for item in (each.values() if isinstance(each, dict) else each)
            if isinstance(item, dict | list)
        ]
        if not layer:
            return False
    return True
