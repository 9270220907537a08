"""What an adapted network keeps beside its weights: the decoder it had, and when to use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import FastSAM3DConfig
from .fastsam3d import FastSAM3D
from .likeness import ImageLikeness
from .mask_decoder import MaskDecoder3D

EARLIER, LIKENESS = "earlier_decoder.", "likeness."
"""EARLIER, LIKENESS: prefixes of the tensors' names."""


@dataclass(frozen=True)
class Adaptation:
    """The mask decoder before an adaptation, for ROIs unlike those that the network learned.

    earlier: that decoder, frozen. likeness: which ROIs are alike, and so have the adapted decoder.
    """

    earlier: MaskDecoder3D
    likeness: ImageLikeness

    def network_before(self, network: FastSAM3D) -> FastSAM3D:
        """Return the adapted network with the earlier decoder; the other parts are shared."""
        return network.with_decoder(self.earlier)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors, with the names they have in a file."""
        parts = ((EARLIER, self.earlier.state_dict()), (LIKENESS, self.likeness.tensors()))
        return {f"{prefix}{name}": x for prefix, part in parts for name, x in part.items()}

    @classmethod
    def of(cls, config: FastSAM3DConfig, tensors: Mapping[str, Tensor]) -> Adaptation:
        """Rebuild it from the result of :meth:`tensors`; raise ValueError if they do not fit."""
        parts: dict[str, dict[str, Tensor]] = {EARLIER: {}, LIKENESS: {}}
        for name, x in tensors.items():
            prefix, _, rest = name.partition(".")
            parts[f"{prefix}."][rest] = x.to(torch.float32, copy=True)
        with torch.device("meta"):
            decoder = MaskDecoder3D(config)
        try:
            decoder.load_state_dict(parts[EARLIER], assign=True)
        except RuntimeError as error:
            raise ValueError(
                "its earlier mask decoder does not fit the network; publish it again, or roll back"
            ) from error
        likeness = ImageLikeness.of(config, parts[LIKENESS])
        return cls(decoder.eval().requires_grad_(False), likeness)


def is_of_adaptation(name: str) -> bool:
    """Return whether a tensor in a file belongs to an adaptation, not to the network."""
    return name.startswith((EARLIER, LIKENESS))
