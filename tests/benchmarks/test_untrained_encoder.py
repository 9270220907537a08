"""What an encoder carries is measured against an untrained one with equal channels."""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.untrained_encoder import ROIS, main, with_untrained_encoder  # noqa: E402

from lib.networks import FastSAM3DConfig, build_untrained, save_checkpoint  # noqa: E402
from lib.trainers.data.painted_rois import paint_roi  # noqa: E402

SMALL = FastSAM3DConfig(
    roi_size=32, patch_size=8, width=24, depth=2, num_heads=3, out_channels=16,
    decoder_heads=2, mask_channels=4, position_bias="none", swap_dense_axes=False,
)  # fmt: skip


@torch.no_grad()
def test_the_blocks_are_replaced_and_the_channels_have_the_usual_size() -> None:
    network = build_untrained(SMALL, 7)
    network.image_encoder.neck[-1].weight.mul_(3)
    network.image_encoder.neck[-1].bias.add_(2)
    other = with_untrained_encoder(network, seed=0)
    kept = {name: x for name, x in network.state_dict().items() if "encoder.blocks" not in name}
    for name, x in kept.items():
        if not name.startswith("image_encoder.neck"):
            assert torch.equal(x, other.state_dict()[name]), name
    images = torch.stack([paint_roi(32, number) for number in range(ROIS)])
    ours, theirs = (
        each.image_encoder(images).transpose(0, 1).flatten(1) for each in (network, other)
    )
    torch.testing.assert_close(theirs.mean(dim=1), ours.mean(dim=1), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(theirs.std(dim=1), ours.std(dim=1), atol=1e-3, rtol=1e-3)
    correlation = torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1]
    assert float(correlation) == pytest.approx(0, abs=0.6)
    assert not torch.allclose(ours, theirs, atol=0.1)


def test_the_command_measures_both_encoders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[10:26, 12:28, 14:30] = 1
    image = 100 + 50 * labels + np.random.default_rng(0).normal(0, 10, labels.shape)
    for name, array in (("imagesTr/a_0000", image.astype(np.float32)), ("labelsTr/a", labels)):
        path = tmp_path / "Dataset001_Cubes" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    (tmp_path / "Dataset001_Cubes" / "dataset.json").write_text(
        '{"channel_names": {"0": "MR"}, "labels": {"background": 0, "cube": 1}}'
    )
    weights = tmp_path / "tiny.safetensors"
    save_checkpoint(build_untrained(SMALL, 7), weights)
    data = str(tmp_path / "Dataset001_Cubes")
    main(["--weights", str(weights), "--data", data, "--clicks", "1"])
    printed = capsys.readouterr().out
    assert "| trained | " in printed and "| untrained | " in printed
