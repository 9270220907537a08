"""The tensors in a published file: a pickle, read without running code from it."""

from __future__ import annotations

import argparse
import io
import mmap
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import PosixPath
from typing import Any

import torch
from torch import Tensor

ENCODER = "image_encoder."
"""ENCODER: prefix of the image encoder's tensors in the whole network."""

_STATE_KEYS = ("model_state_dict", "state_dict", "model")
_MOST_NAMES = 5


class PublishedFileError(ValueError):
    """The content is not a pickle of tensors and plain values."""


def parse_published(content: bytes | mmap.mmap) -> dict[str, Tensor]:
    """Return the tensors of a published file under the whole network's names.

    content: the whole file. The tensors are copies. Raises PublishedFileError.
    """
    return _with_full_names(_find_state(_unpickle(content)))


def few(names: list[str]) -> str:
    """Join at most five names for a message; name the total if there are more."""
    shown = ", ".join(names[:_MOST_NAMES]) or "nothing"
    return f"{shown}, … ({len(names)} in all)" if len(names) > _MOST_NAMES else shown


def _unpickle(content: bytes | mmap.mmap) -> Any:
    file: Any = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        with _safe_globals():
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # garbage makes the unpickler raise almost anything: KeyError, IndexError, struct.error, …
        # its message advises to load without a check, which would run code in the file
        refused = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds a {refused.group(1)}" if refused else type(error).__name__
        raise PublishedFileError(
            f"not a complete PyTorch checkpoint of tensors and plain values ({reason})"
        ) from error


def _safe_globals() -> AbstractContextManager[None]:
    """Allow what published files hold beside the tensors: plain values, none of which runs code."""
    import numpy as np

    functions: tuple[Any, ...] = (np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0])
    names = [
        (function, f"numpy.{core}.multiarray.{function.__name__}")
        for function in functions
        for core in ("core", "_core")
    ]
    kinds = (np.float16, np.float32, np.float64, np.uint8, np.int32, np.int64, np.bool_)
    dtypes = [type(np.dtype(kind)) for kind in kinds]
    plain = [argparse.Namespace, PosixPath, np.dtype, np.ndarray]
    allowed: list[Any] = [*plain, *dtypes, *names]
    return torch.serialization.safe_globals(allowed)


def _find_state(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise PublishedFileError(f"holds a {type(content).__name__}, expected a dictionary")
    for key in _STATE_KEYS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        raise PublishedFileError(
            f"expected tensors at the top or under {', '.join(_STATE_KEYS)}; found {few(others)}"
        )
    return dict(content)


def _with_full_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove DDP's ``module.``; give an encoder's bare names the prefix of the whole network."""
    while state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): x for name, x in state.items()}
    if any(name.startswith("patch_embed.") for name in state):
        state = {f"{ENCODER}{name}": x for name, x in state.items()}
    return state
