"""The image is built, and its server is clicked; needs buildah, mmdebstrap and the package indexes.

IMAGE_ARGS: further options of `buildah bud`, such as `--build-arg TORCH_INDEX= --volume ...`.
"""

import os
import shlex
import shutil
import subprocess
import time

import nibabel as nib
import numpy as np
import pytest
import requests

from serving import free_port

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BASE, IMAGE = "localhost/bookworm", "localhost/fastsam3d-server"
MAX_MB = 2000
SECONDS = 1800
KEY = "the-key-of-the-image"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3 * SECONDS),
    pytest.mark.skipif(
        not (shutil.which("buildah") and shutil.which("mmdebstrap")),
        reason="buildah or mmdebstrap is missing",
    ),
]


def run(*command):
    result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}{result.stderr[-2000:]}"
    return result.stdout.strip()


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The image, on a base of Debian that this machine makes itself."""
    if subprocess.run(
        ["buildah", "inspect", "--type", "image", BASE], capture_output=True
    ).returncode:
        base = str(tmp_path_factory.mktemp("base") / "base.tar")
        run("mmdebstrap", "--variant=minbase", "bookworm", base)
        container = run("buildah", "from", "scratch")
        run("buildah", "add", container, base, "/")
        run("buildah", "commit", "--rm", container, BASE)
    arguments = shlex.split(os.environ.get("IMAGE_ARGS", ""))
    command = ["buildah", "bud", "--isolation", "chroot", "--format", "docker", "--layers"]
    command += ["--build-arg", f"BASE={BASE}", *arguments, "--target", "server", "-t", IMAGE]
    run(*command, "-f", f"{REPOSITORY}/Containerfile", REPOSITORY)
    return IMAGE


@pytest.fixture(scope="module")
def container(image):
    name = run("buildah", "from", image)
    yield name
    run("buildah", "rm", name)


def inside(container, *command):
    return run("buildah", "run", "--isolation", "chroot", container, "--", *command)


def test_the_image_is_small_and_has_no_compiler(image, container):
    size = run("buildah", "images", "--format", "{{.Size}}", image)
    number, unit = size.split()
    assert float(number) * {"MB": 1, "GB": 1000}[unit] < MAX_MB
    script = "import shutil; print([p for p in ('gcc', 'cc', 'g++', 'make') if shutil.which(p)])"
    assert inside(container, "python", "-c", script) == "[]"
    assert inside(container, "id", "-u") == "10001"
    assert "healthz" in run("buildah", "inspect", "--type", "image", image)


def test_a_click_on_the_server_of_the_image(container, tmp_path):
    (tmp_path / "scans").mkdir()
    scan = np.random.default_rng(0).integers(-900, 900, (40, 36, 24), dtype=np.int16)
    nib.save(nib.Nifti1Image(scan, np.diag([-2, -1.5, 3, 1])), tmp_path / "scans" / "head.nii")
    (tmp_path / "key").write_text(KEY)
    for path in (tmp_path / "scans", tmp_path / "scans" / "head.nii"):
        os.chown(path, 10001, 10001)
    port = free_port()
    command = ["buildah", "run", "--isolation", "chroot"]
    command += ["--volume", f"{tmp_path}/scans:/scans"]
    command += ["--volume", f"{tmp_path}/key:/run/secrets/api_key:ro", container, "--"]
    command += ["/srv/fastsam3d/start-server", "--studies", "/scans", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait(f"http://127.0.0.1:{port}/healthz", server)
        reply = click(port, {"Authorization": f"Bearer {KEY}"})
        assert reply.status_code == 200, reply.text
        assert click(port, {}).status_code == 401
    finally:
        server.terminate()
        server.wait(timeout=60)


def click(port, headers):
    return requests.post(
        f"http://127.0.0.1:{port}/infer/fastsam3d?image=head&output=image",
        data={"params": '{"foreground": [[20, 18, 12]]}'},
        headers=headers,
        timeout=120,
    )


def wait(url, process):
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if requests.get(url, timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.5)
    raise RuntimeError(f"{url} does not answer")
