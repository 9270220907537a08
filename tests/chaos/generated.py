"""Requests that hypothesis draws from the server's OpenAPI page: valid, odd and hostile ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import requests
from hypothesis import strategies as st

from chaos.common import CENTRE_IJK
from lib.infers.request import OPTIONS

PATHS = (
    "../elsewhere/secret",
    "../../outside/elsewhere/secret.nii",
    "..",
    ".",
    "/etc/passwd",
    "..\\elsewhere\\secret",
    "%2e%2e%2felsewhere%2fsecret",
    "%252e%252e%252felsewhere",
    "..%c0%afelsewhere",
    "..／elsewhere／secret",
    "\u2025/elsewhere/secret",
    "C:\\Windows\\win.ini",
    "a\0b",
    "file:///etc/passwd",
    "http://127.0.0.1:9/",
    "linked-folder/secret",
    "linked-folder",
    "....//elsewhere/secret",
    "head/../../elsewhere/secret",
)
"""PATHS: what attackers write where a name is expected."""

ODD = (
    "",
    " ",
    "head ",
    ".head",
    "a" * 300,
    "ü" * 150,
    "肝臓",
    "null",
    "-1",
    "1e999",
    "%s%n",
    "'\"",
    "half a pair \ud800",
)

NAMES = (
    *("head", "chest", "final", "original", "fastsam3d", "sam_med3d", "random", "first"),
    *("studies", "series", "instances"),  # services of a DICOM server
)

TEXTS = st.one_of(
    st.sampled_from(NAMES),
    st.sampled_from(PATHS),
    st.sampled_from(ODD),
    st.text(max_size=40),
)

NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.integers(),
    st.floats(allow_nan=True),
    st.sampled_from([2**31, 2**63, 10**400, -(2**63), 1e308]),
)

JSONS = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda children: st.one_of(
        st.lists(children, max_size=4), st.dictionaries(st.text(max_size=8), children, max_size=4)
    ),
    max_leaves=12,
)

POINTS = st.one_of(
    st.just(list(CENTRE_IJK)),
    st.lists(st.integers(0, 33), min_size=3, max_size=3),
    st.lists(NUMBERS, max_size=5),
    JSONS,
)
CLICKS = st.one_of(st.lists(POINTS, max_size=3), JSONS)
VALUES = {
    "foreground": CLICKS,
    "background": CLICKS,
    "roi": st.lists(st.integers(-5, 80), min_size=6, max_size=6),
    "result_extension": st.sampled_from([".nrrd", ".nii.gz", ".nii", "/../x", "", None]),
    "result_dtype": st.sampled_from(["uint8", "int16", "float128", None]),
    "start_from": TEXTS,
    "label_info": st.one_of(st.just([{"name": "肝臓", "idx": 1}]), JSONS),
    "max_epochs": st.just(1),
    "device": st.sampled_from(["cpu", "cuda:9", "", 3]),
}
"""VALUES: what is drawn for a key of a body; JSONS for all others."""

PARAMS = st.dictionaries(st.sampled_from([*OPTIONS, "max_epochs", "model"]), st.none(), max_size=5)


@dataclass(frozen=True)
class Operation:
    """A route. parameters: name -> place (path, query, header). body: its content type, or ""."""

    method: str
    path: str
    parameters: Mapping[str, str]
    body: str = ""
    fields: Mapping[str, bool] = field(default_factory=dict)
    """fields: name of a part of the form -> whether it is a file."""


@dataclass(frozen=True)
class Sent:
    """A request as it goes over the wire."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes | None


def operations(openapi: Mapping[str, Any], hidden: Sequence[str]) -> list[Operation]:
    """Return the operations of the OpenAPI page, and those that it does not show.

    hidden: ``METHOD path`` of routes without a schema.
    """
    found = []
    for path, methods in openapi["paths"].items():
        for method, description in methods.items():
            places = {p["name"]: p["in"] for p in description.get("parameters", [])}
            content = description.get("requestBody", {}).get("content", {})
            kind = next(iter(content), "")
            fields = _fields(openapi, content[kind]["schema"]) if kind else {}
            found.append(Operation(method.upper(), path, places, kind, fields))
    known = {f"{each.method} {each.path}" for each in found}
    for name in hidden:
        method, path = name.replace(":path}", "}").split(" ")
        if f"{method} {path}" not in known:
            names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
            places = dict.fromkeys(names, "path") | {"label": "query", "tag": "query"}
            body = "" if method in ("GET", "HEAD") else "application/x-www-form-urlencoded"
            found.append(Operation(method, path, places, body, {"params": False, "key": False}))
    return found


def _fields(openapi: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, bool]:
    while "$ref" in schema:
        schema = openapi["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    properties = schema.get("properties", {})
    return {name: _is_file(value) for name, value in properties.items()}


def _is_file(schema: Mapping[str, Any]) -> bool:
    text = json.dumps(schema)
    return "binary" in text or "octet-stream" in text


@st.composite
def requests_to(
    draw: st.DrawFn,
    found: Sequence[Operation],
    files: Mapping[str, bytes],
    names: Mapping[str, str],
) -> Sent:
    """Draw a request.

    files: name -> content of files that are sent. names: what stands for a drawn name.
    """
    operation = draw(st.sampled_from(found))
    target, query, headers = operation.path, [], {}
    for name, place in operation.parameters.items():
        text = draw(TEXTS)
        text = names.get(text, text)
        if place == "path":
            is_raw = draw(st.booleans())  # slashes as they are, or encoded
            target = target.replace(f"{{{name}}}", _encoded(text, "/" if is_raw else ""))
        elif place == "query" and draw(st.integers(0, 3)):
            query.append(f"{name}={_encoded(_parameter(draw, name, text, names))}")
        elif place == "header" and draw(st.booleans()):
            headers[name] = quote(text.encode("utf-8", "surrogatepass"), safe=" \"'*/")
    if draw(st.integers(0, 9)) == 0:
        query.append(f"{_encoded(draw(TEXTS))}={_encoded(draw(TEXTS))}")
    body, kind = _body(draw, operation, files)
    if kind:
        headers["Content-Type"] = kind
    return Sent(operation.method, target + ("?" + "&".join(query) if query else ""), headers, body)


def _encoded(text: str, safe: str = "") -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe=safe)


def _parameter(draw: st.DrawFn, name: str, text: str, names: Mapping[str, str]) -> str:
    if name in ("output", "strategy"):
        choices = ["image", "json", "all", "box", "dicom_seg", "stats", "train", "random", text]
        return draw(st.sampled_from(choices))
    if name in ("base", "version", "expiry"):
        return str(draw(NUMBERS))
    if name == "image":
        image = draw(st.sampled_from(["head", "chest", text, text]))
        return names.get(image, image)
    return text


def _parameters_of_body(draw: st.DrawFn) -> str:
    if draw(st.integers(0, 9)) == 0:
        return draw(TEXTS).encode("utf-8", "replace").decode()
    keys = draw(PARAMS)
    values = {key: draw(VALUES.get(key, JSONS)) for key in keys}
    return json.dumps(values)


def _body(
    draw: st.DrawFn, operation: Operation, files: Mapping[str, bytes]
) -> tuple[bytes | None, str]:
    if not operation.body:
        return None, ""
    if draw(st.integers(0, 14)) == 0:  # another body than the route reads
        return draw(st.binary(max_size=60)), draw(st.sampled_from([operation.body, "text/plain"]))
    if operation.body == "application/json":
        return _parameters_of_body(draw).encode("utf-8", "replace"), operation.body
    parts: list[tuple[str, Any]] = []
    for name, is_file in operation.fields.items():
        if is_file and draw(st.integers(0, 4)):
            content = files[draw(st.sampled_from(sorted(files)))]
            parts.append((name, (_file_name(draw, files), content)))
        elif not is_file and draw(st.integers(0, 4)):
            parts.append((name, (None, _parameters_of_body(draw))))
    if any(operation.fields.values()):
        prepared = requests.Request("POST", "http://127.0.0.1/", files=parts).prepare()
        return bytes(prepared.body or b""), prepared.headers.get("Content-Type", "")
    pairs = [f"{_encoded(name)}={_encoded(value)}" for name, (_, value) in parts]
    return "&".join(pairs).encode(), operation.body


def _file_name(draw: st.DrawFn, files: Mapping[str, bytes]) -> str:
    stem = draw(TEXTS)
    ending = draw(st.sampled_from([".nii", ".nii.gz", ".nrrd", ".bin", ".mhd", ".zip", ".dcm", ""]))
    name = draw(st.sampled_from([*sorted(files), stem + ending]))
    return name.encode("utf-8", "replace").decode()
