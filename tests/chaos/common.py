"""What the programs share: scans, clicks, hashes of masks, and the outcome of a run."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import requests
from nibabel.affines import from_matvec

SHAPE_IJK = (60, 52, 34)
AFFINE_MM = from_matvec(np.diag([-2.1, -1.7, 3.0]), [40, 50, -30])
"""AFFINE_MM: voxel index -> RAS; flipped, shifted and anisotropic."""

CENTRE_IJK = (30, 26, 17)


@dataclass
class Outcome:
    """The result of a program. facts: what was done and measured. failures: a sentence each."""

    facts: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def check(self, is_right: bool, sentence: str) -> None:
        """Add a failure unless a condition holds."""
        if not is_right:
            self.fail(sentence)

    def fail(self, sentence: str) -> None:
        """Add a failure, and print it at once: a long run may be stopped for it."""
        self.failures.append(sentence)
        print(f"FAILED: {sentence}", file=sys.stderr, flush=True)


def scan(seed: int, shape_ijk: tuple[int, ...] = SHAPE_IJK) -> nib.Nifti1Image:
    """Return a CT of noise with a bright ball in the middle."""
    ijk = np.indices(shape_ijk) - np.reshape(shape_ijk, (3, 1, 1, 1)) // 2
    ball = (ijk**2).sum(0) < (min(shape_ijk) // 4) ** 2
    noise = np.random.default_rng(seed).normal(-500, 200, shape_ijk).clip(-1024, 3000)
    return nib.Nifti1Image((noise + 600 * ball).astype(np.int16), AFFINE_MM)


def write_scan(path: Path, seed: int, shape_ijk: tuple[int, ...] = SHAPE_IJK) -> None:
    """Write a scan beside its place and rename it, so that nobody reads a part of it."""
    partial = path.parent.parent / f"writing-{os.getpid()}-{path.name}"
    nib.save(scan(seed, shape_ijk), partial)
    partial.rename(path)


def label_bytes(seed: int, shape_ijk: tuple[int, ...] = SHAPE_IJK) -> bytes:
    """Return an uncompressed NIfTI label of random voxels."""
    values = np.random.default_rng(seed).integers(0, 4, shape_ijk, dtype=np.uint8)
    return nib.Nifti1Image(values, AFFINE_MM).to_bytes()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def click(
    url: str,
    image: str,
    point_ijk: tuple[int, ...] = CENTRE_IJK,
    model: str = "fastsam3d",
    timeout: float = 300,
) -> requests.Response:
    """Ask for the mask of one click, as an uncompressed NRRD file."""
    clicks = {"foreground": [list(point_ijk)], "result_extension": ".nrrd"}
    return requests.post(
        f"{url}/infer/{model}",
        params={"image": image, "output": "image"},
        data={"params": json.dumps({**clicks, "result_compress": False})},
        timeout=timeout,
    )


def mask_hash(reply: requests.Response) -> str:
    """Return the hash of a mask; raises AssertionError with the reason if there is none."""
    assert reply.status_code == 200, f"HTTP {reply.status_code}: {reply.text[:300]}"
    return digest(reply.content)


def save_label(url: str, image: str, content: bytes, **query: Any) -> requests.Response:
    """Save an uncompressed NIfTI label."""
    return requests.put(
        f"{url}/datastore/label",
        params={"image": image, **query},
        files={"label": ("label.nii", content)},
        timeout=120,
    )
