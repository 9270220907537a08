"""The viewer's unsaved work comes from the journal: of its user, and apart of others."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests

from serving import BALL_WEIGHTS, RunningServer, running_server

SHAPE_IJK = (50, 64, 30)
AFFINE_MM = nib.affines.from_matvec(np.diag([-1.4, -1.2, 2.5]), [40, 50, -30])


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    (tmp_path / "studies").mkdir()
    noise = np.random.default_rng(0).normal(0, 20, SHAPE_IJK)
    image = nib.Nifti1Image((noise + 300).astype(np.int16), AFFINE_MM)
    nib.save(image, tmp_path / "studies" / "scan.nii.gz")
    return tmp_path / "studies"


def series(server: RunningServer) -> str:
    (found,) = requests.get(f"{server.url}/dicom-web/series", timeout=60).json()
    return f"{server.url}/viewer/series/{found['0020000E']['Value'][0]}"


def prompt(place_ijk: tuple[int, int, int], number: int = 1) -> dict:
    place = AFFINE_MM @ (*place_ijk, 1) * (-1, -1, 1, 1)
    kind = {"type": "spatial", "subtype": "point", "prompt": place[:3].tolist()}
    return {**kind, "semantic_id_key": {"semantic_id": number}, "aux": {}}


def params(label: str, prompts: list[dict], user: str, number: int = 1) -> dict:
    info = [{"name": label, "idx": number}]
    return {
        "label": label,
        "label_info": info,
        "prompts": prompts,
        "coordinates": "lps_mm",
        "client_id": user,
    }


def mask_file(value: int) -> tuple[str, bytes]:
    values = np.zeros(SHAPE_IJK, np.uint8)
    values[20:30, 20:35, 10:18] = value
    return "mask.nii.gz", gzip.compress(nib.Nifti1Image(values, AFFINE_MM).to_bytes())


def press(server: RunningServer, fields: dict, **files) -> None:
    reply = requests.post(
        f"{server.url}/infer/fastsam3d",
        params={"image": "scan", "output": "box"},
        data={"params": json.dumps(fields)},
        files=files or None,
        timeout=120,
    )
    assert reply.status_code == 200, reply.text


def work(server: RunningServer, user: str) -> dict:
    reply = requests.get(f"{series(server)}/work", {"client_id": user}, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_work_outlives_the_server_and_ends_with_a_save(studies: Path, tmp_path: Path) -> None:
    first, second = prompt((25, 30, 15)), prompt((25, 34, 15), 3)
    arguments = (studies, tmp_path / "server.log", *BALL_WEIGHTS)
    with running_server(*arguments) as server:
        press(server, params("liver", [first], "Anna"))
        press(server, params("spleen", [second], "Anna", 3), initial_mask=mask_file(3))
        press(server, params("liver", [first], "Ben"))
    with running_server(*arguments) as server:
        anna = work(server, "Anna")
        liver, spleen = anna["own"]["structures"]
        assert (liver["name"], liver["mask"]) == ("liver", "")
        assert liver["prompts"][0]["prompt"] == first["prompt"]
        assert (spleen["name"], spleen["number"]) == ("spleen", 3)
        reply = requests.get(f"{series(server)}/masks/{spleen['mask']}", timeout=60)
        box = json.loads(reply.headers["X-Mask-Box"])
        assert box["offset_ijk"] == [20, 20, 10] and box["size_ijk"] == [10, 15, 8]
        assert set(reply.content) == {3}
        assert [other["user"] for other in anna["others"]] == ["Ben"]
        assert work(server, "Carl")["own"]["structures"] == []

        saved = requests.put(
            f"{server.url}/datastore/label",
            params={"image": "scan", "base": 0},
            files={"label": mask_file(1)},
            data={"params": json.dumps({"client_id": "Anna"})},
            timeout=60,
        )
        assert saved.status_code == 200, saved.text
        assert work(server, "Anna") == {
            "own": {"user": "Anna", "time": "", "structures": []},
            "others": [],
        }
        assert len(work(server, "Ben")["own"]["structures"]) == 1


def save(server: RunningServer, info: dict) -> None:
    reply = requests.put(
        f"{server.url}/datastore/label",
        params={"image": "scan"},
        files={"label": mask_file(1)},
        data={"params": json.dumps(info)},
        timeout=60,
    )
    assert reply.status_code == 200, reply.text


def test_a_save_leaves_the_work_of_another_page(studies: Path, tmp_path: Path) -> None:
    """Two pages of one user on one structure: each save ends what its page made or restored."""
    first, second = prompt((25, 30, 15)), prompt((25, 34, 15))
    with running_server(studies, tmp_path / "server.log", *BALL_WEIGHTS) as server:
        press(server, {**params("liver", [first], "Anna"), "page": "A"})
        opened = work(server, "Anna")["own"]
        press(server, {**params("liver", [first, second], "Anna"), "page": "B"})
        info = {"client_id": "Anna", "structures_of_page": ["liver"]}
        save(server, {**info, "page": "A", "restored_until": ""})
        (liver,) = work(server, "Anna")["own"]["structures"]
        assert [each["prompt"] for each in liver["prompts"]] == [
            first["prompt"],
            second["prompt"],
        ]
        save(server, {**info, "page": "B", "restored_until": opened["time"]})
        assert work(server, "Anna")["own"]["structures"] == []


def test_what_is_drawn_without_a_request_is_recorded(studies: Path, tmp_path: Path) -> None:
    with running_server(studies, tmp_path / "server.log", *BALL_WEIGHTS) as server:
        press(server, params("liver", [prompt((25, 30, 15))], "Anna"))
        url = f"{series(server)}/work"

        def record(fields: dict, **files) -> requests.Response:
            data = {"params": json.dumps(fields)}
            return requests.post(url, data=data, files=files or None, timeout=60)

        assert record(params("liver", [], "Anna")).status_code == 200
        (liver,) = work(server, "Anna")["own"]["structures"]
        assert liver["prompts"] == [] and liver["mask"] == ""
        assert record(params("bone", [], "Anna"), initial_mask=mask_file(1)).status_code == 200
        assert work(server, "Anna")["own"]["structures"][1]["mask"]
        for fields in (params("", [], "Anna"), {**params("liver", [], "Anna"), "prompts": [{}]}):
            assert record(fields).status_code == 400
        for number, info in enumerate(
            ([5], [{}], [{"idx": "x"}], [{"idx": None}], [[1]], [], None)
        ):
            fields = {**params(f"odd {number}", [], "Dora"), "label_info": info}
            assert record(fields).status_code == 200
        numbers = {each["number"] for each in work(server, "Dora")["own"]["structures"]}
        assert numbers == {1}
        assert record({**params("liver", [], "Dora"), "label_info": "abcde"}).status_code == 400
        broken = ("mask.nii.gz", io.BytesIO(b"no image"))
        assert record(params("bone", [], "Anna"), initial_mask=broken).status_code == 400
        gone = requests.get(f"{series(server)}/masks/{'0' * 64}", timeout=60)
        assert gone.status_code == 404 and "not kept" in gone.json()["detail"]
        for name in ("x" * 5000, ".hidden", "a%00b"):
            unknown = requests.get(f"{server.url}/viewer/series/{name}/work", timeout=60)
            assert unknown.status_code == 400 and "send a name" in unknown.json()["detail"]
