"""The rows of the efficiency report: calls that encode, prepare and decode.

The 3D rows are this project's networks (``lib.networks``) and the published computation of the same
weights (``published_networks.py``). The 2D rows come from ``sam2d.py``, which needs more packages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import sam2d
from benchmarks.published_networks import PublishedNetwork
from lib.infers.cuda_graphs import CapturedNetwork
from lib.infers.precision import choose
from lib.networks import FastSAM3D, build_untrained
from lib.weights import file_weights

SEED = 0
SLICES = 128
"""SLICES: number of slices of a 128³ volume; a 2D network encodes each one."""

# ROWS_3D: by row, the name of its configuration, and whether it is computed as published
ROWS_3D = {
    "sam_med3d_published": ("sam_med3d", True),
    "sam_med3d": ("sam_med3d", False),
    "fastsam3d_published": ("fastsam3d", True),
    "fastsam3d_float32": ("fastsam3d", False),
    "fastsam3d": ("fastsam3d", False),
    "fastsam3d_sparse": ("fastsam3d_sparse", False),
}
# AS_SERVED: rows in the number type that the server would choose (lib.infers.precision)
AS_SERVED = {"fastsam3d", "fastsam3d_sparse"}
ROWS_2D = ("sam", "mobile_sam", "tiny_sam", "medsam", "sam_med2d")
ROWS = (*ROWS_3D, *ROWS_2D)

WHAT = {
    "sam_med3d_published": "SAM-Med3D as published: padded windows, plain attention",
    "sam_med3d": "SAM-Med3D of this project: closed-form windows, the same numbers",
    "fastsam3d_published": "FastSAM3D as published: dense, plain attention",
    "fastsam3d_float32": "FastSAM3D of this project, in float32",
    "fastsam3d": "FastSAM3D of this project, as served",
    "fastsam3d_sparse": "FastSAM3D with the 3D sparse operator, no position bias, as served",
    "sam": "SAM ViT-B",
    "mobile_sam": "MobileSAM",
    "tiny_sam": "TinySAM",
    "medsam": "MedSAM ViT-B",
    "sam_med2d": "SAM-Med2D ViT-B with adapters",
}


@dataclass
class Candidate:
    """The calls of a row.

    images: images in one volume; the calls run on one image. encode: returns the embedding. decode:
    returns the logits of the second click. prepare: what is computed from an embedding once for all
    clicks; None for networks without this step. float32: encode and decode in float32, for counting
    FLOPs. reference: returns the embedding and the logits that this row must reproduce.
    """

    name: str
    input: str
    images: int
    encode: Callable[[], Tensor]
    decode: Callable[[], Tensor]
    encoder_weights: list[Tensor]
    decoder_weights: list[Tensor]
    float32: tuple[Callable[[], object], Callable[[], object]] | None = None
    prepare: Callable[[], object] | None = None
    reference: Callable[[], tuple[Tensor, Tensor]] | None = None
    notes: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class SecondClick:
    """The prompt of the second click on a 128³ ROI.

    points: [1, 2, 3] ROI voxel indices. labels: [1, 2]. mask: [1, 1, 32, 32, 32] logits of the
    first click.
    """

    points: Tensor
    labels: Tensor
    mask: Tensor

    @classmethod
    def on(cls, device: torch.device) -> SecondClick:
        """Return the prompt on a device, the same each time."""
        generator = torch.Generator().manual_seed(SEED)
        points = torch.tensor([[[60.0, 70.0, 50.0], [30.0, 20.0, 90.0]]])
        mask = torch.randn(1, 1, 32, 32, 32, generator=generator)
        return cls(points.to(device), torch.tensor([[1, 0]], device=device), mask.to(device))


class Candidates3D:
    """Makes the 3D rows on one device; rows of the same configuration share a network."""

    def __init__(self, device: torch.device, weights: dict[str, str]) -> None:
        self.device = device
        self.files = weights
        generator = torch.Generator().manual_seed(SEED)
        self.volume = torch.randn(1, 1, 128, 128, 128, generator=generator).to(device)
        self.clicks = SecondClick.on(device)
        self._networks: dict[str, FastSAM3D] = {}

    def make(self, name: str) -> Candidate:
        """Return the calls of a row."""
        config, as_published = ROWS_3D[name]
        network = self.network(config)
        return self._published(name, network) if as_published else self._this_project(name, network)

    def network(self, config: str) -> FastSAM3D:
        """Return the float32 network, with the weights of ``--weights`` or with random weights.

        Raises WeightsError if the file cannot be used.
        """
        if config not in self._networks:
            if config in self.files:
                network = file_weights(Path(self.files[config])).network
            else:
                network = build_untrained(config, SEED)
                fill_position_tables(network)
            self._networks[config] = network.to(self.device)
        return self._networks[config]

    def _published(self, name: str, network: FastSAM3D) -> Candidate:
        published, clicks = PublishedNetwork(network), self.clicks
        encoder_weights, decoder_weights = _weights(network)
        embedding = cache(lambda: published.encode(self.volume))
        return Candidate(
            name,
            input="128³",
            images=1,
            encode=lambda: published.encode(self.volume),
            decode=lambda: published.decode(embedding(), clicks.points, clicks.labels, clicks.mask),
            encoder_weights=encoder_weights,
            decoder_weights=decoder_weights,
        )

    def _this_project(self, name: str, network: FastSAM3D) -> Candidate:
        clicks = self.clicks
        notes: dict[str, object] = {"number_type": "float32"}
        computed = network
        served: FastSAM3D | CapturedNetwork = network
        if name in AS_SERVED:
            (computed,), precision = choose([network], self.device)
            served = CapturedNetwork(computed)
            notes = {"number_type": precision.number_type, "precision": precision.reason}
        encoder_weights, decoder_weights = _weights(computed)
        embedding = cache(lambda: served.encode(self.volume))
        prepared = cache(lambda: served.prepare(embedding()))
        prepared_float32 = cache(lambda: network.prepare(network.encode(self.volume)))

        def reference() -> tuple[Tensor, Tensor]:
            published = PublishedNetwork(network)
            expected = published.encode(self.volume)
            return expected, published.decode(expected, clicks.points, clicks.labels, clicks.mask)

        return Candidate(
            name,
            input="128³",
            images=1,
            encode=lambda: served.encode(self.volume),
            prepare=lambda: served.prepare(embedding()),
            decode=lambda: served.decode(prepared(), clicks.points, clicks.labels, clicks.mask)[0],
            # the published networks have no mask refiner
            reference=None if network.config.detail_channels else reference,
            float32=(
                lambda: network.encode(self.volume),
                lambda: network.decode(
                    prepared_float32(), clicks.points, clicks.labels, clicks.mask
                ),
            ),
            notes=notes,
            encoder_weights=encoder_weights,
            decoder_weights=decoder_weights,
        )


def make_2d(name: str, device: torch.device, weights: str | None) -> Candidate:
    """Return the calls of a 2D network on one slice at its own resolution, with two clicks.

    Raises ImportError if a package is missing, InputError or WeightsError as ``sam2d.build`` does.
    """
    network = sam2d.build(name, weights).to(device)
    side = network.size
    generator = torch.Generator().manual_seed(SEED)
    image = torch.randn(1, 3, side, side, generator=generator).to(device)
    mask = torch.randn(1, 1, side // 4, side // 4, generator=generator).to(device)
    points = torch.tensor([[[0.4 * side, 0.5 * side], [0.2 * side, 0.1 * side]]], device=device)
    labels = torch.tensor([[1, 0]], device=device)
    features = cache(lambda: network.encode(image))
    return Candidate(
        name,
        input=f"{side}²",
        images=SLICES,
        encode=lambda: network.encode(image),
        decode=lambda: network.decode(features(), points, labels, mask),
        encoder_weights=list(network.encoder_weights),
        decoder_weights=list(network.decoder_weights),
        notes={"number_type": "float32"},
    )


def fill_position_tables(network: FastSAM3D) -> None:
    """Fill the position bias with random values; it starts at zero and would change nothing."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "rel_pos" in name:
                parameter.normal_(std=0.1, generator=generator)


def _weights(network: FastSAM3D) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tensors of the encoder and of all other parts."""
    parts = dict(network.named_children())
    encoder = _tensors(parts.pop("image_encoder"))
    return encoder, [tensor for part in parts.values() for tensor in _tensors(part)]


def _tensors(module: nn.Module) -> list[Tensor]:
    """Return parameters and buffers; the latter hold 8-bit weights."""
    return [*module.parameters(), *module.buffers()]
