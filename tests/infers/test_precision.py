"""A lower number type is used if the hardware has it and the masks stay the same."""

from dataclasses import replace

import pytest
import torch

from lib.infers import precision
from lib.infers.precision import (
    Bfloat16Convolution,
    Int8Linear,
    candidate,
    choose,
    lowered,
    lowest_dice,
    synthetic_clicks,
)
from lib.networks import CONFIGS, build_untrained
from lib.networks.torch_private import int8_levels

CPU = torch.device("cpu")
TINY = replace(
    CONFIGS["fastsam3d"],
    roi_size=64,
    width=96,
    depth=3,
    num_heads=3,
    out_channels=48,
    decoder_mlp_width=64,
    iou_head_width=32,
)

needs_int8 = pytest.mark.skipif(not int8_levels(), reason="this CPU has no AVX2")


@pytest.fixture(scope="module")
def network():
    return build_untrained(TINY, seed=0)


@needs_int8
@pytest.mark.parametrize("has_vnni", [torch.cpu._is_vnni_supported(), False])
def test_int8_linear_is_close_and_keeps_small_outputs(monkeypatch, has_vnni):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: has_vnni)
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(64, 32)
    x = torch.randn(2, 5, 64, generator=generator)
    with torch.no_grad():
        linear.weight.normal_(generator=generator)
        linear.weight[3] *= 1e-3  # a single scale for all outputs would lose this one
        low = Int8Linear(linear)
        lowered_output, expected = low(x), linear(x)
    assert int(low.weight.abs().max()) == (127 if has_vnni else 64)
    assert lowered_output.shape == expected.shape
    difference = (lowered_output - expected).flatten(0, 1).norm(dim=0) / expected.flatten(
        0, 1
    ).norm(dim=0)
    assert difference.max() < 0.03


@needs_int8
def test_lowering_a_network_does_not_change_the_original(network):
    before = {name: x.clone() for name, x in network.state_dict().items()}
    low = lowered(network, "int8")
    assert any(isinstance(module, Int8Linear) for module in low.modules())
    assert not any(isinstance(module, Int8Linear) for module in network.modules())
    assert not any(x.requires_grad for x in low.parameters())
    assert all(torch.equal(before[name], x) for name, x in network.state_dict().items())
    assert all(x.requires_grad for x in network.parameters())
    assert lowest_dice(low, network, CPU) > 0.97


def test_bfloat16_keeps_clicks_in_float32(network):
    low = lowered(network, "bfloat16")
    volume, points, labels = synthetic_clicks(64)
    with torch.inference_mode():
        embedding = low.encode(volume)
        logits = low.decode(low.prepare(embedding), points, labels, torch.zeros(1, 1, 16, 16, 16))[
            0
        ]
    assert embedding.dtype == logits.dtype == torch.bfloat16
    assert low.prompt_encoder.no_mask_embed.weight.dtype == torch.float32
    assert lowest_dice(low, network, CPU) > 0.97


def test_a_mask_refiner_convolves_in_bfloat16_between_float32_maps():
    """In bfloat16 the likeness of cells, a small difference of large numbers, would be wrong."""
    network = build_untrained(replace(TINY, detail_channels=6, key_channels=4), seed=2)
    low = lowered(network, "bfloat16")
    assert isinstance(low.mask_decoder.refiner.cell_keys.out, Bfloat16Convolution)
    convolutions = [m for m in low.modules() if isinstance(m, Bfloat16Convolution)]
    assert len(convolutions) >= 8
    assert low.mask_decoder.refiner.key.weight.dtype == torch.float32
    volume, points, labels = synthetic_clicks(64)
    with torch.inference_mode():
        detail = low.prepare(low.encode(volume)).detail
        expected = network.prepare(network.encode(volume)).detail
        assert detail.dtype == torch.float32 and not torch.equal(detail, expected)
        torch.testing.assert_close(detail, expected, rtol=0.02, atol=0.05)
        zeros = torch.zeros(1, 1, 16, 16, 16)
        logits, _ = low.decode(low.prepare(low.encode(volume)), points, labels, zeros)
    assert logits.dtype == torch.float32
    assert lowest_dice(low, network, CPU) > 0.97
    assert not any(isinstance(m, Bfloat16Convolution) for m in network.modules())


def decide(monkeypatch, network, dice, number_type="bfloat16"):
    monkeypatch.setattr(precision, "candidate", lambda *_: number_type)
    monkeypatch.setattr(precision, "lowest_dice", lambda *_: dice)
    (chosen,), decision = choose([network], CPU)
    return chosen, decision


def test_a_type_that_preserves_the_masks_is_used(monkeypatch, network):
    chosen, decision = decide(monkeypatch, network, dice=0.995)
    assert chosen is not network
    assert chosen.image_encoder.pos_embed.dtype == torch.bfloat16
    assert decision.number_type == "bfloat16"
    assert "0.9950" in decision.reason


def test_a_type_that_changes_the_masks_is_not_used(monkeypatch, network):
    chosen, decision = decide(monkeypatch, network, dice=0.98)
    assert chosen is network
    assert decision.number_type == "float32"
    assert "changes the masks: Dice 0.98" in decision.reason


def test_networks_that_share_an_encoder_have_one_type(monkeypatch, network):
    """One of them whose masks change keeps the other in float32, too."""
    other = build_untrained(TINY, seed=1)
    monkeypatch.setattr(precision, "candidate", lambda *_: "bfloat16")
    monkeypatch.setattr(
        precision, "lowest_dice", lambda _, expected, __: 0.995 if expected is network else 0.97
    )
    chosen, decision = choose([network, other], CPU)
    assert chosen == [network, other]
    assert decision.number_type == "float32" and decision.dice == 0.97


@pytest.mark.parametrize(
    ("instructions", "wide", "narrow"),
    [
        ({"amx_tile", "avx512_bf16", "vnni", "avx2"}, "bfloat16", "bfloat16"),
        ({"avx512_bf16", "vnni", "avx2"}, "int8", "bfloat16"),
        ({"vnni", "avx2"}, "int8", "float32"),
        ({"avx2"}, "int8", "float32"),
        (set(), "float32", "float32"),
    ],
)
def test_candidates_of_cpus(monkeypatch, network, instructions, wide, narrow):
    for name in ("amx_tile", "avx512_bf16", "vnni", "avx2"):
        answer = name in instructions
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda answer=answer: answer)
    assert candidate(CPU, 768) == wide
    assert candidate(CPU, network.config.width) == narrow
    if narrow == "float32":
        (chosen,), decision = choose([network], CPU)
        assert chosen is network
        assert "no faster type for a width of 96" in decision.reason


def test_masks_that_differ_are_noticed(network):
    other = build_untrained(TINY, seed=1)
    assert lowest_dice(other, network, CPU) < 0.9
    assert lowest_dice(network, network, CPU) == 1.0
