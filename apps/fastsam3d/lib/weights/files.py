"""Which weights a model runs with: a file, a published file that is fetched once, or untrained."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lib.networks import FastSAM3D, build_untrained, load_checkpoint
from lib.networks.checkpoint import (
    TEACHER_FILES,
    CheckpointError,
    find_teacher,
    read_checkpoint,
)

logger = logging.getLogger(__name__)

# name -> Hugging Face repository, both Apache-2.0
PUBLISHED = {
    "sam_med3d.pth": "blueyo0/SAM-Med3D",
    "sam_med3d_turbo.pth": "blueyo0/SAM-Med3D",
    "fastsam3d.pth": "techlove/FastSAM3D",
}


class WeightsError(Exception):
    """Weights asked for are not to be had; says where to get them and where to put them."""


@dataclass(frozen=True)
class Weights:
    """A network, ready to run, and what a user should know of where it comes from.

    file: its name alone, as clients see it. network_id changes whenever any weight does; it is part
    of the key of everything computed.
    """

    network: FastSAM3D
    network_id: str
    file: str | None = None
    trained: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)

    def info(self) -> dict[str, Any]:
        """For ``/info``: file, SHA-256, trained or not, licence, measured Dice, network."""
        config = self.network.config
        return {
            "file": self.file,
            "sha256": self.network_id if self.file else None,
            "trained": self.trained,
            "licence": self.metadata.get(
                "licence", "not stated in the file" if self.file else None
            ),
            "dice": self.metadata.get("dice"),
            "description": self.metadata.get("description", self.describe()),
            "network": f"{config.depth} blocks, width {config.width}, {config.roi_size}³ ROI",
        }

    def describe(self) -> str:
        if self.trained:
            return f"weights {self.file}"
        return "UNTRAINED random weights: masks mean nothing until trained weights are given"


def choose_weights(name: str, folder: Path, teacher: str = "", untrained: str = "") -> Weights:
    """The weights that ``name`` stands for (:func:`find_weights`).

    teacher: as ``name``, for an encoder-only file. untrained: name of the configuration whose
    untrained weights serve where ``name`` is empty.
    """
    if not name:
        return untrained_weights(untrained)
    donor = find_weights(teacher, folder) if teacher else None
    return file_weights(find_weights(name, folder), donor)


def untrained_weights(config: str, seed: int = 0) -> Weights:
    """A small network with random weights of a fixed seed, so that the app starts anywhere."""
    logger.warning("%s: untrained random weights, its masks mean nothing yet", config)
    return Weights(build_untrained(config, seed), network_id=f"untrained-{config}-{seed}")


def file_weights(path: Path, teacher: Path | None = None) -> Weights:
    """The weights in a file; raises CheckpointError where they cannot be used.

    teacher: file that an encoder-only checkpoint takes its prompt encoder and mask decoder from.
    """
    digest = file_sha256(path)
    recorded = _recorded_sha256(path)
    if recorded not in (None, digest):
        raise CheckpointError(
            f"{path}: its SHA-256 is {digest}, but {recorded} was recorded when it was downloaded; "
            f"remove it and {_record_of(path).name} to download it again"
        )
    checkpoint = read_checkpoint(path)
    donor = find_teacher(checkpoint, teacher)
    network = load_checkpoint(path, teacher=donor)
    if not network.has_decoder:
        raise CheckpointError(
            f"{path}: holds an image encoder only; its prompt encoder and mask decoder are the "
            f"teacher's: give that file with --conf teacher_weights, or put it beside this one as "
            f"{TEACHER_FILES[0]}"
        )
    network_id = f"{digest}+{file_sha256(donor)}" if donor else digest
    trained = checkpoint.metadata.get("trained", "true") == "true"
    logger.info("%s: %d blocks, SHA-256 %s", path, network.config.depth, digest)
    return Weights(network, network_id, path.name, trained, checkpoint.metadata)


def find_weights(name: str, folder: Path) -> Path:
    """The file that ``name`` stands for: a path, a file in ``folder``, or a published name.

    A published file that is not there yet is downloaded into ``folder``. Raises WeightsError.
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


def download(name: str, folder: Path) -> Path:
    """Fetch a published file into ``folder`` and record its SHA-256 beside it.

    With a progress bar, resumed after an interruption, and never half a file. The host is Hugging
    Face, or a mirror named by HF_ENDPOINT. Raises WeightsError.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url = f"{endpoint}/{PUBLISHED[name]}/resolve/main/{name}"
    logger.info("downloading %s to %s", url, folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # their own bar hides where there is no terminal, as under a service manager
        fetched = hf_hub_download(
            PUBLISHED[name], name, local_dir=folder, endpoint=endpoint, tqdm_class=tqdm
        )
    except (OSError, HfHubHTTPError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{name} could not be downloaded ({reason}); get it from {url} on a machine with a "
            f"network and put it at {folder / name}"
        ) from error
    path = Path(fetched)
    partial = _record_of(path).with_suffix(".partial")
    partial.write_text(f"{file_sha256(path)}  {name}\n")
    os.replace(partial, _record_of(path))
    return path


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record_of(path: Path) -> Path:
    """Beside the file, in the format of ``sha256sum --check``."""
    return path.with_name(f"{path.name}.sha256")


def _recorded_sha256(path: Path) -> str | None:
    record = _record_of(path)
    words = record.read_text().split() if record.is_file() else []
    return words[0] if words else None
