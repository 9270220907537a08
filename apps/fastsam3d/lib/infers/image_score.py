"""How uncertain a model is on an unlabelled image: the mean over a few simulated clicks.

A place in the body is clicked, and the uncertainty of the mask is taken. Images with a larger score
are offered first by the strategy ``uncertainty`` of *Next Sample*.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from lib.errors import InputError
from lib.imaging.volume import Volume

PROBES = 4
"""PROBES: simulated clicks on an image."""

MOST_VOXELS = 10**6
"""MOST_VOXELS: about the number of voxels in which the places are looked for."""


def probe_places(volume: Volume, name: str) -> np.ndarray:
    """Return PROBES voxels (N, 3) that are brighter than the mean, so in the body.

    name: of the image; it seeds the random numbers.
    """
    step = max(1, round((volume.array.size / MOST_VOXELS) ** (1 / 3)))
    coarse = volume.array[::step, ::step, ::step]
    bright = np.flatnonzero(coarse > coarse.mean())
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    chosen = generator.choice(bright, PROBES)
    return np.stack(np.unravel_index(chosen, coarse.shape), axis=1) * step


def score_image(
    volume: Volume, name: str, ask: Callable[[dict[str, Any]], dict[str, Any]]
) -> float:
    """Return the mean uncertainty over the probes.

    ask: returns the reply's parameters for a request. Raises InputError if no place can be used.
    """
    scores, reason = [], None
    for place in probe_places(volume, name).tolist():
        try:
            scores.append(ask({"foreground": [place]})["expected_error"])
        except InputError as error:  # a place without contrast
            reason = error
    if not scores:
        assert reason is not None
        raise reason
    return float(np.mean(scores))
