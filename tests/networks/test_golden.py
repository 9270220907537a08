"""The networks equal the published ones on weights that are filled by name."""

import argparse
import json
import time

import numpy as np
import pytest
import torch

from golden.fill import filled_state, golden_input
from lib.networks import CONFIGS, POLICIES, load_checkpoint
from lib.networks.image_encoder import ImageEncoder3D

SEED = 7
TOLERANCE = 1e-5
CASES = {"one_click": (1, False), "three_clicks_mask": (3, True), "mask_only": (0, True)}


def relative_error(output, golden) -> float:
    output, golden = np.asarray(output, dtype=np.float64), np.asarray(golden, dtype=np.float64)
    assert output.shape == golden.shape
    return float(np.linalg.norm(output - golden) / np.linalg.norm(golden))


def golden_file(golden_dir, name):
    shapes = json.loads((golden_dir / f"{name}.shapes.json").read_text())
    state = {k: torch.from_numpy(v) for k, v in filled_state(shapes, SEED).items()}
    return state, np.load(golden_dir / f"{name}.npz")


@pytest.fixture(scope="module")
def inputs():
    return tuple(torch.from_numpy(x) for x in golden_input(SEED))


@pytest.fixture(scope="module")
def teacher_file(golden_dir, tmp_path_factory):
    """A file like the published teacher: it holds training state, and DDP's prefix in all names."""
    state, _ = golden_file(golden_dir, "sam_med3d_vit_b")
    path = tmp_path_factory.mktemp("weights") / "sam_med3d.pth"
    content = {
        "epoch": 199,
        "model_state_dict": {f"module.{name}": x for name, x in state.items()},
        "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 8e-4}]},
        "losses": [np.float64(0.25), 0.5],
        "best_loss": np.float32(0.25),
        "args": argparse.Namespace(task_name="union_train", lr=8e-4, img_size=128),
        "used_datas": "data/medical_preprocessed",
    }
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def student_file(golden_dir, tmp_path_factory):
    state, _ = golden_file(golden_dir, "fastsam3d_student")
    path = tmp_path_factory.mktemp("weights") / "fastsam3d.pth"
    torch.save({"model_state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def teacher(teacher_file):
    return load_checkpoint(teacher_file)


@torch.no_grad()
@pytest.mark.parametrize("window_path", ["closed_form", "padded"])
def test_teacher_encoder(golden_dir, teacher, inputs, window_path):
    golden = np.load(golden_dir / "sam_med3d_vit_b.npz")
    encoder = ImageEncoder3D(CONFIGS["sam_med3d"], window_path)
    encoder.load_state_dict(teacher.image_encoder.state_dict())
    embedding, blocks = encoder.forward_intermediates(inputs[0], range(1, 12, 2))
    assert relative_error(embedding, golden["embedding"]) < TOLERANCE
    for number, output in blocks.items():
        sampled = output[:, ::2, ::2, ::2, ::8]
        assert relative_error(sampled, golden[f"block{number + 1}"]) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("multimask", [False, True])
def test_teacher_decoder(golden_dir, teacher, inputs, case, multimask):
    golden = np.load(golden_dir / "sam_med3d_vit_b.npz")
    count, with_mask = CASES[case]
    _, points, labels, mask = inputs
    prompt = (points[:, :count], labels[:, :count]) if count else (None, None)
    embedding = torch.from_numpy(golden["embedding"])
    logits, iou = teacher.decode(embedding, *prompt, mask if with_mask else None, multimask)
    step = 2 if multimask else 1
    key = f"{case}_{'multi' if multimask else 'single'}"
    assert relative_error(logits[:, :, ::step, ::step, ::step], golden[key]) < TOLERANCE
    assert relative_error(iou, golden[f"{key}_iou"]) < TOLERANCE


@torch.no_grad()
def test_prompt_encoder(golden_dir, teacher, inputs):
    golden = np.load(golden_dir / "sam_med3d_vit_b.npz")
    _, points, labels, _ = inputs
    encoder = teacher.prompt_encoder
    assert relative_error(encoder.dense_position()[:, ::4], golden["dense_pe"]) < TOLERANCE
    sparse, _ = encoder(points, labels, None, batch=1)
    assert relative_error(sparse, golden["three_clicks_mask_sparse"]) < TOLERANCE
    nothing, _ = encoder(None, None, None, batch=1)
    assert nothing.shape == golden["mask_only_sparse"].shape


@torch.no_grad()
def test_student_encoder(golden_dir, student_file, teacher_file, inputs):
    golden = np.load(golden_dir / "fastsam3d_student.npz")
    network = load_checkpoint(student_file, teacher=teacher_file)
    assert network.config == CONFIGS["fastsam3d"]
    assert network.policy == POLICIES["fastsam3d"]
    encoder = network.image_encoder
    embedding, blocks = encoder.forward_intermediates(inputs[0], (1, 3, 5))
    assert relative_error(embedding, golden["embedding"]) < TOLERANCE
    for number, output in blocks.items():
        sampled = output[:, ::2, ::2, ::2, ::8]
        assert relative_error(sampled, golden[f"block{number + 1}"]) < TOLERANCE


@pytest.mark.slow
@torch.no_grad()
def test_closed_form_is_exact_and_fast(teacher, inputs):
    """Compare the teacher's encoder with padded windows; the timing needs an idle machine."""
    padded = ImageEncoder3D(CONFIGS["sam_med3d"], "padded")
    padded.load_state_dict(teacher.image_encoder.state_dict())
    seconds, outputs = {}, {}
    for name, encoder in (("closed", teacher.image_encoder), ("padded", padded)):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            outputs[name] = encoder(inputs[0])
            times.append(time.perf_counter() - start)
        seconds[name] = min(times)
    assert relative_error(outputs["closed"], outputs["padded"]) < TOLERANCE
    assert seconds["padded"] > 6 * seconds["closed"], seconds
