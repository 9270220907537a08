"""Image detail changes clicks and masks at the right place, in networks that have it."""

import copy
import dataclasses
from dataclasses import replace

import pytest
import torch

from lib.networks import FastSAM3D, FastSAM3DConfig, load_checkpoint, save_checkpoint
from lib.networks.fastsam3d import build_untrained
from lib.networks.mask_refiner import PROMPT_MAPS, draw_prompt, likeness, sample

CONFIG = FastSAM3DConfig(
    roi_size=32,
    patch_size=8,
    width=24,
    depth=2,
    num_heads=2,
    out_channels=48,
    decoder_heads=2,
    decoder_mlp_width=32,
    position_bias="none",
    swap_dense_axes=False,
    detail_channels=5,
)


@pytest.fixture(scope="module")
def network() -> FastSAM3D:
    return build_untrained(CONFIG, seed=3)


@pytest.fixture(scope="module")
def volume() -> torch.Tensor:
    return torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))


def test_detail_is_sampled_at_the_click() -> None:
    detail = torch.zeros(1, 1, 8, 8, 8)
    detail[0, 0, 1, 6, 3] = 1
    centre = torch.tensor([[[1.5 + 4, 1.5 + 24, 1.5 + 12], [1.5 + 24, 1.5 + 4, 1.5 + 12]]])
    assert sample(detail, centre, roi_size=32)[0, :, 0].tolist() == pytest.approx([1, 0], abs=1e-5)


def test_clicks_are_drawn_by_their_kind() -> None:
    points = torch.tensor([[[5.5, 25.5, 13.5], [30.0, 1.0, 1.0], [9.0, 9.0, 9.0]]])
    labels = torch.tensor([[1, 0, -1]])
    mask = torch.full((1, 1, 8, 8, 8), -8.0)
    drawn = draw_prompt(points, labels, mask, roi_size=32)
    assert drawn.shape == (1, 3, 8, 8, 8)
    assert float(drawn[0, 0].max()) == pytest.approx(-0.964, abs=1e-3)  # tanh(-2)
    for channel, cell in ((1, (1, 6, 3)), (2, (7, 0, 0))):
        peak = torch.unravel_index(drawn[0, channel].argmax(), (8, 8, 8))
        assert tuple(int(x) for x in peak) == cell
    assert float(drawn[0, 1, 2, 2, 2]) < 1e-3  # a padding point draws nothing


def test_likeness_is_separate_for_foreground_and_background_clicks() -> None:
    keys = torch.zeros(1, 2, 4, 4, 4)
    keys[0, :, 0] = torch.tensor([1.0, 2.0])[:, None, None]
    keys[0, :, 3] = torch.tensor([-3.0, 2.0])[:, None, None]
    clicked = torch.tensor([[[1.0, 2.0], [-3.0, 2.0], [0.0, 0.0]]])
    foreground, background = likeness(keys, clicked, torch.tensor([[1, 0, -1]]))[0]
    assert foreground[0, 0, 0] == pytest.approx(1) and background[3, 0, 0] == pytest.approx(1)
    assert foreground[1, 0, 0] == pytest.approx(2.718281828**-5)  # squared distance 1 + 4
    assert background[0, 0, 0] == pytest.approx(2.718281828**-16)


def test_likeness_is_to_the_nearest_click_and_0_without_clicks() -> None:
    keys = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    clicked = torch.stack([keys[:, :, 0, 0, 0], keys[:, :, 2, 1, 3]], dim=1)
    maps = likeness(keys, clicked, torch.ones(2, 2))
    assert maps[:, 0, 0, 0, 0].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert maps[:, 0, 2, 1, 3].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert not maps[:, 1].any()


def test_likeness_is_exact_while_a_training_computes_in_bfloat16() -> None:
    keys = 30 + torch.rand(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    clicked = keys[:, :, 0, 0, 0][:, None]
    expected = likeness(keys, clicked, torch.ones(1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(likeness(keys, clicked, torch.ones(1, 1)), expected)


def test_keys_change_the_masks_of_a_network_that_has_them(volume: torch.Tensor) -> None:
    keyed = build_untrained(replace(CONFIG, key_channels=3), seed=0)
    prepared = keyed.prepare(keyed.encode(volume))
    assert prepared.keys is not None and prepared.keys.shape == (1, 3, 16, 16, 16)
    points, labels = torch.tensor([[[3.0, 12.0, 3.0]]]), torch.ones(1, 1)
    with_keys, _ = keyed.decode(prepared, points, labels)
    others, _ = keyed.decode(replace(prepared, keys=prepared.keys + 1), points, labels)
    assert not torch.equal(with_keys, others)
    # keys that all moved by the same are as alike as before, but the refiner sees them too
    weight = keyed.mask_decoder.refiner.merge.weight
    with torch.no_grad():
        weight[:, -3:] = 0
    unseen, _ = keyed.decode(prepared, points, labels)
    moved, _ = keyed.decode(replace(prepared, keys=prepared.keys + 1), points, labels)
    torch.testing.assert_close(unseen, moved, atol=1e-4, rtol=1e-4)


def test_keys_need_image_detail() -> None:
    with pytest.raises(ValueError, match="key_channels 3 needs detail_channels"):
        replace(CONFIG, detail_channels=0, key_channels=3)


@pytest.mark.parametrize("channels", [(), (4, 4, 4, 4, 4)])
def test_levels_of_the_refiner_must_fit_its_cells(channels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"refiner_channels \(.*16 cells"):
        replace(CONFIG, refiner_channels=channels)


def test_a_refiner_has_the_levels_of_its_configuration(volume: torch.Tensor) -> None:
    deep = build_untrained(replace(CONFIG, refiner_channels=(6, 8, 10)), seed=0)
    assert deep.mask_decoder.refiner.coarser.below.below.up.in_channels == 10
    points = torch.tensor([[[3.0, 12.0, 3.0]]])
    logits, _ = deep.decode(deep.encode(volume), points, torch.ones(1, 1))
    assert logits.shape == (1, 1, 16, 16, 16) and torch.isfinite(logits).all()


def test_coarser_levels_begin_as_zero_and_reach_far(network: FastSAM3D) -> None:
    refiner = network.mask_decoder.refiner
    upscaled, detail = torch.randn(1, 6, 16, 16, 16), torch.randn(1, 5, 16, 16, 16)
    maps, others = torch.zeros(2, 1, PROMPT_MAPS, 16, 16, 16)
    others[..., 0, 0, 0] = 1

    def reach() -> float:
        change = refiner(upscaled, detail, None, maps) - refiner(upscaled, detail, None, others)
        return float(change[..., 12:, 12:, 12:].detach().abs().max())

    assert reach() == 0
    trained = copy.deepcopy(refiner.coarser.state_dict())
    try:
        for level in (refiner.coarser, refiner.coarser.below):
            torch.nn.init.normal_(level.up.weight, generator=torch.Generator().manual_seed(0))
        assert reach() > 1e-6
    finally:
        refiner.coarser.load_state_dict(trained)


def test_the_embedding_holds_the_necks_channels_and_the_detail(
    network: FastSAM3D, volume: torch.Tensor
) -> None:
    embedding = network.encode(volume)
    assert embedding.shape == (1, CONFIG.embedding_channels, 4, 4, 4)
    assert torch.equal(embedding[:, :48], network.image_encoder(volume))
    detail = network.prepare(embedding).detail
    assert detail is not None
    assert torch.equal(detail, network.detail_stem(volume))


def test_an_embedding_in_half_precision_has_detail_too(
    network: FastSAM3D, volume: torch.Tensor
) -> None:
    """Trainers store embeddings in half precision."""
    embedding = network.encode(volume)
    expected, half_detail = (network.prepare(x).detail for x in (embedding, embedding.half()))
    assert expected is not None and half_detail is not None
    torch.testing.assert_close(half_detail, expected, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("part", ["mask", "click"])
def test_masks_depend_on_the_detail(network: FastSAM3D, volume: torch.Tensor, part: str) -> None:
    embedding = network.encode(volume)
    other = embedding.clone()
    patches = other[:, 48:].view(1, 5, 16, 16, 16)
    if part == "mask":  # far from the click, where it changes only the refiner's input
        patches[:, :, 12:, 12:, 12:] += 1
    else:
        patches[:, :, :4, 4:8, :4] += 1
    points, labels = torch.tensor([[[3.0, 12.0, 3.0]]]), torch.ones(1, 1)
    first, _ = network.decode(embedding, points, labels)
    second, _ = network.decode(other, points, labels)
    change = (first - second).detach().abs()[0, 0]
    assert float(change[14:, 14:, 14:].max()) > 1e-3
    if part == "mask":
        assert float(change[:8, :8, :8].max()) < 1e-6


def test_prompts_of_one_image_and_of_many_agree(network: FastSAM3D, volume: torch.Tensor) -> None:
    embedding = network.encode(volume)
    points = torch.tensor([[[3.0, 12.0, 3.0]], [[20.0, 5.0, 9.0]]])
    labels, mask = torch.tensor([[1], [0]]), torch.randn(2, 1, 16, 16, 16)
    together, iou = network.decode(embedding, points, labels, mask)
    assert together.shape == (2, 1, 16, 16, 16) and iou.shape == (2, 1)
    for n in range(2):
        alone, _ = network.decode(embedding, points[n : n + 1], labels[n : n + 1], mask[n : n + 1])
        torch.testing.assert_close(alone[0], together[n], atol=1e-5, rtol=1e-5)


def test_no_clicks_and_no_mask_are_possible(network: FastSAM3D, volume: torch.Tensor) -> None:
    logits, _ = network.decode(network.encode(volume), None, None)
    assert torch.isfinite(logits).all()


def test_a_file_restores_the_detail(network: FastSAM3D, volume: torch.Tensor, tmp_path) -> None:
    path = tmp_path / "network.safetensors"
    save_checkpoint(network, path, {})
    assert torch.equal(load_checkpoint(path).encode(volume), network.encode(volume))


def test_a_network_without_detail_has_no_tensors_for_it() -> None:
    names = FastSAM3D(dataclasses.replace(CONFIG, detail_channels=0)).state_dict()
    assert not [name for name in names if "detail" in name or "refiner" in name]
