"""A server with a key, on a small disk, that is killed: what a site's engineer tries first."""

import json
import signal
import stat
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException
from nibabel.affines import from_matvec

from lib.server.temporary_folder import PREFIX, remove_abandoned
from serving import APP, BALL_WEIGHTS, running_server

KEY = "the-key-of-this-site"
SHAPE_IJK = (60, 52, 34)
AFFINE_MM = from_matvec(np.diag([-2.1, -1.7, 3.0]), [40, 50, -30])


def scan(seed=0):
    return np.random.default_rng(seed).integers(-1000, 1000, SHAPE_IJK, dtype=np.int16)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with a key, the device of the site, and a temporary folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "studies").mkdir()
    (folder / "temporary").mkdir()
    nib.save(nib.Nifti1Image(scan(), AFFINE_MM), folder / "studies" / "head.nii")
    audit = ("--conf", "audit_log", str(folder / "audit.jsonl"), "--conf", "device", "cpu")
    env = {"FASTSAM3D_API_KEY": KEY, "TMPDIR": str(folder / "temporary")}
    arguments = (*BALL_WEIGHTS, *audit)
    with running_server(folder / "studies", folder / "server.log", *arguments, env=env) as running:
        yield running


@pytest.fixture
def signed_in(server):
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {KEY}"
    return session


def audited(server, request):
    """Return user, request and status of the audit's lines, once it has one of `request`.

    A line is written after the reply, so a client may be faster.
    """
    deadline = time.monotonic() + 30
    while True:
        lines = map(json.loads, (server.folder / "audit.jsonl").read_text().splitlines())
        found = [(line["user"], line["request"], line["status"]) for line in lines]
        if any(each[1] == request for each in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def test_slicer_signs_in_with_the_key_as_the_password(server, tmp_path):
    client = MONAILabelClient(server.url, str(tmp_path))
    assert client.auth_enabled()
    with pytest.raises(MONAILabelClientException, match="Status: 401"):
        client.info()
    with pytest.raises(MONAILabelClientException, match="Status: 401.*not the key"):
        client.auth_token("anna", "wrong")
    client.update_auth(client.auth_token("anna", KEY))
    assert client.auth_valid_token()
    assert "fastsam3d" in client.info()["models"]
    label = nib.Nifti1Image(np.ones(SHAPE_IJK, np.uint8), AFFINE_MM)
    nib.save(label, tmp_path / "label.nii.gz")
    client.save_label("head", str(tmp_path / "label.nii.gz"), "final", {"label_info": []})
    assert ("anna", "PUT /datastore/label", 200) in audited(server, "PUT /datastore/label")


def test_the_key_is_in_no_log(server):
    assert KEY not in server.log_text()


def test_the_client_does_not_choose_the_device_of_the_site(server, signed_in):
    clicks = json.dumps({"foreground": [[30, 25, 15]], "device": "cuda:7"})
    reply = signed_in.post(
        f"{server.url}/infer/fastsam3d?image=head&output=json", data={"params": clicks}, timeout=60
    )
    assert reply.status_code == 200, reply.text


def test_health_is_answered_while_clicks_compute(server, signed_in):
    def click(number):
        clicks = json.dumps({"foreground": [[20 + number, 25, 15]]})
        url = f"{server.url}/infer/fastsam3d?image=head&output=image"
        return signed_in.post(url, data={"params": clicks}, timeout=120).status_code

    seconds = []
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(click, number) for number in range(24)]
        while not all(job.done() for job in jobs):
            start = time.perf_counter()
            assert requests.get(f"{server.url}/healthz", timeout=30).json() == {"status": "ok"}
            seconds.append(time.perf_counter() - start)
    assert [job.result() for job in jobs] == [200] * 24
    assert statistics.median(seconds) < 0.05


def left_in(folder):
    """Return what lies in a temporary folder, but for the empty one that torch makes at import."""
    return [path for path in folder.iterdir() if not path.name.startswith("torchinductor")]


def test_temporary_files_are_private_and_few(server):
    (folder,) = left_in(server.folder / "temporary")
    assert folder.name.startswith(PREFIX)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name for path in folder.iterdir()} == {"lock"}


HOLD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from lib.server.temporary_folder import use_private_folder
folder = use_private_folder()
(folder / "mask-of-a-patient.nii").write_text("voxels")
print(folder, flush=True)
time.sleep(600)
"""


def test_the_next_start_removes_what_a_killed_server_left(tmp_path):
    app = str(APP)
    command, env = [sys.executable, "-c", HOLD, app], {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    folder = Path(process.stdout.readline().strip())
    assert remove_abandoned(tmp_path) == []
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / "mask-of-a-patient.nii").is_file()
    assert remove_abandoned(tmp_path) == [folder]
    assert not list(tmp_path.iterdir())


def test_a_failed_start_leaves_no_file(tmp_path):
    (tmp_path / "temporary").mkdir()
    (tmp_path / "studies").mkdir()
    conf, env = ("--conf", "weights", "nowhere.pth"), {"TMPDIR": str(tmp_path / "temporary")}
    with (
        pytest.raises(RuntimeError, match="the server cannot start"),
        running_server(tmp_path / "studies", tmp_path / "server.log", *conf, env=env),
    ):
        pass
    assert not left_in(tmp_path / "temporary")


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk needs an administrator")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_a_507_and_keeps_the_labels(small_disk, tmp_path):
    shape = (40, 40, 40)
    image = nib.Nifti1Image(scan()[:40, :40, :34].repeat(2, axis=2)[:, :, :40], AFFINE_MM)
    nib.save(image, small_disk / "head.nii.gz")
    noise, kept = np.random.default_rng(0), b""
    arguments = (*BALL_WEIGHTS, "--conf", "label_versions", "500")
    with running_server(small_disk, tmp_path / "server.log", *arguments) as server:
        for _ in range(200):
            content = nib.Nifti1Image(
                noise.integers(0, 255, shape, dtype=np.uint8), AFFINE_MM
            ).to_bytes()
            reply = requests.put(
                f"{server.url}/datastore/label?image=head",
                files={"label": ("x.nii", content)},
                timeout=60,
            )
            if not reply.ok:
                break
            kept = content
        assert reply.status_code == 507
        assert "the disk of the server is full" in reply.json()["detail"]
        query = {"label": "head", "tag": "final"}
        label = requests.get(f"{server.url}/datastore/label", params=query, timeout=60)
        assert label.content == kept
