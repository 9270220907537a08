"""The options of the app, given as ``--conf key value`` when the server starts.

The rule for the names of devices, `find_device`, holds for requests and trainings as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import psutil
import torch
from monailabel.utils.others.generic import device_list, device_map

from lib.errors import InputError, OptionError

AttentionChoice = Literal["stored", "dense", "sparse"]
"""AttentionChoice: as in :mod:`lib.networks.config`."""

LABELS = ("target", "organ", "lesion", "vessel", "bone")
"""LABELS: default of the option ``labels``."""

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""CONTAINER_LIMIT: file with the container's memory limit in bytes, or ``max``."""

MONAI_LABEL_OPTIONS = ("server_mode", "auth_token")
"""MONAI_LABEL_OPTIONS: ``--conf`` options that MONAI Label itself reads."""

API_KEY_VARIABLE = "FASTSAM3D_API_KEY"
"""API_KEY_VARIABLE: environment variable with the option ``api_key``, which no list of processes
shows."""


def _default_cache_mb() -> int:
    """Return a quarter of the memory of the machine or container, at least 512 MB.

    A CT of 512 × 512 × 300 voxels takes 150 MB.
    """
    memory = psutil.virtual_memory().total
    limit = CONTAINER_LIMIT.read_text().strip() if CONTAINER_LIMIT.is_file() else "max"
    if limit.isdigit():
        memory = min(memory, int(limit))
    return max(512, memory // 4 // 2**20)


MOST_WAITING_CLICKS = 32
"""MOST_WAITING_CLICKS: limit of the option ``max_waiting_clicks``.

Each click takes one of the 40 threads that anyio gives to the routes; the others need some.
"""


@dataclass(frozen=True)
class Options:
    """The options of a site.

    weights, teacher_weights: file, published name, or empty for the default weights.
    labels: label names that clients offer.
    label_codes: pairs of a label's name and its SNOMED CT code.
    device: ``cpu``, ``cuda`` or ``cuda:N``; empty selects the first GPU, or the CPU without one.
    spacing_mm: voxel size of the ROI.
    zoom: ``auto`` to choose the voxel size for each structure from its prompts and the image around
        them, or ``fixed``; a number is the same as ``spacing_mm`` and ``fixed``.
    attention: operator of the attention: ``stored`` with the weights, ``dense`` or ``sparse``.
    adapt_every: new labels after which ``fastsam3d_adapt`` starts by itself; 0 for never.
    volume_cache_mb: limit of the cache of images; a quarter of the memory by default.
    embedding_cache_mb: limit of the cache of image embeddings, which the models share.
    model_dir: folder that weights are searched in and trained weights are written to; empty for the
        app's own ``model`` folder.
    api_key: what clients must know; empty for a server that answers its own machine only.
    allow_open: whether a server without a key answers other machines too.
    cors_origins: web pages of these origins may use the server, beside its own pages.
    max_upload_mb: limit of a request that holds files; a quarter of the memory by default.
    requests_per_minute: limit for each client, by its address; 0 for none.
    max_waiting_clicks: requests for masks that wait or compute at a time; more are refused.
    label_versions: earlier versions that stay of each label.
    journal_mb: limit of the journal of interactions of each image; 0 turns the journals off.
    audit_log: file with a line for each change; empty for the app's folder, ``off`` for none.
    """

    weights: str = ""
    teacher_weights: str = ""
    labels: tuple[str, ...] = LABELS
    label_codes: tuple[tuple[str, str], ...] = ()
    device: str = ""
    spacing_mm: float = 1.5
    zoom: str = "auto"
    attention: AttentionChoice = "stored"
    adapt_every: int = 0
    volume_cache_mb: int = 0
    embedding_cache_mb: int = 256
    model_dir: str = ""
    api_key: str = field(default="", repr=False)
    allow_open: bool = False
    cors_origins: tuple[str, ...] = ()
    max_upload_mb: int = 0
    requests_per_minute: int = 6000
    max_waiting_clicks: int = 24
    label_versions: int = 20
    journal_mb: int = 8
    audit_log: str = ""

    @classmethod
    def from_conf(cls, conf: Mapping[str, str]) -> Options:
        """Parse MONAI Label's ``--conf`` strings; raises OptionError."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(conf) - set(known) - set(MONAI_LABEL_OPTIONS))
        if unknown:
            raise OptionError(f"unknown --conf {', '.join(unknown)}; there are {', '.join(known)}")
        values = {name: _parse(name, conf[name]) for name in known if name in conf}
        _check_coded_names(values.get("labels", LABELS), values.get("label_codes", ()))
        if isinstance(values.get("zoom"), float):
            values |= {"spacing_mm": values["zoom"], "zoom": "fixed"}
        memory_mb = _default_cache_mb()
        defaults = {
            "volume_cache_mb": memory_mb,
            "max_upload_mb": memory_mb,
            "api_key": os.environ.get(API_KEY_VARIABLE, ""),
        }
        return cls(**{**defaults, **values})


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError as error:
            whole = "whole " if kind is int else ""
            raise ValueError(f"it is not a {whole}number") from error
        if not 0 < value < float("inf"):
            raise ValueError("it must be positive")
        return value

    return parse


def _whole_number(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("it is not a whole number of 0 and more")
    return int(text)


def _waiting_clicks(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= MOST_WAITING_CLICKS):
        raise ValueError(f"give a whole number of 1 to {MOST_WAITING_CLICKS}")
    return int(text)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("give true or false")
    return text.lower() == "true"


def _key(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty")
    return text


def _origins(text: str) -> tuple[str, ...]:
    origins = _names(text)
    for origin in origins:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query:
            raise ValueError("give addresses such as https://viewer.example.org, without a path")
    return origins


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ValueError("it holds no name")
    return names


def _codes(text: str) -> tuple[tuple[str, str], ...]:
    codes = []
    for entry in _names(text):
        name, equals, code = (part.strip() for part in entry.partition("="))
        if not (name and equals and code.isdigit()):
            raise ValueError(f"{entry!r} is not a name, =, and an SCT code; write liver=10200004")
        codes.append((name, code))
    return tuple(codes)


def _check_coded_names(labels: Sequence[str], codes: Sequence[tuple[str, str]]) -> None:
    """Raise OptionError for a code of a name that is no label: it would be lost silently."""
    unknown = [name for name, _ in codes if name not in labels]
    if unknown:
        raise OptionError(
            f"--conf label_codes cannot be used: {', '.join(map(repr, unknown))} is not among the "
            f"labels {', '.join(labels)}; add it with --conf labels"
        )


def find_device(name: str) -> str:
    """Return the torch name of a device of this machine, "cpu" or "cuda:N".

    name: "cpu", "cuda:N", "cuda" for the first GPU, a name from MONAI Label's `device_list`, or ""
    for the first GPU or, without one, the CPU. Raises InputError, with the names that exist, for
    any other name.
    """
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    device = device_map().get(name, name) or (gpus[0] if gpus else "cpu")
    if device == "cuda":  # MONAI Label's name for a single GPU, too
        device = "cuda:0"
    if device not in ("cpu", *gpus):
        choices = ", ".join(dict.fromkeys(["cpu", *gpus, *device_list()]))
        raise InputError(f"there is no device {name!r} on this server; choose one of {choices}")
    return str(device)


def _device(text: str) -> str:
    """Check the name of a device and keep it: for a training, "cuda" means all GPUs."""
    find_device(text)
    return text


def _attention(text: str) -> str:
    if text not in get_args(AttentionChoice):
        raise ValueError(f"give {', '.join(get_args(AttentionChoice))}")
    return text


def _folder(text: str) -> str:
    if text and Path(text).exists() and not Path(text).is_dir():
        raise ValueError("it is a file; give a folder")
    return text


def _zoom(text: str) -> str | float:
    if text in ("auto", "fixed"):
        return text
    try:
        return float(_positive(float)(text))
    except ValueError as error:
        raise ValueError("give auto, fixed, or the voxel size in mm") from error


_PARSERS: dict[str, Callable[[str], Any]] = {
    "weights": str,
    "teacher_weights": str,
    "labels": _names,
    "label_codes": _codes,
    "device": _device,
    "spacing_mm": _positive(float),
    "zoom": _zoom,
    "attention": _attention,
    "adapt_every": _whole_number,
    "volume_cache_mb": _positive(int),
    "embedding_cache_mb": _positive(int),
    "model_dir": _folder,
    "api_key": _key,
    "allow_open": _truth,
    "cors_origins": _origins,
    "max_upload_mb": _positive(int),
    "requests_per_minute": _whole_number,
    "max_waiting_clicks": _waiting_clicks,
    "label_versions": _whole_number,
    "journal_mb": _whole_number,
    "audit_log": str,
}


def _parse(name: str, text: str) -> Any:
    try:
        return _PARSERS[name](str(text))
    except ValueError as error:
        shown = "…" if name == "api_key" else repr(text)  # a log never holds the key
        raise OptionError(f"--conf {name} {shown} cannot be used: {error}") from error
