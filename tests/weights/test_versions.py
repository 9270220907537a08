"""Publishing is atomic, has a rollback, and reaches a running model."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lib import atomic_file
from lib.cache import ByteCache, array_nbytes
from lib.errors import InputError, NotFoundError
from lib.infers import Caches, FastSAM3DInfer
from lib.networks import FastSAM3DConfig, build_untrained, save_checkpoint
from lib.weights import versions as published_module
from lib.weights.files import file_weights
from lib.weights.served import ServedWeights
from lib.weights.versions import StudentVersions, describe_versions

TINY = FastSAM3DConfig(
    roi_size=32,
    patch_size=8,
    width=16,
    depth=2,
    num_heads=2,
    out_channels=16,
    decoder_heads=2,
    decoder_mlp_width=16,
    mask_channels=4,
    iou_head_width=8,
    position_bias="none",
)


def network(seed: int):
    return build_untrained(TINY, seed)


@pytest.fixture
def base(tmp_path):
    save_checkpoint(network(0), tmp_path / "base.safetensors")
    return file_weights(tmp_path / "base.safetensors")


@pytest.fixture
def published(tmp_path, base):
    return StudentVersions(tmp_path / "published", base.network_id)


@pytest.fixture
def served(base, published):
    return ServedWeights(base, published)


def test_the_base_is_served_until_something_is_published(served, base, published):
    assert served() is base
    version = published.publish(network(1), {"licence": "mine"}, keep=3)
    assert version.number == 1 and version.parent == 0
    weights = served()
    assert weights.network_id == version.sha256
    assert weights.info()["licence"] == "mine"
    for weight, expected in zip(weights.network.parameters(), network(1).parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)
    assert served() is weights, "nothing is read again while nothing changes"


def test_versions_belong_to_the_weights_that_they_were_trained_from(tmp_path, published):
    published.publish(network(1), {}, keep=3)
    others = StudentVersions(tmp_path / "published", "another base")
    assert others.read().served == 0


def test_rollback_goes_back_step_by_step_and_to_a_number(served, base, published):
    first = published.publish(network(1), {}, keep=3)
    second = published.publish(network(2), {}, keep=3)
    assert served().network_id == second.sha256
    assert published.rollback() == 1
    assert served().network_id == first.sha256
    assert published.rollback() == 0
    assert served().network_id == base.network_id
    with pytest.raises(NotFoundError, match="nothing to roll back"):
        published.rollback()
    assert published.rollback(2) == 2
    assert served().network_id == second.sha256
    with pytest.raises(NotFoundError, match="no version 7; these are kept: 0, 1, 2"):
        published.rollback(7)
    third = published.publish(network(3), {}, keep=3)
    assert (third.number, third.parent) == (3, 2)


def test_a_damaged_version_is_not_rolled_back_to(served, published):
    first = published.publish(network(1), {}, keep=3)
    second = published.publish(network(2), {}, keep=3)
    path = published.path_of(first)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"version 1 cannot be served: .* roll back to another"):
        published.rollback()
    assert served().network_id == second.sha256, "nothing changed"
    assert published.rollback(0) == 0


def test_only_some_versions_are_kept(published):
    for seed in range(1, 6):
        published.publish(network(seed), {}, keep=2)
    assert [version.number for version in published.read().versions] == [3, 4, 5]
    assert len(list(published.folder.glob("*.safetensors"))) == 3
    published.publish(network(9), {}, keep=0)
    assert len(list(published.folder.glob("*.safetensors"))) == 1
    assert published.rollback() == 0, "what was replaced is removed, so the base is next"


def test_a_version_rolled_back_to_stays_when_the_next_is_published(published):
    for seed in (1, 2, 3):
        published.publish(network(seed), {}, keep=1)
    published.rollback(2)
    published.publish(network(4), {}, keep=1)
    manifest = published.read()
    assert manifest.find(manifest.find(4).parent) is not None
    assert published.rollback() == 2


WRITES = {
    "save_checkpoint": published_module,
    "_sync": atomic_file,
    "replace": os,
    "fsync": os,
}
"""WRITES: the calls by which a byte reaches the disk or a name changes, with their modules."""


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("after", range(3))
def test_a_full_disk_leaves_what_was_served(served, published, monkeypatch, name, after):
    first = published.publish(network(1), {}, keep=3)
    write, calls = getattr(WRITES[name], name), []

    def full(*arguments, **options):
        calls.append(arguments)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments, **options)

    monkeypatch.setattr(WRITES[name], name, full)
    failed = False
    try:
        published.publish(network(2), {}, keep=3)
    except OSError:
        failed = True
    monkeypatch.undo()
    manifest = published.read()
    files = {path.name for path in published.folder.glob("*.safetensors")}
    assert {version.file for version in manifest.versions} <= files
    assert not list(published.folder.glob("*.partial"))
    weights = served()
    assert weights.network_id == manifest.find(manifest.served).sha256
    if not failed or manifest.served == 2:
        return
    assert weights.network_id == first.sha256
    assert published.publish(network(2), {}, keep=3).number == 2, "and the next try succeeds"


PUBLISH_FOREVER = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from test_versions import network
from lib.weights.versions import StudentVersions
published = StudentVersions(Path(sys.argv[3]), "base")
print("ready", flush=True)
for seed in range(10**6):
    published.publish(network(seed % 7), {}, keep=2)
"""


@pytest.mark.parametrize(
    "milliseconds",
    [
        pytest.param(5, marks=pytest.mark.slow),
        35,
        80,
        pytest.param(170, marks=pytest.mark.slow),
    ],
)
def test_a_kill_leaves_a_served_version(tmp_path, base, milliseconds):
    app = Path(published_module.__file__).parents[2]
    command = [sys.executable, "-c", PUBLISH_FOREVER]
    command += [str(app), str(Path(__file__).parent), str(tmp_path / "versions")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    published = StudentVersions(tmp_path / "versions", "base")
    while published.stamp() is None:
        assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=milliseconds / 1000)
    process.send_signal(signal.SIGKILL)
    process.wait()
    manifest = published.read()
    assert ServedWeights(base, published)().network_id == manifest.find(manifest.served).sha256
    assert published.publish(network(1), {}, keep=2).number == manifest.versions[-1].number + 1
    assert not list(published.folder.glob("*.partial"))
    assert len(list(published.folder.glob("*.safetensors"))) <= 3


def test_a_damaged_version_changes_nothing(served, published, caplog):
    first = published.publish(network(1), {}, keep=3)
    assert served().network_id == first.sha256
    second = published.publish(network(2), {}, keep=3)
    path = published.path_of(second)
    path.write_bytes(path.read_bytes()[:-40])
    assert served().network_id == first.sha256
    assert "is still served" in caplog.text
    assert published.rollback() == 1
    assert served().network_id == first.sha256


def test_a_broken_manifest_is_an_error(published):
    published.publish(network(1), {}, keep=3)
    (published.folder / "served.json").write_text("{")
    with pytest.raises(InputError, match="served.json cannot be used: .*; remove it"):
        published.read()


def test_clients_see_the_served_and_the_kept_versions(served, published):
    published.publish(network(1), {"dice": "0.5"}, keep=3)
    facts = describe_versions(served(), published)
    assert facts["served"] == 1
    assert facts["versions"][0]["facts"] == {"dice": "0.5"}
    assert facts["weights"]["sha256"] == facts["versions"][0]["sha256"]


# --- a running model -----------------------------------------------------------------------------


@pytest.fixture
def task(served, base):
    caches = Caches(*(ByteCache(2**26, array_nbytes) for _ in range(4)))
    return FastSAM3DInfer(base, ["organ"], caches, spacing_mm=4.0, device="cpu", current=served)


@pytest.fixture
def scan(tmp_path):
    import nibabel as nib

    generator = np.random.default_rng(0)
    image = generator.normal(size=(30, 26, 22)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.diag([4.0, 4.0, 4.0, 1.0])), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def click(task, scan):
    return task({"image": str(scan), "foreground": [[15, 13, 11]], "device": "cpu"})[1]


def test_the_next_request_uses_what_was_published(task, published, scan, base):
    assert click(task, scan)["weights"]["sha256"] == base.network_id
    version = published.publish(network(1), {}, keep=3)
    assert click(task, scan)["weights"]["sha256"] == version.sha256
    assert task.info()["weights"]["sha256"] == version.sha256
    published.rollback()
    assert click(task, scan)["weights"]["sha256"] == base.network_id


def test_embeddings_of_old_weights_are_dropped(task, published, scan):
    click(task, scan)
    before = task._caches.embeddings.nbytes, task._caches.states.nbytes
    assert min(before) > 0
    published.publish(network(1), {}, keep=3)
    click(task, scan)
    assert (task._caches.embeddings.nbytes, task._caches.states.nbytes) == before


def test_a_request_keeps_its_weights_to_the_end(task, published, scan, base, monkeypatch):
    """A version that is published during a click is used from the next click on."""
    run_inferer = FastSAM3DInfer.run_inferer

    def publish_meanwhile(self, data, *arguments, **options):
        published.publish(network(1), {}, keep=3)
        return run_inferer(self, data, *arguments, **options)

    monkeypatch.setattr(FastSAM3DInfer, "run_inferer", publish_meanwhile)
    assert click(task, scan)["weights"]["sha256"] == base.network_id
    assert [network_id for (network_id, _), _ in task._predictors.items()] == [base.network_id]
