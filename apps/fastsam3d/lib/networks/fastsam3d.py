"""The whole promptable network: encode a ROI once, decode it for every click."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .config import CONFIGS, FastSAM3DConfig
from .image_encoder import ImageEncoder3D
from .mask_decoder import MaskDecoder3D, Multimask, PreparedImage
from .mask_refiner import DetailStem
from .prompt_encoder import PromptEncoder3D


class FastSAM3D(nn.Module):
    """SAM-Med3D's teacher and FastSAM3D's student are two configurations of this network."""

    def __init__(self, config: FastSAM3DConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder3D(config)
        self.prompt_encoder = PromptEncoder3D(config)
        self.mask_decoder = MaskDecoder3D(config)
        if config.detail_channels:
            self.detail_stem = DetailStem(config)

    @property
    def has_decoder(self) -> bool:
        """False for an image encoder that was loaded alone: it encodes, but cannot decode."""
        return not self.mask_decoder.mask_tokens.weight.is_meta

    def encode(self, volume: Tensor) -> Tensor:
        """volume: [B, 1, S, S, S] normalised ROI in RAS+ order -> image embedding [B, C, g, g, g].

        C is ``config.embedding_channels``: first the neck's ``out_channels``, then as many as the
        patches of any detail fill, in a row; those are not where their token is.
        Raises ValueError for a volume of another shape.
        """
        return self.encode_intermediates(volume, ())[0]

    def encode_intermediates(
        self, volume: Tensor, blocks: Sequence[int]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """``encode``, and the output [B, i, j, k, width] of each encoder block in ``blocks``."""
        expected = (1, *(self.config.roi_size,) * 3)
        if volume.ndim != 5 or tuple(volume.shape[1:]) != expected:
            raise ValueError(
                f"volume is {tuple(volume.shape)}, but the network takes (B, {expected})"
            )
        number_type = self.image_encoder.pos_embed.dtype
        embedding, outputs = self.image_encoder.forward_intermediates(
            volume.to(number_type), blocks
        )
        if self.config.detail_channels:
            patches = self.detail_stem.patches(volume)
            in_a_row = patches.reshape(len(patches), -1, *embedding.shape[2:])
            embedding = torch.cat([embedding, in_a_row], dim=1)
        return embedding, outputs

    def prepare(self, embedding: Tensor) -> PreparedImage:
        """What the decoder makes of an embedding [B, C, g, g, g] before any prompt.

        Kept between the clicks on an image, it saves that work in each ``decode``. Raises
        ValueError without a decoder.
        """
        if not self.has_decoder:
            raise ValueError("only the image encoder was loaded; load it with its teacher's file")
        detail = None
        if self.config.detail_channels:
            cells = (self.config.detail_channels, *(self.config.low_res_size,) * 3)
            patches = embedding[:, self.config.out_channels :].reshape(-1, *cells)
            detail = self.detail_stem.mix(patches.to(self.detail_stem.proj.weight.dtype))
        number_type = self.mask_decoder.mask_tokens.weight.dtype
        return self.mask_decoder.prepare(
            image=embedding[:, : self.config.out_channels].to(number_type),
            image_position=self.prompt_encoder.dense_position().to(number_type),
            mask_projection=self.prompt_encoder.mask_downscaling[-1],
            detail=detail,
        )

    def decode(
        self,
        embedding: Tensor | PreparedImage,
        points: Tensor | None,
        labels: Tensor | None,
        mask: Tensor | None = None,
        multimask: Multimask = False,
    ) -> tuple[Tensor, Tensor]:
        """One step of an interaction.

        embedding: [B, C, g, g, g], or [1, C, g, g, g] for B prompts on one image; or what
        ``prepare`` made of it.

        points: [B, N, 3] float, (i, j, k) ROI voxel indices; the encoder adds 0.5. None: no clicks.
        labels: [B, N], 1 foreground, 0 background, -1 padding.
        mask: [B, 1, 4g, 4g, 4g] logits of the previous step; zeros, not None, in the first step of
        a series, as the weights were trained.
        -> logits [B, M, 4g, 4g, 4g] and expected IoU [B, M]; M is 1, or 3 with ``multimask``,
        or 4, the one before the three, with ``multimask="all"``.

        Raises ValueError for shapes that do not belong together, and without a decoder.
        """
        batch = self._check_prompts(embedding, points, labels, mask)
        prepared = embedding if isinstance(embedding, PreparedImage) else self.prepare(embedding)
        sparse, mask_features = self.prompt_encoder(points, labels, mask, batch, prepared.detail)
        maps = None
        if prepared.detail is not None:
            maps = self._draw(prepared.detail, points, labels, mask, batch)
        number_type = prepared.image.dtype
        return self.mask_decoder(
            prepared,
            sparse=sparse.to(number_type),
            mask_features=None if mask_features is None else mask_features.to(number_type),
            no_mask=self.prompt_encoder.no_mask_embed.weight.to(number_type),
            multimask=multimask,
            prompt_maps=None if maps is None else maps.to(number_type),
        )

    def _draw(
        self,
        detail: Tensor,
        points: Tensor | None,
        labels: Tensor | None,
        mask: Tensor | None,
        batch: int,
    ) -> Tensor:
        """The prompt as the mask decoder's refiner sees it, [B, maps, 4g, 4g, 4g]."""
        size = self.config.low_res_size
        if mask is None:
            mask = detail.new_zeros(batch, 1, size, size, size)
        if points is None or labels is None:
            points, labels = detail.new_zeros(batch, 0, 3), detail.new_zeros(batch, 0)
        return self.mask_decoder.refiner.show(detail, points, labels, mask, self.config.roi_size)

    def _check_prompts(
        self,
        embedding: Tensor | PreparedImage,
        points: Tensor | None,
        labels: Tensor | None,
        mask: Tensor | None,
    ) -> int:
        if (points is None) != (labels is None):
            raise ValueError("points and labels come together or not at all")
        if points is not None and labels is not None and points.shape != (*labels.shape, 3):
            raise ValueError(
                f"points {tuple(points.shape)} and labels {tuple(labels.shape)} "
                "must be (B, N, 3) and (B, N)"
            )
        size = self.config.low_res_size
        if mask is not None and tuple(mask.shape[1:]) != (1, size, size, size):
            raise ValueError(
                f"mask is {tuple(mask.shape)}, but must be (B, 1, {size}, {size}, {size})"
            )
        sizes = {len(x) for x in (embedding, points, mask) if x is not None} - {1}
        if len(sizes) > 1:
            raise ValueError(
                f"embedding, points and mask have different batch sizes {sorted(sizes)}"
            )
        return sizes.pop() if sizes else 1


def build_network(config: str | Mapping[str, Any] | FastSAM3DConfig) -> FastSAM3D:
    """A network with random weights, in eval mode.

    config: a configuration, its options as a mapping, or a name in ``CONFIGS``.
    """
    if isinstance(config, str):
        if config not in CONFIGS:
            raise ValueError(f"no network is called {config!r}; there are {', '.join(CONFIGS)}")
        config = CONFIGS[config]
    elif not isinstance(config, FastSAM3DConfig):
        config = FastSAM3DConfig.from_dict(dict(config))
    return FastSAM3D(config).eval()


def build_untrained(config: str | FastSAM3DConfig, seed: int) -> FastSAM3D:
    """``build_network`` with weights of ``seed`` alone; leaves the caller's random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(config)
