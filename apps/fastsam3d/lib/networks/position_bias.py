"""Relative-position bias of 3D attention: the published kind and the textbook kind.

Both are a sum of three terms that depend on the query's place (d, h, w) and the key's place
(kd, kh, kw). Each term is looked up in a table of 2n - 1 rows by a difference of two coordinates
(row: query - key + n - 1), with q unscaled:

    textbook:   q[d,h,w]·Rd[d-kd] + q[d,h,w]·Rh[h-kh]  + q[d,h,w]·Rw[w-kw]
    published:  q[d,h,w]·Rd[d-kw] + q[d,h,kd]·Rh[h-kw] + q[d,h,kh]·Rw[kh-kw]

The textbook kind is Eq. 4 of MViTv2 (arXiv 2112.01526) in 3D. The published kind is that of
SAM-Med3D's code. It pairs the axes differently, so it needs a cubic grid, and in a padded window it
reads the queries of the padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .config import PositionBias as Kind
from .sparsity import TokenGroups

Tables = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class BiasTerms:
    """The bias of each query and key as a sum of three separable parts.

    bias = along_d[…, kd, kw] + along_h[…, kh, kw] + along_w[…, kw]. All three parts are
    [B, heads, d, h, w, …], with size 1 along each axis that they do not depend on.
    """

    along_d: Tensor
    along_h: Tensor
    along_w: Tensor

    @classmethod
    def zero(cls, q: Tensor, side: int) -> BiasTerms:
        """Return a bias of 0 for queries q [B, heads, N, c] and side³ keys."""
        nothing = q.new_zeros(*q.shape[:2], 1, 1, q.shape[2], side)
        return cls(nothing[..., None], nothing[..., None], nothing)

    def dense(self, keys_dhw: tuple[int, int, int]) -> Tensor:
        """Return [B, heads, Nq, Nk] over the first ``keys_dhw`` key places along each axis."""
        kd, kh, kw = keys_dhw
        along_dh = self.along_d[..., :kd, None, :kw] + self.along_h[..., None, :kh, :kw]
        bias = along_dh + self.along_w[..., None, None, :kw]
        return bias.flatten(5).flatten(2, 4)

    def grouped(self, groups: TokenGroups, grid_dhw: tuple[int, int, int]) -> Tensor:
        """Return the bias between the members of each group, [B, heads, G, M, M].

        It does not compute the dense N × N bias.
        """
        place = torch.stack(torch.unravel_index(groups.index.to(self.along_w.device), grid_dhw))
        query, (kd, kh, kw) = place[:, :, :, None], place[:, :, None, :]

        def look_up(term: Tensor, *key: Tensor) -> Tensor:
            places = zip((*query, *key), term.shape[2:], strict=True)
            return term[(..., *(at if size > 1 else torch.zeros_like(at) for at, size in places))]

        along_dh = look_up(self.along_d, kd, kw) + look_up(self.along_h, kh, kw)
        return along_dh + look_up(self.along_w, kw)

    def log_padding(self, real_dhw: tuple[int, int, int], side: int) -> Tensor:
        """Return the logsumexp of the bias over a side³ window's padded keys, [B, heads, Nq, 1].

        A place is padding if kd, kh or kw lies beyond ``real_dhw``. For each kw, the sum over
        (kd, kh) is a product of two sums.
        """
        kd, kh, kw = real_dhw
        along_d = self.along_d.expand(*self.along_d.shape[:-1], side)
        along_h = self.along_h.expand(*self.along_h.shape[:-1], side)
        d_real, d_pad = _logsumexp(along_d[..., :kd, :]), _logsumexp(along_d[..., kd:, :])
        h_real, h_pad = _logsumexp(along_h[..., :kh, :]), _logsumexp(along_h[..., kh:, :])
        h_all = torch.logaddexp(h_real, h_pad)
        some = torch.logaddexp(d_pad + h_all, d_real + h_pad)
        every = torch.logaddexp(d_pad, d_real) + h_all
        beyond = torch.arange(side, device=some.device) >= kw
        padding = self.along_w + torch.where(beyond, every, some)
        return padding.logsumexp(dim=-1).flatten(2).unsqueeze(-1)


def _logsumexp(x: Tensor) -> Tensor:
    """Return the logsumexp over the second last axis; for an empty axis, a number with exp 0.

    Minus infinity would have the same value, but a gradient of NaN.
    """
    if x.shape[-2] == 0:
        return x.new_full((*x.shape[:-2], x.shape[-1]), torch.finfo(x.dtype).min / 8)
    return x.logsumexp(dim=-2)


def bias_terms(kind: Kind, tables: Tables, q: Tensor, padded_q: Tensor | None = None) -> BiasTerms:
    """Return the bias of queries q [B, heads, d, h, w, c] over the keys of a side³ cube.

    tables: (Rd, Rh, Rw), each [2 * side - 1, c]. padded_q: [heads, c], the query of the padding,
    for ``published`` on a grid smaller than ``side``. Raises ValueError for a grid larger than the
    tables, and for ``published`` on a grid that is not a cube.
    """
    grid, side = tuple(q.shape[2:5]), (tables[0].shape[0] + 1) // 2
    if max(grid) > side:
        raise ValueError(
            f"grid {grid} exceeds the {side} tokens a side that the tables are made for"
        )
    if kind == "textbook":
        return _textbook_terms(tables, q)
    if len(set(grid)) != 1:
        raise ValueError(f"the published position bias needs a cubic grid, got {grid}")
    return _published_terms(tables, q, padded_q)


def _rows(table: Tensor, queries: int) -> Tensor:
    """Return the table's row for each query place and key place, [queries, side, c]."""
    return table[_row_numbers(queries, (table.shape[0] + 1) // 2, table.device)]


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # cached tensors may take part in training later
def _row_numbers(queries: int, side: int, device: torch.device) -> Tensor:
    query, key = torch.arange(queries)[:, None], torch.arange(side)[None, :]
    return (query - key + side - 1).to(device)


def _textbook_terms(tables: Tables, q: Tensor) -> BiasTerms:
    rows_d, rows_h, rows_w = (_rows(t, n) for t, n in zip(tables, q.shape[2:5], strict=True))
    along_d = torch.einsum("bndhwc,dkc->bndhwk", q, rows_d)
    along_h = torch.einsum("bndhwc,hkc->bndhwk", q, rows_h)
    along_w = torch.einsum("bndhwc,wkc->bndhwk", q, rows_w)
    return BiasTerms(along_d[..., None], along_h[..., None], along_w)


def _published_terms(tables: Tables, q: Tensor, padded_q: Tensor | None) -> BiasTerms:
    table_d, table_h, table_w = tables
    grid, side = q.shape[2], (table_d.shape[0] + 1) // 2
    line = q  # the queries (d, h, ·) up to the side of the window
    if grid < side and padded_q is not None:
        missing = padded_q[None, :, None, None, None, :]
        line = torch.cat([q, missing.expand(*q.shape[:4], side - grid, -1)], dim=4)
    along_w = torch.einsum("bndhwc,dkc->bndhwk", q, _rows(table_d, grid))
    along_d = torch.einsum("bndhxc,hkc->bndhxk", line, _rows(table_h, grid))
    along_h = torch.einsum("bndhxc,xkc->bndhxk", line, _rows(table_w, side))
    return BiasTerms(along_d[:, :, :, :, None], along_h[:, :, :, :, None], along_w)
