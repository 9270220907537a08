"""Attention with interchangeable backends, and the 3D sparse flash attention operator.

``attention`` is the only place that chooses a backend:

* ``reference``: softmax(q k^T / sqrt(d) + bias) v, written out;
* ``sdpa``: ``torch.nn.functional.scaled_dot_product_attention``;
* ``flash_attn``: that package's kernels, on CUDA in half precision, without a bias.

``sparse_attention`` applies it inside each group of a :class:`~lib.networks.sparsity.TokenGroups`
and returns the result in the original token order.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .sparsity import TokenGroups

try:
    import flash_attn
except ImportError:
    flash_attn = None

Backend = Literal["auto", "reference", "sdpa", "flash_attn"]


def flash_attn_fits(q: Tensor) -> bool:
    """Return whether flash_attn can run on ``q``: half precision on an Ampere GPU or newer."""
    half = q.dtype in (torch.float16, torch.bfloat16)
    if flash_attn is None or not q.is_cuda or not half or q.shape[-1] > 256:
        return False
    return torch.cuda.get_device_capability(q.device) >= (8, 0)


def choose_backend(q: Tensor, bias: Tensor | None, backend: Backend = "auto") -> Backend:
    """Return the backend that will run; raises ValueError if the requested one cannot run."""
    if backend == "auto":
        return "flash_attn" if bias is None and flash_attn_fits(q) else "sdpa"
    if backend == "flash_attn" and (bias is not None or not flash_attn_fits(q)):
        raise ValueError(
            f"flash_attn needs its package, CUDA, fp16 or bf16 and no bias; got "
            f"{q.dtype} on {q.device}{' with a bias' if bias is not None else ''}"
        )
    return backend


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, backend: Backend = "auto"
) -> Tensor:
    """Return the attention of q [B, heads, Nq, d] over k, v [B, heads, Nk, d], [B, heads, Nq, d].

    bias: broadcastable to [B, heads, Nq, Nk], added to the scaled scores; or a bool mask, True
    where attention is allowed.
    """
    backend = choose_backend(q, bias, backend)
    if backend == "flash_attn":
        out = flash_attn.flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return out.transpose(1, 2)
    if backend == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return _reference_attention(q, k, v, bias)


def _reference_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = (
            scores.masked_fill(~bias, float("-inf")) if bias.dtype == torch.bool else scores + bias
        )
    return scores.softmax(dim=-1) @ v


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    groups: TokenGroups,
    bias: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Return self-attention inside each of G groups, [B, heads, N, d] in the original token order.

    q, k, v: [B, heads, N, d]. bias: [B, heads, G, M, M] (:meth:`BiasTerms.grouped`) or None. The
    result equals ``attention(q, k, v, groups.same_group())`` at a cost of N * M instead of N * N.
    Raises ValueError for groups of another number of tokens.
    """
    batch, heads, length, channels = q.shape
    if length != groups.length:
        raise ValueError(
            f"the groups partition {groups.length} tokens, but the sequence has {length}"
        )
    groups = groups.to(q.device)
    if (
        groups.valid is not None
        and bias is None
        and choose_backend(q, None, backend) == "flash_attn"
    ):
        return _varlen_flash_attention(q, k, v, groups, groups.valid)
    members = groups.index.shape[1]

    def gather(x: Tensor) -> Tensor:
        grouped = x[:, :, groups.index]  # [B, heads, G, M, d]
        return grouped.transpose(1, 2).reshape(-1, heads, members, channels)

    if bias is not None:
        bias = bias.transpose(1, 2).reshape(-1, heads, members, members)
    if groups.valid is not None:
        bias = _exclude_padding(bias, groups.valid, batch, q.dtype)
    out = attention(gather(q), gather(k), gather(v), bias, backend)
    out = out.reshape(batch, -1, heads, members, channels).transpose(1, 2)
    return out.flatten(2, 3)[:, :, groups.inverse]


def _exclude_padding(bias: Tensor | None, valid: Tensor, batch: int, dtype: torch.dtype) -> Tensor:
    """Add -inf to the scores of the keys [B * G, 1, 1, M] that pad short groups."""
    padding = torch.zeros(valid.shape, dtype=dtype, device=valid.device)
    padding = padding.masked_fill(~valid, float("-inf")).repeat(batch, 1)[:, None, None, :]
    return padding if bias is None else bias + padding


def _varlen_flash_attention(
    q: Tensor, k: Tensor, v: Tensor, groups: TokenGroups, valid: Tensor
) -> Tensor:
    """Attend in groups of unequal length with flash_attn's packed kernel, without padding."""
    batch, heads, length, channels = q.shape
    order = groups.index[valid]  # [N] tokens in group order
    sizes = valid.sum(dim=1).repeat(batch)
    ends = F.pad(torch.cumsum(sizes, 0, dtype=torch.int32), (1, 0))

    def pack(x: Tensor) -> Tensor:
        return x[:, :, order].transpose(1, 2).reshape(batch * length, heads, channels)

    longest = groups.index.shape[1]
    out = flash_attn.flash_attn_varlen_func(pack(q), pack(k), pack(v), ends, ends, longest, longest)
    restored = torch.empty_like(out).reshape(batch, length, heads, channels)
    restored[:, order] = out.reshape(batch, length, heads, channels)
    return restored.transpose(1, 2)
