"""Prepared images, blocks and batches of prompts give the same masks as the plain computation."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from lib.networks import CONFIGS, build_untrained
from lib.networks.mask_decoder import Upscaling3D
from lib.networks.token_blocks import from_blocks, to_blocks

TINY = replace(
    CONFIGS["fastsam3d"],
    roi_size=64,
    width=48,
    depth=3,
    num_heads=3,
    out_channels=48,
    decoder_mlp_width=64,
    iou_head_width=32,
)


@pytest.fixture(scope="module", params=[(0, 0), (4, 0), (4, 3)], ids=["plain", "detail", "keys"])
def network(request):
    detail, keys = request.param
    config = replace(TINY, detail_channels=detail, key_channels=keys)
    return build_untrained(config, seed=0).double()


@pytest.fixture
def embedding(network):
    with torch.no_grad():
        volume = torch.randn(2, 1, 64, 64, 64, generator=torch.Generator().manual_seed(0))
        return network.encode(volume.double())


def prompts(batch, with_mask):
    generator = torch.Generator().manual_seed(1)
    points = 60 * torch.rand(batch, 3, 3, generator=generator).double()
    mask = torch.randn(batch, 1, 16, 16, 16, generator=generator).double() if with_mask else None
    return points, torch.tensor([[1, 0, -1]]).expand(batch, -1), mask


def test_a_block_holds_the_cells_of_its_token():
    volume = torch.arange(2 * 8 * 4 * 12).reshape(1, 2, 8, 4, 12)
    blocks = to_blocks(volume)
    assert blocks.shape == (1, 2 * 1 * 3, 8, 8, 2)
    # token (1, 0, 2), its eighth (0, 1, 0), the eighth (1, 0, 1) of that eighth
    cell = (4 * 1 + 2 * 0 + 1, 2 * 1 + 0, 4 * 2 + 2 * 0 + 1)
    assert torch.equal(blocks[0, 1 * 3 + 2, 0b010, 0b101], volume[0, :, *cell])
    assert torch.equal(from_blocks(blocks, (2, 1, 3)), volume)


def test_upscaling_equals_its_layers_in_sequence():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        upscaling = Upscaling3D(16).double()
        x = torch.randn(2, 16, 3, 2, 4, dtype=torch.float64)
    expected = x
    for layer in upscaling:
        expected = layer(expected)
    torch.testing.assert_close(upscaling(x), expected)


def test_mask_features_are_the_downscaling_without_its_last_layer(network):
    _, _, mask = prompts(2, with_mask=True)
    encoder = network.prompt_encoder
    features = encoder.embed_mask(mask).transpose(1, 2).unflatten(2, (4, 4, 4))
    torch.testing.assert_close(
        encoder.mask_downscaling[-1](features), encoder.mask_downscaling(mask)
    )


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("multimask", [False, True])
def test_preparing_and_gradients_change_nothing(network, embedding, with_mask, multimask):
    """The fast path of inference, prepared or not, equals the path of training."""
    prompt = (*prompts(2, with_mask), multimask)
    expected = network.decode(embedding, *prompt)
    assert expected[0].requires_grad
    with torch.inference_mode():
        for image in (embedding, network.prepare(embedding)):
            for result, reference in zip(network.decode(image, *prompt), expected, strict=True):
                torch.testing.assert_close(result, reference.detach())


def test_several_prompts_on_one_image_do_not_mix(network, embedding):
    points, labels, mask = prompts(3, with_mask=True)
    with torch.inference_mode():
        prepared = network.prepare(embedding[:1])
        together, iou = network.decode(prepared, points, labels, mask)
        for n in range(3):
            one = slice(n, n + 1)
            alone, expected_iou = network.decode(prepared, points[one], labels[one], mask[one])
            torch.testing.assert_close(together[one], alone)
            torch.testing.assert_close(iou[one], expected_iou)


def test_each_image_can_stand_for_several_prompts(network, embedding):
    points, labels, mask = prompts(4, with_mask=True)
    both = torch.cat([embedding[:1], embedding[:1].flip(2)])
    with torch.inference_mode():
        logits, _ = network.decode(network.prepare(both).for_each(2), points, labels, mask)
        expected, _ = network.decode(both.repeat_interleave(2, dim=0), points, labels, mask)
    torch.testing.assert_close(logits, expected)


def test_prepared_image_counts_its_bytes(network, embedding):
    with torch.inference_mode():
        prepared = network.prepare(embedding[:1])
    tokens, width, inner, mask_channels = 64, 48, 24, 16
    maps = network.config.detail_channels + network.config.key_channels
    per_image = tokens * (width + 3 * inner) + 4**3 * 64 * maps
    assert prepared.nbytes == 8 * per_image
    position, weights = tokens * width, (width + 3 * inner) * (mask_channels + 1)
    upscaling = 8 * (12 * 48 + 6 * 12)
    everything = sum(x.nbytes for x in prepared.tensors())
    assert everything == prepared.nbytes + 8 * (position + weights + upscaling)


def test_images_share_the_constants_of_their_network(network, embedding):
    """Shared constants give the same masks, bit for bit, as constants made for each image."""
    prompt = prompts(1, with_mask=True)
    with torch.inference_mode():
        constants = network.decoder_constants()
        for n in range(2):
            prepared = network.prepare(embedding[n : n + 1], constants)
            assert prepared.constants is constants
            logits = network.decode(prepared, *prompt)
            expected = network.decode(embedding[n : n + 1], *prompt)
            assert all(torch.equal(a, b) for a, b in zip(logits, expected, strict=True))


def test_a_click_uses_the_prepared_image_only(network, embedding):
    """A click computes nothing that depends on the image alone."""
    points, labels, mask = prompts(1, with_mask=True)
    with torch.inference_mode():
        prepared = network.prepare(embedding[:1])
        first = network.mask_decoder.transformer.layers[0]
        used = []
        hooks = [
            layer.register_forward_hook(lambda layer, *_: used.append(layer))
            for layer in (
                first.cross_attn_token_to_image.k_proj,
                first.cross_attn_token_to_image.v_proj,
                first.cross_attn_image_to_token.q_proj,
                *(mlp for mlp in network.mask_decoder.output_hypernetworks_mlps[1:]),
            )
        ]
        network.decode(prepared, points, labels, mask)
        for hook in hooks:
            hook.remove()
    assert not used


def test_prepared_in_half_precision_is_close(network, embedding):
    half = build_untrained(network.config, seed=0)
    half.load_state_dict(network.float().state_dict())
    half.mask_decoder.bfloat16()
    points, labels, mask = (x.float() for x in prompts(1, with_mask=True))
    with torch.inference_mode():
        expected = network.decode(embedding[:1].float(), points, labels, mask)[0]
        logits = half.decode(half.prepare(embedding[:1].float()), points, labels, mask)[0]
    network.double()
    assert logits.dtype == torch.bfloat16
    error = F.mse_loss(logits.float(), expected).sqrt() / expected.std()
    assert error < 0.05
