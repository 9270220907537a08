"""One flat description of a network, stored with its weights: a file rebuilds its network."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

PositionBias = Literal["published", "textbook", "none"]
Residual = Literal["pre_norm", "normed"]
Sparsity = Literal["dense", "segments", "lattice"]
WindowPath = Literal["closed_form", "padded"]
ClickHistory = Literal["all", "newest"]
MaskThreshold = Literal["zero", "expected_dice"]
MaskEdges = Literal["logits", "image"]

_CHOICES = {
    "mask_threshold": ("zero", "expected_dice"),
    "mask_edges": ("logits", "image"),
    "position_bias": ("published", "textbook", "none"),
    "residual": ("pre_norm", "normed"),
    "sparsity": ("dense", "segments", "lattice"),
    "window_path": ("closed_form", "padded"),
    "click_history": ("all", "newest"),
}


@dataclass(frozen=True)
class FastSAM3DConfig:
    """Every choice that makes one of these networks differ from another.

    Sizes are in voxels of the ROI cube (``roi_size``, ``patch_size``), in tokens (``window_size``,
    ``segment_length``, ``interval``) or in channels (``width``, ``out_channels``). Block numbers
    count from 0.

    position_bias: ``published`` is the bias that SAM-Med3D's weights were trained with, for cubic
        grids only; ``textbook`` is the usual decomposed one (:mod:`lib.networks.position_bias`).
    residual: ``pre_norm`` adds the MLP to its input; ``normed`` adds it to its *normalised* input,
        as FastSAM3D's student does.
    window_path: how windowed blocks treat the padding of the grid up to the window; both give the
        same numbers.
    sparsity: which tokens attend to which in the encoder's global blocks, over ``segment_length``
        and ``interval`` (:mod:`lib.networks.sparsity`).
    decoder_segment: segment length of the decoder's self-attention over prompt tokens; 0: dense.
    detail_channels: of the image at the resolution of the low-resolution mask, which the mask and
        the clicks then see besides the embedding; 0, as published: none
        (:mod:`lib.networks.detail`).
    swap_dense_axes: coordinate 0 of the dense positional encoding runs along grid axis 1, as
        published, instead of axis 0.
    click_history: which clicks the weights expect in each call of a series: ``all`` so far
        (SAM-Med3D) or the ``newest`` (FastSAM3D).
    mask_threshold: where a mask is cut out of its logits: at ``zero``, as published, or where its
        ``expected_dice`` is largest (:mod:`lib.networks.threshold`).
    mask_edges: a mask ends where the ``logits`` cross the threshold, as published, or follows the
        ``image`` and the clicks, with the logits as prior (:mod:`lib.infers.random_walker`).
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
    window_path: WindowPath = "closed_form"
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
    swap_dense_axes: bool = True
    click_history: ClickHistory = "all"
    mask_threshold: MaskThreshold = "zero"
    mask_edges: MaskEdges = "logits"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}"
                )
        self._check_divides("roi_size", "patch_size")
        self._check_divides("width", "num_heads")
        self._check_divides("out_channels", "decoder_heads")
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
        """Voxels along each side of the low-resolution mask that the decoder returns."""
        return 4 * self.grid_size

    @property
    def embedding_channels(self) -> int:
        """Channels of what ``FastSAM3D.encode`` returns: the neck's, then patches of the detail."""
        return self.out_channels + self.detail_channels * (self.low_res_size // self.grid_size) ** 3

    def window_of(self, block: int) -> int:
        """Side of the attention window of ``block`` in tokens; 0 where it attends globally."""
        return 0 if block in self.global_blocks else self.window_size

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FastSAM3DConfig:
        """Rebuild a configuration from JSON; raises ValueError for an option this version does not
        know.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown network options {unknown}, of a newer version of this app")
        as_tuples: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in values.items()
        }
        return cls(**as_tuples)


# the options that belong to the prompt encoder and the mask decoder
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
    "swap_dense_axes",
)

_STUDENT: dict[str, Any] = {
    "depth": 6,
    "num_heads": 6,
    "attention_free_blocks": (0, 1),
    "residual": "normed",
    "click_history": "newest",
}

_SMALL: dict[str, Any] = {
    "width": 192,
    "out_channels": 128,
    "decoder_mlp_width": 512,
    "position_bias": "textbook",
    "swap_dense_axes": False,
}

CONFIGS: dict[str, FastSAM3DConfig] = {
    # SAM-Med3D ViT-B (arXiv 2310.15161)
    "sam_med3d": FastSAM3DConfig(window_size=14, global_blocks=(2, 5, 8, 11)),
    # FastSAM3D's student (arXiv 2403.09827), as its published weights were trained
    "fastsam3d": FastSAM3DConfig(**_STUDENT),
    # the same student with the paper's sparse operator; flash kernels take no position bias
    "fastsam3d_sparse": FastSAM3DConfig(
        **_STUDENT, sparsity="lattice", position_bias="none", decoder_segment=64
    ),
    # teacher and student small enough to be shipped and to run on a CPU
    "sam_med3d_small": FastSAM3DConfig(**_SMALL, num_heads=6),
    "fastsam3d_small": FastSAM3DConfig(**{**_SMALL, **_STUDENT, "num_heads": 3}),
}
