"""Volumes as blocks of a token's size, in which the cells of one token are adjacent in memory.

A convolution whose stride equals its size, or its transpose, is then a matrix product over the last
axes, and no data moves between two such convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def to_blocks(volume: Tensor) -> Tensor:
    """Rearrange [B, c, 4i, 4j, 4k] as [B, i * j * k, 8, 8, c].

    The axes are token, eighth of the token, eighth of that eighth, channel. Tokens and eighths are
    in (i, j, k) order.
    """
    x = volume
    for axis in (4, 3, 2):
        x = x.unflatten(axis, (-1, 2, 2))
    x = x.permute(0, 2, 5, 8, 3, 6, 9, 4, 7, 10, 1)
    return x.flatten(7, 9).flatten(4, 6).flatten(1, 3)


def from_blocks(blocks: Tensor, grid: Sequence[int]) -> Tensor:
    """Invert :func:`to_blocks` for a grid of (i, j, k) tokens."""
    x = blocks.unflatten(3, (2, 2, 2)).unflatten(2, (2, 2, 2)).unflatten(1, tuple(grid))
    x = x.permute(0, 1, 4, 7, 2, 5, 8, 3, 6, 9, 10)  # [B, i, 2, 2, j, 2, 2, k, 2, 2, c]
    x = x.flatten(7, 9).flatten(4, 6).flatten(1, 3)
    # one permutation of all axes takes six times as long, as it copies value by value
    return x.movedim(-1, 1).contiguous()
