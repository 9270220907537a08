"""2D networks with one interface, with random or published weights.

SAM, MedSAM and SAM-Med2D are the SamModel of ``transformers`` (SAM-Med2D with its adapters added).
MobileSAM and TinySAM are TinyViT-5m of ``timm`` with SAM's neck and decoder. Published weights are
the authors' files with their own tensor names.

    network = build("mobile_sam", "mobile_sam.pt")
    features = network.encode(network.normalise(images))
    logits = network.decode(features, points, labels, mask)
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.errors import InputError, WeightsError

# SAM_MEAN, SAM_STD: of each channel, for images in 0 … 255
SAM_MEAN, SAM_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# UNIT_MEAN, UNIT_STD: MedSAM scales each image to 0 … 1
UNIT_MEAN, UNIT_STD = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)

# _RENAMED_SAM, _RENAMED_TINY_VIT: published part of a tensor's name, and its name here; applied in
# this order
_RENAMED_SAM = (
    (r"^image_encoder\.", "vision_encoder."),
    (r"^vision_encoder\.patch_embed\.proj\.", "vision_encoder.patch_embed.projection."),
    (r"^vision_encoder\.blocks\.", "vision_encoder.layers."),
    (r"^vision_encoder\.layers\.(\d+)\.norm(\d)\.", r"vision_encoder.layers.\1.layer_norm\2."),
    (
        r"^vision_encoder\.layers\.(\d+)\.Adapter\.",
        r"vision_encoder.layers.\1.layer_norm2.adapter.",
    ),
    (r"neck\.0\.", "neck.conv1."),
    (r"neck\.1\.", "neck.layer_norm1."),
    (r"neck\.2\.", "neck.conv2."),
    (r"neck\.3\.", "neck.layer_norm2."),
    (r"pe_layer\.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    (r"point_embeddings\.", "point_embed."),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"^(mask_decoder\.transformer\..*)norm(\d|_final_attn)\.", r"\1layer_norm\2."),
    (r"((?:iou_prediction_head|mlps\.\d+)\.)layers\.0\.", r"\1proj_in."),
    (r"((?:iou_prediction_head|mlps\.\d+)\.)layers\.1\.", r"\1layers.0."),
    (r"((?:iou_prediction_head|mlps\.\d+)\.)layers\.2\.", r"\1proj_out."),
)
_RENAMED_TINY_VIT = (
    (r"^vision_encoder\.patch_embed\.seq\.0\.", "vision_encoder.patch_embed.conv1."),
    (r"^vision_encoder\.patch_embed\.seq\.2\.", "vision_encoder.patch_embed.conv2."),
    (r"\.c\.", ".conv."),
    (r"^vision_encoder\.layers\.(\d+)\.", r"vision_encoder.stages.\1."),
    (r"^vision_encoder\.", "vision_encoder.tiny_vit."),
    (r"^vision_encoder\.tiny_vit\.neck\.", "vision_encoder.neck."),
)


@dataclass(frozen=True)
class Kind:
    """The differences between the networks."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tiny_vit: bool = False
    adapters: bool = False


KINDS = {
    "sam": Kind(1024, SAM_MEAN, SAM_STD),
    "medsam": Kind(1024, UNIT_MEAN, UNIT_STD),
    "mobile_sam": Kind(1024, SAM_MEAN, SAM_STD, tiny_vit=True),
    "tiny_sam": Kind(1024, SAM_MEAN, SAM_STD, tiny_vit=True),
    "sam_med2d": Kind(256, SAM_MEAN, SAM_STD, adapters=True),
}


class Adapter(nn.Module):
    """A layer norm and SAM-Med2D's adapter on [B, h, w, C]: channel gates, strided convolutions.

    Both are one module, because it replaces the one norm in the block of transformers.
    """

    def __init__(self, norm: nn.LayerNorm, width: int) -> None:
        super().__init__()
        hidden = width // 4
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        channel = nn.Sequential(
            nn.Linear(width, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, width, bias=False),
            nn.Sigmoid(),
        )
        spatial = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, bias=False),
            nn.ReLU(),
        )
        layers = {"norm": nn.LayerNorm(width), "channel": channel, "spatial": spatial}
        self.adapter = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        gated = x * self.adapter["channel"](x.mean(dim=(1, 2), keepdim=True))
        around = self.adapter["spatial"](gated.movedim(-1, 1)).movedim(1, -1)
        return self.adapter["norm"](x + around)


class TinyViTEncoder(nn.Module):
    """TinyViT-5m of MobileSAM: the last stage keeps its resolution; SAM's neck follows."""

    def __init__(self, neck: nn.Module) -> None:
        super().__init__()
        from timm.models.tiny_vit import TinyVit

        self.tiny_vit = TinyVit(
            num_classes=0,
            embed_dims=(64, 128, 160, 320),
            num_heads=(2, 4, 5, 10),
            window_sizes=(7, 7, 14, 7),
            drop_path_rate=0.0,
        )
        self.tiny_vit.head = nn.Identity()
        self.tiny_vit.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.neck = neck

    def forward(self, images: Tensor) -> Tensor:
        features = self.tiny_vit.stages(self.tiny_vit.patch_embed(images))  # [B, 320, S/16, S/16]
        return self.neck(features.movedim(1, -1))


class Segmenter2D(nn.Module):
    """A 2D network with point and mask prompts.

    size: side of the square input in pixels. mean, std: of each channel, for images in 0 … 255.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        from transformers import SamConfig, SamModel

        kind = KINDS[name]
        self.name, self.size, self.mean, self.std = name, kind.size, kind.mean, kind.std
        vision = {"image_size": kind.size, "initializer_range": 0.02}
        vision |= {"num_hidden_layers": 0} if kind.tiny_vit else {}
        prompts = {"image_size": kind.size}
        self.sam = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompts))
        if kind.tiny_vit:
            from transformers import SamVisionConfig
            from transformers.models.sam.modeling_sam import SamVisionNeck

            self.sam.vision_encoder = TinyViTEncoder(
                SamVisionNeck(SamVisionConfig(hidden_size=320))
            )
        if kind.adapters:
            for layer in self.sam.vision_encoder.layers:
                layer.layer_norm2 = Adapter(layer.layer_norm2, 768)
        self.eval()

    def normalise(self, images: Tensor) -> Tensor:
        """Return images [B, 3, size, size] in 0 … 255 as ``encode`` takes them."""
        mean, std = (torch.tensor(x, device=images.device) for x in (self.mean, self.std))
        return (images - mean[:, None, None]) / std[:, None, None]

    def encode(self, images: Tensor) -> Tensor:
        """Return the features [B, 256, size / 16, size / 16] of normalised images.

        Raises ValueError for another image size.
        """
        if images.shape[1:] != (3, self.size, self.size):
            raise ValueError(
                f"{self.name} takes images (B, 3, {self.size}, {self.size}), "
                f"got {tuple(images.shape)}"
            )
        features = self.sam.vision_encoder(images)
        return features if isinstance(features, Tensor) else features[0]

    def decode(
        self, features: Tensor, points: Tensor, labels: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Return one mask for each image: logits [B, 1, size / 4, size / 4].

        points: [B, N, 2] (x, y) input pixels; the encoder adds 0.5. labels: [B, N], 1 foreground,
        0 background. mask: [B, 1, size / 4, size / 4] logits of the previous step.
        """
        result = self.sam(
            image_embeddings=features,
            input_points=points[:, None].float(),
            input_labels=labels[:, None],
            input_masks=mask,
            multimask_output=False,
        )
        return result.pred_masks[:, 0]

    @property
    def encoder_weights(self) -> Iterable[Tensor]:
        return self.sam.vision_encoder.parameters()

    @property
    def decoder_weights(self) -> Iterable[Tensor]:
        yield from self.sam.prompt_encoder.parameters()
        yield from self.sam.mask_decoder.parameters()


def build(name: str, weights: str | Path | None = None) -> Segmenter2D:
    """Return the network ``name``, a key of KINDS, in eval mode.

    weights: file of published weights, or None for random ones. Raises ImportError, which names
    what to install, without transformers and timm; InputError for an unknown name; WeightsError if
    the file cannot be read or holds weights of another network.
    """
    if name not in KINDS:
        raise InputError(f"unknown 2D network {name!r}; choose from {', '.join(KINDS)}")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = Segmenter2D(name)
    except ImportError as error:
        raise ImportError(
            f"{name} needs {error.name}: pip install -r requirements-benchmarks.txt"
        ) from error
    if weights is not None:
        _load(network, Path(weights))
    return network


def _load(network: Segmenter2D, path: Path) -> None:
    """Load published weights; raises WeightsError if they cannot be used."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path} cannot be read as PyTorch weights: {error}") from error
    state = state.get("model", state)
    renamed = {_module_name(name, network): value for name, value in state.items()}
    missing, unexpected = network.sam.load_state_dict(renamed, strict=False)
    derived = {"shared_image_embedding.positional_embedding"}
    # TinyViT's classifier, and index tables that timm computes
    spare = re.compile(r"norm_head|head\.|attention_bias_idxs")
    unexpected = [name for name in unexpected if not spare.search(name)]
    if wrong := sorted({*missing} - derived) + unexpected:
        raise WeightsError(
            f"{path} does not hold weights of {network.name}; missing or unexpected tensors: "
            f"{', '.join(wrong[:4])}, …"
        )
    position = network.sam.prompt_encoder.shared_embedding.positional_embedding
    network.sam.shared_image_embedding.positional_embedding.data.copy_(position)


def _module_name(name: str, network: Segmenter2D) -> str:
    """Return a tensor's name here for its published name."""
    tiny_vit = KINDS[network.name].tiny_vit
    for published, name_here in (*_RENAMED_SAM, *(_RENAMED_TINY_VIT if tiny_vit else ())):
        name = re.sub(published, name_here, name)
    if tiny_vit:  # timm counts a downsampling to the next stage, the authors to the previous one
        down = re.match(r"(vision_encoder\.tiny_vit\.stages\.)(\d+)(\.downsample\..*)", name)
        if down:
            name = f"{down[1]}{int(down[2]) + 1}{down[3]}"
    return name
