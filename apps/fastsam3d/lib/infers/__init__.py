"""The interactive models as MONAI Label infer tasks."""

from .fastsam3d import Caches, FastSAM3DInfer

__all__ = ["Caches", "FastSAM3DInfer"]
