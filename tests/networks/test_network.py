"""The whole network: shapes, refused inputs, and options that do not change the result."""

from dataclasses import replace

import pytest
import torch

from lib.networks import (
    CONFIGS,
    FastSAM3DConfig,
    build_network,
    build_untrained,
    with_attention,
)

SMALL = FastSAM3DConfig(roi_size=64, width=24, depth=2, num_heads=3, out_channels=48)


@pytest.fixture
def network():
    return build_untrained(SMALL, seed=0)


def decode(network, **changes):
    prompt = {
        "points": torch.tensor([[[3.0, 20, 50], [60, 1, 2]]]),
        "labels": torch.tensor([[1, 0]]),
        "mask": torch.ones(1, 1, 16, 16, 16),
        **changes,
    }
    with torch.no_grad():
        return network.decode(torch.ones(1, 48, 4, 4, 4), **prompt)


def test_shapes(network):
    assert network.encode(torch.zeros(2, 1, 64, 64, 64)).shape == (2, 48, 4, 4, 4)
    logits, iou = decode(network)
    assert (logits.shape, iou.shape) == ((1, 1, 16, 16, 16), (1, 1))
    logits, iou = decode(network, multimask=True)
    assert (logits.shape, iou.shape) == ((1, 3, 16, 16, 16), (1, 3))


def test_several_prompts_on_one_embedding(network):
    points = torch.tensor([[[3.0, 20, 50]], [[60, 1, 2]]])
    together, _ = decode(network, points=points, labels=torch.ones(2, 1), mask=None)
    for one, point in zip(together, points, strict=True):
        alone, _ = decode(network, points=point[None], labels=torch.ones(1, 1), mask=None)
        torch.testing.assert_close(one, alone[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_points_of_other_types(network, dtype):
    expected, _ = decode(network)
    points = torch.tensor([[[3, 20, 50], [60, 1, 2]]], dtype=dtype)
    torch.testing.assert_close(decode(network, points=points)[0], expected)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"points": None}, "come together"),
        ({"points": torch.zeros(1, 2, 2)}, r"\(1, 2, 2\) and labels \(1, 2\)"),
        ({"mask": torch.zeros(1, 1, 32, 32, 32)}, r"must be \(B, 1, 16, 16, 16\)"),
        ({"mask": torch.zeros(2, 1, 16, 16, 16), "points": torch.zeros(3, 1, 3)}, "batch sizes"),
    ],
)
def test_refused_prompts(network, changes, says):
    if changes.get("points") is not None and len(changes["points"]) == 3:
        changes = {**changes, "labels": torch.zeros(3, 1)}
    with pytest.raises(ValueError, match=says):
        decode(network, **changes)


def test_refused_volume(network):
    with pytest.raises(ValueError, match=r"\(1, 1, 32, 32, 32\), but the network takes"):
        network.encode(torch.zeros(1, 1, 32, 32, 32))


@torch.no_grad()
@pytest.mark.parametrize("sparsity", ["lattice", "segments"])
def test_sparsity_of_interval_one_is_dense(sparsity):
    """With one group of all tokens, sparse and dense attention give the same result."""
    dense = build_untrained(SMALL, seed=0)
    options = {"sparsity": sparsity, "interval": 1, "segment_length": 512, "decoder_segment": 64}
    sparse = build_network(replace(SMALL, **options))
    sparse.load_state_dict(dense.state_dict())
    volume = torch.randn(1, 1, 64, 64, 64)
    torch.testing.assert_close(sparse.encode(volume), dense.encode(volume))
    torch.testing.assert_close(decode(sparse)[0], decode(dense)[0])


@torch.no_grad()
def test_sparse_decoder_attends_within_segments():
    dense = build_untrained(SMALL, seed=0)
    sparse = build_network(replace(SMALL, decoder_segment=3))
    sparse.load_state_dict(dense.state_dict())
    assert not torch.allclose(decode(sparse)[0], decode(dense)[0])


@torch.no_grad()
@pytest.mark.parametrize("bias", ["none", "textbook"])
def test_any_weights_run_with_either_operator(bias):
    """The tensors are shared, the operator changes, and dense brings the first result back."""
    dense = build_untrained(replace(SMALL, position_bias=bias), seed=0)
    sparse = with_attention(dense, "sparse")
    assert sparse.config.operator == "sparse" and sparse.config.decoder_segment == 64
    assert with_attention(dense, "stored") is dense is with_attention(dense, "dense")
    ours, theirs = dense.state_dict(), sparse.state_dict()
    assert all(theirs[name].data_ptr() == x.data_ptr() for name, x in ours.items())
    volume = torch.randn(1, 1, 64, 64, 64)
    assert not torch.allclose(sparse.encode(volume), dense.encode(volume))
    again = with_attention(sparse, "dense")
    torch.testing.assert_close(again.encode(volume), dense.encode(volume))


@torch.no_grad()
def test_prompts_shorter_than_a_segment_are_attended_densely():
    """Even bit for bit: such a sequence does not go through the groups."""
    dense = build_untrained(SMALL, seed=0)
    segments = build_network(replace(SMALL, decoder_segment=64))
    segments.load_state_dict(dense.state_dict())
    assert torch.equal(decode(segments)[0], decode(dense)[0])


def test_named_networks_and_options():
    for name in ("fastsam3d_default", "sam_med3d_default"):
        assert build_network(name).config == CONFIGS[name]
    assert build_network(SMALL.to_dict()).config == SMALL
    with torch.device("meta"):
        assert build_network("fastsam3d_sparse").config.sparsity == "lattice"
