"""The whole promptable network: encode a ROI once, decode it for every click."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .config import CONFIGS, FastSAM3DConfig
from .image_encoder import ImageEncoder3D
from .mask_decoder import MaskDecoder3D, Multimask
from .mask_refiner import DetailStem
from .policy import POLICIES, MaskPolicy
from .prepared import DecoderConstants, PreparedImage
from .prompt_encoder import PromptEncoder3D


class FastSAM3D(nn.Module):
    """SAM-Med3D's teacher and FastSAM3D's student are two configurations of this network.

    policy: how to click on it and how to cut masks out of its logits. The network stores it for its
    users and does not read it.
    """

    def __init__(self, config: FastSAM3DConfig, policy: MaskPolicy | None = None) -> None:
        super().__init__()
        self.config = config
        self.policy = policy or MaskPolicy()
        self.image_encoder = ImageEncoder3D(config)
        self.prompt_encoder = PromptEncoder3D(config)
        self.mask_decoder = MaskDecoder3D(config)
        if config.detail_channels:
            self.detail_stem = DetailStem(config)

    @property
    def has_decoder(self) -> bool:
        """False for an image encoder that was loaded alone; it encodes, but does not decode."""
        return not self.mask_decoder.mask_tokens.weight.is_meta

    def with_decoder(self, decoder: MaskDecoder3D) -> FastSAM3D:
        """Return a network with another mask decoder; all other parts are shared with this one."""
        other = copy.copy(self)
        other._modules = {**self._modules, "mask_decoder": decoder}
        return other

    def encode(self, volume: Tensor) -> Tensor:
        """Return the image embedding [B, C, g, g, g] of a normalised ROI.

        volume: [B, 1, S, S, S] in RAS+ order. C is ``config.embedding_channels``: the neck's
        ``out_channels``, then the image detail [B, D, 4g, 4g, 4g] reshaped to [B, 64 D, g, g, g],
        whose values do not lie at their own token. Raises ValueError for another shape.
        """
        return self.encode_intermediates(volume, ())[0]

    def encode_intermediates(
        self, volume: Tensor, blocks: Sequence[int]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return ``encode`` and, by number, the outputs [B, i, j, k, width] of encoder blocks."""
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

    def decoder_constants(self) -> DecoderConstants:
        """Compute the decoder's tensors that depend on the weights alone.

        A user of a network whose weights no longer change keeps them for all images. Raises
        ValueError without a decoder.
        """
        self._check_decoder()
        number_type = self.mask_decoder.mask_tokens.weight.dtype
        return self.mask_decoder.constants(
            position=self.prompt_encoder.dense_position().to(number_type),
            mask_projection=self.prompt_encoder.mask_downscaling[-1],
        )

    def prepare(
        self, embedding: Tensor, constants: DecoderConstants | None = None
    ) -> PreparedImage:
        """Do the decoder's work on an embedding [B, C, g, g, g] that no prompt changes.

        Kept between the clicks on an image, it saves that work in each ``decode``. constants: of
        :meth:`decoder_constants`; computed if None. Raises ValueError without a decoder.
        """
        self._check_decoder()
        number_type = self.mask_decoder.mask_tokens.weight.dtype
        image = embedding[:, : self.config.out_channels].to(number_type)
        detail, keys = None, None
        if self.config.detail_channels:
            cells = (self.config.detail_channels, *(self.config.low_res_size,) * 3)
            patches = embedding[:, self.config.out_channels :].reshape(-1, *cells)
            detail = self.detail_stem.mix(patches.to(self.detail_stem.proj.weight.dtype))
            keys = self.mask_decoder.refiner.keys_of(image, detail)
        return self.mask_decoder.prepare(image, constants or self.decoder_constants(), detail, keys)

    def decode(
        self,
        embedding: Tensor | PreparedImage,
        points: Tensor | None,
        labels: Tensor | None,
        mask: Tensor | None = None,
        multimask: Multimask = False,
    ) -> tuple[Tensor, Tensor]:
        """Return logits [B, M, 4g, 4g, 4g] and expected IoU [B, M] for one step of an interaction.

        embedding: [B, C, g, g, g], or [1, C, g, g, g] for B prompts on one image; or the result of
        ``prepare`` for it.
        points: [B, N, 3] float, (i, j, k) ROI voxel indices; the encoder adds 0.5. None: no clicks.
        labels: [B, N], 1 foreground, 0 background, -1 padding.
        mask: [B, 1, 4g, 4g, 4g] logits of the previous step; zeros, not None, in the first step of
        a series, as the weights were trained.
        multimask: M is 1 for False, 3 for True, and 4 for ``"all"``: the one before the three.

        Raises ValueError for shapes that do not belong together, and without a decoder.
        """
        batch = self._check_prompts(embedding, points, labels, mask)
        prepared = embedding if isinstance(embedding, PreparedImage) else self.prepare(embedding)
        sparse, mask_features = self.prompt_encoder(points, labels, mask, batch, prepared.detail)
        maps = None
        if prepared.detail is not None:
            maps = self._prompt_maps(prepared.detail, prepared.keys, points, labels, mask, batch)
        number_type = prepared.image.dtype
        return self.mask_decoder(
            prepared,
            sparse=sparse.to(number_type),
            mask_features=None if mask_features is None else mask_features.to(number_type),
            no_mask=self.prompt_encoder.no_mask_embed.weight.to(number_type),
            multimask=multimask,
            prompt_maps=None if maps is None else maps.to(number_type),
        )

    def _check_decoder(self) -> None:
        if not self.has_decoder:
            raise ValueError("only the image encoder was loaded; load it with its teacher's file")

    def _prompt_maps(
        self,
        detail: Tensor,
        keys: Tensor | None,
        points: Tensor | None,
        labels: Tensor | None,
        mask: Tensor | None,
        batch: int,
    ) -> Tensor:
        """Return the mask refiner's input channels that show the prompt, [B, maps, 4g, 4g, 4g]."""
        size = self.config.low_res_size
        if mask is None:
            mask = detail.new_zeros(batch, 1, size, size, size)
        if points is None or labels is None:
            points, labels = detail.new_zeros(batch, 0, 3), detail.new_zeros(batch, 0)
        return self.mask_decoder.refiner.prompt_maps(
            detail, keys, points, labels, mask, self.config.roi_size
        )

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


def build_network(
    config: str | Mapping[str, Any] | FastSAM3DConfig, policy: MaskPolicy | None = None
) -> FastSAM3D:
    """Return a network with random weights, in eval mode.

    config: a configuration, its fields as a mapping, or a name in ``CONFIGS``. policy: by default
    the policy of that name, or ``MaskPolicy()`` for a configuration. Raises ValueError.
    """
    if isinstance(config, str):
        if config not in CONFIGS:
            raise ValueError(f"no network is called {config!r}; there are {', '.join(CONFIGS)}")
        return FastSAM3D(CONFIGS[config], policy or POLICIES[config]).eval()
    if not isinstance(config, FastSAM3DConfig):
        config = FastSAM3DConfig.from_dict(config)
    return FastSAM3D(config, policy).eval()


def build_untrained(
    config: str | FastSAM3DConfig, seed: int, policy: MaskPolicy | None = None
) -> FastSAM3D:
    """Return ``build_network`` with weights that depend on ``seed`` alone.

    The random state of the caller is unchanged.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(config, policy)
