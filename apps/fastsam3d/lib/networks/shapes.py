"""The configuration of a published checkpoint, found in the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .config import FastSAM3DConfig

Shapes = Mapping[str, tuple[int, ...]]

_BLOCK = re.compile(r"image_encoder\.blocks\.(\d+)\.")
_LAYER = re.compile(r"mask_decoder\.transformer\.layers\.(\d+)\.")
_HEAD = re.compile(r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\.weight")


class ConfigError(ValueError):
    """These tensors do not describe a network that we know."""


def infer_config(shapes: Shapes) -> FastSAM3DConfig:
    """The configuration that tensors of these names and shapes belong to; raises ConfigError where
    they leave it open.

    FastSAM3D's residual cannot be seen in a shape; it comes with the blocks that have no attention.
    """
    try:
        return FastSAM3DConfig(**_encoder_options(shapes), **_decoder_options(shapes))
    except KeyError as error:
        raise ConfigError(
            f"tensor {error.args[0]} is missing: not a SAM-Med3D or FastSAM3D checkpoint"
        ) from error


def _encoder_options(shapes: Shapes) -> dict[str, Any]:
    width, _, patch_size = shapes["image_encoder.patch_embed.proj.weight"][:3]
    grid = shapes["image_encoder.pos_embed"][1]
    depth = _count(_BLOCK, shapes)
    tables = {
        block: shapes[f"image_encoder.blocks.{block}.attn.rel_pos_d"]
        for block in range(depth)
        if f"image_encoder.blocks.{block}.attn.qkv.weight" in shapes
    }
    if not tables:
        raise ConfigError("none of its blocks has attention, so the number of heads is not known")
    windows = {block: (rows + 1) // 2 for block, (rows, _) in tables.items()}
    windowed = {size for size in windows.values() if size != grid}
    if len(windowed) > 1:
        raise ConfigError(
            f"blocks with windows of {sorted(windowed)} tokens; only one size is known"
        )
    globally = tuple(block for block, size in windows.items() if size == grid) if windowed else ()
    attention_free = tuple(block for block in range(depth) if block not in tables)
    return {
        "roi_size": grid * patch_size,
        "patch_size": patch_size,
        "width": width,
        "depth": depth,
        "num_heads": width // next(iter(tables.values()))[1],
        "mlp_ratio": shapes["image_encoder.blocks.0.mlp.lin1.weight"][0] / width,
        "out_channels": shapes["image_encoder.neck.0.weight"][0],
        "window_size": windowed.pop() if windowed else 0,
        "global_blocks": globally,
        "attention_free_blocks": attention_free,
        "residual": "normed" if attention_free else "pre_norm",
        "click_history": "newest" if attention_free else "all",
        "position_bias": "published",
    }


def _decoder_options(shapes: Shapes) -> dict[str, Any]:
    """Empty for an encoder alone: its decoder is another file's."""
    if not any(name.startswith("mask_decoder.") for name in shapes):
        return {}
    attention = "mask_decoder.transformer.final_attn_token_to_image.q_proj.weight"
    inner, channels = shapes[attention]
    return {
        "decoder_depth": _count(_LAYER, shapes),
        "decoder_mlp_width": shapes["mask_decoder.transformer.layers.0.mlp.lin1.weight"][0],
        "decoder_downsample": channels // inner,
        "mask_channels": shapes["prompt_encoder.mask_downscaling.3.weight"][0],
        "num_multimask_outputs": shapes["mask_decoder.mask_tokens.weight"][0] - 1,
        "iou_head_depth": _count(_HEAD, shapes),
        "iou_head_width": shapes["mask_decoder.iou_prediction_head.layers.0.weight"][0],
    }


def _count(pattern: re.Pattern, shapes: Shapes) -> int:
    numbers = {int(match.group(1)) for match in map(pattern.match, shapes) if match}
    return max(numbers, default=-1) + 1
