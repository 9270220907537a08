"""An adapted network for serving: each ROI has the adapted decoder or the earlier one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lib.infers.cuda_graphs import CapturedNetwork
from lib.networks import ImageLikeness, PreparedImage, image_features


class AdaptedNetwork:
    """Two networks with one encoder; has the methods of :class:`CapturedNetwork`.

    An adaptation to the labels of a site makes masks better on images like those, and worse on
    others. So a ROI that looks like those of the labels has the adapted decoder, and any other one
    the decoder before.

    adapted, earlier: the same network with either decoder. The earlier one encodes, so that other
    images have the masks of before. likeness: on the networks' device.
    """

    def __init__(
        self, adapted: CapturedNetwork, earlier: CapturedNetwork, likeness: ImageLikeness
    ) -> None:
        self.config = adapted.config
        self.policy = adapted.policy
        self._adapted = adapted
        self._earlier = earlier
        self._likeness = likeness

    def encode(self, volume: Tensor) -> Tensor:
        """See :meth:`FastSAM3D.encode`."""
        return self._earlier.encode(volume)

    @torch.inference_mode()
    def prepare(self, embedding: Tensor) -> PreparedImage:
        """Choose the decoder for a ROI [1, C, g, g, g]; see :meth:`CapturedNetwork.prepare`."""
        is_alike = self._likeness.includes(image_features(embedding, self.config))
        chosen = self._adapted if is_alike else self._earlier
        return replace(chosen.prepare(embedding), is_adapted=is_alike)

    def decode(
        self, prepared: PreparedImage, points: Tensor, labels: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Decode with the decoder that was chosen; see :meth:`CapturedNetwork.decode`."""
        chosen = self._adapted if prepared.is_adapted else self._earlier
        return chosen.decode(prepared, points, labels, mask)
