"""The serving policy: how clicks are replayed and logits become a mask; stored with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from .config import check_choices, check_known

ClickHistory = Literal["all", "newest"]
MaskThreshold = Literal["zero", "expected_dice"]
MaskEdges = Literal["logits", "image"]

_CHOICES = {
    "click_history": get_args(ClickHistory),
    "mask_threshold": get_args(MaskThreshold),
    "mask_edges": get_args(MaskEdges),
}


@dataclass(frozen=True)
class MaskPolicy:
    """The serving policy of a network's weights. It changes masks, but no tensor of the network.

    click_history: clicks that the network gets in each call of a series: ``all`` so far, as
        SAM-Med3D's weights expect, or the ``newest`` one, as FastSAM3D's weights expect.
    mask_threshold: logit above which a voxel is inside: ``zero``, as published, or the threshold
        with the largest ``expected_dice`` (:mod:`lib.networks.threshold`).
    mask_edges: the mask ends where the ``logits`` cross the threshold, as published, or follows the
        edges of the ``image`` (:mod:`lib.infers.random_walker`).
    """

    click_history: ClickHistory = "all"
    mask_threshold: MaskThreshold = "zero"
    mask_edges: MaskEdges = "logits"

    def __post_init__(self) -> None:
        check_choices(self, _CHOICES)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MaskPolicy:
        """Rebuild a policy from JSON; raises ValueError for an unknown field or value."""
        check_known(cls, values, "mask policy options")
        return cls(**values)


POLICIES: dict[str, MaskPolicy] = {
    "sam_med3d": MaskPolicy(),
    "fastsam3d": MaskPolicy(click_history="newest"),
    "fastsam3d_sparse": MaskPolicy(click_history="newest"),
    "sam_med3d_default": MaskPolicy(mask_threshold="expected_dice", mask_edges="image"),
    "fastsam3d_default": MaskPolicy(mask_threshold="expected_dice", mask_edges="image"),
}
"""POLICIES: the policy that belongs to each configuration in ``CONFIGS``."""
