"""SAM's mask decoder in 3D: prompt and image tokens meet both ways, then become a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Backend, attention, sparse_attention
from .common import MLP, LayerNorm3d, MLPBlock
from .config import FastSAM3DConfig
from .mask_refiner import MaskRefiner
from .sparsity import segment_groups
from .token_blocks import from_blocks

Multimask = Literal[False, True, "all"]


@dataclass(frozen=True)
class PreparedImage:
    """All of the decoder's work that no prompt changes, for an image embedding of g³ tokens.

    image: [B, g³, C], the tokens.
    position: [1, g³, C], their positional encoding.
    projected: [B, g³, 3 * inner], the first layer's keys, values and queries of them.
    of_mask: [C + 3 * inner, mask_channels], which takes the features of a previous mask to what
        they add to ``image`` and ``projected``; of_mask_bias: [C + 3 * inner].
    upscaling: :meth:`Upscaling3D.matrices`.
    detail: [B, D, 4g, 4g, 4g], or None for a network without.
    """

    image: Tensor
    position: Tensor
    projected: Tensor
    of_mask: Tensor
    of_mask_bias: Tensor
    upscaling: tuple[Tensor, Tensor]
    detail: Tensor | None = None

    def __len__(self) -> int:
        return len(self.image)

    @property
    def nbytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in self.tensors())

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them in one row, for :meth:`of`."""
        own = (self.image, self.position, self.projected, self.of_mask, self.of_mask_bias)
        return (*own, *self.upscaling, *(() if self.detail is None else (self.detail,)))

    def for_each(self, count: int) -> PreparedImage:
        """Each image ``count`` times in a row, for as many prompts on each."""
        image, projected = (x.repeat_interleave(count, dim=0) for x in (self.image, self.projected))
        detail = self.detail
        if detail is not None:
            detail = detail.repeat_interleave(count, dim=0)
        return replace(self, image=image, projected=projected, detail=detail)

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> PreparedImage:
        image, position, projected, of_mask, of_mask_bias, first, second, *detail = tensors
        upscaling = (first, second)
        return cls(image, position, projected, of_mask, of_mask_bias, upscaling, *detail)


class DecoderAttention(nn.Module):
    """Multi-head attention [B, Nq, C] over [B, Nk, C] with inner width C / downsample.

    segment: with a positive value the tokens attend within segments of that length (Eq. 3 with
    interval 1), self-attention only.
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
        """``forward`` for queries, keys and values that are projected already, [B, N, inner]."""
        q, k, v = self._split_heads(q), self._split_heads(k), self._split_heads(v)
        if self.segment:
            groups = segment_groups(q.shape[2], self.segment, interval=1)
            out = sparse_attention(q, k, v, groups, backend=self.backend)
        else:
            out = attention(q, k, v, backend=self.backend)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class TwoWayBlock3D(nn.Module):
    """Prompt tokens attend to each other and to the image, then the image attends to the prompt
    tokens.
    """

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
        """Image tokens [B, M, C] -> what both cross-attentions make of them: the keys and values
        of the first and the queries of the second, [B, M, 3 * inner].
        """
        placed = image + image_position
        keys = self.cross_attn_token_to_image.k_proj(placed)
        values = self.cross_attn_token_to_image.v_proj(image)
        return torch.cat([keys, values, self.cross_attn_image_to_token.q_proj(placed)], dim=-1)

    def image_weights(self) -> Tensor:
        """The weights of :meth:`project_image`, [3 * inner, C]."""
        to_image, to_token = self.cross_attn_token_to_image, self.cross_attn_image_to_token
        return torch.cat([to_image.k_proj.weight, to_image.v_proj.weight, to_token.q_proj.weight])

    def forward(
        self, tokens: Tensor, image: Tensor, token_position: Tensor, projected: Tensor
    ) -> tuple[Tensor, Tensor]:
        keys, values, queries = projected.chunk(3, dim=-1)
        if self.first:
            # the tokens still are their own position here, and nothing is added to them
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_position
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)

        to_image, to_token = self.cross_attn_token_to_image, self.cross_attn_image_to_token
        looking = to_image.q_proj(tokens + token_position)
        tokens = self.norm2(tokens + to_image.attend(looking, keys, values))
        tokens = self.norm3(tokens + self.mlp(tokens))

        placed = to_token.k_proj(tokens + token_position)
        seen = to_token.attend(queries, placed, to_token.v_proj(tokens))
        return tokens, self.norm4(image + seen)


class TwoWayTransformer3D(nn.Module):
    """tokens [B, N, C] and image [B, M, C] -> both, after ``depth`` two-way blocks and a last look
    at the image. projected: what the first block's ``project_image`` makes of the image.
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
    """Image tokens to the resolution of the mask: [B, C, g, g, g] -> [B, C / 8, 4g, 4g, 4g].

    Computed as matrix products on blocks (:mod:`lib.networks.blocks`); ``in_blocks`` leaves them
    so, where only a product of the channels is wanted.
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
        """The weights of both convolutions as [8 * channels out, channels in], eighths first."""
        convolutions: list[Any] = [self[0], self[3]]
        first, second = (
            conv.weight.flatten(2).permute(2, 1, 0).flatten(0, 1).contiguous()
            for conv in convolutions
        )
        return first, second

    def in_blocks(self, tokens: Tensor, matrices: tuple[Tensor, Tensor]) -> Tensor:
        """[B, g³, C] -> [B, g³, 8, 8, C / 8]."""
        layers: list[Any] = list(self)
        first, norm, _, second, _ = layers
        x = F.linear(tokens, matrices[0], first.bias.repeat(8)).unflatten(-1, (8, -1))
        x = F.gelu(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps))
        x = F.linear(x, matrices[1], second.bias.repeat(8)).unflatten(-1, (8, -1))
        return F.gelu(x)


class MaskDecoder3D(nn.Module):
    """Image and prompt embeddings -> low-resolution mask logits and the IoU that the network
    expects of each mask.
    """

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

    def prepare(
        self,
        image: Tensor,
        image_position: Tensor,
        mask_projection: Any,
        detail: Tensor | None = None,
    ) -> PreparedImage:
        """image: [B, C, g, g, g]; image_position: [1, C, g, g, g]; mask_projection: the 1×1×1
        convolution that ends the prompt encoder's way of a previous mask.
        """
        first: Any = self.transformer.layers[0]
        tokens, position = (x.flatten(2).transpose(1, 2) for x in (image, image_position))
        weights = first.image_weights()
        to_tokens = mask_projection.weight.flatten(1).to(weights.dtype)  # [C, mask_channels]
        bias = mask_projection.bias.to(weights.dtype)
        return PreparedImage(
            image=tokens.contiguous(),
            position=position.contiguous(),
            projected=first.project_image(tokens, position),
            of_mask=torch.cat([to_tokens, weights @ to_tokens]),
            of_mask_bias=torch.cat([bias, weights @ bias]),
            upscaling=self.output_upscaling.matrices(),
            detail=detail,
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
        """sparse: [B, N, C]; mask_features: [B, g³, mask_channels] of a previous mask, or None,
        and then ``no_mask`` [1, C] is added instead; prompt_maps: the prompt as the
        refiner sees it, [B, maps, 4g, 4g, 4g].

        -> logits [B, M, 4g, 4g, 4g] and IoU [B, M]: the one mask, with ``multimask`` the three
        for an ambiguous click, or with ``"all"`` the one and then the three.
        """
        own_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own_tokens.expand(len(sparse), -1, -1), sparse], dim=1)
        if mask_features is None:
            first: Any = self.transformer.layers[0]
            added = torch.cat([no_mask, no_mask @ first.image_weights().T], dim=-1)
        else:
            added = F.linear(mask_features, prepared.of_mask, prepared.of_mask_bias)
        split = prepared.image.shape[-1]
        tokens, image_tokens = self.transformer(
            tokens,
            (prepared.image + added[..., :split]).expand(len(sparse), -1, -1),
            prepared.position,
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
        """Image tokens [B, g³, C] and weights [B, M, C / 8] -> [B, M, 4g, 4g, 4g]."""
        grid = (round(image.shape[1] ** (1 / 3)),) * 3
        # training looks at the upscaled image, and the refiner convolves it
        if prepared.detail is None and not torch.is_grad_enabled():
            blocks = self.output_upscaling.in_blocks(image, prepared.upscaling)  # [B, g³, 8, 8, c]
            masks = (blocks.flatten(1, 3) @ weights.mT).unflatten(1, blocks.shape[1:4])
            return from_blocks(masks, grid)
        upscaled = self.output_upscaling(image.transpose(1, 2).unflatten(2, grid))
        if prepared.detail is not None and prompt_maps is not None:
            detail = prepared.detail.expand(len(upscaled), -1, -1, -1, -1)
            upscaled = self.refiner(upscaled, detail.to(upscaled.dtype), prompt_maps)
        return torch.einsum("bmc,bcijk->bmijk", weights, upscaled)
