"""What is measured: each row of the report as calls that encode, prepare and decode.

The 3D rows are ours (``lib.networks``) and the published computation of the same weights
(``published.py``); the 2D rows come from ``sam2d.py``, which needs other packages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor, nn

from benchmarks import sam2d
from benchmarks.published_networks import PublishedNetwork
from lib.infers.cuda_graphs import CapturedNetwork
from lib.infers.precision import choose
from lib.networks import FastSAM3D, build_untrained, load_checkpoint

SEED = 0
SLICES = 128  # of a 128³ volume, each an image of its own to a 2D network

# each row of our own, the configuration of its weights, and whether it is computed as published
ROWS_3D = {
    "sam_med3d_published": ("sam_med3d", True),
    "sam_med3d": ("sam_med3d", False),
    "fastsam3d_published": ("fastsam3d", True),
    "fastsam3d_float32": ("fastsam3d", False),
    "fastsam3d": ("fastsam3d", False),
    "fastsam3d_sparse": ("fastsam3d_sparse", False),
}
# rows that may use a lower number type than float32, as the server does (lib.infers.precision)
AS_SERVED = {"fastsam3d", "fastsam3d_sparse"}
ROWS_2D = ("sam", "mobile_sam", "tiny_sam", "medsam", "sam_med2d")
ROWS = (*ROWS_3D, *ROWS_2D)

WHAT = {
    "sam_med3d_published": "SAM-Med3D as published: padded windows, plain attention",
    "sam_med3d": "SAM-Med3D, ours: closed-form windows, the same numbers",
    "fastsam3d_published": "FastSAM3D as published: dense, plain attention",
    "fastsam3d_float32": "FastSAM3D, ours, in float32",
    "fastsam3d": "FastSAM3D, ours, as it is served",
    "fastsam3d_sparse": "FastSAM3D with the 3D sparse operator, no position bias, as served",
    "sam": "SAM ViT-B",
    "mobile_sam": "MobileSAM",
    "tiny_sam": "TinySAM",
    "medsam": "MedSAM ViT-B",
    "sam_med2d": "SAM-Med2D ViT-B with adapters",
}


@dataclass
class Candidate:
    """A row. ``encode`` and ``decode`` are one image's, of ``images`` in a volume.

    prepare: what our networks compute from an embedding once, for all clicks; else None. decode is
    the second click. float32: the same encode and decode in float32, where FLOPs are counted.
    reference: gives the embedding and the mask that this row has to equal.
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
    """The second click of a series on a 128³ ROI: two points and the mask of the first."""

    points: Tensor
    labels: Tensor
    mask: Tensor

    @classmethod
    def on(cls, device: torch.device) -> SecondClick:
        generator = torch.Generator().manual_seed(SEED)
        points = torch.tensor([[[60.0, 70.0, 50.0], [30.0, 20.0, 90.0]]])
        mask = torch.randn(1, 1, 32, 32, 32, generator=generator)
        return cls(points.to(device), torch.tensor([[1, 0]], device=device), mask.to(device))


class Candidates3D:
    """The rows of our own networks on one device; those of the same weights share them."""

    def __init__(self, device: torch.device, weights: dict[str, str]) -> None:
        self.device = device
        self.files = weights
        generator = torch.Generator().manual_seed(SEED)
        self.volume = torch.randn(1, 1, 128, 128, 128, generator=generator).to(device)
        self.clicks = SecondClick.on(device)
        self._networks: dict[str, FastSAM3D] = {}

    def make(self, name: str) -> Candidate:
        config, as_published = ROWS_3D[name]
        network = self.network(config)
        return self._published(name, network) if as_published else self._ours(name, network)

    def network(self, config: str) -> FastSAM3D:
        """The float32 network, of ``--weights`` or else with random weights."""
        if config not in self._networks:
            if config in self.files:
                network = load_checkpoint(self.files[config])
            else:
                network = build_untrained(config, SEED)
                fill_position_tables(network)
            self._networks[config] = network.to(self.device)
        return self._networks[config]

    def _published(self, name: str, network: FastSAM3D) -> Candidate:
        published, clicks = PublishedNetwork(network), self.clicks
        embedding = cache(lambda: published.encode(self.volume))
        return Candidate(
            name,
            input="128³",
            images=1,
            encode=lambda: published.encode(self.volume),
            decode=lambda: published.decode(embedding(), clicks.points, clicks.labels, clicks.mask),
            **_weights(network),
        )

    def _ours(self, name: str, network: FastSAM3D) -> Candidate:
        clicks, notes = self.clicks, {"number_type": "float32"}
        served: FastSAM3D | CapturedNetwork = network
        if name in AS_SERVED:
            chosen, precision = choose(network, self.device)
            served = CapturedNetwork(chosen)
            notes = {"number_type": precision.number_type, "precision": precision.reason}
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
            # the published networks know no image detail
            reference=None if network.config.detail_channels else reference,
            float32=(
                lambda: network.encode(self.volume),
                lambda: network.decode(
                    prepared_float32(), clicks.points, clicks.labels, clicks.mask
                ),
            ),
            notes=notes,
            **_weights(network if served is network else chosen),
        )


def make_2d(name: str, device: torch.device, weights: str | None) -> Candidate:
    """One slice of a volume, at the network's own resolution, with two clicks and a mask.

    Raises ImportError where a package is missing, see ``sam2d.build``.
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
    """Random rows for the position bias, which starts at zero and would then change nothing."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "rel_pos" in name:
                parameter.normal_(std=0.1, generator=generator)


def _weights(network: FastSAM3D) -> dict[str, list[Tensor]]:
    parts = dict(network.named_children())
    encoder = _tensors(parts.pop("image_encoder"))
    return {
        "encoder_weights": encoder,
        "decoder_weights": [tensor for part in parts.values() for tensor in _tensors(part)],
    }


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters, and the 8-bit weights that stand in for some of them."""
    return [*module.parameters(), *module.buffers()]
