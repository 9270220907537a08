"""Fast paths equal their definitions in values and gradients: backends, sparsity, windows, bias."""

from dataclasses import replace

import pytest
import torch

from lib.networks import CONFIGS
from lib.networks.attention import attention, choose_backend, sparse_attention
from lib.networks.image_encoder import Attention3D, join_windows, partition_windows
from lib.networks.position_bias import bias_terms
from lib.networks.sparsity import lattice_groups, segment_groups

GRIDS = [(4, 6, 8), (3, 5, 7), (1, 9, 4), (2, 2, 2)]
SEGMENTS = [(64, 16, 4), (50, 16, 3), (7, 16, 2), (30, 7, 10), (5, 1, 1), (3, 8, 8)]
GROUPS = {f"lattice{grid}/{r}": lattice_groups(grid, r) for grid in GRIDS for r in (1, 2, 3)} | {
    f"segments{n}/{w}/{r}": segment_groups(n, w, r) for n, w, r in SEGMENTS
}


def random_qkv(length, heads=2, channels=8, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shape = (3, batch, heads, length, channels)
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_().unbind()


def value_and_gradients(out, inputs):
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    return [out, *torch.autograd.grad((out * weights).sum(), inputs)]


def assert_all_close(result, expected):
    for a, b in zip(result, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", GROUPS)
def test_groups_partition_all_tokens_in_order(name):
    groups = GROUPS[name]
    members = groups.index if groups.valid is None else groups.index[groups.valid]
    assert sorted(members.flatten().tolist()) == list(range(groups.length))
    assert torch.equal(groups.index.flatten()[groups.inverse], torch.arange(groups.length))


@pytest.mark.parametrize(
    ("length", "segment", "interval", "expected"),
    [
        (10, 6, 2, [[0, 2, 4], [1, 3, 5], [6, 8], [7, 9]]),
        (10, 5, 2, [[0, 2, 4], [1, 3], [5, 7, 9], [6, 8]]),
        (3, 8, 2, [[0, 2], [1]]),
    ],
)
def test_segment_groups_follow_equation_3(length, segment, interval, expected):
    groups = segment_groups(length, segment, interval)
    valid = (
        torch.ones_like(groups.index, dtype=torch.bool) if groups.valid is None else groups.valid
    )
    members = [row[keep].tolist() for row, keep in zip(groups.index, valid, strict=True)]
    assert members == expected


def test_lattice_groups_span_the_grid():
    grid, r = (4, 6, 8), 2
    groups = lattice_groups(grid, r)
    assert groups.index.shape == (r**3, 4 * 6 * 8 // r**3)
    for group in groups.index:
        places = torch.stack(torch.unravel_index(group, grid))
        assert len(torch.unique(places % r, dim=1).T) == 1
        span = places.amax(dim=1) - places.amin(dim=1)
        assert span.tolist() == [side - r for side in grid]


@pytest.mark.parametrize(
    "make", [lambda: segment_groups(8, 0, 1), lambda: lattice_groups((2, 0, 2), 1)]
)
def test_patterns_refuse_empty_sizes(make):
    with pytest.raises(ValueError, match="at least 1"):
        make()


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("name", GROUPS)
def test_sparse_is_dense_under_its_mask(name, backend):
    groups = GROUPS[name]
    inputs = random_qkv(groups.length)
    result = sparse_attention(*inputs, groups, backend=backend)
    dense = attention(*inputs, groups.same_group(), backend="reference")
    assert_all_close(value_and_gradients(result, inputs), value_and_gradients(dense, inputs))


def test_one_group_is_dense_attention():
    inputs = random_qkv(4 * 6 * 8)
    result = sparse_attention(*inputs, lattice_groups((4, 6, 8), 1))
    assert_all_close([result], [attention(*inputs, backend="reference")])


def test_groups_made_in_inference_serve_training():
    with torch.inference_mode():
        groups = lattice_groups((5, 4, 6), 2)
    inputs = random_qkv(5 * 4 * 6)
    value_and_gradients(sparse_attention(*inputs, groups), inputs)


def test_sparse_refuses_groups_of_another_length():
    with pytest.raises(ValueError, match="64 tokens, but the sequence has 60"):
        sparse_attention(*random_qkv(60), segment_groups(64, 16, 2))


def test_backends_agree_with_a_bias():
    inputs = random_qkv(12)
    bias = torch.randn(2, 2, 12, 12, dtype=torch.float64)
    results = [attention(*inputs, bias, backend) for backend in ("reference", "sdpa")]
    assert_all_close(
        value_and_gradients(results[0], inputs), value_and_gradients(results[1], inputs)
    )


def test_flash_attn_is_refused_on_the_cpu():
    q = random_qkv(4, dtype=torch.float32)[0]
    assert choose_backend(q, None) == "sdpa"
    with pytest.raises(ValueError, match="float32 on cpu"):
        choose_backend(q, None, "flash_attn")


def small_attention(window=0, window_path="closed_form", **options):
    config = replace(
        CONFIGS["sam_med3d"], width=24, num_heads=3, roi_size=64, patch_size=16, **options
    )
    torch.manual_seed(1)
    module = Attention3D(config, window, window_path).double()
    for name, table in module.named_parameters():
        if "rel_pos" in name:
            torch.nn.init.normal_(table)
    return module


@pytest.mark.parametrize(
    ("kind", "grid"),
    [
        ("published", (4, 4, 4)),
        ("published", (6, 6, 6)),
        ("textbook", (3, 5, 6)),
        ("none", (2, 6, 4)),
    ],
)
def test_closed_form_equals_padded_windows(kind, grid):
    x = torch.randn(2, *grid, 24, dtype=torch.float64, requires_grad=True)
    results = []
    for path in ("closed_form", "padded"):
        module = small_attention(window=6, position_bias=kind, window_path=path)
        inputs = [x, *module.parameters()]
        results.append(value_and_gradients(module(x), inputs))
    assert_all_close(*results)


def test_windows_are_joined_as_they_were_cut():
    x = torch.arange(2 * 5 * 7 * 3 * 2.0).reshape(2, 5, 7, 3, 2)
    windows, padded_grid = partition_windows(x, 4)
    assert windows.shape == (2 * 2 * 2 * 1, 4, 4, 4, 2)
    assert torch.equal(join_windows(windows, 4, padded_grid, (5, 7, 3)), x)


@pytest.mark.parametrize("sparsity", ["lattice", "segments"])
@pytest.mark.parametrize(
    ("kind", "grid"), [("published", (4, 4, 4)), ("textbook", (2, 3, 4)), ("none", (3, 2, 4))]
)
def test_sparse_attention_keeps_the_position_bias(sparsity, kind, grid):
    options = {"position_bias": kind, "interval": 2, "segment_length": 10}
    sparse = small_attention(sparsity=sparsity, **options)
    dense = small_attention(**options)
    x = torch.randn(2, *grid, 24, dtype=torch.float64)

    allowed = sparse._groups(grid).same_group()
    forbidden = torch.zeros(allowed.shape, dtype=x.dtype).masked_fill(~allowed, float("-inf"))
    q, k, v = dense._project(x)
    terms = dense._bias_terms(q, grid)
    bias = forbidden if terms is None else terms.dense(grid) + forbidden
    expected = dense._merge_heads(attention(q, k, v, bias, "reference"), grid)
    assert_all_close([sparse(x)], [expected])


@pytest.mark.parametrize("kind", ["published", "textbook"])
def test_position_bias_is_its_formula(kind):
    n = 3
    tables = torch.randn(3, 2 * n - 1, 4, dtype=torch.float64)
    q = torch.randn(1, 1, n, n, n, 4, dtype=torch.float64)
    bias = bias_terms(kind, tuple(tables), q).dense((n, n, n)).reshape(n, n, n, n, n, n)
    rd, rh, rw = tables
    at = q[0, 0]
    for d, h, w, kd, kh, kw in torch.cartesian_prod(*[torch.arange(n)] * 6).tolist():
        if kind == "published":
            rows = (at[d, h, w], rd[d - kw + 2]), (at[d, h, kd], rh[h - kw + 2])
            rows = (*rows, (at[d, h, kh], rw[kh - kw + 2]))
        else:
            rows = (at[d, h, w], rd[d - kd + 2]), (at[d, h, w], rh[h - kh + 2])
            rows = (*rows, (at[d, h, w], rw[w - kw + 2]))
        expected = sum(a @ b for a, b in rows)
        torch.testing.assert_close(bias[d, h, w, kd, kh, kw], expected)


def test_published_bias_refuses_grids_that_are_no_cube():
    tables = tuple(torch.zeros(3, 7, 4))
    with pytest.raises(ValueError, match=r"cubic grid, got \(2, 3, 4\)"):
        bias_terms("published", tables, torch.zeros(1, 1, 2, 3, 4, 4))


@pytest.mark.gpu
@pytest.mark.parametrize("name", GROUPS)
def test_flash_attn_on_the_gpu(name):
    """The error against float32 is at most twice that of the reference in half precision."""
    pytest.importorskip("flash_attn")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    groups = GROUPS[name]
    exact = [x.detach().cuda().float() for x in random_qkv(groups.length, channels=64)]
    half = [x.half() for x in exact]
    expected = sparse_attention(*exact, groups, backend="reference")
    flash = sparse_attention(*half, groups, backend="flash_attn").float()
    plain = sparse_attention(*half, groups, backend="reference").float()
    allowed = 2 * (plain - expected).abs().max() + 1e-5
    assert (flash - expected).abs().max() <= allowed
