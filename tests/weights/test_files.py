"""Files of weights: finding, downloading, reading once, writing atomically, and refusals."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import checkpoint as checkpoint_command
from lib.configs import fastsam3d, sam_med3d
from lib.errors import AppError, WeightsError
from lib.networks import FastSAM3DConfig, build_untrained, load_checkpoint, save_checkpoint
from lib.weights import choose_weights, file_weights, find_weights, save_weights
from lib.weights.files import check_default

TEACHER = FastSAM3DConfig(roi_size=64, width=24, depth=2, num_heads=3, out_channels=48)
STUDENT = FastSAM3DConfig(
    roi_size=64,
    width=24,
    depth=2,
    num_heads=2,
    out_channels=48,
    attention_free_blocks=(0,),
    residual="normed",
)


class Hub(BaseHTTPRequestHandler):
    """A minimal Hugging Face file server that drops the first connection."""

    protocol_version = "HTTP/1.1"
    content = b""
    drops = 1
    ranges: list[str | None] = []

    def do_HEAD(self):
        self._answer(send=False)

    def do_GET(self):
        Hub.ranges.append(self.headers.get("Range"))
        self._answer(send=True)

    def _answer(self, send):
        if self.path != "/blueyo0/SAM-Med3D/resolve/main/sam_med3d.pth":
            self.send_error(404)
            return
        requested = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(requested.group(1)) if requested else 0
        body = Hub.content[start:]
        self.send_response(206 if requested else 200)
        if requested:
            end = len(Hub.content) - 1
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(Hub.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(Hub.content).hexdigest()}"')
        self.end_headers()
        if not send:
            return
        if Hub.drops:
            Hub.drops -= 1
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, *_):
        """Do not log."""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    published = tmp_path / "published.pth"
    torch.save({"model_state_dict": build_untrained(TEACHER, 1).state_dict()}, published)
    Hub.content, Hub.drops, Hub.ranges = published.read_bytes(), 1, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # small chunks, as a download is resumed after the last complete chunk
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**16)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def test_download_is_resumed_recorded_and_done_once(hub, tmp_path, capfd):
    folder = tmp_path / "model"
    path = find_weights("sam_med3d.pth", folder)
    assert path == folder / "sam_med3d.pth"
    assert path.read_bytes() == Hub.content
    resumed = [int(r.split("=")[1].strip("-")) for r in Hub.ranges if r and r != "bytes=0-"]
    assert resumed, f"the second request starts where the first broke off, not {Hub.ranges}"
    assert 0 < resumed[0] < len(Hub.content)
    assert "%" in capfd.readouterr().err, "there is a progress bar"

    digest = hashlib.sha256(Hub.content).hexdigest()
    assert (folder / "sam_med3d.pth.sha256").read_text() == f"{digest}  sam_med3d.pth\n"
    assert file_weights(path).info()["sha256"] == digest

    requests = len(Hub.ranges)
    assert find_weights("sam_med3d.pth", folder) == path
    assert len(Hub.ranges) == requests


def test_a_download_that_changed_on_disk_is_refused(hub, tmp_path):
    path = find_weights("sam_med3d.pth", tmp_path / "model")
    save_checkpoint(build_untrained(TEACHER, 2), path)
    with pytest.raises(WeightsError, match="SHA-256 .* recorded .* remove it"):
        file_weights(path)


def test_without_a_network_the_error_says_where_from_and_where_to(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    with pytest.raises(WeightsError) as refused:
        find_weights("fastsam3d.pth", tmp_path)
    assert refused.match("http://127.0.0.1:9/techlove/FastSAM3D/resolve/main/fastsam3d.pth")
    assert refused.match(re.escape(f"put it at {tmp_path / 'fastsam3d.pth'}"))
    assert not (tmp_path / "fastsam3d.pth").exists()


def test_a_file_put_into_the_folder_is_used(tmp_path):
    path = tmp_path / "fastsam3d.pth"
    path.write_bytes(b"here")
    assert find_weights("fastsam3d.pth", tmp_path) == path
    assert find_weights(str(path), tmp_path / "elsewhere") == path


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"'mine.pth' .* one of sam_med3d.pth, sam_med3d_turbo"):
        find_weights("mine.pth", tmp_path)


def test_missing_default_weights_are_an_error(tmp_path, monkeypatch):
    path = tmp_path / "fastsam3d_default.safetensors"
    with pytest.raises(WeightsError, match=rf"{path} are missing; restore .* --conf weights"):
        check_default(path, "weights")
    monkeypatch.setattr(sam_med3d, "DEFAULT_TEACHER", path)
    with pytest.raises(WeightsError, match="--conf teacher_weights"):
        sam_med3d.teacher_weights("", str(tmp_path))
    path.write_bytes(b"")
    assert check_default(path, "weights") == str(path)


def test_an_untrained_student_says_so(tmp_path):
    path = tmp_path / "student.safetensors"
    save_checkpoint(build_untrained(STUDENT, 3), path, {"trained": "false"})
    weights = file_weights(path)
    assert weights.info()["trained"] is False
    assert weights.info()["description"] == "UNTRAINED weights student.safetensors"


class Vanishing:
    """Removes each file as soon as it is opened, so that it cannot be opened again."""

    def __init__(self, monkeypatch, folder):
        self.folder, self.opened = folder, []
        self.open = Path.open
        monkeypatch.setattr(Path, "open", lambda path, *args, **kw: self._open(path, *args, **kw))

    def _open(self, path, *arguments, **options):
        file = self.open(path, *arguments, **options)
        if path.parent == self.folder:
            self.opened.append(path.name)
            path.unlink()
        return file


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_is_opened_once(tmp_path, monkeypatch, suffix):
    path, network = tmp_path / f"weights{suffix}", build_untrained(STUDENT, 3)
    if suffix == ".pth":
        torch.save(network.state_dict(), path)
    else:
        save_checkpoint(network, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    vanishing = Vanishing(monkeypatch, tmp_path)
    weights = file_weights(path)
    assert vanishing.opened == [path.name]
    assert weights.network_id == digest
    for name, x in weights.network.state_dict().items():
        torch.testing.assert_close(x, network.state_dict()[name], rtol=0, atol=0)


def test_encoder_and_teacher_are_opened_once_each(tmp_path, monkeypatch):
    torch.save(build_untrained(STUDENT, 3).image_encoder.state_dict(), tmp_path / "encoder.pth")
    save_checkpoint(build_untrained(TEACHER, 4), tmp_path / "teacher.safetensors")
    vanishing = Vanishing(monkeypatch, tmp_path)
    teacher = file_weights(tmp_path / "teacher.safetensors")
    student = file_weights(tmp_path / "encoder.pth", teacher)
    assert vanishing.opened == ["teacher.safetensors", "encoder.pth"]
    assert student.network_id.endswith(f"+{teacher.network_id}")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path, student = tmp_path / "own.safetensors", build_untrained(STUDENT, 3)
    save_weights(student, path, {"dice": "0.5"})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_weights(student, path, {"dice": 0.5})
    torch.save(student.image_encoder.state_dict(), tmp_path / "encoder.pth")
    with pytest.raises(WeightsError, match="has no decoder"):
        save_weights(load_checkpoint(tmp_path / "encoder.pth"), path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["encoder.pth", path.name]


def test_an_encoder_alone_is_completed_from_the_teacher(tmp_path):
    student, teacher = build_untrained(STUDENT, 3), build_untrained(TEACHER, 4)
    torch.save(student.image_encoder.state_dict(), tmp_path / "encoder.pth")
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    weights = choose_weights("encoder.pth", tmp_path, file_weights(tmp_path / "teacher.pth"))
    assert weights.network.policy.click_history == "newest"
    for name, x in weights.network.mask_decoder.state_dict().items():
        torch.testing.assert_close(x, teacher.mask_decoder.state_dict()[name])

    torch.save(build_untrained(TEACHER, 5).state_dict(), tmp_path / "teacher.pth")
    changed = file_weights(tmp_path / "encoder.pth", tmp_path / "teacher.pth")
    assert changed.network_id != weights.network_id


def test_an_encoder_alone_is_not_served(tmp_path):
    torch.save(build_untrained(STUDENT, 3).image_encoder.state_dict(), tmp_path / "encoder.pth")
    with pytest.raises(WeightsError, match="encoder only; .* --conf teacher_weights"):
        choose_weights("encoder.pth", tmp_path)


def test_metadata_reaches_the_info(tmp_path):
    path = tmp_path / "own.safetensors"
    facts = {"licence": "Apache-2.0", "dice": "0.5 at 1 click", "trained": "true"}
    save_checkpoint(build_untrained(STUDENT, 3), path, facts)
    info = file_weights(path).info()
    assert {key: info[key] for key in ("licence", "dice", "trained")} == {**facts, "trained": True}


def test_checkpoint_command_shows_and_converts(tmp_path, capsys):
    source, target = tmp_path / "fastsam3d.pth", tmp_path / "own.safetensors"
    network = build_untrained(STUDENT, 3)
    torch.save(network.state_dict(), source)
    assert checkpoint_command.main(["show", str(source)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["holds"] == "whole network"
    assert report["config"]["attention_free_blocks"] == [0]
    assert report["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()

    assert checkpoint_command.main(["convert", str(source), str(target)]) == 0
    assert load_checkpoint(target).config == network.config
    assert checkpoint_command.main(["convert", str(source), str(target)]) == 1
    assert "this file exists already" in capsys.readouterr().err
    assert checkpoint_command.main(["show", str(tmp_path / "none.pth")]) == 1
    assert "there is no such file" in capsys.readouterr().err


def test_one_base_covers_all_errors_that_users_see():
    assert issubclass(WeightsError, AppError)
    with pytest.raises(AppError, match="neither a file nor a published name"):
        fastsam3d.choose_weights("none.pth", Path("model"))
