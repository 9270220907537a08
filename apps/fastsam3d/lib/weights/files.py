"""Which file of weights a model runs with: a path, or a published file that is downloaded once."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lib.atomic_file import write_atomically, write_text_atomically
from lib.errors import WeightsError
from lib.networks import Adaptation, CheckpointError, FastSAM3D, save_checkpoint
from lib.networks.checkpoint import (
    TEACHER_FILES,
    Checkpoint,
    find_teacher,
    read_checkpoint,
    rebuild_adaptation,
    rebuild_network,
)

logger = logging.getLogger(__name__)

PUBLISHED = {
    "sam_med3d.pth": "blueyo0/SAM-Med3D",
    "sam_med3d_turbo.pth": "blueyo0/SAM-Med3D",
    "fastsam3d.pth": "techlove/FastSAM3D",
}
"""PUBLISHED: name of a file -> its Hugging Face repository; all are Apache-2.0."""


@dataclass(frozen=True)
class Weights:
    """A network, ready to run, and the facts about its weights that users see.

    network_id: the SHA-256 of the file, followed by ``+`` and the teacher's if that completed it.
    It changes with any weight and is part of the key of everything computed.
    file: name of the file without its folder.
    trained: False for a student that was made from its teacher and has not learned yet.
    metadata: the facts stored in the file.
    adaptation: the earlier decoder of an adapted student, and which images still have it.
    """

    network: FastSAM3D
    network_id: str
    file: str
    trained: bool = True
    metadata: Mapping[str, str] = field(default_factory=dict)
    adaptation: Adaptation | None = None

    @property
    def before_adaptation(self) -> FastSAM3D:
        """The network for any image: that before an adaptation, if there was one."""
        if self.adaptation is None:
            return self.network
        return self.adaptation.network_before(self.network)

    def info(self) -> dict[str, Any]:
        """Return the facts for ``/info``: file, hash, trained, licence, measured Dice, network."""
        config = self.network.config
        return {
            "file": self.file,
            "sha256": self.network_id,
            "trained": self.trained,
            "adapted": self.adaptation is not None,
            "licence": self.metadata.get("licence", "not stated in the file"),
            "dice": self.metadata.get("dice"),
            "description": self.metadata.get("description", self.describe()),
            "network": f"{config.depth} blocks, width {config.width}, {config.roi_size}³ ROI",
        }

    def describe(self) -> str:
        """Return a short description for a list of models."""
        return f"weights {self.file}" if self.trained else f"UNTRAINED weights {self.file}"


def choose_weights(name: str, folder: Path, teacher: Weights | None = None) -> Weights:
    """Read the weights called ``name`` (:func:`find_weights`).

    teacher: see :func:`file_weights`. Raises WeightsError.
    """
    return file_weights(find_weights(name, folder), teacher)


def file_weights(path: Path, teacher: Path | Weights | None = None) -> Weights:
    """Read the weights in a file, once; raises WeightsError if they cannot be used.

    teacher: file, or weights already read, whose prompt encoder and mask decoder complete an
    encoder-only checkpoint; by default a published teacher in the same folder.
    """
    with as_weights_errors():
        checkpoint = read_checkpoint(path)
        _check_recorded(checkpoint)
        donor = _read_donor(checkpoint, teacher)
        if checkpoint.encoder_only and donor is None:
            raise WeightsError(
                f"{path}: holds an image encoder only; its prompt encoder and mask decoder are the "
                "teacher's: give that file with --conf teacher_weights, or put it beside this one "
                f"as {TEACHER_FILES[0]}"
            )
        network = rebuild_network(checkpoint, donor)
        adaptation = rebuild_adaptation(checkpoint)
    network_id = f"{checkpoint.sha256}+{donor.sha256}" if donor else checkpoint.sha256
    trained = checkpoint.metadata.get("trained", "true") == "true"
    logger.info("%s: %d blocks, SHA-256 %s", path, network.config.depth, checkpoint.sha256)
    return Weights(network, network_id, path.name, trained, checkpoint.metadata, adaptation)


def _read_donor(checkpoint: Checkpoint, teacher: Path | Weights | None) -> Checkpoint | None:
    """Return the checkpoint that completes an encoder-only one; None if it needs none."""
    if not isinstance(teacher, Weights):
        path = find_teacher(checkpoint, teacher)
        return read_checkpoint(path) if path else None
    if not checkpoint.encoder_only:
        return None
    network = teacher.network
    path, state = Path(teacher.file), dict(network.state_dict())
    return Checkpoint(path, teacher.network_id, state, network.config, network.policy)


@contextmanager
def as_weights_errors() -> Iterator[None]:
    """Turn CheckpointError, of a package without the app's errors, into WeightsError."""
    try:
        yield
    except CheckpointError as error:
        raise WeightsError(str(error)) from error


def _check_recorded(checkpoint: Checkpoint) -> None:
    path, recorded = checkpoint.path, _recorded_sha256(checkpoint.path)
    if recorded not in (None, checkpoint.sha256):
        raise WeightsError(
            f"{path}: its SHA-256 is {checkpoint.sha256}, but {recorded} was recorded when it was "
            f"downloaded; remove it and {_record_of(path).name} to download it again"
        )


def save_weights(
    network: FastSAM3D,
    path: Path,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
    adaptation: Adaptation | None = None,
) -> None:
    """Write a network atomically (:func:`lib.networks.save_checkpoint`).

    Raises WeightsError for a network without a decoder, OSError if the file cannot be written.
    """
    with as_weights_errors(), write_atomically(path) as temporary:
        save_checkpoint(network, temporary, metadata, dtype, adaptation)


def find_weights(name: str, folder: Path) -> Path:
    """Return the file called ``name``: a path, a file in ``folder``, or a published name.

    A published file that ``folder`` does not have yet is downloaded. Raises WeightsError.
    """
    for path in (Path(name).expanduser(), folder / name):
        if path.is_file():
            return path
    if name in PUBLISHED:
        return download(name, folder)
    raise WeightsError(
        f"weights {name!r} are neither a file nor a published name; give the path of a .pth or "
        f".safetensors file, the name of one in {folder}, or one of {', '.join(PUBLISHED)}"
    )


def check_default(path: Path, option: str) -> str:
    """Return the path of shipped weights as a name for :func:`choose_weights`.

    option: the ``--conf`` option that names other weights. Raises WeightsError if there is no such
    file.
    """
    if not path.is_file():
        raise WeightsError(
            f"the default weights {path} are missing; restore this file from the repository, or "
            f"give other weights with --conf {option}"
        )
    return str(path)


def download(name: str, folder: Path) -> Path:
    """Download a published file into ``folder`` and record its SHA-256 beside it.

    It shows a progress bar, resumes an interrupted download, and leaves no incomplete file. The
    host is Hugging Face, or a mirror named by HF_ENDPOINT. Raises WeightsError.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url = f"{endpoint}/{PUBLISHED[name]}/resolve/main/{name}"
    logger.info("downloading %s to %s", url, folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # huggingface_hub's own bar is hidden without a terminal, as under a service manager
        downloaded = hf_hub_download(
            PUBLISHED[name], name, local_dir=folder, endpoint=endpoint, tqdm_class=tqdm
        )
    except (OSError, HfHubHTTPError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{name} could not be downloaded ({reason}); get it from {url} on a machine with a "
            f"network and put it at {folder / name}"
        ) from error
    path = Path(downloaded)
    write_text_atomically(_record_of(path), f"{file_sha256(path)}  {name}\n")
    return path


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record_of(path: Path) -> Path:
    """Return the path of the hash of ``path``, a file in the format of ``sha256sum --check``."""
    return path.with_name(f"{path.name}.sha256")


def _recorded_sha256(path: Path) -> str | None:
    record = _record_of(path)
    words = record.read_text().split() if record.is_file() else []
    return words[0] if words else None
