"""Labels over HTTP: versions, two people, refusals that keep the old label; images that come in."""

import gzip
import io
import json
import stat
import tarfile
import time
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
from nibabel.affines import from_matvec

SHAPE_IJK = (34, 29, 23)
AFFINE_MM = from_matvec(np.diag([-2.1, -1.7, 3.0]), [40, 50, -30])
NAMES = [{"name": "肝臓", "idx": 1}]


def nifti(array, affine_mm=AFFINE_MM):
    return nib.Nifti1Image(array, affine_mm).to_bytes()


def mask(value=1):
    array = np.zeros(SHAPE_IJK, np.uint8)
    array[5:20, 7:21, 3:16] = value
    return array


def scan(seed=0):
    return np.random.default_rng(seed).integers(-1000, 1000, SHAPE_IJK, dtype=np.int16)


@pytest.fixture
def server(ball_server):
    return ball_server


@pytest.fixture
def image(server, tmp_path, request):
    """Add a study whose name is that of the test; its labels and journal are its own."""
    name = "labels-" + "".join(filter(str.isalnum, request.node.name))[-60:]
    nib.save(nib.Nifti1Image(scan(), AFFINE_MM), tmp_path / "scan.nii.gz")
    server.add_study(tmp_path / "scan.nii.gz", name)
    yield name
    for path in server.studies.rglob(f"{name}*"):
        if path.is_file():
            path.unlink()


def save(server, image, content, name="label.nii", headers=None, client_id="Anna", **query):
    params = {"label_info": NAMES, "client_id": client_id}
    return requests.put(
        f"{server.url}/datastore/label",
        params={"image": image, **query},
        data={"params": json.dumps(params)},
        files={"label": (name, content)},
        headers=headers,
        timeout=60,
    )


def load(server, image):
    reply = requests.get(
        f"{server.url}/datastore/label", params={"label": image, "tag": "final"}, timeout=60
    )
    assert reply.status_code == 200, reply.text
    return reply


def values(reply):
    content = reply.content
    content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    return np.asarray(nib.Nifti1Image.from_bytes(content).dataobj)


def versions(server, image):
    query = {"image": image, "tag": "final"}
    return requests.get(f"{server.url}/datastore/label/versions", params=query, timeout=60).json()


def test_versions_are_listed_and_restored(server, image):
    first = save(server, image, nifti(mask(1)))
    assert (first.json()["version"], first.json()["replaced"]) == (1, None)
    second = save(server, image, nifti(mask(2)), client_id="Ben").json()
    assert (second["replaced"]["version"], second["replaced"]["user"]) == (1, "Anna")
    listed = versions(server, image)
    assert (listed["current"]["version"], listed["current"]["user"]) == (2, "Ben")
    assert [v["version"] for v in listed["versions"]] == [1]
    assert listed["versions"][0]["label_info"] == NAMES
    query = {"image": image, "version": 1}
    restored = requests.post(f"{server.url}/datastore/label/restore", params=query, timeout=60)
    assert restored.json()["version"] == 3
    np.testing.assert_array_equal(values(load(server, image)), mask(1))
    query["version"] = 77
    missing = requests.post(f"{server.url}/datastore/label/restore", params=query, timeout=60)
    assert missing.status_code == 404 and "kept: 1, 2" in missing.json()["detail"]


def test_two_people_see_each_other(server, image):
    save(server, image, nifti(mask(1)))
    tag = load(server, image).headers["ETag"]
    assert save(server, image, nifti(mask(2)), client_id="Ben", headers={"If-Match": tag}).ok
    for late in ({"headers": {"If-Match": tag}}, {"base": 1}, {"base": 0}):
        reply = save(server, image, nifti(mask(3)), **late)
        assert reply.status_code == 409
        assert "Ben saved version 2 at 20" in reply.json()["detail"]
    np.testing.assert_array_equal(values(load(server, image)), mask(2))
    assert save(server, image, nifti(mask(3)), base=2).ok
    bad = save(server, image, nifti(mask(3)), headers={"If-Match": "abc"})
    assert bad.status_code == 400 and "If-Match is 'abc'" in bad.json()["detail"]


def detached(_):
    return b"NRRD0004\ntype: uchar\ndimension: 3\ndata file: /etc/passwd\n\n"


BAD_LABELS = {
    "five letters": ("x.nii.gz", lambda _: b"Label", 400, "no NIfTI file"),
    "nothing": ("x.nii.gz", lambda _: b"", 400, "the file is empty"),
    "cut off": ("x.nii", lambda good: good[:-100], 400, "cannot be read"),
    "detached": ("x.nrrd", detached, 400, "voxels are in another file"),
    "raw": ("x.bin", lambda _: b"Label", 400, "has 5 voxels, not those of its image (22678)"),
    "other grid": ("x.nii", lambda _: nifti(mask()[1:]), 400, "has 33 × 29 × 23 voxels"),
    "elsewhere": ("x.nii", lambda _: nifti(mask(), np.eye(4)), 400, "lies elsewhere"),
    "empty": ("x.nii", lambda _: nifti(mask(0)), 409, "the label is empty"),
    "archive": ("x.zip", lambda _: b"PK", 400, "send one of"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_a_bad_label_never_replaces_a_good_one(server, image, case):
    save(server, image, nifti(mask(1)))
    name, make, status, says = BAD_LABELS[case]
    reply = save(server, image, make(nifti(mask(2))), name)
    assert reply.status_code == status, reply.text
    assert says in reply.json()["detail"]
    np.testing.assert_array_equal(values(load(server, image)), mask(1))
    assert versions(server, image)["versions"] == []


def test_an_empty_label_on_request_and_raw_voxels(server, image):
    save(server, image, nifti(mask(1)))
    assert save(server, image, nifti(mask(0)), allow_empty="true").json()["version"] == 2
    assert save(server, image, mask(4).tobytes(order="F"), "x.bin").json()["version"] == 3
    np.testing.assert_array_equal(values(load(server, image)), mask(4))


@pytest.mark.parametrize(
    "names",
    [
        *("liver", 3, {"name": "liver"}, ["liver"], [[1]]),
        *([{"name": 5}], [{"name": ["liver"]}], [{"idx": "1"}], [{"idx": -1}], [{"idx": True}]),
        *([{"idx": 1.5}], [{"idx": float("inf")}], [{"name": "liver", "color": [float("nan")]}]),
    ],
)
def test_names_of_segments_of_another_type(server, image, names):
    save(server, image, nifti(mask()))
    body = json.dumps({"label_info": names})
    query = {"image": image, "label": image, "tag": "final"}
    saving = requests.put(
        f"{server.url}/datastore/label",
        params=query,
        data={"params": body},
        files={"label": ("x.nii", nifti(mask()))},
        timeout=60,
    )
    describing = requests.put(
        f"{server.url}/datastore/label/info", params=query, data={"info": body}, timeout=60
    )
    for reply in (saving, describing):
        assert reply.status_code == 400
        assert "label_info is" in reply.json()["detail"]


def files_of(server):
    """Return all files but the list of studies, which is written when a study comes in."""
    files = server.folder.rglob("*")
    return {path for path in files if path.suffix != ".partial" and path.name != LIST}


LIST = "datastore_v2.json"


PATHS = ["../x", "/etc/passwd", "..", ".hidden", " ", "a\\b", "a/b", "a\0b", "x" * 300, "𠀀" * 64]


@pytest.mark.parametrize("name", PATHS)
def test_ids_and_tags_are_names_on_every_route(server, image, name):
    def request(method, path, **query):
        files = {"label": ("x.nii", nifti(mask()))} if path == "/datastore/label" else None
        if path == "/datastore/image" and method == "PUT":
            files = {"file": ("x.nii", nifti(scan()))}
        return requests.request(
            method, f"{server.url}{path}", params=query, files=files, timeout=60
        )

    before = files_of(server)
    replies = [
        request("PUT", "/datastore/image", image=name),
        request("PUT", "/datastore/label", image=name),
        request("PUT", "/datastore/label", image=image, tag=name),
        request("GET", "/datastore/label", label=name, tag="final"),
        request("GET", "/datastore/label", label=image, tag=name),
        request("GET", "/datastore/label/info", label=name, tag="final"),
        request("PUT", "/datastore/label/info", label=image, tag=name),
        request("PUT", "/datastore/updatelabelinfo", label=name, tag="final"),
        request("GET", "/datastore/label/versions", image=name),
        request("GET", "/datastore/label/versions", image=image, tag=name),
        request("POST", "/datastore/label/restore", image=name, version=1),
        request("POST", "/datastore/label/restore", image=image, tag=name, version=1),
        request("GET", "/datastore/image", image=name),
        request("GET", "/datastore/image/info", image=name),
        request("PUT", "/datastore/image/info", image=name),
    ]
    assert [reply.status_code for reply in replies if reply.status_code not in (400, 404)] == []
    assert files_of(server) == before


@pytest.mark.parametrize(
    "path",
    [
        "datastore/image",
        "datastore/image/info",
        "datastore/label/info",
        "datastore/label/versions",
        "interactions/none",
        "viewer/series/none",
        "viewer/series/none/grid",
        "viewer/series/none/labels",
        "viewer/series/none/labels/final",
        "viewer/series/none/masks/00",
        "viewer/series/none/work",
    ],
)
def test_an_unknown_image_is_a_404(server, path):
    query = {"image": "none", "label": "none", "tag": "final"}
    reply = requests.get(f"{server.url}/{path}", query, timeout=60)
    assert reply.status_code == 404
    assert reply.json()["detail"].startswith("there is no image 'none' among the studies")


HALF_A_PAIR = {"client_id": "\ud800", "label_info": [{"name": "\udfff", "idx": 1}]}


@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("POST", "activelearning/random", ""),
        ("POST", "train/fastsam3d", ""),
        ("POST", "train/", ""),
        ("PUT", "datastore/label", "params"),
        ("PUT", "datastore/label/info", "info"),
        ("PUT", "datastore/image", "params"),
        ("PUT", "datastore/image/info", "info"),
        ("POST", "infer/fastsam3d", "params"),
    ],
)
def test_text_that_no_file_can_hold_is_refused(server, image, method, path, field):
    """JSON can name half of a pair of surrogates, and Python's text holds it; UTF-8 does not."""
    save(server, image, nifti(mask()))
    url, query = f"{server.url}/{path}", {"image": image, "label": image, "tag": "final"}
    form = {"data": {field: json.dumps(HALF_A_PAIR)}} if field else {"json": HALF_A_PAIR}
    if path in ("datastore/label", "datastore/image"):
        form["files"] = {path.split("/")[1].replace("image", "file"): ("x.nii", nifti(mask()))}
    reply = requests.request(method, url, params=query, timeout=60, **form)
    assert reply.status_code == 400, reply.text
    assert "text that is not Unicode" in reply.json()["detail"]
    assert save(server, image, nifti(mask(2))).status_code == 200
    assert requests.get(f"{server.url}/datastore/?output=all", timeout=60).ok


def test_a_name_of_a_client_is_short(server, image):
    for name in ("Anna" * 1000, {"a": ["long"] * 1000}):
        url = f"{server.url}/activelearning/first"
        reply = requests.post(url, json={"client_id": name}, timeout=60)
        assert reply.status_code == 200
        query = {"image": reply.json()["id"]}
        info = requests.get(f"{server.url}/datastore/image/info", params=query, timeout=60).json()
        assert len(json.dumps(info["strategy"])) < 200


@pytest.mark.parametrize("key", ["version", "time", "sha256", "voxels"])
@pytest.mark.parametrize("field", ["info", "params"])
def test_what_the_server_notes_on_a_label_is_not_the_clients_to_write(server, image, key, field):
    save(server, image, nifti(mask()))
    path = {"info": "datastore/label/info", "params": "datastore/updatelabelinfo"}[field]
    query = {"label": image, "tag": "final"}
    url, data = f"{server.url}/{path}", {field: json.dumps({key: "0"})}
    reply = requests.put(url, params=query, data=data, timeout=60)
    assert reply.status_code == 400
    assert f"{key} of a label is set by the server" in reply.json()["detail"]


@pytest.mark.parametrize("text", ["x", "1" * 5000])
def test_a_version_that_is_no_number(server, image, text):
    reply = save(server, image, nifti(mask()), headers={"If-Match": f'"{text}"'})
    assert reply.status_code == 400
    assert "send the ETag of the label" in reply.json()["detail"]


# --- images that come in --------------------------------------------------------------------------


def upload(server, name, content, **query):
    return requests.put(
        f"{server.url}/datastore/image",
        params=query,
        files={"file": (name, content)},
        timeout=60,
    )


@pytest.fixture
def remove_uploads(server):
    yield
    for path in [*server.studies.glob("up-*"), *server.studies.glob("P.*")]:
        path.unlink()


@pytest.mark.usefixtures("remove_uploads")
@pytest.mark.parametrize("strategy", ["random", "uncertainty", "first"])
@pytest.mark.parametrize("key", ["strategy", "fastsam3d_score", "path"])
def test_what_the_server_notes_is_not_the_clients_to_write(server, image, key, strategy):
    url, query = f"{server.url}/datastore/image/info", {"image": image}
    reply = requests.put(url, params=query, data={"info": json.dumps({key: 3})}, timeout=60)
    assert reply.status_code == 400
    assert "is set by the server" in reply.json()["detail"]
    url = f"{server.url}/activelearning/{strategy}"
    assert requests.post(url, json={}, timeout=60).status_code == 200


def test_an_upload_never_replaces_another(server):
    assert upload(server, "P.001.nii", nifti(scan(1))).json() == {"image": "P.001"}
    assert upload(server, "P.002.nii", nifti(scan(2))).json() == {"image": "P.002"}
    assert upload(server, "P.001.nii", nifti(scan(1))).json() == {"image": "P.001"}
    reply = upload(server, "other.nii", nifti(scan(3)), image="P.001")
    assert reply.status_code == 409
    assert "there is an image 'P.001' already, with other voxels" in reply.json()["detail"]
    for name, seed in (("P.001", 1), ("P.002", 2)):
        stored = nib.load(server.studies / f"{name}.nii")
        np.testing.assert_array_equal(np.asarray(stored.dataobj), scan(seed))


def archive(kind):
    content = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(content, "w") as file:
            file.writestr("../evil.nii", b"x")
    else:
        with tarfile.open(fileobj=content, mode="w:gz") as file:
            file.addfile(tarfile.TarInfo("../evil.nii"))
    return content.getvalue()


BAD_UPLOADS = {
    "zip": ("up-a.zip", archive("zip"), "send one of .nii.gz, .nii, .nrrd"),
    "tar named as NIfTI": ("up-a.nii.gz", archive("tar"), "no NIfTI file"),
    "detached NRRD": ("up-a.nrrd", detached(None), "voxels are in another file"),
    "MetaImage": ("up-a.mhd", b"ElementDataFile = /etc/passwd", "send one of"),
    "DICOM": ("up-a.dcm", b"\0" * 128 + b"DICM", "send one of"),
    "text": ("up-a.nii", b"text", "no NIfTI file"),
    "hidden": (".up.nii", nifti(scan()), "send a name"),
    "no name": (".nii", nifti(scan()), "send a name"),
}


@pytest.mark.parametrize("case", BAD_UPLOADS)
def test_other_files_are_refused(server, case):
    name, content, says = BAD_UPLOADS[case]
    before = files_of(server)
    reply = upload(server, name, content)
    assert reply.status_code == 400, reply.text
    assert says in reply.json()["detail"]
    assert files_of(server) == before


def session(server, *files, **query):
    return requests.put(
        f"{server.url}/session/",
        params=query,
        files=[("files", file) for file in files],
        timeout=60,
    )


@pytest.mark.parametrize("name", ["linked.nii", "linked.nii.gz", "linked.nrrd"])
def test_a_link_to_a_file_that_is_no_image_is_not_sent(server, tmp_path, name):
    (tmp_path / "secret").write_text("SECRET" * 200)
    link = server.studies / name
    link.symlink_to(tmp_path / "secret")
    try:
        wait_until(lambda: {"linked", name} & server.images())
        for image in {"linked", name} & server.images():
            url = f"{server.url}/datastore/image"
            reply = requests.get(url, params={"image": image}, timeout=60)
            assert reply.status_code == 400
            assert "SECRET" not in reply.text
    finally:
        link.unlink()
    wait_until(lambda: not {"linked", name} & server.images())


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def far_voxels():
    """Return a header whose extensions claim gigabytes, which gzip stores in some kilobytes."""
    content = bytearray(nifti(mask()))
    content[108:112] = np.array(3e9, "<f4").tobytes()
    content[348:352] = bytes([1, 0, 0, 0])
    content[352:360] = np.array([2**31 - 16, 4], "<i4").tobytes()
    return gzip.compress(bytes(content) + bytes(10**6))


@pytest.mark.usefixtures("remove_uploads")
def test_a_header_far_before_its_voxels_is_refused(server, image):
    replies = [
        upload(server, "up-far.nii.gz", far_voxels()),
        save(server, image, far_voxels(), "label.nii.gz"),
        requests.put(
            f"{server.url}/session/", files={"files": ("up.nii.gz", far_voxels())}, timeout=60
        ),
        requests.post(
            f"{server.url}/infer/fastsam3d",
            files={"file": ("up.nii.gz", far_voxels())},
            data={"params": '{"foreground": [[5, 5, 5]]}'},
            timeout=60,
        ),
    ]
    assert [reply.status_code for reply in replies] == [400] * 4
    assert all("too far behind" in reply.json()["detail"] for reply in replies)


def test_a_warning_from_a_file_adds_no_header(server, image, tmp_path):
    scan_file = nib.Nifti1Image(scan(), AFFINE_MM)
    warnings = ["one\r\nX-Added: yes\r\n\r\n", "\0\x0b\x7f肝" + "z" * 90000]
    content = json.dumps({"modality": "CT", "warnings": warnings}).encode()
    scan_file.header.extensions.append(nib.nifti1.Nifti1Extension(6, content))
    nib.save(scan_file, tmp_path / "up-warns.nii.gz")
    server.add_study(tmp_path / "up-warns.nii.gz", f"{image}-warns")
    reply = server.infer("fastsam3d", f"{image}-warns", {"foreground": [[17, 14, 11]]})
    assert reply.status_code == 200
    assert "X-Added" not in reply.headers
    assert reply.headers["X-Warning"].startswith("one X-Added: yes ;  ?zzz")
    assert len(reply.headers["X-Warning"]) == 4000
    assert values(reply)[17, 14, 11] == 1


def test_sessions_take_images_and_dicom_files_only(server):
    dicom = b"\0" * 128 + b"DICM"
    made = session(server, ("x.nii", nifti(scan()))).json()
    described = requests.get(f"{server.url}/session/{made['session_id']}", timeout=60)
    assert described.json()["image"].endswith("/x.nii")
    assert session(server, ("a", dicom), ("b.dcm", dicom)).ok
    mixed = session(server, ("a.dcm", dicom), ("b.dcm", b"<html>"), ("c.zip", archive("zip")))
    url = f"{server.url}/session/{mixed.json()['session_id']}"
    folder = Path(requests.get(url, timeout=60).json()["image"])
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sizes == {"a.dcm": len(dicom), "b.dcm": 0, "c.zip": 0}
    for says, files, query in (
        ("archives are not unpacked", [("x.zip", archive("zip"))], {}),
        ("archives are not unpacked", [("x.zip", archive("zip")), ("y.zip", b"zip")], {}),
        ("archives are not unpacked", [("x.nii", nifti(scan()))], {"uncompress": "true"}),
        ("voxels are in another file", [("x.nrrd", detached(None))], {}),
        ("slices of one DICOM series", [("x.nii", nifti(scan())), ("b.dcm", dicom)], {}),
        ("two of the files have the same name", [("a", dicom), ("a", dicom)], {}),
        ("the file is empty", [("x.nii", b"")], {}),
    ):
        reply = session(server, *files, **query)
        assert reply.status_code == 400
        assert says in reply.json()["detail"]
    assert requests.delete(f"{server.url}/session/{made['session_id']}", timeout=60).ok
    for name in (made["session_id"], ".hidden", "%2e%2e%2fsessions"):
        assert requests.get(f"{server.url}/session/{name}", timeout=60).status_code == 404


def test_the_journal_of_an_image_without_clicks(server, image):
    reply = requests.get(f"{server.url}/interactions/{image}", timeout=60)
    assert reply.json() == {"image": image, "interactions": []}
    assert requests.get(f"{server.url}/interactions/nobody", timeout=60).status_code == 404


def test_the_journals_of_the_folder_are_private_and_no_tag(server, image):
    save(server, image, nifti(mask()))
    info = server.info()["datastore"]
    tags = set(info["label_tags"])  # other tests on this server save labels with tags of their own
    assert "final" in tags and not any(tag.startswith(".") or "interact" in tag for tag in tags)
    path = server.studies / "labels" / "final" / f"{image}.json"
    assert stat.S_ISREG(path.stat().st_mode)
