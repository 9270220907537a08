"""SAM's mask decoder in 3D: prompt and image tokens attend to each other, then become masks."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Backend, attention, sparse_attention
from .common import MLP, LayerNorm3d, MLPBlock
from .config import FastSAM3DConfig
from .mask_refiner import MaskRefiner
from .prepared import DecoderConstants, PreparedImage
from .sparsity import segment_groups
from .token_blocks import from_blocks

Multimask = Literal[False, True, "all"]
"""Multimask: the one mask, the three masks for an ambiguous click, or all four in this order."""


class DecoderAttention(nn.Module):
    """Multi-head attention [B, Nq, C] over [B, Nk, C] with inner width C / downsample.

    segment: a positive value limits self-attention to segments of that length (Eq. 3 of FastSAM3D
    with interval 1). A sequence that is not longer is one segment, so its attention is dense.
    Attention between prompt and image tokens has two sequences and is always dense.
    """

    def __init__(self, width: int, heads: int, downsample: int = 1, segment: int = 0) -> None:
        super().__init__()
        inner = width // downsample
        self.num_heads = heads
        self.segment = segment
        self.backend: Backend = "auto"
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend(self.q_proj(q), self.k_proj(k), self.v_proj(v))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return ``forward`` for already projected queries, keys and values [B, N, inner]."""
        q, k, v = self._split_heads(q), self._split_heads(k), self._split_heads(v)
        if self.segment and q.shape[2] > self.segment:
            groups = segment_groups(q.shape[2], self.segment, interval=1)
            out = sparse_attention(q, k, v, groups, backend=self.backend)
        else:
            out = attention(q, k, v, backend=self.backend)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class TwoWayBlock3D(nn.Module):
    """Prompt tokens attend to each other and to the image, then the image attends to them."""

    def __init__(self, config: FastSAM3DConfig, first: bool) -> None:
        super().__init__()
        width, heads = config.out_channels, config.decoder_heads
        self.first = first
        self.self_attn = DecoderAttention(width, heads, segment=config.decoder_segment)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = DecoderAttention(width, heads, config.decoder_downsample)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLPBlock(width, config.decoder_mlp_width, nn.ReLU)
        self.norm3 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = DecoderAttention(width, heads, config.decoder_downsample)
        self.norm4 = nn.LayerNorm(width)

    def project_image(self, image: Tensor, image_position: Tensor) -> Tensor:
        """Project image tokens [B, M, C] for both cross-attentions: [B, M, 3 * inner].

        These are the keys and values of the first and the queries of the second.
        """
        placed = image + image_position
        keys = self.cross_attn_token_to_image.k_proj(placed)
        values = self.cross_attn_token_to_image.v_proj(image)
        return torch.cat([keys, values, self.cross_attn_image_to_token.q_proj(placed)], dim=-1)

    def image_weights(self) -> Tensor:
        """Return the weights of :meth:`project_image`, [3 * inner, C]."""
        to_image, to_token = self.cross_attn_token_to_image, self.cross_attn_image_to_token
        return torch.cat([to_image.k_proj.weight, to_image.v_proj.weight, to_token.q_proj.weight])

    def forward(
        self, tokens: Tensor, image: Tensor, token_position: Tensor, projected: Tensor
    ) -> tuple[Tensor, Tensor]:
        keys, values, queries = projected.chunk(3, dim=-1)
        if self.first:
            # the first layer's tokens are their own position, so nothing is added
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_position
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)

        to_image, to_token = self.cross_attn_token_to_image, self.cross_attn_image_to_token
        token_queries = to_image.q_proj(tokens + token_position)
        tokens = self.norm2(tokens + to_image.attend(token_queries, keys, values))
        tokens = self.norm3(tokens + self.mlp(tokens))

        token_keys = to_token.k_proj(tokens + token_position)
        attended = to_token.attend(queries, token_keys, to_token.v_proj(tokens))
        return tokens, self.norm4(image + attended)


class TwoWayTransformer3D(nn.Module):
    """Two-way blocks over tokens [B, N, C] and image [B, M, C], then attention to the image.

    projected: ``project_image`` of the first block for this image, [B, M, 3 * inner].
    """

    def __init__(self, config: FastSAM3DConfig) -> None:
        super().__init__()
        width = config.out_channels
        self.layers = nn.ModuleList(
            TwoWayBlock3D(config, first=number == 0) for number in range(config.decoder_depth)
        )
        self.final_attn_token_to_image = DecoderAttention(
            width, config.decoder_heads, config.decoder_downsample
        )
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(
        self, tokens: Tensor, image: Tensor, image_position: Tensor, projected: Tensor
    ) -> tuple[Tensor, Tensor]:
        token_position = tokens
        layers: list[Any] = list(self.layers)
        for number, layer in enumerate(layers):
            if number > 0:
                projected = layer.project_image(image, image_position)
            tokens, image = layer(tokens, image, token_position, projected)
        placed, placed_image = tokens + token_position, image + image_position
        tokens = tokens + self.final_attn_token_to_image(placed, placed_image, image)
        return self.norm_final_attn(tokens), image


class Upscaling3D(nn.Sequential):
    """Upscale image tokens [B, C, g, g, g] to the mask's resolution: [B, C / 8, 4g, 4g, 4g].

    It multiplies matrices on blocks (:mod:`lib.networks.token_blocks`). ``in_blocks`` returns the
    blocks, for callers that only need a product over the channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.ConvTranspose3d(width, width // 4, kernel_size=2, stride=2),
            LayerNorm3d(width // 4),
            nn.GELU(),
            nn.ConvTranspose3d(width // 4, width // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        blocks = self.in_blocks(x.flatten(2).transpose(1, 2), self.matrices())
        return from_blocks(blocks, x.shape[2:])

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Return both convolutions' weights as [8 * channels out, channels in], eighths first."""
        convolutions: list[Any] = [self[0], self[3]]
        first, second = (
            conv.weight.flatten(2).permute(2, 1, 0).flatten(0, 1).contiguous()
            for conv in convolutions
        )
        return first, second

    def in_blocks(self, tokens: Tensor, matrices: tuple[Tensor, Tensor]) -> Tensor:
        """Upscale tokens [B, g³, C] to blocks [B, g³, 8, 8, C / 8]."""
        layers: list[Any] = list(self)
        first, norm, _, second, _ = layers
        x = F.linear(tokens, matrices[0], first.bias.repeat(8)).unflatten(-1, (8, -1))
        x = F.gelu(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps))
        x = F.linear(x, matrices[1], second.bias.repeat(8)).unflatten(-1, (8, -1))
        return F.gelu(x)


class MaskDecoder3D(nn.Module):
    """Decode image and prompt embeddings to low-resolution mask logits and their expected IoU."""

    def __init__(self, config: FastSAM3DConfig) -> None:
        super().__init__()
        width = config.out_channels
        self.num_masks = config.num_multimask_outputs + 1
        self.transformer = TwoWayTransformer3D(config)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(self.num_masks, width)
        self.output_upscaling = Upscaling3D(width)
        if config.detail_channels:
            self.refiner = MaskRefiner(config)
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(width, width, width // 8, depth=3) for _ in range(self.num_masks)
        )
        self.iou_prediction_head = MLP(
            width, config.iou_head_width, self.num_masks, config.iou_head_depth
        )

    def constants(self, position: Tensor, mask_projection: nn.Module) -> DecoderConstants:
        """Compute the tensors that are the same for every image.

        position: [1, C, g, g, g] positional encoding. mask_projection: the 1×1×1 convolution that
        ends the prompt encoder's ``mask_downscaling``; here it is joined with the first layer's
        projections.
        """
        first: Any = self.transformer.layers[0]
        projection: Any = mask_projection
        weights = first.image_weights()
        to_tokens = projection.weight.flatten(1).to(weights.dtype)  # [C, mask_channels]
        bias = projection.bias.to(weights.dtype)
        return DecoderConstants(
            position=position.flatten(2).transpose(1, 2).contiguous(),
            mask_weights=torch.cat([to_tokens, weights @ to_tokens]),
            mask_bias=torch.cat([bias, weights @ bias]),
            upscaling=self.output_upscaling.matrices(),
        )

    def prepare(
        self,
        image: Tensor,
        constants: DecoderConstants,
        detail: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> PreparedImage:
        """Do all work on an image [B, C, g, g, g] that no prompt changes.

        detail, keys: see :class:`PreparedImage`.
        """
        first: Any = self.transformer.layers[0]
        tokens = image.flatten(2).transpose(1, 2)
        return PreparedImage(
            image=tokens.contiguous(),
            projected=first.project_image(tokens, constants.position),
            constants=constants,
            detail=detail,
            keys=keys,
        )

    def forward(
        self,
        prepared: PreparedImage,
        sparse: Tensor,
        mask_features: Tensor | None,
        no_mask: Tensor,
        multimask: Multimask,
        prompt_maps: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return logits [B, M, 4g, 4g, 4g] and expected IoU [B, M] of the masks of ``multimask``.

        sparse: [B, N, C] embeddings of the clicks. mask_features: [B, g³, mask_channels] of a
        previous mask; if None, ``no_mask`` [1, C] is added instead. prompt_maps:
        [B, maps, 4g, 4g, 4g], the input of the mask refiner (:meth:`MaskRefiner.prompt_maps`).
        """
        own_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own_tokens.expand(len(sparse), -1, -1), sparse], dim=1)
        if mask_features is None:
            first: Any = self.transformer.layers[0]
            added = torch.cat([no_mask, no_mask @ first.image_weights().T], dim=-1)
        else:
            fixed = prepared.constants
            added = F.linear(mask_features, fixed.mask_weights, fixed.mask_bias)
        split = prepared.image.shape[-1]
        tokens, image_tokens = self.transformer(
            tokens,
            (prepared.image + added[..., :split]).expand(len(sparse), -1, -1),
            prepared.constants.position,
            (prepared.projected + added[..., split:]).expand(len(sparse), -1, -1),
        )

        masks = range(1 if multimask is True else 0, self.num_masks if multimask else 1)
        weights = [self.output_hypernetworks_mlps[n](tokens[:, 1 + n]) for n in masks]
        logits = self._logits(image_tokens, torch.stack(weights, dim=1), prepared, prompt_maps)
        iou = self.iou_prediction_head(tokens[:, 0])
        return logits, iou[:, masks.start : masks.stop]

    def _logits(
        self, image: Tensor, weights: Tensor, prepared: PreparedImage, prompt_maps: Tensor | None
    ) -> Tensor:
        """Apply mask weights [B, M, C / 8] to image tokens [B, g³, C]: [B, M, 4g, 4g, 4g]."""
        grid = (round(image.shape[1] ** (1 / 3)),) * 3
        # training needs the upscaled image itself, and the refiner convolves it
        if prepared.detail is None and not torch.is_grad_enabled():
            matrices = prepared.constants.upscaling
            blocks = self.output_upscaling.in_blocks(image, matrices)  # [B, g³, 8, 8, c]
            masks = (blocks.flatten(1, 3) @ weights.mT).unflatten(1, blocks.shape[1:4])
            return from_blocks(masks, grid)
        upscaled = self.output_upscaling(image.transpose(1, 2).unflatten(2, grid))
        if prepared.detail is not None and prompt_maps is not None:
            detail, keys = (
                x if x is None else x.expand(len(upscaled), -1, -1, -1, -1).to(upscaled.dtype)
                for x in (prepared.detail, prepared.keys)
            )
            upscaled = self.refiner(upscaled, detail, keys, prompt_maps)
        return torch.einsum("bmc,bcijk->bmijk", weights, upscaled)
