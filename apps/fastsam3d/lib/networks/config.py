"""The architecture of a network, as one flat dataclass that is stored with its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

PositionBias = Literal["published", "textbook", "none"]
Residual = Literal["pre_norm", "normed"]
Sparsity = Literal["dense", "segments", "lattice"]
AttentionChoice = Literal["stored", "dense", "sparse"]
"""AttentionChoice: the operator that the weights were stored with, or another one."""

_CHOICES = {
    "position_bias": get_args(PositionBias),
    "residual": get_args(Residual),
    "sparsity": get_args(Sparsity),
}


@dataclass(frozen=True)
class FastSAM3DConfig:
    """The architecture: all choices by which two of these networks differ.

    ``roi_size`` and ``patch_size`` are in voxels along each side of the ROI; ``window_size``,
    ``segment_length`` and ``interval`` are in tokens; ``width`` and ``out_channels`` are channels.
    Block numbers count from 0. Raises ValueError for values that do not fit together.

    position_bias: ``published`` is the bias that SAM-Med3D's weights were trained with, for cubic
        grids only; ``textbook`` is the usual decomposed one (:mod:`lib.networks.position_bias`).
    residual: ``pre_norm`` adds the MLP to its input; ``normed`` adds it to its *normalised* input,
        as FastSAM3D's student does.
    sparsity: which tokens attend to which in the encoder's global blocks, given ``segment_length``
        and ``interval`` (:mod:`lib.networks.sparsity`).
    decoder_segment: segment length of the decoder's self-attention over prompt tokens; 0: dense.
        It is dense up to this number of tokens too: 64 hold 58 clicks beside the decoder's own.
    detail_channels: channels of the image detail at the resolution of the low-resolution mask
        (:mod:`lib.networks.mask_refiner`); 0, as published: the network has no mask refiner.
    key_channels: channels of the cells' keys (:mod:`lib.networks.cell_keys`), by which the refiner
        compares cells with clicked ones; 0: it compares them by the image detail alone.
    refiner_channels: channels of the mask refiner's U-Net on cells that are twice, four times, …
        as wide as those of the low-resolution mask.
    swap_dense_axes: coordinate 0 of the dense positional encoding runs along grid axis 1, as
        published, instead of axis 0.
    """

    roi_size: int = 128
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    out_channels: int = 384
    window_size: int = 0
    global_blocks: tuple[int, ...] = ()
    attention_free_blocks: tuple[int, ...] = ()
    residual: Residual = "pre_norm"
    position_bias: PositionBias = "published"
    sparsity: Sparsity = "dense"
    interval: int = 2
    segment_length: int = 512
    decoder_segment: int = 0
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_width: int = 2048
    decoder_downsample: int = 2
    mask_channels: int = 16
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_width: int = 256
    detail_channels: int = 0
    key_channels: int = 0
    refiner_channels: tuple[int, ...] = (48, 96)
    swap_dense_axes: bool = True

    def __post_init__(self) -> None:
        check_choices(self, _CHOICES)
        self._check_divides("roi_size", "patch_size")
        self._check_divides("width", "num_heads")
        self._check_divides("out_channels", "decoder_heads")
        if self.key_channels and not self.detail_channels:
            raise ValueError(
                f"key_channels {self.key_channels} needs detail_channels, which are 0: the mask "
                "refiner compares the keys"
            )
        levels = len(self.refiner_channels)
        if self.detail_channels and (not levels or self.low_res_size % 2**levels):
            raise ValueError(
                f"refiner_channels {self.refiner_channels} must be 1 or more, and halve "
                f"{self.low_res_size} cells without a rest each time"
            )
        if self.interval < 1 or self.segment_length < 1:
            raise ValueError(
                f"interval {self.interval}, segment_length {self.segment_length} must be positive"
            )
        for name in ("global_blocks", "attention_free_blocks"):
            outside = [block for block in getattr(self, name) if not 0 <= block < self.depth]
            if outside:
                raise ValueError(
                    f"{name} names {outside}, but there are {self.depth} blocks, from 0"
                )

    def _check_divides(self, whole: str, part: str) -> None:
        if getattr(self, whole) % getattr(self, part):
            raise ValueError(
                f"{whole} {getattr(self, whole)} is not divisible by {part} {getattr(self, part)}"
            )

    @property
    def grid_size(self) -> int:
        """Tokens along each side of the ROI."""
        return self.roi_size // self.patch_size

    @property
    def low_res_size(self) -> int:
        """Cells along each side of the low-resolution mask that the decoder returns."""
        return 4 * self.grid_size

    @property
    def embedding_channels(self) -> int:
        """Channels of the image embedding: the neck's, then the patches of the image detail."""
        return self.out_channels + self.detail_channels * (self.low_res_size // self.grid_size) ** 3

    def with_attention(self, choice: AttentionChoice) -> FastSAM3DConfig:
        """Return the same architecture with another operator, for which the weights stay the same.

        ``sparse`` changes the encoder's global blocks (attention in windows stays) and the
        decoder's self-attention; a configuration that is sparse already stays as it is.
        """
        if choice == "dense":
            return replace(self, sparsity="dense", decoder_segment=0)
        if choice == "sparse" and self.sparsity == "dense":
            return replace(self, **SPARSE)
        return self

    @property
    def operator(self) -> str:
        """The attention operator of the encoder's global blocks: ``dense`` or ``sparse``."""
        return "dense" if self.sparsity == "dense" else "sparse"

    def window_of(self, block: int) -> int:
        """Return the side of the attention window of ``block`` in tokens; 0: global attention."""
        return 0 if block in self.global_blocks else self.window_size

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FastSAM3DConfig:
        """Rebuild a configuration from JSON; raises ValueError for an unknown field or value."""
        check_known(cls, values, "network options")
        as_tuples: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in values.items()
        }
        return cls(**as_tuples)


def check_choices(instance: Any, choices: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError for a field of ``instance`` that is none of its ``choices``."""
    for name, allowed in choices.items():
        if getattr(instance, name) not in allowed:
            raise ValueError(
                f"{name} is {getattr(instance, name)!r}; choose one of {', '.join(allowed)}"
            )


def check_known(kind: Any, values: Mapping[str, Any], what: str) -> None:
    """Raise ValueError for names in ``values`` that are not fields of the dataclass ``kind``."""
    unknown = sorted(set(values) - {field.name for field in fields(kind)})
    if unknown:
        raise ValueError(f"unknown {what} {unknown}, of a newer version of this app")


DECODER_OPTIONS = (
    "decoder_segment",
    "decoder_depth",
    "decoder_heads",
    "decoder_mlp_width",
    "decoder_downsample",
    "mask_channels",
    "num_multimask_outputs",
    "iou_head_depth",
    "iou_head_width",
    "detail_channels",
    "key_channels",
    "refiner_channels",
    "swap_dense_axes",
)
"""DECODER_OPTIONS: the fields that belong to the prompt encoder and the mask decoder."""

SPARSE: dict[str, Any] = {"sparsity": "lattice", "interval": 2, "decoder_segment": 64}
"""SPARSE: the paper's sparse operator: groups of 64 tokens on a grid of 8³, segments of 64 prompt
tokens."""

_STUDENT: dict[str, Any] = {
    "depth": 6,
    "num_heads": 6,
    "attention_free_blocks": (0, 1),
    "residual": "normed",
}

_DEFAULT: dict[str, Any] = {
    "width": 192,
    "num_heads": 6,
    "out_channels": 192,
    "decoder_mlp_width": 512,
    # the absolute position embedding suffices, and attention without a bias is faster
    "position_bias": "none",
    "swap_dense_axes": False,
    "detail_channels": 32,
    "key_channels": 24,
    "refiner_channels": (64, 128),
}

CONFIGS: dict[str, FastSAM3DConfig] = {
    # SAM-Med3D ViT-B (arXiv 2310.15161)
    "sam_med3d": FastSAM3DConfig(window_size=14, global_blocks=(2, 5, 8, 11)),
    # FastSAM3D's student (arXiv 2403.09827), as its published weights were trained
    "fastsam3d": FastSAM3DConfig(**_STUDENT),
    # the same student with the paper's sparse operator; flash kernels take no position bias
    "fastsam3d_sparse": FastSAM3DConfig(**_STUDENT, **SPARSE, position_bias="none"),
    # the shipped teacher and student, which are small enough to click on a CPU; the student keeps
    # the teacher's residual, see training/student.py
    "sam_med3d_default": FastSAM3DConfig(**_DEFAULT),
    "fastsam3d_default": FastSAM3DConfig(
        **_DEFAULT, **SPARSE, depth=6, attention_free_blocks=(0, 1)
    ),
}
"""CONFIGS: the configurations that have a name."""
