"""An analytic CT torso with exact organ labels, which can be sampled on any grid."""

from .sampling import LABELS, centred_affine, evaluate, sample

__all__ = ["LABELS", "centred_affine", "evaluate", "sample"]
