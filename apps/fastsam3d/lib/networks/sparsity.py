"""Which tokens attend to which: partitions of the token sequence, each with its inverse.

A pattern splits ``length`` tokens into disjoint groups; attention runs inside each group. Patterns
know token indices only: no heads, no channels. Token (i, j, k) of a grid stands at index
(i * grid_j + j) * grid_k + k.

* ``segment_groups``: Eq. 3 of FastSAM3D (arXiv 2403.09827, section 2.3): the sequence is cut into
  segments, and each segment is sampled at an interval r. All r offsets are kept, so that every
  token belongs to exactly one group.
* ``lattice_groups``: the same idea on the 3D grid: tokens that are equal modulo (r, r, r) form a
  group, so that every group spans the whole ROI.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

# Groups are kept, and what is made in inference mode could not take part in training later: hence
# torch.inference_mode(False) wherever they are made.


@dataclass(frozen=True, eq=False)
class TokenGroups:
    """A partition of ``length`` tokens into G groups of at most M.

    index: [G, M] int64, the token at each place; places of short groups beyond their length repeat
    their first token.
    valid: [G, M] bool, False at those repeats; None when all groups are full.
    inverse: [length] int64, where each token stands in ``index.flatten()``: undoes the reordering.
    """

    length: int
    index: Tensor
    valid: Tensor | None
    inverse: Tensor

    def same_group(self) -> Tensor:
        """[length, length] bool: True where query and key share a group, as a mask for dense
        attention.
        """
        group_of = torch.div(self.inverse, self.index.shape[1], rounding_mode="floor")
        return group_of[:, None] == group_of[None, :]

    def to(self, device: torch.device) -> TokenGroups:
        return self if device == self.index.device else _moved(self, device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _moved(groups: TokenGroups, device: torch.device) -> TokenGroups:
    valid = None if groups.valid is None else groups.valid.to(device)
    return TokenGroups(groups.length, groups.index.to(device), valid, groups.inverse.to(device))


def _partition(key: Tensor) -> TokenGroups:
    """Groups of the tokens with equal ``key`` [length]; the order inside a group is the token
    order.
    """
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
    """Eq. 3: group (s, o) holds the tokens s * segment_length + o, + o + interval, … of segment s.

    The last segment may be short, and ``length`` may be less than one segment. Raises ValueError
    for sizes below 1.
    """
    _check_positive(length=length, segment_length=segment_length, interval=interval)
    token = torch.arange(length)
    segment = torch.div(token, segment_length, rounding_mode="floor")
    offset = (token % segment_length) % interval
    return _partition(segment * interval + offset)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def lattice_groups(grid_ijk: tuple[int, int, int], interval: int) -> TokenGroups:
    """Tokens of a grid whose (i, j, k) are equal modulo ``interval`` form a group; sides need not
    divide.
    """
    _check_positive(grid_i=grid_ijk[0], grid_j=grid_ijk[1], grid_k=grid_ijk[2], interval=interval)
    i, j, k = (torch.arange(side) % interval for side in grid_ijk)
    key = (i[:, None, None] * interval + j[None, :, None]) * interval + k[None, None, :]
    return _partition(key.flatten())


def _check_positive(**sizes: int) -> None:
    bad = {name: size for name, size in sizes.items() if size < 1}
    if bad:
        raise ValueError(f"sizes must be at least 1, got {bad}")
