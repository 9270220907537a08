"""SAM-Med3D's teacher and FastSAM3D's student with their checkpoints; needs nothing but torch."""

from .checkpoint import describe_checkpoint, load_checkpoint, save_checkpoint
from .config import CONFIGS, FastSAM3DConfig
from .fastsam3d import FastSAM3D, build_network, build_untrained
from .mask_decoder import PreparedImage
from .threshold import mask_threshold

__all__ = [
    "CONFIGS",
    "FastSAM3D",
    "FastSAM3DConfig",
    "PreparedImage",
    "build_network",
    "build_untrained",
    "describe_checkpoint",
    "load_checkpoint",
    "mask_threshold",
    "save_checkpoint",
]
