"""The app's models: each file has one task configuration, ``CONFIGS`` maps names to them."""

from .fastsam3d import FastSAM3D
from .sam_med3d import SAMMed3D

CONFIGS: dict[str, type[FastSAM3D | SAMMed3D]] = {"fastsam3d": FastSAM3D, "sam_med3d": SAMMed3D}

__all__ = ["CONFIGS", "FastSAM3D", "SAMMed3D"]
