"""The efficiency benchmark: FLOPs, memory, times, comparisons and reports."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.published_networks import PublishedNetwork
from torch.nn import functional as F

from benchmarks import efficiency, efficiency_report, efficiency_rows, growth, measure, sam2d
from lib.errors import InputError, WeightsError
from lib.networks import CONFIGS, build_untrained, save_checkpoint
from lib.networks.common import Conv3d

CPU = torch.device("cpu")
SMALL = {"width": 48, "depth": 3, "num_heads": 3, "out_channels": 48, "decoder_mlp_width": 64}
TEACHER = replace(CONFIGS["sam_med3d"], **SMALL, global_blocks=(1,))
STUDENT = replace(CONFIGS["fastsam3d"], **SMALL)
SPARSE = replace(CONFIGS["fastsam3d_sparse"], **SMALL)
CLICKS = efficiency_rows.SecondClick.on(CPU)


def test_flops_of_products_convolutions_and_attention():
    x, w = torch.randn(6, 10), torch.randn(7, 10)
    assert measure.count_flops(lambda: F.linear(x, w)) == 2 * 6 * 10 * 7
    volume, kernel = torch.randn(1, 3, 8, 8, 8), torch.randn(5, 3, 2, 2, 2)
    conv = measure.count_flops(lambda: F.conv3d(volume, kernel, stride=2))
    assert conv == 2 * 4**3 * 5 * 3 * 8
    layer = Conv3d(3, 5, kernel_size=2, stride=2)
    assert measure.count_flops(lambda: layer(volume)) == conv
    q, k = torch.randn(1, 2, 9, 16), torch.randn(1, 2, 11, 16)
    plain = measure.count_flops(lambda: (q @ k.mT).softmax(-1) @ k)
    assert plain == 2 * 2 * 2 * 9 * 11 * 16
    for bias in (None, torch.randn(1, 2, 9, 11)):
        fused = measure.count_flops(lambda b=bias: F.scaled_dot_product_attention(q, k, k, b))
        assert fused == plain


@torch.inference_mode()
def test_flops_of_an_encoder_are_those_of_its_formula():
    network = build_untrained(STUDENT, seed=0)
    volume = torch.randn(1, 1, 128, 128, 128)
    tokens, width, out = 512, 48, 48
    blocks = 3 * 8 * width**2 + 1 * 4 * width**2  # three MLPs, attention in the last block only
    attention = 2 * tokens * width + 3 * 16 * 3 * 8  # bias: three tables of 8 rows per head
    neck = width * out + 27 * out**2
    expected = 2 * tokens * (16**3 * width + blocks + attention + neck)
    assert measure.count_flops(lambda: network.encode(volume)) == pytest.approx(expected, rel=0.02)


def test_a_file_of_default_weights_can_be_measured(tmp_path):
    network = build_untrained(replace(STUDENT, detail_channels=4), seed=0)
    save_checkpoint(network, tmp_path / "file.safetensors", {})
    files = {"fastsam3d": str(tmp_path / "file.safetensors")}
    row = efficiency_rows.Candidates3D(CPU, files).make("fastsam3d_float32")
    assert row.reference is None  # no published network has a mask refiner
    assert row.encode().shape[1] == network.config.embedding_channels
    held = sum(x.numel() for x in (*row.encoder_weights, *row.decoder_weights))
    assert held == sum(x.numel() for x in network.parameters()) + sum(
        x.numel() for x in network.buffers()
    )


def test_memory_is_that_of_weights_and_call():
    weight = torch.randn(1000, 250)
    held = measure.peak_memory_mb(lambda: torch.ones(500_000).sum(), [weight, weight], CPU)
    assert held == pytest.approx(1.0 + 2.0, abs=0.05)


def test_calls_are_timed_in_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    timings = measure.time_calls(calls, CPU, runs=4, warm_up=2)
    assert {timing.runs for timing in timings.values()} == {4}
    assert order[-8:] == list("abababab")
    assert all(t.best <= t.low <= t.median <= t.high for t in timings.values())


def test_a_very_slow_call_runs_once(monkeypatch):
    monkeypatch.setattr(measure, "_time", lambda call, device, clock: call() or 5000.0)
    runs = []
    timing = measure.time_calls({"slow": lambda: runs.append(1)}, CPU, seconds=1.0)["slow"]
    assert (timing.median, timing.runs, len(runs)) == (5000.0, 1, 1)


def test_masks_are_compared_by_their_voxels():
    logits = torch.tensor([1.0, 1.0, -1.0, -1.0]).reshape(1, 1, 4, 1, 1)
    reference = torch.tensor([1.0, -1.0, 0.5, -1.0]).reshape(1, 1, 4, 1, 1)
    comparison = measure.compare_masks(logits, reference)
    assert comparison == {"dice": 0.5, "equal_voxels": 0.5, "max_logit_difference": 2.0}


@pytest.mark.parametrize(
    "config", [TEACHER, STUDENT, SPARSE, replace(STUDENT, position_bias="textbook")]
)
@torch.inference_mode()
def test_published_computation_gives_the_same_numbers(config):
    network = build_untrained(config, seed=0)
    efficiency_rows.fill_position_tables(network)
    published = PublishedNetwork(network)
    volume = torch.randn(1, 1, 128, 128, 128, generator=torch.Generator().manual_seed(0))
    embedding, reference = network.encode(volume), published.encode(volume)
    torch.testing.assert_close(embedding, reference, rtol=1e-4, atol=1e-4)
    prompt = (CLICKS.points, CLICKS.labels, CLICKS.mask)
    logits = network.decode(embedding, *prompt)[0]
    torch.testing.assert_close(logits, published.decode(reference, *prompt), rtol=1e-3, atol=1e-4)


def test_position_tables_of_random_networks_are_not_zero():
    network = build_untrained(STUDENT, seed=0)
    efficiency_rows.fill_position_tables(network)
    tables = [p for name, p in network.named_parameters() if "rel_pos" in name]
    assert tables
    assert all(table.all() for table in tables)


@pytest.fixture
def small_rows(monkeypatch):
    rows = {
        "sam_med3d_published": (TEACHER, True),
        "sam_med3d": (TEACHER, False),
        "fastsam3d_published": (STUDENT, True),
        "fastsam3d": (STUDENT, False),
        "fastsam3d_sparse": (SPARSE, False),
    }
    monkeypatch.setattr(efficiency_rows, "ROWS_3D", rows)
    return list(rows)


def test_command_writes_its_rows(small_rows, tmp_path, capsys):
    files = {name: tmp_path / "report" / f"r.{name}" for name in ("json", "markdown")}
    arguments = ["--device", "cpu", "--rows", ",".join(small_rows), "--runs", "3"]
    for name, path in files.items():
        arguments += [f"--{name}", str(path)]
    assert efficiency.main(arguments) == 0
    result = json.loads(files["json"].read_text())
    assert result["device"] == "cpu"
    assert result["threads"] == torch.get_num_threads()
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == small_rows
    for row in rows.values():
        for part in ("encoder", "decoder"):
            low, high = row[f"{part}_quartiles_ms"]
            assert 0 < row[f"{part}_best_ms"] <= low <= row[f"{part}_ms"] <= high
            assert row[f"{part}_gflops"] > 0
        assert row["peak_memory_mb"] > 0
        compared = not row["name"].endswith("_published")
        assert ("equality" in row) == compared
        assert not compared or row["equality"]["dice"] > 0.99
    assert "prepare_ms" in rows["fastsam3d"]
    assert "prepare_ms" not in rows["fastsam3d_published"]
    assert set(rows["fastsam3d"]["times_faster_than"]) == {
        "sam_med3d_published",
        "fastsam3d_published",
    }
    # windows of 14³ on a grid of 8³: the closed form skips the padding
    published, fast = rows["sam_med3d_published"], rows["sam_med3d"]
    assert published["encoder_gflops"] > fast["encoder_gflops"]
    text = files["markdown"].read_text()
    assert all(f"`{name}`" in text for name in small_rows)
    assert "Table 3" in capsys.readouterr().out


def test_command_fails_where_masks_differ(small_rows, monkeypatch, capsys):
    monkeypatch.setattr(efficiency, "compare_masks", lambda *_: {"dice": 0.5})
    row = ["--device", "cpu", "--rows", "sam_med3d", "--runs", "1", "--json", "/dev/null"]
    monkeypatch.setattr(efficiency_report, "markdown", lambda result: "")
    assert efficiency.main(row) == 1
    assert "sam_med3d" in capsys.readouterr().err


def test_command_refuses_unknown_rows(capsys):
    with pytest.raises(SystemExit):
        efficiency.main(["--rows", "sam_med4d"])
    assert "unknown rows sam_med4d; choose from sam_med3d_published" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "there is no device 'tpu'"),
        (["--rows", "fastsam3d", "--weights", "fastsam3d=README.md"], r"README\.md: "),
        (["--rows", "fastsam3d", "--weights", "fastsam3d=no.pth"], r"no\.pth: there is no such"),
    ],
)
def test_invalid_options_end_with_one_sentence(arguments, message, monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    with pytest.raises(SystemExit, match=f"^efficiency: {message}"):
        efficiency.main(arguments)


def test_2d_weights_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "sam.pth").write_text("no weights")
    with pytest.raises(WeightsError, match=r"sam\.pth cannot be read as PyTorch weights"):
        sam2d._load(None, tmp_path / "sam.pth")


def test_rows_without_their_packages_are_skipped(monkeypatch, tmp_path):
    def missing(name, device, weights):
        raise ImportError(f"{name} needs timm")

    monkeypatch.setattr(efficiency, "make_2d", missing)
    path = tmp_path / "result.json"
    assert efficiency.main(["--device", "cpu", "--rows", "mobile_sam", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert result["rows"] == []
    assert result["left_out"] == {"mobile_sam": "mobile_sam needs timm"}


def test_groups_stay_small_as_the_grid_grows():
    for size in growth.SIZES:
        config = growth.config_for(size)
        groups = growth.lattice_groups((config.grid_size,) * 3, config.interval)
        assert 48 <= groups.index.shape[1] <= 64


@torch.inference_mode()
def test_dense_grows_quadratically_and_sparse_linearly(monkeypatch, tmp_path):
    """In FLOPs, which do not depend on the machine's load, for 4³ and 8³ tokens."""
    small = replace(CONFIGS["fastsam3d_sparse"], **SMALL)
    monkeypatch.setitem(growth.CONFIGS, "fastsam3d_sparse", small)
    rows = growth.measure(CPU, sizes=[64, 128], runs=1, seconds=1.0)
    for variant, expected in (("dense, flash", 2), ("dense, plain", 2), ("sparse, flash", 1)):
        assert growth.exponent(rows, variant, "attention_gflops") == pytest.approx(expected)
    assert all(row["equality"] < 1e-5 for row in rows)
    assert len(rows) == 2 * len(growth.VARIANTS)
    assert "quadratic" in "\n".join(efficiency_report.exponents(rows))
    assert len(efficiency_report.table4(rows)) == 2 + len(rows)
    pytest.importorskip("matplotlib")
    efficiency_report.plot(rows, tmp_path / "plots" / "growth.png")
    assert (tmp_path / "plots" / "growth.png").read_bytes()[:4] == b"\x89PNG"


SAM_NAMES = {
    "image_encoder.blocks.3.norm1.weight": "vision_encoder.layers.3.layer_norm1.weight",
    "image_encoder.neck.1.bias": "vision_encoder.neck.layer_norm1.bias",
    "mask_decoder.transformer.layers.1.norm4.bias": "mask_decoder.transformer.layers.1."
    "layer_norm4.bias",
    "mask_decoder.output_hypernetworks_mlps.2.layers.2.weight": "mask_decoder."
    "output_hypernetworks_mlps.2.proj_out.weight",
    "prompt_encoder.mask_downscaling.6.bias": "prompt_encoder.mask_embed.conv3.bias",
    "prompt_encoder.point_embeddings.3.weight": "prompt_encoder.point_embed.3.weight",
}
TINY_VIT_NAMES = {
    "image_encoder.patch_embed.seq.2.c.weight": "vision_encoder.tiny_vit.patch_embed.conv2.conv."
    "weight",
    "image_encoder.layers.0.blocks.1.conv3.bn.running_mean": "vision_encoder.tiny_vit.stages.0."
    "blocks.1.conv3.bn.running_mean",
    "image_encoder.layers.2.downsample.conv2.bn.bias": "vision_encoder.tiny_vit.stages.3."
    "downsample.conv2.bn.bias",
    "image_encoder.layers.3.blocks.1.attn.attention_biases": "vision_encoder.tiny_vit.stages.3."
    "blocks.1.attn.attention_biases",
    "image_encoder.layers.1.blocks.0.local_conv.c.weight": "vision_encoder.tiny_vit.stages.1."
    "blocks.0.local_conv.conv.weight",
    "image_encoder.neck.2.weight": "vision_encoder.neck.conv2.weight",
}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("sam_med2d", SAM_NAMES),
        (
            "mobile_sam",
            TINY_VIT_NAMES
            | {k: v for k, v in SAM_NAMES.items() if not k.startswith("image_encoder")},
        ),
    ],
)
def test_published_names_are_mapped_to_tensors(name, published):
    pytest.importorskip("transformers")
    pytest.importorskip("timm")
    network = sam2d.build(name)
    names = network.sam.state_dict()
    for name, expected in published.items():
        assert sam2d._module_name(name, network) == expected
        assert expected in names


@torch.inference_mode()
def test_2d_networks_segment_slices():
    pytest.importorskip("transformers")
    pytest.importorskip("timm")
    network = sam2d.build("sam_med2d")
    images = torch.full((2, 3, 256, 256), 100.0)
    features = network.encode(network.normalise(images))
    points, labels = torch.tensor([[[100.0, 50.0]]] * 2), torch.ones(2, 1, dtype=torch.long)
    first = network.decode(features, points, labels)
    assert first.shape == (2, 1, 64, 64)
    assert network.decode(features, points, labels, first).shape == first.shape
    with pytest.raises(
        ValueError, match=r"takes images \(B, 3, 256, 256\), got \(1, 3, 128, 128\)"
    ):
        network.encode(torch.zeros(1, 3, 128, 128))


def test_unknown_2d_network():
    with pytest.raises(InputError, match="unknown 2D network 'sam9'"):
        sam2d.build("sam9")
