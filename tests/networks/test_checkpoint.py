"""Published files and our own format rebuild their networks; other files are refused."""

import argparse
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.networks import (
    CONFIGS,
    FastSAM3DConfig,
    MaskPolicy,
    build_network,
    build_untrained,
    describe_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from lib.networks.checkpoint import CheckpointError

# The published structures at a small size. Window and grid differ, and so do heads and widths.
TEACHER = FastSAM3DConfig(
    roi_size=64,
    width=24,
    depth=4,
    num_heads=3,
    out_channels=48,
    window_size=6,
    global_blocks=(1, 3),
    decoder_mlp_width=40,
)
STUDENT = FastSAM3DConfig(
    roi_size=64,
    width=24,
    depth=3,
    num_heads=2,
    out_channels=48,
    attention_free_blocks=(0,),
    residual="normed",
    decoder_mlp_width=40,
)
NEWEST = MaskPolicy(click_history="newest")


@pytest.fixture
def teacher():
    return build_untrained(TEACHER, seed=1)


@pytest.fixture
def student():
    return build_untrained(STUDENT, seed=2, policy=NEWEST)


@pytest.fixture
def teacher_file(tmp_path, teacher):
    return write(tmp_path / "sam_med3d_turbo.pth", {"model_state_dict": teacher.state_dict()})


def write(path, content):
    torch.save(content, path)
    return path


def encoder_state(network):
    return network.image_encoder.state_dict()


def assert_same(loaded, original):
    assert loaded.config == original.config
    assert loaded.policy == original.policy
    assert not loaded.training
    expected = original.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, x in loaded.state_dict().items():
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, expected[name], rtol=0, atol=0)


def test_whole_network_beside_training_state(tmp_path, teacher):
    content = {
        "epoch": 3,
        "lr_scheduler": None,
        "model_state_dict": {f"module.{k}": v for k, v in teacher.state_dict().items()},
        "optimizer_state_dict": {"param_groups": [{"lr": np.float64(8e-4), "betas": (0.9, 0.99)}]},
        "losses": [np.float64(0.3), np.float32(0.2), 1, np.array([0.1, 0.2])],
        "args": argparse.Namespace(
            work_dir="work_dir", gpu_ids=[0, 1], multi_gpu=True, root=Path("a")
        ),
        "used_datas": "data/train",
    }
    assert_same(load_checkpoint(write(tmp_path / "sam_med3d.pth", content)), teacher)


@pytest.mark.parametrize("prefix", ["", "image_encoder.", "module.", "module.image_encoder."])
def test_encoder_alone_takes_the_teachers_decoder(tmp_path, teacher_file, teacher, student, prefix):
    state = {f"{prefix}{k}": v for k, v in encoder_state(student).items()}
    path = write(tmp_path / "fastsam3d.pth", {"model_state_dict": state})
    loaded = load_checkpoint(path, teacher=teacher_file)
    student.prompt_encoder.load_state_dict(teacher.prompt_encoder.state_dict())
    student.mask_decoder.load_state_dict(teacher.mask_decoder.state_dict())
    assert_same(loaded, student)


def test_encoder_alone_finds_a_teacher_beside_it(tmp_path, teacher_file, teacher, student):
    path = write(tmp_path / "fastsam3d.pth", encoder_state(student))
    loaded = load_checkpoint(path)
    for name, x in loaded.mask_decoder.state_dict().items():
        torch.testing.assert_close(x, teacher.mask_decoder.state_dict()[name], rtol=0, atol=0)


@torch.no_grad()
def test_encoder_alone_encodes_but_does_not_decode(tmp_path, student):
    loaded = load_checkpoint(write(tmp_path / "fastsam3d.pth", encoder_state(student)))
    volume = torch.randn(1, 1, 64, 64, 64)
    embedding = loaded.encode(volume)
    torch.testing.assert_close(embedding, student.encode(volume), rtol=0, atol=0)
    assert not loaded.has_decoder
    with pytest.raises(ValueError, match="only the image encoder was loaded"):
        loaded.decode(embedding, None, None)
    with pytest.raises(CheckpointError, match="has no decoder"):
        save_checkpoint(loaded, tmp_path / "own.safetensors")


def test_encoder_alone_must_be_complete(tmp_path, student):
    state = encoder_state(student)
    del state["neck.3.bias"]
    path = write(tmp_path / "fastsam3d.pth", state)
    with pytest.raises(CheckpointError, match=r"1 missing: image_encoder.neck.3.bias \(48,\)"):
        load_checkpoint(path)


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", "model", None])
def test_whole_student(tmp_path, student, key):
    state = dict(student.state_dict())
    path = write(tmp_path / "fastsam3d.pth", {key: state} if key else state)
    assert_same(load_checkpoint(path), student)


def test_legacy_pickle_format(tmp_path, student):
    path = tmp_path / "old.pth"
    torch.save(student.state_dict(), path, _use_new_zipfile_serialization=False)
    assert_same(load_checkpoint(path), student)


def test_loaded_weights_do_not_depend_on_the_file(tmp_path, student):
    path = write(tmp_path / "fastsam3d.pth", student.state_dict())
    loaded = load_checkpoint(path)
    path.write_bytes(b"")
    assert_same(loaded, student)


@pytest.mark.parametrize("name", ["fastsam3d_sparse", "sam_med3d_default"])
def test_own_format_rebuilds_its_network(tmp_path, name):
    config = replace(CONFIGS[name], width=24, out_channels=48)
    policy = MaskPolicy("newest", "expected_dice", "image")
    network = build_untrained(config, 3, policy)
    path = tmp_path / "own.safetensors"
    save_checkpoint(network, path, {"licence": "Apache-2.0"})
    assert_same(load_checkpoint(path), network)
    described = describe_checkpoint(path)
    assert described["metadata"] == {"licence": "Apache-2.0"}
    assert described["config"]["sparsity"] == CONFIGS[name].sparsity
    assert described["policy"]["mask_edges"] == "image"


def test_half_precision_file_loads_as_float32(tmp_path, student):
    path = tmp_path / "half.safetensors"
    save_checkpoint(student, path, dtype=torch.float16)
    loaded = load_checkpoint(path)
    for name, x in loaded.state_dict().items():
        torch.testing.assert_close(x, student.state_dict()[name].half().float(), rtol=0, atol=0)


def test_description_of_a_published_file(teacher_file, teacher):
    described = describe_checkpoint(teacher_file)
    assert described["holds"] == "whole network"
    assert described["config"]["global_blocks"] == (1, 3)
    assert described["parameters"] == sum(x.numel() for x in teacher.state_dict().values())


class Malicious:
    def __reduce__(self):
        return (print, ("this must not run",))


def refusals(tmp_path, student, teacher):
    """Map the name of a case to the content of a file and the patterns of the message."""
    state = student.state_dict()
    without = {k: v for k, v in state.items() if k != "image_encoder.blocks.1.attn.proj.bias"}
    misshapen = {**state, "image_encoder.neck.2.weight": torch.zeros(48, 48, 1, 1, 1)}
    names = {
        "no qkv": "image_encoder.blocks.1.attn.qkv.weight",
        "no head": "mask_decoder.iou_prediction_head.layers.2.weight",
    }
    lacking = {case: {k: v for k, v in state.items() if k != n} for case, n in names.items()}
    rank = {**state, "image_encoder.patch_embed.proj.weight": torch.zeros(24, 1, 16)}
    table = {**state, "image_encoder.blocks.2.attn.rel_pos_d": torch.zeros(7, 5)}
    return {
        "no qkv": (lacking["no qkv"], [rf"1 missing: {names['no qkv']} \(72, 24\)$"]),
        "no head": (lacking["no head"], [rf"1 missing: {names['no head']} \(4, 256\)$"]),
        "wrong rank": (rank, [r"patch_embed.proj.weight is \(24, 1, 16\), expected 5 dimensions"]),
        "wrong table": (table, [r"1 misshapen: .*blocks.2.attn.rel_pos_d is \(7, 5\), expected"]),
        "missing": (without, [r"1 missing: image_encoder.blocks.1.attn.proj.bias \(24,\)"]),
        "unexpected": ({**state, "head": torch.zeros(7)}, [r"1 unexpected: head \(7,\)"]),
        "misshapen": (misshapen, [r"is \(48, 48, 1, 1, 1\), expected \(48, 48, 3, 3, 3\)"]),
        "other network": ({"conv.weight": torch.zeros(3)}, ["patch_embed.proj.weight is missing"]),
        "not tensors": ({"weights": [1, 2]}, ["expected tensors", "weights"]),
        "a list": ([1, 2], ["holds a list, expected a dictionary"]),
        "code": ({"model": Malicious()}, [r"plain values \(it holds a print\)"]),
    }


CASES = ["missing", "unexpected", "misshapen", "wrong rank", "no qkv", "wrong table", "no head"]
CASES += ["other network", "not tensors", "a list", "code"]


@pytest.mark.parametrize("case", CASES)
def test_refusals_name_the_file_and_the_tensors(tmp_path, student, teacher, capsys, case):
    content, patterns = refusals(tmp_path, student, teacher)[case]
    path = write(tmp_path / "weights.pth", content)
    with pytest.raises(CheckpointError, match="weights.pth") as refused:
        load_checkpoint(path)
    for pattern in patterns:
        assert refused.match(pattern)
    assert capsys.readouterr().out == ""


def test_refusal_of_a_decoder_of_another_width(tmp_path, student):
    wide = build_untrained(
        FastSAM3DConfig.from_dict({**TEACHER.to_dict(), "out_channels": 96}), seed=4
    )
    donor = write(tmp_path / "teacher.pth", wide.state_dict())
    path = write(tmp_path / "encoder.pth", encoder_state(student))
    with pytest.raises(CheckpointError, match=r"encoder.pth: .* misshapen: .*expected"):
        load_checkpoint(path, teacher=donor)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_refusal_of_truncated_and_missing_files(tmp_path, student, suffix):
    path = tmp_path / f"weights{suffix}"
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(path)
    if suffix == ".pth":
        torch.save(student.state_dict(), path)
    else:
        save_checkpoint(student, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="not a complete"):
        load_checkpoint(path)


def test_refusal_of_foreign_safetensors(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="format None, expected 'fastsam3d-monailabel-2'"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello world", b"\x80\x02}q\x00.", b"PK\x03\x04junk", b"q" * 50]
)
def test_refusal_of_garbage(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="weights.pth: "):
        load_checkpoint(path)


def test_a_decoder_keeps_its_own_options(tmp_path, student):
    """No shape tells heads and axis order; they come from the teacher's own file."""
    donor = build_untrained(replace(TEACHER, decoder_heads=4, swap_dense_axes=False), seed=6)
    save_checkpoint(donor, tmp_path / "teacher.safetensors")
    path = write(tmp_path / "encoder.pth", encoder_state(student))
    config = load_checkpoint(path, teacher=tmp_path / "teacher.safetensors").config
    assert (config.decoder_heads, config.swap_dense_axes) == (4, False)
    assert config.attention_free_blocks == STUDENT.attention_free_blocks


def test_written_files_can_be_read_by_others(tmp_path, student):
    save_checkpoint(student, tmp_path / "own.safetensors")
    assert (tmp_path / "own.safetensors").stat().st_mode & 0o777 == 0o644


def test_refusal_of_a_plain_pickle(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"a": Malicious()}))
    with pytest.raises(CheckpointError, match="not a complete PyTorch checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roi_size": 100}, "roi_size 100 is not divisible by patch_size 16"),
        ({"position_bias": "rotary"}, "position_bias is 'rotary'; choose one of published"),
        ({"global_blocks": (12,)}, r"global_blocks names \[12\], but there are 12 blocks"),
    ],
)
def test_refusal_of_impossible_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        FastSAM3DConfig(**options)


def test_unknown_network_name():
    with pytest.raises(ValueError, match="'sam2'; there are sam_med3d, fastsam3d"):
        build_network("sam2")


def test_random_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (build_untrained(STUDENT, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert_same(first, again)
    weight = "image_encoder.patch_embed.proj.weight"
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])
