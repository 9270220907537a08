"""The untrained student that `make weights` starts with."""

from dataclasses import replace
from pathlib import Path

import pytest
from training.student import main, student_of

from lib.networks import CONFIGS, FastSAM3D, build_untrained, load_checkpoint, save_checkpoint


@pytest.mark.parametrize(("attention", "operator"), [("dense", "dense"), ("sparse", "sparse")])
def test_a_student_is_written_into_a_new_folder(
    attention: str, operator: str, tiny_network: FastSAM3D, tmp_path: Path
) -> None:
    # pre_norm and 12 blocks, as teachers have
    config = replace(tiny_network.config, depth=12, residual="pre_norm", attention_free_blocks=())
    teacher, out = tmp_path / "teacher.safetensors", tmp_path / "build" / "student.safetensors"
    save_checkpoint(build_untrained(config, seed=0), teacher, {})
    main(["--teacher", str(teacher), "--out", str(out), "--attention", attention])
    student = load_checkpoint(out).config
    assert student.operator == operator
    assert (student.depth, student.attention_free_blocks) == (6, (0, 1))


def test_the_shipped_student_is_the_sparse_one_of_the_shipped_teacher() -> None:
    assert student_of(CONFIGS["sam_med3d_default"]) == CONFIGS["fastsam3d_default"]
