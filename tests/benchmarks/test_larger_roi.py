"""Weights for a larger ROI keep all values; only the table of positions is interpolated."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.larger_roi import main, with_roi_size  # noqa: E402

from lib.errors import InputError  # noqa: E402
from lib.networks import (  # noqa: E402
    FastSAM3DConfig,
    build_untrained,
    load_checkpoint,
    save_checkpoint,
)
from lib.networks.sparsity import lattice_groups  # noqa: E402

SMALL = FastSAM3DConfig(
    roi_size=32, patch_size=8, width=24, depth=2, num_heads=3, out_channels=16,
    decoder_heads=2, mask_channels=4, position_bias="none", swap_dense_axes=False,
    detail_channels=4,
)  # fmt: skip


def test_positions_are_interpolated_and_all_else_stays(tmp_path: Path) -> None:
    network = build_untrained(SMALL, 3)
    ramp = torch.arange(4.0)[:, None, None, None].expand(4, 4, 4, 24)
    network.image_encoder.pos_embed.data = ramp[None].clone()
    save_checkpoint(network, tmp_path / "small.safetensors")
    out = tmp_path / "new" / "large.safetensors"
    main(["--weights", str(tmp_path / "small.safetensors"), "--size", "48", "--out", str(out)])
    larger = load_checkpoint(out)
    assert larger.config == replace(SMALL, roi_size=48, interval=2)
    table = larger.image_encoder.pos_embed[0, :, 0, 0, 0]
    torch.testing.assert_close(table, torch.tensor([0, 0.5, 7 / 6, 11 / 6, 2.5, 3]))
    for name, x in larger.state_dict().items():
        assert name.endswith("pos_embed") or torch.equal(x, network.state_dict()[name]), name
    logits, _ = larger.decode(
        larger.encode(torch.randn(1, 1, 48, 48, 48)),
        torch.tensor([[[20.0, 20, 20]]]),
        torch.ones(1, 1),
    )
    assert logits.shape == (1, 1, 24, 24, 24)


@pytest.mark.parametrize(("size", "interval"), [(128, 2), (192, 3), (256, 4)])
def test_groups_of_sparse_attention_stay_at_64_tokens(size: int, interval: int) -> None:
    config = replace(SMALL, roi_size=128, patch_size=16, sparsity="lattice")
    larger = with_roi_size(build_untrained(config, 0), size).config
    assert larger.interval == interval
    groups = lattice_groups((larger.grid_size,) * 3, larger.interval)
    assert groups.index.shape == (interval**3, 64)


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, position_bias="textbook")])
def test_sizes_that_cannot_be_used_are_refused(config: FastSAM3DConfig) -> None:
    size = 44 if config == SMALL else 48
    for each in (size, 0, -16):
        with pytest.raises(InputError, match="must be a positive multiple of 8"):
            with_roi_size(build_untrained(config, 0), each)
