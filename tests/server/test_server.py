"""The running server over HTTP: a click becomes a mask, an invalid request gets a reason."""

import json
import re
import shutil
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import nibabel as nib
import numpy as np
import pytest
import requests
import SimpleITK as sitk
from monailabel.client import MONAILabelClient

from lib.errors import NotFoundError
from lib.networks.torch_private import multiplies_bfloat16
from main import MyApp
from serving import APP, running_server

SHAPE_IJK = (70, 90, 40)
AFFINE_MM = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, 0.1, -0.1) @ np.diag([-1.4, -1.2, 2.5]), [40, 50, -30]
)
CLICK = [20, 60, 12]
CLICKS = {"foreground": [CLICK, [30, 50, 15]], "background": [[60, 10, 35]]}


def head(seed=0):
    """Return a noisy ellipsoid of soft tissue with a dense one inside, in air."""
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE_IJK), indexing="ij")
    noise = np.random.default_rng(seed).normal(0, 20, SHAPE_IJK)
    image = np.where(i**2 + j**2 + k**2 < 0.8, 40, -1000) + noise
    image[(i + 0.4) ** 2 + (j - 0.3) ** 2 + (k + 0.4) ** 2 < 0.05] += 300
    return image.astype(np.int16)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5000])


BAD_VOLUMES = {
    "flat": (np.zeros((40, 50), np.int16), r"2 dimensions \(40 × 50\)"),
    "series": (np.zeros((20, 20, 20, 5), np.int16), r"4 dimensions \(20 × 20 × 20 × 5\)"),
    "one_slice": (np.arange(400, dtype=np.int16).reshape(20, 20, 1), "20 × 20 × 1 voxels"),
    "few_voxels": (np.arange(27, dtype=np.int16).reshape(3, 3, 3), "only 3 × 3 × 3 voxels"),
    "constant": (np.full((20, 30, 10), 7, np.int16), "every voxel is 7"),
    "infinity": (np.where(head() > 0, np.inf, head()).astype(np.float32), "are infinite"),
}


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    nib.save(nib.Nifti1Image(head(), AFFINE_MM), folder / "head.nii.gz")
    nib.save(nib.Nifti1Image(head(1), AFFINE_MM), folder / "other.nii.gz")
    nib.save(nib.Nifti1Image(head(2), AFFINE_MM), folder / "truncated.nii.gz")
    truncate(folder / "truncated.nii.gz")
    for name, (array, _) in BAD_VOLUMES.items():
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"{name}.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(folder / "head.nii.gz")), str(folder / "stored.nrrd"))
    return folder


@pytest.fixture(scope="module")
def server(studies, tmp_path_factory):
    """The server of most tests; its working directory has a folder with the name of an image."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "temporary").mkdir()
    (folder / "head").mkdir()
    arguments = ("--conf", "labels", "liver,tumour")
    env = {"TMPDIR": str(folder / "temporary")}
    with running_server(studies, folder / "server.log", *arguments, env=env) as running:
        yield running


@pytest.fixture(scope="module")
def fresh_server(studies, tmp_path_factory):
    """A server on which no test has clicked on ``head`` or ``other`` before."""
    folder = tmp_path_factory.mktemp("fresh")
    (folder / "studies").mkdir()
    for name in ("head", "other"):
        shutil.copy(studies / f"{name}.nii.gz", folder / "studies")
    with running_server(folder / "studies", folder / "server.log") as running:
        yield running


def voxels(mask):
    return sitk.GetArrayFromImage(mask).transpose()


@pytest.mark.parametrize("model", ["fastsam3d", "sam_med3d"])
@pytest.mark.parametrize("image", ["head", "stored"])
def test_mask_lies_on_the_images_own_grid(server, studies, model, image):
    mask = server.mask(model, image, CLICKS)
    expected = sitk.ReadImage(str(next(studies.glob(f"{image}.n*"))))
    assert mask.GetSize() == expected.GetSize()
    assert mask.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_allclose(mask.GetSpacing(), expected.GetSpacing(), rtol=1e-5)
    np.testing.assert_allclose(mask.GetOrigin(), expected.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(mask.GetDirection(), expected.GetDirection(), atol=1e-5)
    assert set(np.unique(voxels(mask))) == {0, 1}


def test_real_ct(server, shared_dir):
    scan = shared_dir / "data/train/tptbox_spine/tpt_ct_image.nii.gz"
    server.add_study(scan, "real")
    mask = server.mask("fastsam3d", "real", {"foreground": [[20, 15, 40]]})
    assert mask.GetSize() == sitk.ReadImage(str(scan)).GetSize()
    assert mask.GetDirection() == sitk.ReadImage(str(scan)).GetDirection()


def test_formats_store_the_same_scan_and_get_the_same_mask(server):
    masks = [voxels(server.mask("fastsam3d", image, CLICKS)) for image in ("head", "stored")]
    # nibabel keeps the affine in float32, SimpleITK in decimal digits: a voxel may round otherwise
    assert np.mean(masks[0] != masks[1]) < 1e-3


def test_the_same_request_gives_the_same_mask_cold_and_warm(server, fresh_server):
    models = ("fastsam3d", "sam_med3d")
    warm = {model: server.infer(model, "head", CLICKS).content for model in models}
    more = {"foreground": [*CLICKS["foreground"], [35, 45, 20]], "background": []}
    for model in models:
        assert server.infer(model, "head", more).content != warm[model]
        assert server.infer(model, "other", CLICKS).ok
        assert server.infer(model, "head", CLICKS).content == warm[model]
    # the two scans differ in their noise, which changes some voxels of a mask
    assert server.infer("sam_med3d", "other", CLICKS).content != warm["sam_med3d"]
    for model in models:
        assert fresh_server.infer(model, "head", CLICKS).content == warm[model]


def test_a_replaced_image_is_read_again(server, tmp_path):
    path = tmp_path / "head.nii.gz"
    masks = []
    for image in (head(3), head(3)[::-1]):
        nib.save(nib.Nifti1Image(image, AFFINE_MM), path)
        server.add_study(path, "replaced")
        masks.append(server.infer("fastsam3d", "replaced", CLICKS))
    assert [mask.status_code for mask in masks] == [200, 200]
    assert masks[0].content != masks[1].content


def test_replies_in_the_forms_that_clients_ask_for(server):
    reply = server.infer("fastsam3d", "head", CLICKS, output="json")
    assert reply.json()["label_names"] == ["liver", "tumour"]
    assert reply.json()["weights"]["file"] == "fastsam3d_default.safetensors"
    ohif = {**CLICKS, "result_extension": ".nrrd", "result_dtype": "uint8"}
    ohif |= {"result_compress": False, "restore_label_idx": False}
    raw = server.infer("fastsam3d", "head", ohif).content
    expected = voxels(server.mask("fastsam3d", "head", CLICKS))
    assert raw.endswith(expected.tobytes(order="F"))
    slicer = {**CLICKS, "label": "liver", "device": "cpu", "result_extension": ".nrrd"}
    slicer |= {"result_dtype": "uint8", "client_id": "user-xyz", "reset_state": True}
    multipart = server.infer("fastsam3d", "head", slicer, output="all")
    assert multipart.headers["content-type"].startswith("multipart/form-data")
    assert raw in multipart.content


def test_own_format_is_the_default(server):
    reply = server.infer("fastsam3d", "head", CLICKS)
    assert reply.content[:2] == b"\x1f\x8b", "gzip, as the .nii.gz that was asked about"


def test_slicers_box_limits_the_mask(server):
    everywhere = voxels(server.mask("fastsam3d", "head", CLICKS))
    inside = np.zeros_like(everywhere)
    inside[10:31, 40:71, 8:21] = 1
    box = {"roi": [30, 10, 40, 70, 20, 8]}
    limited = voxels(server.mask("fastsam3d", "head", {**CLICKS, **box}))
    np.testing.assert_array_equal(limited, everywhere * inside)


def test_info_names_models_labels_and_weights(server):
    info = server.info()
    assert info["labels"] == ["liver", "tumour"]
    for model in ("fastsam3d", "sam_med3d"):
        described = info["models"][model]
        assert (described["type"], described["dimension"]) == ("deepgrow", 3)
        weights = described["weights"]
        assert weights["trained"] is True
        assert "UNTRAINED" not in described["description"]
        assert weights["licence"] == "Apache-2.0"
        assert "after 1/3/5/10 clicks" in weights["dice"]
        assert len(weights["sha256"]) == 64
        # chosen when the server starts, not by the first click
        (precision,) = described["precision"].values()
        is_low = multiplies_bfloat16() and precision["dice"] >= 0.99
        assert precision["number_type"] == ("bfloat16" if is_low else "float32")
        assert precision["reason"]


REFUSALS = {
    "no click": ({}, "no click"),
    "empty clicks": ({"foreground": [], "background": []}, "no click"),
    "outside": ({"foreground": [[70, 5, 5]]}, r"\(70, 5, 5\) lies outside .* 70 × 90 × 40"),
    "two numbers": ({"foreground": [[1, 2]]}, r"\[1, 2\]"),
    "text": ({"foreground": [["a", 2, 3]]}, r"\['a', 2, 3\]"),
    "not a list": ({"foreground": "here"}, "'here'"),
    "NaN": ({"foreground": [[float("nan"), 2, 3]]}, "nan"),
    "option": ({**CLICKS, "colour": "red"}, "unknown option 'colour'; the options are prompts"),
    "image": ({**CLICKS, "image": "/etc/passwd"}, "unknown option 'image'"),
    "model": ({**CLICKS, "model": "sam_med3d"}, "unknown option 'model'"),
    "device": ({**CLICKS, "device": "tpu"}, "no device 'tpu' .* choose one of"),
    "extension": ({**CLICKS, "result_extension": "/../x.nrrd"}, "result_extension is"),
    "dtype": ({**CLICKS, "result_dtype": "object"}, "result_dtype is 'object'; choose one of"),
    "compress": ({**CLICKS, "result_compress": "false"}, "result_compress is 'false'; send true"),
    "bad JSON": ("{foreground", "not JSON"),
    "endless brackets": ("[" * 100_000, "not JSON"),
    "endless number": ('{"foreground": ' + "9" * 5000 + "}", "not JSON"),
    "a list": ("[1, 2]", "JSON object"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_invalid_requests_get_a_reason(server, case):
    params, says = REFUSALS[case]
    reply = server.infer("fastsam3d", "head", params)
    assert reply.status_code == 400
    assert_says(reply.json()["detail"], says)


@pytest.mark.parametrize("case", [*BAD_VOLUMES, "truncated"])
def test_unusable_volumes_get_a_reason(server, case):
    says = BAD_VOLUMES[case][1] if case in BAD_VOLUMES else "cut off|truncated|damaged"
    reply = server.infer("fastsam3d", case, {"foreground": [[1, 1, 1]]})
    assert reply.status_code == 400
    assert_says(reply.json()["detail"], says)
    assert_says(reply.json()["detail"], case)


@pytest.mark.parametrize(
    ("model", "image", "query", "says"),
    [
        ("fastsam3d", "nobody", {}, "no image 'nobody'"),
        ("fastsam3d", "../head", {}, "no image '../head'"),
        ("fastsam3d", "/etc/hostname", {}, "no image '/etc/hostname'"),
        ("unet", "head", {}, "no model 'unet'; there are fastsam3d, sam_med3d"),
        ("fastsam3d", "head", {"session_id": "gone"}, "session 'gone' has expired"),
    ],
)
def test_missing_models_images_and_sessions(server, model, image, query, says):
    reply = server.infer(model, image, CLICKS, **query)
    assert reply.status_code == 404
    assert_says(reply.json()["detail"], says)


def assert_says(detail, pattern):
    assert re.search(pattern, detail), detail


def test_no_image_at_all(server):
    reply = requests.post(f"{server.url}/infer/fastsam3d", data={"params": "{}"}, timeout=30)
    assert reply.status_code == 400
    assert "there is no image" in reply.json()["detail"]


def test_refusals_reach_monai_labels_own_client(server):
    client = MONAILabelClient(server.url)
    with pytest.raises(Exception, match="outside the image") as refused:
        client.infer("fastsam3d", "head", {"foreground": [[700, 5, 5]]})
    assert "Status: 400" in refused.value.msg


@pytest.mark.parametrize(
    "params",
    [
        {"foreground": [CLICK, [-3, 5, 700]], "background": []},
        {"foreground": [CLICK], "background": None},
    ],
)
def test_harmless_client_errors_become_warnings(server, params):
    reply = server.infer("fastsam3d", "head", params, output="json")
    assert reply.status_code == 200, reply.text
    one_good_click = params.get("foreground") == [CLICK] and params["background"] is None
    assert bool(reply.json()["warnings"]) == (not one_good_click)
    mask = server.infer("fastsam3d", "head", params, output="image")
    assert mask.headers.get("X-Warning", "") == "; ".join(reply.json()["warnings"])


@pytest.mark.parametrize(
    "params",
    [
        {"background": [CLICK]},
        {"foreground": None, "background": [CLICK]},
        {"foreground": [CLICK], "background": [CLICK]},
    ],
)
def test_background_clicks_alone(server, params):
    """Depending on its weights, the network finds something, or the request is refused."""
    for model in ("fastsam3d", "sam_med3d"):
        reply = server.infer(model, "head", params, output="json")
        if reply.status_code == 200:
            assert "background" in reply.json()["warnings"][0]
        else:
            assert reply.status_code == 400
            assert "there are only background clicks" in reply.json()["detail"]


def test_a_file_that_is_sent_along(server, studies):
    with (studies / "head.nii.gz").open("rb") as file:
        files = {"file": ("my.head.nii.gz", file), "label": ("scribbles.bin", b"1234")}
        data = {"params": json.dumps({**CLICKS, "result_extension": ".nii.gz"})}
        reply = requests.post(
            f"{server.url}/infer/fastsam3d?output=image", data=data, files=files, timeout=60
        )
    assert reply.content == server.infer("fastsam3d", "head", CLICKS).content


def test_a_refusal_leaves_no_file_behind(server, studies):
    temporary = server.folder / "temporary"
    before = set(temporary.iterdir())
    for params in ("{}", json.dumps({"foreground": [[500, 5, 5]]})):
        with (studies / "head.nii.gz").open("rb") as file:
            reply = requests.post(
                f"{server.url}/infer/fastsam3d", data={"params": params}, files={"file": file}
            )
        assert reply.status_code == 400
    reply = server.infer("fastsam3d", "head", CLICKS, output="dicom_seg")
    assert reply.status_code == 400
    assert "a DICOM-SEG needs a series of a DICOM server" in reply.json()["detail"]
    assert set(temporary.iterdir()) <= before


def test_a_folder_in_the_working_directory_does_not_hide_an_image(server):
    """MONAI Label takes an image's ID for a path if there is a file or folder of that name."""
    assert (server.folder / "head").is_dir()
    assert server.infer("fastsam3d", "head", CLICKS).status_code == 200


def test_stock_routes_give_reasons(server):
    unknown = requests.post(f"{server.url}/activelearning/clever", json={}, timeout=30)
    assert unknown.status_code == 400
    assert "there is no strategy 'clever'" in unknown.json()["detail"]
    missing = requests.put(f"{server.url}/datastore/label/info?label=x&tag=final", timeout=30)
    assert missing.status_code == 404
    assert "Label: x Tag: final not found" in missing.json()["detail"]


FORMS = {
    "/datastore/image": "params",
    "/datastore/image/info?image=head": "info",
    "/datastore/label/info?label=head&tag=final": "info",
    "/datastore/updatelabelinfo?label=head&tag=final": "params",
}
"""FORMS: the field with JSON of each route that takes it from a form."""


@pytest.mark.parametrize(("text", "says"), [("{", "is not JSON"), ("[1]", "send a JSON object")])
@pytest.mark.parametrize("route", FORMS)
def test_bad_json_in_a_form(server, route, text, says):
    reply = requests.put(
        f"{server.url}{route}", data={FORMS[route]: text}, files={"file": ("x.nii.gz", b"x")}
    )
    assert reply.status_code == 400
    assert f"{FORMS[route]} is " in reply.json()["detail"] and says in reply.json()["detail"]


@pytest.mark.parametrize("route", ["activelearning/random", "train/", "train/fastsam3d"])
@pytest.mark.parametrize(("text", "says"), [("{", "JSON decode error"), ("[1]", "dictionary")])
def test_bad_json_as_the_body(server, route, text, says):
    headers = {"content-type": "application/json"}
    reply = requests.post(f"{server.url}/{route}", data=text, headers=headers, timeout=30)
    assert reply.status_code == 400
    assert "the request is invalid: body" in reply.json()["detail"]
    assert says in reply.json()["detail"]


def test_session_of_an_uploaded_image(server, studies):
    with (studies / "head.nii.gz").open("rb") as file:
        reply = requests.put(f"{server.url}/session/", files={"files": file}, timeout=60)
    session = reply.json()["session_id"]
    uploaded = server.infer("fastsam3d", "local volume", CLICKS, session_id=session)
    assert uploaded.content == server.infer("fastsam3d", "head", CLICKS).content


def test_many_clients_at_once_get_their_own_masks(server):
    requested = [{"foreground": [[20 + n, 60 - n, 12]]} for n in range(4)]
    expected = [server.infer("fastsam3d", "head", params).content for params in requested]
    with ThreadPoolExecutor(8) as pool:
        jobs = [(params, mask) for params, mask in zip(requested, expected, strict=True)] * 4
        replies = pool.map(lambda job: server.infer("fastsam3d", "head", job[0]).content, jobs)
        for reply, (_, mask) in zip(replies, jobs, strict=True):
            assert reply == mask


def test_the_server_answers_while_it_reads(server, studies):
    """Reading takes seconds, and the server answers meanwhile, again and again."""
    large = np.broadcast_to(np.arange(400, dtype=np.int16), (512, 512, 400))
    nib.save(nib.Nifti1Image(large, np.eye(4)), server.folder / "large.nii.gz")
    server.add_study(server.folder / "large.nii.gz", "large")
    with ThreadPoolExecutor() as pool:
        click = pool.submit(server.infer, "fastsam3d", "large", CLICKS)
        answers = 0
        while not click.done():
            assert server.info()["labels"] == ["liver", "tumour"]
            answers += not click.done()
        assert click.result().status_code == 200, click.result().text
    assert answers >= 5, answers
    (studies / "large.nii.gz").unlink()


def test_the_server_answers_while_it_computes(server, studies):
    """Four clicks need four encodings, one after the other; the order counts, not the time."""
    server.add_study(studies / "head.nii.gz", "busy")
    requested = [{"foreground": [[10 + 15 * n, 45, 20]]} for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        clicks = [pool.submit(server.infer, "sam_med3d", "busy", params) for params in requested]
        wait(clicks, return_when=FIRST_COMPLETED)
        server.info()
        assert not all(click.done() for click in clicks)
    assert [click.result().status_code for click in clicks] == [200] * 4


def test_the_next_sample_is_prefetched(fresh_server):
    reply = requests.post(f"{fresh_server.url}/activelearning/random", json={}, timeout=60)
    fresh_server.wait_for_log(f"prefetched {reply.json()['id']}")


def test_a_described_image_is_prefetched(server, studies):
    server.add_study(studies / "head.nii.gz", "described")
    assert "prefetched described" not in server.log_text()
    requests.get(f"{server.url}/datastore/image/info?image=described", timeout=60)
    server.wait_for_log("prefetched described")


def test_an_uploaded_image_is_prefetched(server, studies):
    with (studies / "head.nii.gz").open("rb") as file:
        reply = requests.put(f"{server.url}/session/", files={"files": file}, timeout=60)
    server.wait_for_log(f"prefetched {reply.json()['session_info']['image']}")


def test_the_log_has_a_line_for_each_click(server):
    server.infer("fastsam3d", "head", CLICKS)
    lines = [line for line in server.log_text().splitlines() if "click on head" in line]
    assert "2 foreground, 1 background" in lines[-1]
    for stage in ("LoadVolumed", "Crop", "Wait", "Encode", "Decode", "PasteStructuresd"):
        assert f"{stage} " in lines[-1]


def test_configured_weights_are_served(studies, tmp_path):
    from lib.networks import build_untrained, save_checkpoint

    path = tmp_path / "mine.safetensors"
    save_checkpoint(build_untrained("fastsam3d_default", 9), path, {"licence": "CC0-1.0"})
    arguments = ("--conf", "weights", str(path), "--conf", "teacher_weights", str(path))
    with running_server(studies, tmp_path / "server.log", *arguments) as own:
        described = own.info()["models"]["fastsam3d"]["weights"]
        assert (described["file"], described["licence"]) == (path.name, "CC0-1.0")
        assert len(described["sha256"]) == 64
        student = voxels(own.mask("fastsam3d", "head", CLICKS))
        np.testing.assert_array_equal(voxels(own.mask("sam_med3d", "head", CLICKS)), student)


def test_a_server_that_cannot_start_says_why(studies, tmp_path):
    conf = ("--conf", "weights", "nowhere.pth")
    log = tmp_path / "server.log"
    with pytest.raises(RuntimeError), running_server(studies, log, *conf):
        pass
    lines = log.read_text(encoding="utf-8").splitlines()
    assert "the server cannot start: weights 'nowhere.pth' are neither a file nor" in lines[-1]
    assert not any("Traceback" in line for line in lines)


def test_the_app_refuses_an_unknown_image(tmp_path):
    app = MyApp(str(APP), str(tmp_path), {})
    with pytest.raises(NotFoundError, match="there is no image 'nobody' among the studies"):
        app.infer({"model": "fastsam3d", "image": "nobody", **CLICKS})


def test_a_box_with_clicks_in_mm_is_the_same_mask(server):
    """The reply covers the box that the client shows, so that the client can clear it."""
    whole = voxels(server.mask("fastsam3d", "head", CLICKS))
    lps = {
        name: (nib.affines.apply_affine(AFFINE_MM, clicks) * [-1, -1, 1]).tolist()
        for name, clicks in CLICKS.items()
    }
    shown = {"offset_ijk": [65, 0, 0], "size_ijk": [5, 3, 2]}
    request = {**lps, "coordinates": "lps_mm", "shown_box": shown}
    reply = server.infer("fastsam3d", "head", request, output="box")
    place = json.loads(reply.headers["X-Mask-Box"])
    mask = np.zeros_like(whole)
    box = tuple(
        slice(start, start + size)
        for start, size in zip(place["offset_ijk"], place["size_ijk"], strict=True)
    )
    mask[box] = np.frombuffer(reply.content, np.uint8).reshape(place["size_ijk"], order="F")
    np.testing.assert_array_equal(mask, whole)
    assert place["offset_ijk"][1:] == [0, 0] and box[0].stop == 70


def test_json_is_complete(server):
    """All parameters beside the mask can be sent as JSON."""
    reply = server.infer("fastsam3d", "head", CLICKS, output="json")
    described = json.loads(reply.text)
    assert {"warnings", "weights", "roi", "latencies", "label_names"} <= set(described)
    assert np.shape(described["roi"]["affine_mm"]) == (4, 4)
