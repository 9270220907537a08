"""An analytic CT torso with exact organ labels, which can be sampled on any grid."""

from .sampling import HU_RANGE, LABELS, centred_affine, evaluate, sample

__all__ = ["HU_RANGE", "LABELS", "centred_affine", "evaluate", "sample"]
