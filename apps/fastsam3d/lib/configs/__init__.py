"""The app's models: each file has one task configuration, ``MODELS`` maps names to them."""

from .fastsam3d import FastSAM3DModel
from .sam_med3d import SAMMed3DModel

MODELS: dict[str, type[FastSAM3DModel | SAMMed3DModel]] = {
    "fastsam3d": FastSAM3DModel,
    "sam_med3d": SAMMed3DModel,
}

__all__ = ["MODELS", "FastSAM3DModel", "SAMMed3DModel"]
