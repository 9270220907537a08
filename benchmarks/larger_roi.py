"""Write weights for a larger ROI, to measure what they make of it without another training.

python -m benchmarks.larger_roi --weights FILE --size 192 --out FILE

All weights stay; the table of positions is interpolated between the tokens (as for images of
another size in ViT, arXiv 2010.11929, section 3.2). With --conf zoom auto the server then cuts ROIs
of the same extent in mm with smaller voxels. Sparse attention keeps groups of at most 64 tokens, as
in benchmarks/growth.py, so that their number grows with the ROI and not their size.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torch.nn import functional as F

from lib.errors import AppError, InputError
from lib.networks import FastSAM3D
from lib.weights.files import file_weights, save_weights

from .growth import with_size


def with_roi_size(network: FastSAM3D, size: int) -> FastSAM3D:
    """Return a copy of a network for ROIs of `size`³ voxels, in eval mode.

    Raises InputError if the patches do not divide the size, or the position bias is for one grid.
    """
    config = network.config
    if size < 1 or size % config.patch_size or config.position_bias != "none":
        raise InputError(
            f"size {size} must be a positive multiple of {config.patch_size}, and the network "
            f"without a position bias (it is {config.position_bias!r})"
        )
    other = FastSAM3D(with_size(config, size), network.policy).eval()
    state = network.state_dict()
    name = "image_encoder.pos_embed"
    table = state[name].movedim(-1, 1)
    grid = (other.config.grid_size,) * 3
    table = F.interpolate(table, size=grid, mode="trilinear", align_corners=False)
    other.load_state_dict({**state, name: table.movedim(1, -1)})
    return other


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--size", type=int, default=192, help="voxels along each side")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        weights = file_weights(options.weights)
        network = with_roi_size(weights.network, options.size)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        save_weights(network, options.out, {"description": f"{weights.file}, larger ROI"})
    except AppError as error:
        sys.exit(f"larger_roi: {error}")
    print(f"{options.out}: {options.size}³ voxels, {network.config.grid_size}³ tokens")


if __name__ == "__main__":
    main()
