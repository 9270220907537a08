"""The infer task as the server runs it, in this process, with weights that draw balls."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lib.cache import ByteCache, array_nbytes
from lib.infers import Caches, FastSAM3DInfer
from lib.networks import load_checkpoint
from lib.weights.files import Weights
from serving import CLICK_BALL


def ball_task(cache_bytes: int = 2**26, auto_zoom: bool = False) -> FastSAM3DInfer:
    """Return a task whose points are balls with the edges of the image.

    cache_bytes: of each cache; 0 keeps nothing.
    """
    network = load_checkpoint(CLICK_BALL)
    network.policy = dataclasses.replace(
        network.policy, mask_threshold="expected_dice", mask_edges="image"
    )
    caches = Caches(
        *(ByteCache(cache_bytes, array_nbytes) for _ in range(3)),
        ByteCache(cache_bytes, lambda mask: mask.values.nbytes),
    )
    weights = Weights(network, "ball", "ball.safetensors")
    return FastSAM3DInfer(weights, ["organ"], caches, auto_zoom=auto_zoom, device="cpu")


def whole_mask(task: FastSAM3DInfer, image: Path, request: Mapping[str, Any]) -> np.ndarray:
    """Return the mask (I, J, K) uint8 of a request."""
    mask: np.ndarray = task({"image": str(image), **request, "mask": True})[1]["mask"].whole()
    return mask


def spatial(subtype: str, places: Any, structure: int = 1) -> dict[str, Any]:
    """Return an entry of the list of prompts."""
    key = {"semantic_id": structure}
    return {"type": "spatial", "subtype": subtype, "prompt": places, "semantic_id_key": key}
