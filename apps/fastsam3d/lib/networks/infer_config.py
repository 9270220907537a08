"""Infer the configuration of a published checkpoint from the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from .config import FastSAM3DConfig
from .policy import MaskPolicy

Shapes = Mapping[str, tuple[int, ...]]

_BLOCK = re.compile(r"image_encoder\.blocks\.(\d+)\.")
_ATTENTION = re.compile(r"image_encoder\.blocks\.(\d+)\.(?:attn|norm1)\.")
_LAYER = re.compile(r"mask_decoder\.transformer\.layers\.(\d+)\.")
_HEAD = re.compile(r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\.")


class ConfigError(ValueError):
    """The tensors do not describe a network of a known kind."""


def infer_config(shapes: Shapes) -> tuple[FastSAM3DConfig, MaskPolicy]:
    """Return the configuration that tensors of these shapes belong to, and their mask policy.

    If tensors disagree, the majority counts; loading then reports a single wrong tensor. No
    shape tells FastSAM3D's residual and click history: a network with attention-free blocks is
    taken for FastSAM3D's student. Raises ConfigError if the tensors leave a field open.
    """
    try:
        config = FastSAM3DConfig(**_encoder_options(shapes), **_decoder_options(shapes))
    except KeyError as error:
        raise ConfigError(
            f"tensor {error.args[0]} is missing: not a SAM-Med3D or FastSAM3D checkpoint"
        ) from error
    except ConfigError:
        raise
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"its tensors do not describe a network we know: {error}") from error
    is_student = bool(config.attention_free_blocks)
    return config, MaskPolicy(click_history="newest" if is_student else "all")


def _encoder_options(shapes: Shapes) -> dict[str, Any]:
    width, _, patch_size, *_ = _shape(shapes, "image_encoder.patch_embed.proj.weight", 5)
    grid = _shape(shapes, "image_encoder.pos_embed", 5)[1]
    depth = _count(_BLOCK, shapes)
    with_attention = {int(match.group(1)) for match in map(_ATTENTION.match, shapes) if match}
    tables = {
        block: _shape(shapes, f"image_encoder.blocks.{block}.attn.rel_pos_d", 2)
        for block in sorted(with_attention)
    }
    if not tables:
        raise ConfigError("none of its blocks has attention, so the number of heads is not known")
    windows = {block: (rows + 1) // 2 for block, (rows, _) in tables.items()}
    windowed = [size for size in windows.values() if size != grid]
    globally = tuple(block for block, size in windows.items() if size == grid) if windowed else ()
    attention_free = tuple(block for block in range(depth) if block not in with_attention)
    hidden = _shape(shapes, "image_encoder.blocks.0.mlp.lin1.weight", 2)[0]
    return {
        "roi_size": grid * patch_size,
        "patch_size": patch_size,
        "width": width,
        "depth": depth,
        "num_heads": width // _majority(channels for _, channels in tables.values()),
        "mlp_ratio": hidden / width,
        "out_channels": _shape(shapes, "image_encoder.neck.0.weight", 5)[0],
        "window_size": _majority(windowed) if windowed else 0,
        "global_blocks": globally,
        "attention_free_blocks": attention_free,
        "residual": "normed" if attention_free else "pre_norm",
        "position_bias": "published",
    }


def _decoder_options(shapes: Shapes) -> dict[str, Any]:
    """Return the decoder's fields; none for an image encoder alone, as another file has them."""
    if not any(name.startswith("mask_decoder.") for name in shapes):
        return {}
    transformer = "mask_decoder.transformer"
    inner, channels = _shape(shapes, f"{transformer}.final_attn_token_to_image.q_proj.weight", 2)
    iou_head = "mask_decoder.iou_prediction_head.layers.0.weight"
    return {
        "decoder_depth": _count(_LAYER, shapes),
        "decoder_mlp_width": _shape(shapes, f"{transformer}.layers.0.mlp.lin1.weight", 2)[0],
        "decoder_downsample": channels // inner,
        "mask_channels": _shape(shapes, "prompt_encoder.mask_downscaling.3.weight", 5)[0],
        "num_multimask_outputs": _shape(shapes, "mask_decoder.mask_tokens.weight", 2)[0] - 1,
        "iou_head_depth": _count(_HEAD, shapes),
        "iou_head_width": _shape(shapes, iou_head, 2)[0],
    }


def _shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    shape = shapes[name]
    if len(shape) != dimensions:
        raise ConfigError(f"tensor {name} is {shape}, expected {dimensions} dimensions")
    return shape


def _majority(sizes: Iterable[int]) -> int:
    return Counter(sizes).most_common(1)[0][0]


def _count(pattern: re.Pattern[str], shapes: Shapes) -> int:
    numbers = {int(match.group(1)) for match in map(pattern.match, shapes) if match}
    return max(numbers, default=-1) + 1
