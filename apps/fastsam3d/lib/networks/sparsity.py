"""Sparse attention patterns: partitions of the token sequence, each with its inverse.

A pattern splits ``length`` tokens into disjoint groups; attention runs inside each group. Patterns
depend on token indices only, not on heads or channels. Token (i, j, k) of a grid has index
(i * grid_j + j) * grid_k + k.

* ``segment_groups``: Eq. 3 of FastSAM3D (arXiv 2403.09827, section 2.3). The sequence is cut into
  segments, and each segment is sampled at an interval r. All r offsets are kept, so every token
  belongs to exactly one group.
* ``lattice_groups``: the same on the 3D grid. Tokens that are equal modulo (r, r, r) form a group,
  so every group spans the whole ROI.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

# Groups are cached. Tensors made in inference mode cannot take part in training later, hence
# torch.inference_mode(False) on all functions that make groups.


@dataclass(frozen=True, eq=False)
class TokenGroups:
    """A partition of ``length`` tokens into G groups of at most M.

    index: [G, M] int64, the token at each place; short groups are padded with their first token.
    valid: [G, M] bool, False at the padding; None if all groups are full.
    inverse: [length] int64, the place of each token in ``index.flatten()``; undoes the reordering.
    """

    length: int
    index: Tensor
    valid: Tensor | None
    inverse: Tensor

    def same_group(self) -> Tensor:
        """Return a mask for dense attention, [length, length] bool: True within a group."""
        group_of = torch.div(self.inverse, self.index.shape[1], rounding_mode="floor")
        return group_of[:, None] == group_of[None, :]

    def to(self, device: torch.device) -> TokenGroups:
        """Return the groups on ``device``."""
        return self if device == self.index.device else _moved(self, device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _moved(groups: TokenGroups, device: torch.device) -> TokenGroups:
    valid = None if groups.valid is None else groups.valid.to(device)
    return TokenGroups(groups.length, groups.index.to(device), valid, groups.inverse.to(device))


def _partition(key: Tensor) -> TokenGroups:
    """Group the tokens with equal ``key`` [length], in token order inside each group."""
    _, group_of, sizes = torch.unique(key, return_inverse=True, return_counts=True)
    order = torch.argsort(group_of, stable=True)
    starts = torch.cumsum(sizes, 0) - sizes
    place = torch.arange(int(sizes.max()))
    valid = place[None, :] < sizes[:, None]
    index = order[torch.where(valid, starts[:, None] + place[None, :], starts[:, None])]
    inverse = torch.empty_like(order)
    inverse[index[valid]] = torch.arange(index.numel()).reshape(index.shape)[valid]
    return TokenGroups(len(key), index, None if bool(valid.all()) else valid, inverse)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def segment_groups(length: int, segment_length: int, interval: int) -> TokenGroups:
    """Return the groups of Eq. 3: every ``interval``-th token of each segment, for every offset.

    Group (s, o) holds the tokens o, o + interval, o + 2 * interval, … of segment s. The last
    segment may be short, and ``length`` may be less than one segment. Raises ValueError for sizes
    below 1.
    """
    _check_positive(length=length, segment_length=segment_length, interval=interval)
    token = torch.arange(length)
    segment = torch.div(token, segment_length, rounding_mode="floor")
    offset = (token % segment_length) % interval
    return _partition(segment * interval + offset)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def lattice_groups(grid_ijk: tuple[int, int, int], interval: int) -> TokenGroups:
    """Group the tokens of a grid whose (i, j, k) are equal modulo ``interval``.

    The sides need not be divisible by ``interval``. Raises ValueError for sizes below 1.
    """
    _check_positive(grid_i=grid_ijk[0], grid_j=grid_ijk[1], grid_k=grid_ijk[2], interval=interval)
    i, j, k = (torch.arange(side) % interval for side in grid_ijk)
    key = (i[:, None, None] * interval + j[None, :, None]) * interval + k[None, None, :]
    return _partition(key.flatten())


def _check_positive(**sizes: int) -> None:
    bad = {name: size for name, size in sizes.items() if size < 1}
    if bad:
        raise ValueError(f"sizes must be at least 1, got {bad}")
