"""Reading and writing weights: the published files as they are, and one format of our own.

Published files are pickles of a dictionary with the tensors beside optimizer state and arguments,
for the whole network or for the encoder alone, with or without DistributedDataParallel's
``module.`` prefix; their configuration is found from names and shapes (:func:`infer_config`). Our
own files are safetensors with the configuration in the metadata. Loading is strict in both.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import uuid
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path, PosixPath
from typing import Any

import torch
from torch import Tensor

from .config import DECODER_OPTIONS, FastSAM3DConfig
from .fastsam3d import FastSAM3D
from .infer_config import ConfigError, infer_config

FORMAT = "fastsam3d-monailabel-1"
ENCODER = "image_encoder."
TEACHER_FILES = ("sam_med3d_turbo.pth", "sam_med3d.pth")
_STATE_KEYS = ("model_state_dict", "state_dict", "model")

StateDict = dict[str, Tensor]


class CheckpointError(ValueError):
    """A file of weights cannot be used; says which, what is wrong and what was expected."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds; ``state`` has the names of :class:`FastSAM3D`."""

    path: Path
    state: StateDict
    config: FastSAM3DConfig
    encoder_only: bool = False
    own_format: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)


def load_checkpoint(path: str | os.PathLike, teacher: str | os.PathLike | None = None) -> FastSAM3D:
    """The network that a file describes, in eval mode, float32, on the CPU.

    teacher: the file whose prompt encoder and mask decoder complete an encoder-only checkpoint; by
    default a published teacher in the same folder. Where there is none, the network encodes but
    refuses to decode (``has_decoder``). Raises CheckpointError where the file is missing, unsafe,
    incomplete, or does not fit the network its own tensors describe.
    """
    checkpoint = read_checkpoint(path)
    donor = find_teacher(checkpoint, teacher)
    if donor:
        checkpoint = _add_decoder(checkpoint, read_checkpoint(donor))
    with torch.device("meta"):
        network = FastSAM3D(checkpoint.config)
    _check_fits(checkpoint, network)
    state = {name: x.to(torch.float32, copy=True) for name, x in checkpoint.state.items()}
    network.load_state_dict(state, strict=not checkpoint.encoder_only, assign=True)
    return network.eval()


def find_teacher(checkpoint: Checkpoint, teacher: str | os.PathLike | None) -> Path | None:
    """The file that completes ``checkpoint``; None where it is whole, or where there is none."""
    if not checkpoint.encoder_only:
        return None
    if teacher is not None:
        return Path(teacher)
    beside = [checkpoint.path.with_name(name) for name in TEACHER_FILES]
    return next((path for path in beside if path.is_file()), None)


def save_checkpoint(
    network: FastSAM3D,
    path: str | os.PathLike,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a network and its configuration; a reader sees the old file or the whole new one.

    metadata: further facts (training data, licence, …). dtype: e.g. float16 halves the file.
    Raises CheckpointError for a network without a decoder.
    """
    from safetensors.torch import save_file

    path = Path(path)
    if not network.has_decoder:
        raise CheckpointError(
            f"{path}: the network has no decoder; load it with its teacher's file"
        )
    reserved = {"format": FORMAT, "config": json.dumps(network.config.to_dict())}
    state = {
        name: x.detach().to("cpu", dtype).contiguous() for name, x in network.state_dict().items()
    }
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        save_file(state, partial, metadata={**(metadata or {}), **reserved})
        partial.chmod(0o644)  # safetensors makes it unreadable for the server's other users
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def describe_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """What a file is, in plain values: kind, configuration, number of parameters, metadata."""
    checkpoint = read_checkpoint(path)
    return {
        "file": str(checkpoint.path),
        "format": "safetensors" if checkpoint.own_format else "published",
        "holds": "image encoder" if checkpoint.encoder_only else "whole network",
        "parameters": sum(x.numel() for x in checkpoint.state.values()),
        "config": checkpoint.config.to_dict(),
        "metadata": dict(checkpoint.metadata),
    }


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Tensors and configuration of any file we know; raises CheckpointError for any other."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    if _is_safetensors(path):
        return _read_own(path)
    state = _strip_prefixes(_find_state(path, _load_pickle(path)))
    encoder_only = not any(not name.startswith(ENCODER) for name in state)
    try:
        config = infer_config({name: tuple(x.shape) for name, x in state.items()})
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Checkpoint(path, state, config, encoder_only)


def _is_safetensors(path: Path) -> bool:
    """The format begins with the length of its JSON header in 8 bytes, then the header's brace."""
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or (len(start) == 9 and start[8:] == b"{")


def _read_own(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a complete safetensors file ({error})") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: its metadata says format {metadata.get('format')!r}, expected {FORMAT!r}"
        )
    try:
        config = FastSAM3DConfig.from_dict(json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its configuration cannot be used: {error}") from error
    facts = {key: value for key, value in metadata.items() if key not in ("format", "config")}
    return Checkpoint(path, state, config, own_format=True, metadata=facts)


def _load_pickle(path: Path) -> Any:
    try:
        with _safe_globals():
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:
        # garbage makes the unpickler raise almost anything: KeyError, IndexError, struct.error, …
        refused = re.search(r"GLOBAL (\S+)", str(error))
        first_line = str(error).partition("\n")[0]
        reason = (
            f"it holds a {refused.group(1)}" if refused else f"{type(error).__name__}: {first_line}"
        )
        raise CheckpointError(
            f"{path}: not a complete PyTorch checkpoint of tensors and plain values ({reason})"
        ) from error


def _safe_globals() -> AbstractContextManager:
    """What published files hold beside the tensors: plain values only, none of which runs code."""
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


def _find_state(path: Path, content: Any) -> StateDict:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a dictionary")
    for key in _STATE_KEYS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        raise CheckpointError(
            f"{path}: expected tensors at the top or under {', '.join(_STATE_KEYS)}; "
            f"found {_few(others)}"
        )
    return dict(content)


def _strip_prefixes(state: StateDict) -> StateDict:
    """DDP's ``module.`` goes; an encoder's bare names get the prefix of the whole network."""
    while state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): x for name, x in state.items()}
    if any(name.startswith("patch_embed.") for name in state):
        state = {f"{ENCODER}{name}": x for name, x in state.items()}
    return state


def _add_decoder(checkpoint: Checkpoint, donor: Checkpoint) -> Checkpoint:
    """The encoder of the one with the prompt encoder and mask decoder of the other."""
    if donor.encoder_only:
        raise CheckpointError(f"{donor.path}: holds an image encoder only, it has no mask decoder")
    decoder = {name: x for name, x in donor.state.items() if not name.startswith(ENCODER)}
    options = {name: getattr(donor.config, name) for name in DECODER_OPTIONS}
    config = replace(checkpoint.config, **options)
    return Checkpoint(checkpoint.path, {**checkpoint.state, **decoder}, config)


def _check_fits(checkpoint: Checkpoint, network: FastSAM3D) -> None:
    part = network.image_encoder if checkpoint.encoder_only else network
    prefix = ENCODER if checkpoint.encoder_only else ""
    expected = {f"{prefix}{name}": tuple(x.shape) for name, x in part.state_dict().items()}
    found = {name: tuple(x.shape) for name, x in checkpoint.state.items()}
    missing = [f"{name} {expected[name]}" for name in expected if name not in found]
    unexpected = [f"{name} {found[name]}" for name in found if name not in expected]
    misshapen = [
        f"{name} is {found[name]}, expected {expected[name]}"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    problems = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    if any(problems.values()):
        details = "; ".join(f"{len(v)} {kind}: {_few(v)}" for kind, v in problems.items() if v)
        config = checkpoint.config
        raise CheckpointError(
            f"{checkpoint.path}: its tensors do not make a network of {config.depth} blocks, "
            f"width {config.width}, {config.num_heads} heads: {details}"
        )


def _few(names: list[str], most: int = 5) -> str:
    shown = ", ".join(names[:most]) or "nothing"
    return f"{shown}, … ({len(names)} in all)" if len(names) > most else shown
