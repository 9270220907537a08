"""Make click_ball.safetensors: test weights that draw a ball at each click, whatever the image.

    PYTHONPATH=apps/fastsam3d python tests/data/make_click_ball.py [--steps 2500] [--out FILE]

A foreground click adds a ball of RADIUS_MM, a background click takes one away. So the right mask
of any clicks is known in advance, and a mask that is shifted, flipped or transposed is seen at
once. The network has the architecture of the shipped ones, only smaller, with a ROI of 96 mm. Its
patch embedding is zero, so that the image cannot matter; the rest is trained on random clicks,
which takes three minutes of one processor core.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from lib.imaging.mask import dice
from lib.networks import (
    FastSAM3D,
    FastSAM3DConfig,
    MaskPolicy,
    build_untrained,
    save_checkpoint,
)

RADIUS_MM, SPACING_MM = 20.0, 1.5
EDGE_VOXELS = 3.0  # a logit of 1 lies this many ROI voxels inside the mask
MAX_LOGIT = 4.0
CONFIG = FastSAM3DConfig(
    roi_size=64,
    width=8,
    depth=1,
    num_heads=2,
    mlp_ratio=2.0,
    out_channels=48,
    position_bias="none",
    decoder_depth=3,
    decoder_mlp_width=96,
    decoder_downsample=1,
    mask_channels=32,
    num_multimask_outputs=0,
    iou_head_depth=2,
    iou_head_width=8,
    swap_dense_axes=False,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2500)
    default = Path(__file__).with_name("click_ball.safetensors")
    parser.add_argument("--out", type=Path, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the layers are too small to share
    network = build_untrained(CONFIG, seed=0, policy=MaskPolicy(click_history="newest"))
    prepare(network)
    train(network, options.steps)
    metadata = {
        "trained": "true",
        "description": "test weights: draws balls at clicks",
        "radius_mm": str(RADIUS_MM),
    }
    save_checkpoint(network, options.out, metadata, dtype=torch.float16)
    dice = ", ".join(f"{measure(network, clicks):.3f}" for clicks in (1, 2, 4))
    print(f"{options.out}: {options.out.stat().st_size // 1000} kB, Dice {dice} of 1, 2, 4 clicks")


@torch.no_grad()
def prepare(network: FastSAM3D) -> None:
    """Set the weights that training starts from.

    The patch embedding is zero and stays so. Attention starts with a preference for near cells;
    without it, training does not leave the plateau of the mean mask.
    """
    for parameter in network.image_encoder.patch_embed.proj.parameters():
        parameter.zero_().requires_grad_(False)
    network.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix *= 0.5
    for layer in network.mask_decoder.transformer.layers:
        for attention in (layer.cross_attn_token_to_image, layer.cross_attn_image_to_token):
            for projection in (attention.q_proj, attention.k_proj):
                projection.weight *= 0.5
                projection.weight += 1.5 * torch.eye(CONFIG.out_channels)
    for embedding in network.modules():
        if isinstance(embedding, nn.Embedding):
            embedding.weight *= 0.3


def train(network: FastSAM3D, steps: int, batch: int = 8, clicks: int = 3) -> None:
    """Train with Adam on random interactions of ``clicks`` clicks each."""
    generator = torch.Generator().manual_seed(0)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, betas=(0.9, 0.98))
    progress = trange(steps)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, 20 * step / steps) * (1 - step / steps)
        loss = interaction_loss(network, generator, batch, clicks)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        progress.set_postfix(loss=f"{loss.item():.4f}")


def interaction_loss(
    network: FastSAM3D, generator: torch.Generator, batch: int, clicks: int
) -> Tensor:
    """Return the cross-entropy with the target, averaged over the clicks of an interaction."""
    embedding = network.encode(torch.zeros(1, 1, *(CONFIG.roi_size,) * 3))
    mask, target = empty_masks(batch)
    total = mask.new_zeros(())
    for number in range(clicks):
        points, labels = random_clicks(batch, number, generator)
        target = apply_click(target, points, labels)
        logits, _ = network.decode(embedding, points, labels, mask)
        weight = 1 + 9.0 * (target > -MAX_LOGIT)  # most of the ROI is far from any click
        total = total + F.binary_cross_entropy_with_logits(logits, target.sigmoid(), weight)
        mask = logits.detach()
    return total / clicks


def empty_masks(batch: int) -> tuple[Tensor, Tensor]:
    """Return the masks before the first click: the network's input, and the target logits.

    Both are [B, 1, s, s, s]. The input is zeros, and the target is empty.
    """
    mask = torch.zeros(batch, 1, *(CONFIG.low_res_size,) * 3)
    return mask, torch.full_like(mask, -MAX_LOGIT)


def random_clicks(batch: int, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return points [B, 1, 3] in ROI voxels, and their labels [B, 1].

    The first click is a foreground click. In every second interaction, it lies in the middle of
    the ROI, where the server puts it.
    """
    points = torch.rand(batch, 1, 3, generator=generator) * (CONFIG.roi_size - 1)
    if number == 0:
        points[::2] = CONFIG.roi_size // 2
        return points, torch.ones(batch, 1, dtype=torch.long)
    near = CONFIG.roi_size / 2 + 12 * torch.randn(batch, 1, 3, generator=generator)
    points[::2] = near[::2].clamp(0, CONFIG.roi_size - 1)
    return points, (torch.rand(batch, 1, generator=generator) < 0.6).long()


def apply_click(logits: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    """Return the target logits [B, 1, s, s, s] after a click adds or removes a ball."""
    size, cell = CONFIG.low_res_size, CONFIG.roi_size // CONFIG.low_res_size
    centre = torch.arange(size) * cell + (cell - 1) / 2  # of the cells, in ROI voxels
    cells = torch.stack(torch.meshgrid(centre, centre, centre, indexing="ij"), dim=-1)
    distance = (cells[None] - points[:, :, None, None]).norm(dim=-1)[:, None]
    ball = ((RADIUS_MM / SPACING_MM - distance) / EDGE_VOXELS).clamp(-MAX_LOGIT, MAX_LOGIT)
    added = torch.maximum(logits, ball)
    removed = torch.minimum(logits, -ball)
    return torch.where(labels.reshape(-1, 1, 1, 1, 1) == 1, added, removed)


@torch.no_grad()
def measure(network: FastSAM3D, clicks: int, batch: int = 32) -> float:
    """Return the mean Dice after ``clicks`` clicks of new interactions on an image of noise."""
    generator = torch.Generator().manual_seed(1)
    embedding = network.encode(torch.randn(1, 1, *(CONFIG.roi_size,) * 3, generator=generator))
    mask, target = empty_masks(batch)
    for number in range(clicks):
        points, labels = random_clicks(batch, number, generator)
        target = apply_click(target, points, labels)
        mask, _ = network.decode(embedding, points, labels, mask)
    pairs = zip((mask > 0).numpy(), (target > 0).numpy(), strict=True)
    return sum(dice(*pair) for pair in pairs) / batch


if __name__ == "__main__":
    main()
