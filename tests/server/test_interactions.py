"""Each click on a study is in the journal, and its line is enough to get the same mask again."""

import gzip
import hashlib
import json
import shutil
import struct

import nibabel as nib
import numpy as np
import pytest
import requests

from serving import BALL_WEIGHTS, running_server

SHAPE_IJK = (50, 64, 30)
AFFINE_MM = nib.affines.from_matvec(np.diag([-1.4, -1.2, 2.5]), [40, 50, -30])
FIRST = {"foreground": [[25, 30, 15]], "background": []}
POINTS = [([25, 30, 15], 3), ([25, 30, 19], 0)]
PROMPTS = [
    {
        "type": "spatial",
        "subtype": "point",
        "prompt": place,
        "semantic_id_key": {"semantic_id": structure},
    }
    for place, structure in POINTS
]


def image():
    noise = np.random.default_rng(0).normal(0, 20, SHAPE_IJK)
    return nib.Nifti1Image((noise + 300).astype(np.int16), AFFINE_MM)


def click(server, name, params, **files):
    return requests.post(
        f"{server.url}/infer/fastsam3d",
        params={"image": name, "output": "box"},
        data={"params": json.dumps(params)},
        files=files or None,
        timeout=120,
    )


def lines(server, name):
    reply = requests.get(f"{server.url}/interactions/{name}", timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()["interactions"]


def hash_of(reply):
    """Return the SHA-256 of the box of a reply and its voxels."""
    assert reply.status_code == 200, reply.text
    box = json.loads(reply.headers["X-Mask-Box"])
    header = struct.pack("<6q", *box["offset_ijk"], *box["size_ijk"])
    return hashlib.sha256(header + reply.content).hexdigest()


def replayed(server, name, line):
    """Return the hash of the mask for the prompts and options of a line."""
    options = {key: value for key, value in line["options"].items() if key != "model"}
    prompts = line["prompts"]
    prompts = {"prompts": prompts} if isinstance(prompts, list) else prompts
    return hash_of(click(server, name, {**options, **prompts}))


def test_lines_of_the_journal_give_the_same_masks_also_after_a_restart(tmp_path):
    (tmp_path / "studies").mkdir()
    nib.save(image(), tmp_path / "studies" / "scan.nii.gz")
    arguments = (tmp_path / "studies", tmp_path / "server.log", *BALL_WEIGHTS)
    with running_server(*arguments) as server:
        first = click(server, "scan", {**FIRST, "label": "liver", "client_id": "Anna"})
        second = click(server, "scan", {"prompts": PROMPTS, "size": 1})
        kept = lines(server, "scan")
        assert [line["mask_sha256"] for line in kept] == [hash_of(first), hash_of(second)]
        assert [replayed(server, "scan", line) for line in kept] == [
            line["mask_sha256"] for line in kept
        ]
        weights = server.info()["models"]["fastsam3d"]["weights"]["sha256"]
    assert kept[0]["mask_sha256"] != kept[1]["mask_sha256"]
    assert [line["weights_sha256"] for line in kept] == [weights] * 2
    assert (kept[0]["label"], kept[0]["user"]) == ("liver", "Anna")
    assert (kept[0]["prompts"], kept[1]["prompts"]) == (FIRST, PROMPTS)
    assert kept[0]["options"] == {"model": "fastsam3d"}
    assert kept[1]["options"] == {"model": "fastsam3d", "size": 1}
    with running_server(*arguments) as server:
        assert lines(server, "scan")[:2] == kept
        assert [replayed(server, "scan", line) for line in kept[::-1]] == [
            line["mask_sha256"] for line in kept[::-1]
        ]
        assert len(lines(server, "scan")) == 6


@pytest.fixture
def name(ball_server, tmp_path):
    nib.save(image(), tmp_path / "scan.nii.gz")
    ball_server.add_study(tmp_path / "scan.nii.gz", "interactions")
    yield "interactions"
    for path in list(ball_server.studies.rglob("interactions*")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def test_refused_requests_and_images_of_clients_are_not_in_the_journal(ball_server, name):
    for params in (
        {"foreground": [[99, 0, 0]]},
        {**FIRST, "shown_box": {"offset_ijk": [0, 0, 0], "size_ijk": [99, 1, 1]}},
    ):
        assert click(ball_server, name, params).status_code == 400
    sent = ("scan.nii.gz", gzip.compress(image().to_bytes(), 1))
    assert click(ball_server, name, FIRST, file=sent).status_code == 200
    assert lines(ball_server, name) == []


def test_a_mask_to_start_from_is_known_by_its_hash(ball_server, name):
    start = np.zeros(SHAPE_IJK, np.uint8)
    start[30:, 20:40, 5:25] = 9
    content = gzip.compress(nib.Nifti1Image(start, AFFINE_MM).to_bytes(), 1)
    sent = ("start.nii.gz", content)
    reply = click(ball_server, name, {"prompts": PROMPTS, "overwrite": True}, initial_mask=sent)
    (line,) = lines(ball_server, name)
    assert line["mask_sha256"] == hash_of(reply)
    assert line["initial_mask_sha256"] == hashlib.sha256(content).hexdigest()
    assert line["options"] == {"model": "fastsam3d", "overwrite": True}
