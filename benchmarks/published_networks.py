"""The networks as published: the slow reference of every comparison.

They share the weights of ``lib.networks`` and give the same numbers, but compute them as the
published code does: windows padded with zeros, attention with the whole score matrix and the
position bias added to it, layer norms from means and variances, and the whole decoder for each
click.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lib.networks import FastSAM3D, build_network
from lib.networks.common import LayerNorm3d
from lib.networks.image_encoder import Attention3D, join_windows, partition_windows
from lib.networks.mask_decoder import DecoderAttention, TwoWayBlock3D
from lib.networks.position_bias import bias_terms
from lib.networks.sparsity import lattice_groups, segment_groups


class PublishedLayerNorm3d(nn.Module):
    """Layer norm over axis 1 of [B, C, I, J, K], from its definition."""

    def __init__(self, norm: LayerNorm3d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        variance = centred.pow(2).mean(dim=1, keepdim=True)
        normed = centred / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None, None] * normed + self.bias[:, None, None, None]


class PublishedAttention3D(nn.Module):
    """Plain self-attention over a grid [B, i, j, k, C], in padded windows or global.

    A sparse network gets dense attention with the mask of its groups, which the sparse operator
    must reproduce.
    """

    def __init__(self, attention: Attention3D) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        i, j, k = x.shape[1:4]
        if not self.attention.window:
            return self._attend(x)
        windows, padded_grid = partition_windows(x, self.attention.window)
        return join_windows(self._attend(windows), self.attention.window, padded_grid, (i, j, k))

    def _attend(self, x: Tensor) -> Tensor:
        attention, (batch, *grid, width) = self.attention, x.shape
        tokens, heads = math.prod(grid), attention.num_heads
        qkv = attention.qkv(x).reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, batch * heads, tokens, -1).unbind(0)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if attention.position_bias != "none":
            tables: Any = (attention.rel_pos_d, attention.rel_pos_h, attention.rel_pos_w)
            terms = bias_terms(attention.position_bias, tables, q.reshape(batch, heads, *grid, -1))
            scores = scores.reshape(batch, heads, *grid, *grid)
            scores = scores + terms.along_d[..., :, None, :] + terms.along_h[..., None, :, :]
            scores = (scores + terms.along_w[..., None, None, :]).reshape(-1, tokens, tokens)
        if attention.sparsity != "dense":
            scores = scores.masked_fill(~self._same_group(grid).to(x.device), float("-inf"))
        out = (scores.softmax(dim=-1) @ v).reshape(batch, heads, *grid, -1)
        return attention.proj(out.permute(0, 2, 3, 4, 1, 5).reshape(batch, *grid, width))

    def _same_group(self, grid: list[int]) -> Tensor:
        attention, (i, j, k) = self.attention, grid
        if attention.sparsity == "lattice":
            return lattice_groups((i, j, k), attention.interval).same_group()
        return segment_groups(i * j * k, attention.segment_length, attention.interval).same_group()


class PublishedDecoderAttention(nn.Module):
    """Plain attention [B, Nq, C] over [B, Nk, C]; nothing is cached between calls."""

    def __init__(self, attention: DecoderAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.attention.num_heads, -1)).transpose(1, 2)

        attention = self.attention
        q, k, v = split(attention.q_proj(q)), split(attention.k_proj(k)), split(attention.v_proj(v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        out = scores.softmax(dim=-1) @ v
        return attention.out_proj(out.transpose(1, 2).flatten(2))


class PublishedNetwork(nn.Module):
    """``encode`` and ``decode`` of a :class:`FastSAM3D` as published; shares its weights.

    The decoder attends without segments, which makes no difference up to their length (64 prompts).
    """

    def __init__(self, network: FastSAM3D) -> None:
        super().__init__()
        # a second tree of modules around the same tensors, so that the fast network stays unchanged
        self.network = build_network(network.config)
        self.network.load_state_dict(network.state_dict(), assign=True)
        _replace(self.network, Attention3D, PublishedAttention3D)
        _replace(self.network, DecoderAttention, PublishedDecoderAttention)
        _replace(self.network, LayerNorm3d, PublishedLayerNorm3d)

    def encode(self, volume: Tensor) -> Tensor:
        """Return the embedding of :meth:`FastSAM3D.encode`."""
        encoder = self.network.image_encoder
        x = encoder.patch_embed.proj(volume).movedim(1, -1) + encoder.pos_embed
        block: Any
        for block in encoder.blocks:
            x = x + block.attn(block.norm1(x)) if block.attend else x
            normed = block.norm2(x)
            x = (normed if block.residual == "normed" else x) + block.mlp(normed)
        x = x.movedim(-1, 1)
        for layer in encoder.neck:  # torch chooses the algorithm of the convolution
            x = nn.Conv3d.forward(layer, x) if isinstance(layer, nn.Conv3d) else layer(x)
        return x

    def decode(self, image: Tensor, points: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Return the single mask of :meth:`FastSAM3D.decode`, logits [B, 1, 4g, 4g, 4g]."""
        prompts, decoder = self.network.prompt_encoder, self.network.mask_decoder
        dense, position = prompts.mask_downscaling(mask), prompts.dense_position()
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        first = torch.cat([own[None], prompts.embed_points(points, labels)], dim=1)
        grid = image.shape[2:]
        keys, position = (x.flatten(2).transpose(1, 2) for x in (image + dense, position))

        tokens = first
        layer: Any
        for layer in decoder.transformer.layers:
            tokens, keys = _two_way(layer, tokens, keys, first, position)
        last = decoder.transformer.final_attn_token_to_image
        tokens = tokens + last(tokens + first, keys + position, keys)
        tokens = decoder.transformer.norm_final_attn(tokens)

        upscaled = decoder.output_upscaling(keys.transpose(1, 2).unflatten(2, grid))
        mlps = enumerate(decoder.output_hypernetworks_mlps)
        weights = torch.stack([mlp(tokens[:, 1 + number]) for number, mlp in mlps], dim=1)
        logits = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
        decoder.iou_prediction_head(tokens[:, 0])
        return logits[:, :1]


def _two_way(
    layer: TwoWayBlock3D, tokens: Tensor, keys: Tensor, first: Tensor, position: Tensor
) -> tuple[Tensor, Tensor]:
    """Return tokens and image keys after one two-way block."""
    if layer.first:
        tokens = layer.norm1(layer.self_attn(tokens, tokens, tokens))
    else:
        positioned = tokens + first
        tokens = layer.norm1(tokens + layer.self_attn(positioned, positioned, tokens))
    attended = layer.cross_attn_token_to_image(tokens + first, keys + position, keys)
    tokens = layer.norm2(tokens + attended)
    tokens = layer.norm3(tokens + layer.mlp(tokens))
    attended = layer.cross_attn_image_to_token(keys + position, tokens + first, tokens)
    return tokens, layer.norm4(keys + attended)


def _replace(tree: nn.Module, kind: type[nn.Module], wrapper: type[nn.Module]) -> None:
    """Wrap each submodule of a kind."""
    for parent in list(tree.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, kind):
                setattr(parent, name, wrapper(child))
