"""SAM's mask decoder in 3D: prompt and image tokens meet both ways, then become a mask."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import Backend, attention, sparse_attention
from .common import MLP, LayerNorm3d, MLPBlock
from .config import FastSAM3DConfig
from .sparsity import segment_groups


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
        q = self._split_heads(self.q_proj(q))
        k = self._split_heads(self.k_proj(k))
        v = self._split_heads(self.v_proj(v))
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

    def forward(
        self, tokens: Tensor, image: Tensor, token_position: Tensor, image_position: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.first:
            # the tokens still are their own position here, and nothing is added to them
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_position
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)

        placed, placed_image = tokens + token_position, image + image_position
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(placed, placed_image, image))
        tokens = self.norm3(tokens + self.mlp(tokens))

        placed = tokens + token_position
        image = self.norm4(image + self.cross_attn_image_to_token(placed_image, placed, tokens))
        return tokens, image


class TwoWayTransformer3D(nn.Module):
    """tokens [B, N, C] and image [B, M, C] -> both, after ``depth`` two-way blocks and a last look
    at the image.
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
        self, tokens: Tensor, image: Tensor, image_position: Tensor
    ) -> tuple[Tensor, Tensor]:
        token_position = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_position, image_position)
        placed, placed_image = tokens + token_position, image + image_position
        tokens = tokens + self.final_attn_token_to_image(placed, placed_image, image)
        return self.norm_final_attn(tokens), image


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
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose3d(width, width // 4, kernel_size=2, stride=2),
            LayerNorm3d(width // 4),
            nn.GELU(),
            nn.ConvTranspose3d(width // 4, width // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(width, width, width // 8, depth=3) for _ in range(self.num_masks)
        )
        self.iou_prediction_head = MLP(
            width, config.iou_head_width, self.num_masks, config.iou_head_depth
        )

    def forward(
        self, image: Tensor, image_position: Tensor, sparse: Tensor, dense: Tensor, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """image, dense: [B, C, g, g, g]; image_position: [1, C, g, g, g]; sparse: [B, N, C].

        -> logits [B, M, 4g, 4g, 4g] and IoU [B, M]: the one mask, or with ``multimask`` the three
        for an ambiguous click.
        """
        own_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own_tokens.expand(len(sparse), -1, -1), sparse], dim=1)
        grid = image.shape[2:]
        image_tokens = (image + dense).flatten(2).transpose(1, 2)
        tokens, image_tokens = self.transformer(
            tokens, image_tokens, image_position.flatten(2).transpose(1, 2)
        )

        upscaled = self.output_upscaling(image_tokens.transpose(1, 2).unflatten(2, grid))
        weights = [
            mlp(tokens[:, 1 + number]) for number, mlp in enumerate(self.output_hypernetworks_mlps)
        ]
        logits = torch.einsum("bmc,bcijk->bmijk", torch.stack(weights, dim=1), upscaled)
        iou = self.iou_prediction_head(tokens[:, 0])
        chosen = slice(1, None) if multimask else slice(0, 1)
        return logits[:, chosen], iou[:, chosen]
