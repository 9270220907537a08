"""SAM's prompt encoder in 3D: clicks become sparse embeddings, a previous mask a dense one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .common import LayerNorm3d
from .config import FastSAM3DConfig
from .mask_refiner import sample
from .token_blocks import to_blocks

FOREGROUND, BACKGROUND, PADDING = 1, 0, -1


class PositionEmbedding3D(nn.Module):
    """Random Fourier features, [sin, cos, sin], of a position in the unit cube."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        features = -(-channels // 3)
        self.channels = channels
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(3, features))

    def forward(self, position: Tensor) -> Tensor:
        """Encode positions [..., 3] in [0, 1] as [..., channels]."""
        angle = 2 * math.pi * ((2 * position - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angle.sin(), angle.cos(), angle.sin()], dim=-1)[..., : self.channels]


def _norm(x: Tensor, norm: LayerNorm3d) -> Tensor:
    """Apply ``norm`` over the last axis."""
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)


class PromptEncoder3D(nn.Module):
    """Encode clicks as embeddings [B, N, C], a previous mask as features [B, g³, mask_channels].

    The mask decoder applies the last layer of ``mask_downscaling``, which maps these features to C
    channels, because it joins that layer with its own first one.
    """

    def __init__(self, config: FastSAM3DConfig) -> None:
        super().__init__()
        channels, hidden = config.out_channels, config.mask_channels
        self.roi_size = config.roi_size
        self.grid_size = config.grid_size
        self.swap_dense_axes = config.swap_dense_axes
        self.pe_layer = PositionEmbedding3D(channels)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, channels) for _ in range(2))
        self.not_a_point_embed = nn.Embedding(1, channels)
        self.no_mask_embed = nn.Embedding(1, channels)
        if config.detail_channels:
            self.detail_proj = nn.Linear(config.detail_channels, channels)
        self.mask_downscaling = nn.Sequential(
            nn.Conv3d(1, hidden // 4, kernel_size=2, stride=2),
            LayerNorm3d(hidden // 4),
            nn.GELU(),
            nn.Conv3d(hidden // 4, hidden, kernel_size=2, stride=2),
            LayerNorm3d(hidden),
            nn.GELU(),
            nn.Conv3d(hidden, channels, kernel_size=1),
        )

    def forward(
        self,
        points: Tensor | None,
        labels: Tensor | None,
        mask: Tensor | None,
        batch: int,
        detail: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the clicks' embeddings and the mask's features; None without a mask.

        points: [B, N, 3] (i, j, k) ROI voxel indices or None; labels: [B, N] or None; mask:
        [B, 1, 4g, 4g, 4g] logits or None; detail: [B or 1, D, 4g, 4g, 4g] of the image or None.
        """
        if points is None or labels is None:
            sparse = self.no_mask_embed.weight.new_zeros(batch, 0, self.no_mask_embed.embedding_dim)
        else:
            sparse = self.embed_points(points, labels)
            if detail is not None:
                appearance = self.detail_proj(sample(detail, points, self.roi_size))
                appearance = appearance * (labels != PADDING)[..., None]
                sparse = sparse + F.pad(appearance, (0, 0, 0, 1))  # zeros for the padding point
        return sparse, None if mask is None else self.embed_mask(mask)

    def embed_mask(self, mask: Tensor) -> Tensor:
        """Apply ``mask_downscaling`` without its last layer to a mask [B, 1, 4g, 4g, 4g].

        It computes on blocks (:mod:`lib.networks.token_blocks`): [B, g³, mask_channels].
        """
        layers: list[Any] = list(self.mask_downscaling)
        first, first_norm, _, second, second_norm, _, _ = layers
        x = F.linear(to_blocks(mask)[..., 0], first.weight.flatten(1), first.bias)
        x = F.gelu(_norm(x, first_norm))  # [B, g³, 8, c]
        # the convolution's weights are channel first, the blocks channel last
        x = F.linear(x.flatten(2), second.weight.movedim(1, -1).flatten(1), second.bias)
        return F.gelu(_norm(x, second_norm))

    def embed_points(self, points: Tensor, labels: Tensor) -> Tensor:
        """Embed clicks [B, N, 3] as [B, N + 1, C].

        A padding point at the end takes the place of SAM's box, which clients do not send.
        """
        points = points.to(self.no_mask_embed.weight.dtype)
        points = torch.cat([points + 0.5, points.new_zeros(len(points), 1, 3)], dim=1)
        labels = torch.cat([labels, labels.new_full((len(labels), 1), PADDING)], dim=1)[..., None]
        embedding = self.pe_layer(points / self.roi_size)
        embedding = embedding.masked_fill(labels == PADDING, 0.0)
        kinds: dict[int, Any] = {
            PADDING: self.not_a_point_embed,
            BACKGROUND: self.point_embeddings[0],
            FOREGROUND: self.point_embeddings[1],
        }
        for kind, kind_embedding in kinds.items():
            weight: Tensor = kind_embedding.weight
            embedding = embedding + (labels == kind) * weight
        return embedding

    def dense_position(self) -> Tensor:
        """Return the positional encoding of every image token, [1, C, g, g, g]."""
        matrix = self.pe_layer.positional_encoding_gaussian_matrix
        centre = (torch.arange(self.grid_size, device=matrix.device) + 0.5) / self.grid_size
        position = torch.stack(torch.meshgrid(centre, centre, centre, indexing="ij"), dim=-1)
        if self.swap_dense_axes:
            position = position[..., [1, 0, 2]]
        return self.pe_layer(position.to(matrix.dtype)).movedim(-1, 0)[None]
