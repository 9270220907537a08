"""Large JSON replies that are made in the thread of the request.

FastAPI encodes what a route returns on the event loop, which answers nobody meanwhile. `json.dumps`
of everything at once holds the interpreter's lock as long. So the parts are encoded one by one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fastapi.responses import Response

DEPTH = 2
"""DEPTH: levels of dictionaries and lists whose items are encoded one by one."""


def json_reply(content: Any) -> Response:
    """Return a reply with JSON. content: dictionaries with text keys, lists, and plain values."""
    return Response("".join(_pieces(content, DEPTH)).encode(), media_type="application/json")


def _pieces(content: Any, depth: int) -> Iterator[str]:
    if depth == 0 or not content or not isinstance(content, dict | list):
        yield json.dumps(content, ensure_ascii=False, allow_nan=False, default=str)
        return
    is_object = isinstance(content, dict)
    separator = "{" if is_object else "["
    for item in content:
        yield f"{separator}{json.dumps(item)}:" if is_object else separator
        yield from _pieces(content[item] if is_object else item, depth - 1)
        separator = ","
    yield "}" if is_object else "]"
