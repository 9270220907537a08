"""What a GPU machine gets is small, allowed and enough; what it sends back arrives whole or not."""

import csv
import dataclasses
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from training.data import ClickSamples, SampleOptions
from training.interaction import interactive_loss
from training.pack import BESIDE_WEIGHTS, NEEDS, SUMS, WEIGHTS, check, join, main, pack, split
from training.pretrain import TrainOptions, mixed_precision, pretrain
from training.sources import ATLAS_FILES, Case

from lib.errors import InputError
from lib.networks import FastSAM3D, load_checkpoint
from lib.networks.fastsam3d import build_untrained

# Installed where the tests run, but not on a machine that has little more than torch.
ABSENT = ("SimpleITK", "pydicom", "monai", "monailabel", "ignite", "cachetools", "skimage")
SECRET = b"not to be trained on"


def write_map(path: Path, low: int = 4) -> None:
    labels = np.zeros((40, 36, 30), dtype=np.int16)
    labels[low:20, 5:17, 4:15] = 5
    labels[low:20, 5:17, 15:24] = 9
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([-2.0, -1.5, 3.0, 1.0])), path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three cases, one of which may be trained on."""
    folder = tmp_path / "data"
    write_map(folder / "labelmaps" / "head.nii.gz")
    for name in ("eval", "train"):
        (folder / name).mkdir()
        (folder / name / "other.nii.gz").write_bytes(SECRET)
    rows = [
        ("eval", "other", "CC0", "eval/other.nii.gz"),
        ("labelmaps", "head", "MIT", "labelmaps/head.nii.gz"),
        ("train", "other", "CC BY-NC 4.0", "train/other.nii.gz"),
    ]
    with open(folder / "manifest.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["part", "case", "licence", "image", "label"])
        writer.writerows((part, case, licence, "", label) for part, case, licence, label in rows)
    return folder


@pytest.fixture
def atlases(tmp_path: Path) -> Path:
    folder = tmp_path / "templates"
    for name in ATLAS_FILES:
        write_map(folder / name, low=8)
    (folder / "ch2.nii.gz").write_bytes(SECRET)
    return folder


@pytest.fixture
def packed(data: Path, atlases: Path, tmp_path: Path) -> Path:
    pack(data, atlases, tmp_path / "pack", minutes=7, wheels=())
    return tmp_path / "pack"


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, str]:
    """An environment whose Python finds nothing of this repository and none of `ABSENT`."""
    folder = tmp_path / "absent"
    folder.mkdir()
    for name in ABSENT:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name} here')")
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "PYTHONPATH": str(folder), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}


def test_only_what_may_be_trained_on_is_packed(packed: Path, data: Path) -> None:
    files = [path for path in packed.rglob("*") if path.is_file()]
    names = {path.relative_to(packed).as_posix() for path in files}
    assert {n for n in names if n.startswith(("data", "atlases"))} == {
        *("data/manifest.csv", "data/labelmaps/head.nii.gz"),
        *(f"atlases/{name}" for name in ATLAS_FILES),
    }
    with open(packed / "data" / "manifest.csv", encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    with open(data / "manifest.csv", encoding="utf-8", newline="") as file:
        assert row == list(csv.DictReader(file))[1]
    code = {name for name in names if name.endswith(".py")}
    assert {"training/pretrain.py", "apps/fastsam3d/lib/networks/fastsam3d.py"} <= code
    assert names - code - {n for n in names if n.startswith(("data", "atlases"))} == {"run.sh"}
    assert not any(SECRET in path.read_bytes() for path in files)
    assert "MINUTES:-7}" in (packed / "run.sh").read_text()


def test_what_is_too_large_is_refused_and_leaves_nothing(
    data: Path, atlases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.pack.PACK_BYTES", 200_000)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"0\.\d MiB, more than 0\.2 MiB \(apps 0\.\d MiB, atlas"):
        pack(data, atlases, tmp_path / "pack", wheels=())
    assert sorted(tmp_path.iterdir()) == before


def test_what_cannot_be_packed_is_named(data: Path, atlases: Path, tmp_path: Path) -> None:
    (atlases / ATLAS_FILES[1]).unlink()
    with pytest.raises(InputError, match=f"no {ATLAS_FILES[1]}: install mricron-data"):
        pack(data, atlases, tmp_path / "pack", wheels=())
    (data / "labelmaps" / "head.nii.gz").unlink()
    with pytest.raises(InputError, match=r"labelmaps/head\.nii\.gz"):
        pack(data, atlases, tmp_path / "pack", wheels=())
    with pytest.raises(InputError, match="exists already"):
        pack(data, atlases, data, wheels=())


def test_wheels_are_those_of_the_target(
    data: Path, atlases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def download(command: list[str], **_: object) -> subprocess.CompletedProcess:
        commands.append(" ".join(command))
        folder = Path(next(x for x in command if x.startswith("--dest=")).removeprefix("--dest="))
        folder.mkdir(exist_ok=True)
        found = "scipy" not in command
        return subprocess.CompletedProcess(command, 0 if found else 1, "", "no scipy there\n")

    monkeypatch.setattr("training.pack.subprocess.run", download)
    pack(data, atlases, tmp_path / "pack", wheels=("nibabel", "isal"), pythons=("3.12", "3.13"))
    assert [re.findall(r"version=(\S+)", command) for command in commands] == [["3.12"], ["3.13"]]
    assert all("--no-deps" in c and c.endswith(" nibabel isal") for c in commands)
    assert (tmp_path / "pack/wheels/requirements.txt").read_text() == "nibabel\nisal\n"
    with pytest.raises(InputError, match="of scipy for Python 3.12: no scipy there"):
        pack(data, atlases, tmp_path / "other", wheels=("scipy",), pythons=("3.12",))


def test_the_pack_imports_itself_and_little_else(packed: Path, elsewhere: dict[str, str]) -> None:
    code = (
        "import sys, training.pretrain, training.student, training.pack\n"
        "from training.sources import load_cases, load_atlases\n"
        "cases = [*load_cases('data'), *load_atlases('atlases')]\n"
        "ours = [name for name in sys.modules if name.split('.')[0] in ('lib', 'training')]\n"
        "print(len(cases), *(sys.modules[name].__file__ for name in ours), sep='\\n')\n"
    )
    result = run([sys.executable, "-c", code], packed, elsewhere)
    assert result.returncode == 0, result.stderr
    count, *files = result.stdout.split()
    assert count == "3" and len(files) > 20
    assert all(Path(file).is_relative_to(packed) for file in files)
    assert not set(NEEDS) & set(ABSENT)


def test_a_machine_that_lacks_something_is_told_so_at_once(
    packed: Path, elsewhere: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # without the packages of this environment
    result = run([sys.executable, "-S", "-m", "training.pack", "--check", "cpu"], packed, elsewhere)
    assert result.returncode == 1
    assert "no torch, numpy, scipy, nibabel" in result.stderr
    assert "--wheels nibabel isal torch" in result.stderr
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="sees no GPU here; DEVICE=cpu"):
        check("cuda")
    check("cpu")


def run(
    command: list[str], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_run_without_time_to_train_says_so(packed: Path, elsewhere: dict[str, str]) -> None:
    environment = {**elsewhere, "MINUTES": "0", "DEVICE": "cpu"}
    result = run(["bash", "run.sh"], packed, environment)
    assert result.returncode == 1 and "MINUTES=0 leaves no time" in result.stderr


@pytest.mark.slow
def test_the_packed_script_trains_goes_on_and_leaves_parts(
    packed: Path, elsewhere: dict[str, str], tmp_path: Path
) -> None:
    """On the CPU, from a folder of its own, in two calls of one step each."""
    options = {"rois": 1, "workers": 0, "clicks": 2, "click-steps": 1, "log-every": 1, "threads": 2}
    little = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    out, work = tmp_path / "out", tmp_path / "work"
    environment = {**elsewhere, "DEVICE": "cpu", "OUT": str(out), "WORK": str(work)}
    for steps in ("1", "2"):
        command = ["bash", str(packed / "run.sh"), *little, "--max-steps", steps]
        result = run(command, tmp_path, environment)
        assert result.returncode == 0, result.stderr
    names = {path.name for path in out.iterdir()}
    assert names == {f"{WEIGHTS}.part1", f"{WEIGHTS}.part2", *BESIDE_WEIGHTS, SUMS}
    with open(out / "log.csv", encoding="utf-8", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]
    main(["--join", str(out), "--out", str(tmp_path / WEIGHTS)])
    assert load_checkpoint(tmp_path / WEIGHTS).config.depth == 12
    assert (tmp_path / WEIGHTS).read_bytes() == (work / WEIGHTS).read_bytes()


@pytest.fixture
def brought_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's weights of 2,500 bytes in three parts."""
    monkeypatch.setattr("training.pack.PART_BYTES", 1000)
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    out.mkdir()
    (work / WEIGHTS).write_bytes(np.random.default_rng(0).bytes(2500))
    (work / "log.csv").write_text("step\n1\n")
    (out / f"{WEIGHTS}.part9").write_bytes(b"of an earlier run")
    split(work, out)
    return out


def test_weights_are_split_and_joined(brought_back: Path, tmp_path: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in brought_back.iterdir()}
    assert {n: size for n, size in sizes.items() if WEIGHTS in n} == {
        f"{WEIGHTS}.part1": 1000,
        f"{WEIGHTS}.part2": 1000,
        f"{WEIGHTS}.part3": 500,
    }
    join(brought_back, tmp_path / "new" / WEIGHTS)
    original = (tmp_path / "work" / WEIGHTS).read_bytes()
    assert (tmp_path / "new" / WEIGHTS).read_bytes() == original
    # other tools can check it too
    (brought_back / WEIGHTS).write_bytes(original)
    subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=brought_back, check=True
    )


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / f"{WEIGHTS}.part2").unlink(), "part2 is missing"),
        (lambda folder: (folder / f"{WEIGHTS}.part3").write_bytes(b"cut"), r"part3 is damaged \(3"),
        (lambda folder: (folder / SUMS).unlink(), f"has no {SUMS}"),
        (lambda folder: drop_line(folder / SUMS, "part1"), f"{SUMS} is damaged"),
        (lambda folder: (folder / SUMS).write_text("nonsense\n"), f"{SUMS} is damaged"),
    ],
)
def test_what_did_not_arrive_whole_is_named(
    brought_back: Path, tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    (tmp_path / WEIGHTS).write_bytes(b"earlier")
    harm(brought_back)
    with pytest.raises(SystemExit, match=message):
        main(["--join", str(brought_back), "--out", str(tmp_path / WEIGHTS)])
    assert (tmp_path / WEIGHTS).read_bytes() == b"earlier"


def drop_line(path: Path, word: str) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if word not in line))


def test_weights_that_do_not_fit_into_the_files_are_refused(
    brought_back: Path, tmp_path: Path
) -> None:
    assert len(list(brought_back.iterdir())) == 5
    (tmp_path / "work" / WEIGHTS).write_bytes(bytes(6500))
    with pytest.raises(InputError, match="more than 6 parts"):
        split(tmp_path / "work", brought_back)
    (tmp_path / "work" / WEIGHTS).unlink()
    with pytest.raises(InputError, match="the training did not end"):
        split(tmp_path / "work", brought_back)


def test_a_call_ends_in_time_and_the_next_one_goes_on(
    tiny_network: FastSAM3D, make_case: Callable[..., Case], tmp_path: Path
) -> None:
    samples = ClickSamples([make_case()], SampleOptions(roi_size=32, scenes=1), seed=0)
    plain = TrainOptions(minutes=1000, rois=1, clicks=2, workers=0, max_steps=1)
    first = dataclasses.replace(plain, call_minutes=10)
    begun = time.monotonic() - 601  # seconds for reading the data, say
    run, _ = pretrain(tiny_network, samples, tmp_path, first, begun)
    assert run.step == 0 and run.minutes > 10
    run, _ = pretrain(tiny_network, samples, tmp_path, plain)
    assert run.step == 1 and run.minutes > 10


def test_bfloat16_leads_where_float32_does(tiny_network: FastSAM3D) -> None:
    """On a CPU, whose lists of what stays in float32 are about those of CUDA."""
    config = dataclasses.replace(
        tiny_network.config, detail_channels=4, mask_threshold="expected_dice"
    )
    draw = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.randn(2, 1, 32, 32, 32, generator=draw),
        "targets": (torch.rand(2, 1, 16, 16, 16, generator=draw) > 0.7).float(),
        "clicks_roi": torch.tensor([[[9.0, 20.0, 13.0]], [[25.0, 8.0, 17.0]]]),
    }

    def gradient(lower: bool) -> torch.Tensor:
        network = build_untrained(config, seed=0)
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            generator = torch.Generator().manual_seed(1)
            loss, _ = interactive_loss(network, batch, 2, {0, 1}, generator)
        loss.backward()
        found = [x.grad.flatten() for x in network.parameters() if x.grad is not None]
        assert all(x.dtype == torch.float32 for x in found)
        return torch.cat(found)

    exact, lower = gradient(False), gradient(True)
    assert not torch.equal(exact, lower)
    assert float(torch.cosine_similarity(exact, lower, dim=0)) > 0.98


def test_a_cpu_stays_in_float32() -> None:
    with mixed_precision(torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")
