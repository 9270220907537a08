"""The 3D vision transformer that encodes a ROI, for teacher and student."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Backend, attention, sparse_attention
from .common import Conv3d, LayerNorm3d, MLPBlock
from .config import FastSAM3DConfig
from .position_bias import BiasTerms, bias_terms
from .sparsity import TokenGroups, lattice_groups, segment_groups

Grid = tuple[int, int, int]

WindowPath = Literal["closed_form", "padded"]
"""WindowPath: how a windowed block treats the padding of the grid; both give the same numbers."""


class PatchEmbed3D(nn.Module):
    """Embed each cube of a volume [B, 1, I, J, K] as a token of [B, i, j, k, width]."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(1, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, volume: Tensor) -> Tensor:
        return self.proj(volume).movedim(1, -1)


class Attention3D(nn.Module):
    """Multi-head self-attention over a grid of tokens [B, i, j, k, C].

    Global (dense or sparse) with ``window`` 0, else in windows of ``window`` tokens a side.
    window_path: ``padded`` computes the padding, as the published code does, for tests.
    ``backend`` may be set on an instance, see :func:`lib.networks.attention.attention`.
    """

    def __init__(
        self, config: FastSAM3DConfig, window: int, window_path: WindowPath = "closed_form"
    ) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.window = window
        self.window_path = window_path
        self.sparsity = config.sparsity
        self.interval = config.interval
        self.segment_length = config.segment_length
        self.position_bias = config.position_bias
        self.backend: Backend = "auto"
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        if config.position_bias != "none":
            rows = 2 * (window or config.grid_size) - 1
            for axis in "dhw":
                table = nn.Parameter(torch.zeros(rows, config.width // config.num_heads))
                self.register_parameter(f"rel_pos_{axis}", table)

    def forward(self, x: Tensor) -> Tensor:
        grid: Grid = (x.shape[1], x.shape[2], x.shape[3])
        if not self.window:
            return self._attend_globally(x, grid)
        if self.window_path == "closed_form" and max(grid) <= self.window:
            return self._attend_with_closed_form(x, grid)
        return self._attend_in_padded_windows(x, grid)

    def _attend_globally(self, x: Tensor, grid: Grid) -> Tensor:
        q, k, v = self._project(x)
        terms = self._bias_terms(q, grid)
        if self.sparsity == "dense":
            bias = None if terms is None else terms.dense(grid)
            return self._merge_heads(attention(q, k, v, bias, self.backend), grid)
        groups = self._groups(grid)
        bias = None if terms is None else terms.grouped(groups, grid)
        return self._merge_heads(sparse_attention(q, k, v, groups, bias, self.backend), grid)

    def _attend_in_padded_windows(self, x: Tensor, grid: Grid) -> Tensor:
        """Pad the grid with zeros to whole windows; padded tokens are keys and values too."""
        windows, padded_grid = partition_windows(x, self.window)
        window_ijk = (self.window,) * 3
        q, k, v = self._project(windows)
        terms = self._bias_terms(q, window_ijk)
        bias = None if terms is None else terms.dense(window_ijk)
        out = self._merge_heads(attention(q, k, v, bias, self.backend), window_ijk)
        return join_windows(out, self.window, padded_grid, grid)

    def _attend_with_closed_form(self, x: Tensor, grid: Grid) -> Tensor:
        """Return the same for one window, without computing the padding.

        All padded tokens share one key and one value, the bias of ``qkv``. Together they weigh as
        much as one extra key whose score is q · bias_k / sqrt(c) plus the logsumexp of their
        position bias.
        """
        q, k, v = self._project(x)
        heads, channels = q.shape[1], q.shape[-1]
        padded_q, padded_k, padded_v = self.qkv.bias.reshape(3, heads, channels)
        terms = self._bias_terms(q, grid, padded_q) or BiasTerms.zero(q, self.window)
        k = torch.cat([k, padded_k[None, :, None].expand(len(q), -1, -1, -1)], dim=2)
        v = torch.cat([v, padded_v[None, :, None].expand(len(q), -1, -1, -1)], dim=2)
        bias = torch.cat([terms.dense(grid), terms.log_padding(grid, self.window)], dim=-1)
        return self._merge_heads(attention(q, k, v, bias, self.backend), grid)

    def _project(self, x: Tensor) -> Tensor:
        """Project [B, i, j, k, C] to q, k and v, stacked as [3, B, heads, N, c]."""
        qkv = self.qkv(x.flatten(1, 3)).unflatten(-1, (3, self.num_heads, -1))
        return qkv.permute(2, 0, 3, 1, 4)

    def _merge_heads(self, out: Tensor, grid: Grid) -> Tensor:
        """Join [B, heads, N, c] to [B, i, j, k, C] and project it."""
        return self.proj(out.transpose(1, 2).flatten(2)).unflatten(1, grid)

    def _bias_terms(
        self, q: Tensor, grid: Grid, padded_q: Tensor | None = None
    ) -> BiasTerms | None:
        if self.position_bias == "none":
            return None
        d, h, w = (self.get_parameter(f"rel_pos_{axis}") for axis in "dhw")
        return bias_terms(self.position_bias, (d, h, w), q.unflatten(2, grid), padded_q)

    def _groups(self, grid: Grid) -> TokenGroups:
        if self.sparsity == "lattice":
            return lattice_groups(grid, self.interval)
        return segment_groups(grid[0] * grid[1] * grid[2], self.segment_length, self.interval)


def partition_windows(x: Tensor, window: int) -> tuple[Tensor, Grid]:
    """Zero-pad [B, i, j, k, C] at the end of each axis and cut it into cubes of ``window`` tokens.

    Returns the cubes [B * cubes, window, window, window, C] and the padded grid.
    """
    batch, i, j, k, channels = x.shape
    pad_i, pad_j, pad_k = (-i % window, -j % window, -k % window)
    x = F.pad(x, (0, 0, 0, pad_k, 0, pad_j, 0, pad_i))
    counts = ((i + pad_i) // window, (j + pad_j) // window, (k + pad_k) // window)
    x = x.reshape(batch, counts[0], window, counts[1], window, counts[2], window, channels)
    x = x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, window, window, window, channels)
    return x, (i + pad_i, j + pad_j, k + pad_k)


def join_windows(windows: Tensor, window: int, padded_grid: Grid, grid: Grid) -> Tensor:
    """Undo :func:`partition_windows`; return [B, i, j, k, C] without the padding."""
    ni, nj, nk = (side // window for side in padded_grid)
    x = windows.reshape(-1, ni, nj, nk, window, window, window, windows.shape[-1])
    x = x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, *padded_grid, windows.shape[-1])
    return x[:, : grid[0], : grid[1], : grid[2]]


class Block3D(nn.Module):
    """A transformer block over [B, i, j, k, C].

    attend: False leaves out the attention and its norm.
    """

    def __init__(
        self,
        config: FastSAM3DConfig,
        window: int,
        attend: bool,
        window_path: WindowPath = "closed_form",
    ) -> None:
        super().__init__()
        if attend:
            self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
            self.attn = Attention3D(config, window, window_path)
        self.attend = attend
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = MLPBlock(config.width, round(config.width * config.mlp_ratio))
        self.residual = config.residual

    def forward(self, x: Tensor) -> Tensor:
        if self.attend:
            x = x + self.attn(self.norm1(x))
        normed = self.norm2(x)
        return (normed if self.residual == "normed" else x) + self.mlp(normed)


class ImageEncoder3D(nn.Module):
    """Encode a ROI [B, 1, S, S, S] as [B, out_channels, S/patch, S/patch, S/patch].

    window_path: see :class:`Attention3D`.
    """

    def __init__(self, config: FastSAM3DConfig, window_path: WindowPath = "closed_form") -> None:
        super().__init__()
        self.patch_embed = PatchEmbed3D(config.patch_size, config.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, *(config.grid_size,) * 3, config.width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(
            Block3D(
                config,
                config.window_of(number),
                attend=number not in config.attention_free_blocks,
                window_path=window_path,
            )
            for number in range(config.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv3d(config.width, config.out_channels, kernel_size=1, bias=False),
            LayerNorm3d(config.out_channels),
            Conv3d(config.out_channels, config.out_channels, 3, padding=1, bias=False),
            LayerNorm3d(config.out_channels),
        )

    def forward(self, volume: Tensor) -> Tensor:
        return self.forward_intermediates(volume, ())[0]

    def forward_intermediates(
        self, volume: Tensor, blocks: Sequence[int]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return the embedding and, by number, the outputs [B, i, j, k, width] of ``blocks``.

        blocks: block numbers, from 0.
        """
        outputs: dict[int, Tensor] = {}
        tokens = self.embed(volume)
        for number, output in enumerate(self.block_outputs(tokens)):
            tokens = output
            if number in blocks:
                outputs[number] = output
        return self.neck(tokens.movedim(-1, 1)), outputs

    def embed(self, volume: Tensor) -> Tensor:
        """Return the first block's input [B, i, j, k, width] for a ROI [B, 1, S, S, S]."""
        return self.patch_embed(volume) + self.pos_embed

    def block_outputs(self, tokens: Tensor) -> Iterator[Tensor]:
        """Yield the output of each block; a block is computed when its output is requested."""
        for block in self.blocks:
            tokens = block(tokens)
            yield tokens
