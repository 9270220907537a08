"""What the app offers: model name -> its task configuration."""

from .fastsam3d import FastSAM3D
from .sam_med3d import SAMMed3D

CONFIGS = {"fastsam3d": FastSAM3D, "sam_med3d": SAMMed3D}

__all__ = ["CONFIGS", "FastSAM3D", "SAMMed3D"]
