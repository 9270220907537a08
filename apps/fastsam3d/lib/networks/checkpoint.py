"""Reading and writing weights: published files, and one format of our own.

Published files are pickles of a dictionary. They hold the tensors beside optimizer state and
arguments, for the whole network or for the image encoder alone, with or without
DistributedDataParallel's ``module.`` prefix. Their configuration is inferred from the names and
shapes of the tensors (:func:`infer_config`). Our own files are safetensors with the configuration
and the mask policy in the metadata. Loading is strict for both.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import DECODER_OPTIONS, FastSAM3DConfig
from .earlier_decoder import Adaptation, is_of_adaptation
from .fastsam3d import FastSAM3D
from .infer_config import ConfigError, infer_config
from .policy import MaskPolicy
from .published_file import ENCODER, PublishedFileError, few, parse_published
from .stored_config import RESERVED, from_metadata, to_metadata

TEACHER_FILES = ("sam_med3d_turbo.pth", "sam_med3d.pth")
"""TEACHER_FILES: published files of the whole network, the better one first."""


class CheckpointError(ValueError):
    """A file of weights cannot be used; the message names the file and the expected content."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file of weights.

    state: tensors under the names of :class:`FastSAM3D`. sha256: hash of the file. encoder_only:
    the file holds no prompt encoder and no mask decoder. own_format: the file is
    in the format of this app. metadata: the facts in such a file. adaptation: the tensors that an
    adapted network keeps beside its own.
    """

    path: Path
    sha256: str
    state: dict[str, Tensor]
    config: FastSAM3DConfig
    policy: MaskPolicy
    encoder_only: bool = False
    own_format: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    adaptation: Mapping[str, Tensor] = field(default_factory=dict)


def load_checkpoint(
    path: str | os.PathLike[str], teacher: str | os.PathLike[str] | None = None
) -> FastSAM3D:
    """Return the network in a file, in eval mode, float32, on the CPU.

    teacher: file whose prompt encoder and mask decoder complete an encoder-only checkpoint; by
    default a published teacher in the same folder. Without one, the network encodes but does not
    decode (``has_decoder``). Raises CheckpointError for a file that is missing, unsafe, incomplete,
    or does not fit the network that its own tensors describe.
    """
    checkpoint = read_checkpoint(path)
    donor = find_teacher(checkpoint, teacher)
    return rebuild_network(checkpoint, read_checkpoint(donor) if donor else None)


def rebuild_network(checkpoint: Checkpoint, donor: Checkpoint | None = None) -> FastSAM3D:
    """Return the network of a checkpoint as :func:`load_checkpoint` does.

    donor: checkpoint of the teacher that completes an encoder-only one. The network's tensors are
    copies. Raises CheckpointError.
    """
    if donor is not None:
        checkpoint = _add_decoder(checkpoint, donor)
    with torch.device("meta"):
        network = FastSAM3D(checkpoint.config, checkpoint.policy)
    _check_fits(checkpoint, network)
    state = {name: x.to(torch.float32, copy=True) for name, x in checkpoint.state.items()}
    network.load_state_dict(state, strict=not checkpoint.encoder_only, assign=True)
    return network.eval()


def rebuild_adaptation(checkpoint: Checkpoint) -> Adaptation | None:
    """Return what an adapted network keeps; None for a network that was not adapted.

    Raises CheckpointError if its tensors do not fit the network.
    """
    if not checkpoint.adaptation:
        return None
    try:
        return Adaptation.of(checkpoint.config, checkpoint.adaptation)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error


def find_teacher(checkpoint: Checkpoint, teacher: str | os.PathLike[str] | None) -> Path | None:
    """Return the file that completes ``checkpoint``; None if it is complete or there is none."""
    if not checkpoint.encoder_only:
        return None
    if teacher is not None:
        return Path(teacher)
    beside = [checkpoint.path.with_name(name) for name in TEACHER_FILES]
    return next((path for path in beside if path.is_file()), None)


def save_checkpoint(
    network: FastSAM3D,
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
    adaptation: Adaptation | None = None,
) -> None:
    """Write a network with its configuration and policy.

    An interrupted write leaves an incomplete file: :func:`lib.weights.files.save_weights` writes
    atomically. metadata: further facts (training data, licence, …). dtype: float16 halves the file.
    adaptation: what an adapted network keeps, in float32. Raises CheckpointError for a network
    without a decoder, OSError if the file cannot be written.
    """
    from safetensors.torch import save

    path = Path(path)
    if not network.has_decoder:
        raise CheckpointError(
            f"{path}: the network has no decoder; load it with its teacher's file"
        )
    state = {
        name: x.detach().to("cpu", dtype).contiguous() for name, x in network.state_dict().items()
    }
    if adaptation is not None:
        state |= {name: x.detach().cpu().contiguous() for name, x in adaptation.tensors().items()}
    stored = {**(metadata or {}), **to_metadata(network.config, network.policy)}
    path.write_bytes(save(state, metadata=stored))


def describe_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe a file in plain values: kind, configuration, policy, parameters, metadata, hash."""
    checkpoint = read_checkpoint(path)
    return {
        "file": str(checkpoint.path),
        "format": "safetensors" if checkpoint.own_format else "published",
        "holds": "image encoder" if checkpoint.encoder_only else "whole network",
        "adapted": bool(checkpoint.adaptation),
        "parameters": sum(x.numel() for x in checkpoint.state.values()),
        "config": checkpoint.config.to_dict(),
        "policy": checkpoint.policy.to_dict(),
        "metadata": dict(checkpoint.metadata),
        "sha256": checkpoint.sha256,
    }


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a file of any known kind, once; raises CheckpointError for any other file."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    with _open_once(path) as content:
        digest = hashlib.sha256(content).hexdigest()
        if path.suffix == ".safetensors" or _begins_as_safetensors(content):
            return _parse_own(path, digest, content[:])
        return _parse_published(path, digest, content)


@contextmanager
def _open_once(path: Path) -> Iterator[bytes | mmap.mmap]:
    """Map a file into memory; an empty file, which cannot be mapped, gives empty bytes."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content


def _begins_as_safetensors(content: bytes | mmap.mmap) -> bool:
    """Return whether the content begins as the format does: 8 bytes, then a JSON object."""
    return content[8:9] == b"{"


def _parse_own(path: Path, digest: str, content: bytes) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        state = load(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a complete safetensors file ({error})") from error
    metadata = _header_metadata(content)
    try:
        config, policy = from_metadata(metadata)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    facts = {key: value for key, value in metadata.items() if key not in RESERVED}
    kept = {name: state.pop(name) for name in list(state) if is_of_adaptation(name)}
    return Checkpoint(
        path, digest, state, config, policy, own_format=True, metadata=facts, adaptation=kept
    )


def _header_metadata(content: bytes) -> dict[str, str]:
    """Return the metadata in the header of a valid safetensors file."""
    size = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    return metadata


def _parse_published(path: Path, digest: str, content: bytes | mmap.mmap) -> Checkpoint:
    try:
        state = parse_published(content)
        config, policy = infer_config({name: tuple(x.shape) for name, x in state.items()})
    except (PublishedFileError, ConfigError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    encoder_only = all(name.startswith(ENCODER) for name in state)
    return Checkpoint(path, digest, state, config, policy, encoder_only)


def _add_decoder(checkpoint: Checkpoint, donor: Checkpoint) -> Checkpoint:
    """Join the encoder of one checkpoint with the prompt encoder and mask decoder of another."""
    if donor.encoder_only:
        raise CheckpointError(f"{donor.path}: holds an image encoder only, it has no mask decoder")
    decoder = {name: x for name, x in donor.state.items() if not name.startswith(ENCODER)}
    options: dict[str, Any] = {name: getattr(donor.config, name) for name in DECODER_OPTIONS}
    return replace(
        checkpoint,
        state={**checkpoint.state, **decoder},
        config=replace(checkpoint.config, **options),
        encoder_only=False,
    )


def _check_fits(checkpoint: Checkpoint, network: FastSAM3D) -> None:
    part = network.image_encoder if checkpoint.encoder_only else network
    prefix = ENCODER if checkpoint.encoder_only else ""
    expected = {f"{prefix}{name}": tuple(x.shape) for name, x in part.state_dict().items()}
    shapes = {name: tuple(x.shape) for name, x in checkpoint.state.items()}
    missing = [f"{name} {expected[name]}" for name in expected if name not in shapes]
    unexpected = [f"{name} {shapes[name]}" for name in shapes if name not in expected]
    misshapen = [
        f"{name} is {shapes[name]}, expected {expected[name]}"
        for name in expected
        if name in shapes and shapes[name] != expected[name]
    ]
    problems = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    if any(problems.values()):
        details = "; ".join(f"{len(v)} {kind}: {few(v)}" for kind, v in problems.items() if v)
        config = checkpoint.config
        raise CheckpointError(
            f"{checkpoint.path}: its tensors do not make a network of {config.depth} blocks, "
            f"width {config.width}, {config.num_heads} heads: {details}"
        )
