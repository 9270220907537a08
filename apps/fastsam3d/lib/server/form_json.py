"""JSON objects in form fields, which MONAI Label's clients send beside files."""

from __future__ import annotations

import json
from typing import Any

from lib.errors import InputError


def parse_object(text: str, field: str) -> dict[str, Any]:
    """Parse the JSON object in a form field; an empty field is an empty object.

    Raises InputError if the text is not JSON, or not an object.
    """
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:  # too many digits, or brackets nested too deeply
        raise InputError(f"{field} is not JSON: {error}; send an object") from error
    if not isinstance(value, dict):
        raise InputError(f"{field} is {value!r}; send a JSON object")
    return value
