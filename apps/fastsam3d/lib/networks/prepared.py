"""Results of the mask decoder that no prompt changes, computed once per network or per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class DecoderConstants:
    """Tensors of the mask decoder that depend on its weights alone; g tokens along each side.

    position: [1, g³, C], positional encoding of the image tokens.
    mask_weights: [C + 3 * inner, mask_channels], maps the features of a previous mask to the terms
        that they add to ``image`` and ``projected`` of :class:`PreparedImage`.
    mask_bias: [C + 3 * inner], the bias of the same map.
    upscaling: see :meth:`lib.networks.mask_decoder.Upscaling3D.matrices`.
    """

    position: Tensor
    mask_weights: Tensor
    mask_bias: Tensor
    upscaling: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class PreparedImage:
    """An image embedding of g³ tokens after all work of the decoder that no prompt changes.

    image: [B, g³, C], the tokens.
    projected: [B, g³, 3 * inner], the first layer's keys, values and queries of them.
    constants: the network's tensors that are the same for every image.
    detail: [B, D, 4g, 4g, 4g], or None for a network without image detail.
    keys: [B, K, 4g, 4g, 4g], the cells' keys, or None for a network without them.
    is_adapted: whether an adapted decoder prepared it, where a network has an earlier one too.
    """

    image: Tensor
    projected: Tensor
    constants: DecoderConstants
    detail: Tensor | None = None
    keys: Tensor | None = None
    is_adapted: bool = False

    def __len__(self) -> int:
        return len(self.image)

    @property
    def nbytes(self) -> int:
        """Bytes of this image's own tensors, without the network's constants."""
        own = (self.image, self.projected, *self._maps())
        return sum(x.numel() * x.element_size() for x in own)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors in one tuple, from which :meth:`of` rebuilds the prepared image."""
        fixed = self.constants
        weights = (fixed.position, fixed.mask_weights, fixed.mask_bias, *fixed.upscaling)
        return (self.image, self.projected, *weights, *self._maps())

    def _maps(self) -> tuple[Tensor, ...]:
        """Return detail and keys, as far as there are any; without detail there are no keys."""
        return tuple(x for x in (self.detail, self.keys) if x is not None)

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> PreparedImage:
        """Rebuild a prepared image from the result of :meth:`tensors`."""
        image, projected, position, mask_weights, mask_bias, first, second, *maps = tensors
        constants = DecoderConstants(position, mask_weights, mask_bias, (first, second))
        detail, keys = (*maps, None, None)[:2]
        return cls(image, projected, constants, detail, keys)

    def for_each(self, count: int) -> PreparedImage:
        """Repeat each image ``count`` times in a row, for as many prompts on each."""
        image, projected = (x.repeat_interleave(count, dim=0) for x in (self.image, self.projected))
        detail, keys = (
            x if x is None else x.repeat_interleave(count, dim=0) for x in (self.detail, self.keys)
        )
        return replace(self, image=image, projected=projected, detail=detail, keys=keys)
