"""Requests with an ordered list of prompts, over HTTP: replies, structures and given masks."""

import email
import gzip
import json

import nibabel as nib
import numpy as np
import pytest
import requests

SHAPE_IJK = (70, 90, 40)
AFFINE_MM = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, 0.1, -0.1) @ np.diag([-1.4, -1.2, 2.5]), [40, 50, -30]
)
CENTER = [30, 50, 20]
OTHER = [44, 50, 20]


def image():
    noise = np.random.default_rng(0).normal(0, 20, SHAPE_IJK)
    return (noise + 300).astype(np.int16)


@pytest.fixture(scope="module")
def name(ball_server, tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "prompts.nii.gz"
    nib.save(nib.Nifti1Image(image(), AFFINE_MM), path)
    ball_server.add_study(path, "prompts")
    return "prompts"


def point(place, structure=1):
    key = {"semantic_id": structure}
    return {"type": "spatial", "subtype": "point", "prompt": place, "semantic_id_key": key}


def ask(server, name, prompts, start=None, output="image", **params):
    """Send prompts; start: the values of a mask to start from."""
    body = {"prompts": prompts, "result_extension": ".nii.gz", **params}
    files = None
    if start is not None:
        content = nib.Nifti1Image(start, AFFINE_MM).to_bytes()
        files = {"initial_mask": ("start.nii.gz", gzip.compress(content, 1))}
    return requests.post(
        f"{server.url}/infer/fastsam3d",
        params={"image": name, "output": output},
        data={"params": json.dumps(body)},
        files=files,
        timeout=120,
    )


def mask(reply):
    assert reply.status_code == 200, reply.text
    values = nib.Nifti1Image.from_bytes(gzip.decompress(reply.content))
    return np.asarray(values.dataobj)


def test_prompts_give_the_mask_of_the_same_click_lists(ball_server, name):
    lists = {"foreground": [CENTER, OTHER], "background": [[30, 50, 25]]}
    expected = ball_server.infer("fastsam3d", name, {**lists, "result_extension": ".nii.gz"})
    prompts = [point(CENTER), point(OTHER), point([30, 50, 25], 0)]
    np.testing.assert_array_equal(mask(ask(ball_server, name, prompts)), mask(expected))


def test_two_structures_come_in_one_mask(ball_server, name):
    both = mask(ask(ball_server, name, [point(CENTER, 3), point(OTHER, 5)]))
    assert set(np.unique(both)) == {0, 3, 5}
    assert both[tuple(CENTER)] == 3 and both[tuple(OTHER)] == 5
    alone = mask(ask(ball_server, name, [point(CENTER, 3)]))
    assert ((both == 3) <= (alone == 3)).all() and (both == 3).sum() > 0.5 * (alone == 3).sum()


def test_several_structures_are_encoded_once(ball_server, name):
    prompts = [point([20, 30, 9], 1), point([26, 30, 9], 2)]
    places = [
        ask(ball_server, name, each, output="json").json()["structures"]
        for each in (prompts, prompts[:1])
    ]
    assert places[0]["1"] == places[0]["2"] == places[1]["1"]


def test_a_given_neighbour_keeps_its_voxels(ball_server, name):
    start = np.zeros(SHAPE_IJK, np.uint8)
    start[36:, 40:60, 10:30] = 9
    kept = mask(ask(ball_server, name, [point(CENTER)], start))
    np.testing.assert_array_equal(kept == 9, start == 9)
    assert kept[tuple(CENTER)] == 1
    taken = mask(ask(ball_server, name, [point(CENTER)], start, overwrite=True))
    assert (taken == 9).sum() < (start == 9).sum()
    np.testing.assert_array_equal((taken == 9) <= (start == 9), True)


def test_a_given_mask_of_background_only_changes_nothing(ball_server, name):
    empty = np.zeros(SHAPE_IJK, np.uint8)
    expected = mask(ask(ball_server, name, [point(CENTER)]))
    np.testing.assert_array_equal(mask(ask(ball_server, name, [point(CENTER)], empty)), expected)


def test_a_stored_label_is_a_given_mask(ball_server, name, tmp_path):
    start = np.zeros(SHAPE_IJK, np.uint8)
    start[36:, 40:60, 10:30] = 9
    nib.save(nib.Nifti1Image(start, AFFINE_MM), tmp_path / "label.nii.gz")
    with (tmp_path / "label.nii.gz").open("rb") as file:
        reply = requests.put(
            f"{ball_server.url}/datastore/label",
            params={"image": name, "tag": "draft"},
            files={"label": ("label.nii.gz", file)},
            timeout=60,
        )
    assert reply.status_code == 200, reply.text
    expected = ask(ball_server, name, [point(CENTER)], start)
    stored = ask(ball_server, name, [point(CENTER)], start_from="draft")
    np.testing.assert_array_equal(mask(stored), mask(expected))
    both = ask(ball_server, name, [point(CENTER)], start, start_from="draft")
    assert both.status_code == 400 and "initial_mask and also start_from" in both.text
    for tag in ("other", "../draft", 7, ["draft"]):
        missing = ask(ball_server, name, [point(CENTER)], start_from=tag)
        assert missing.status_code == 404 and "has no label with the tag" in missing.text


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (np.zeros((70, 90, 41), np.uint8), "on another grid than the image"),
        (np.full(SHAPE_IJK, 0.5, np.float32), "holds fractions"),
        (np.full(SHAPE_IJK, 300, np.int16), "holds values from"),
        (np.full(SHAPE_IJK, np.nan, np.float32), "initial_mask holds NaN and no structure"),
    ],
)
def test_a_bad_given_mask_is_refused(ball_server, name, start, message):
    start = start.copy()
    start[0, 0, 0] = 0 if np.isnan(start[0, 0, 1]) else 1
    reply = ask(ball_server, name, [point(CENTER)], start)
    assert reply.status_code == 400 and message in reply.json()["detail"]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([point(CENTER), {**point(CENTER), "type": "text"}], "prompt 2 is a text"),
        ([point([70, 1, 1])], "prompt 1 (point): (70, 1, 1) lies outside"),
        ([point(CENTER, 0)], "all prompts mark background"),
        ([point(CENTER)] * 300, "300 prompts are too many"),
    ],
)
def test_a_bad_prompt_is_a_400_that_names_it(ball_server, name, prompts, message):
    reply = ask(ball_server, name, prompts)
    assert reply.status_code == 400 and message in reply.json()["detail"]


def test_nan_is_refused(ball_server, name):
    text = json.dumps({"prompts": [point([1, 2, 3])]}).replace("3]", "NaN]")
    reply = ball_server.infer("fastsam3d", name, text)
    assert reply.status_code == 400 and "prompt 1 (point): [1, 2, nan]" in reply.json()["detail"]


def test_params_of_more_than_a_megabyte_are_refused_with_the_cure(ball_server, name):
    body = json.dumps({"prompts": [point(CENTER)], "label": "x" * 2**20})
    for fields in ({"data": {"params": body}}, {"files": {"params": (None, body)}}):
        reply = requests.post(
            f"{ball_server.url}/infer/fastsam3d", params={"image": name}, timeout=60, **fields
        )
        assert reply.status_code == 413
        assert "larger than 1 MB; send fewer prompts" in reply.json()["detail"]


def test_a_size_without_an_answer_of_its_own_is_a_warning(ball_server, name):
    tiny = spatial("bounding_box", [CENTER, [32, 52, 20]])
    reply = ask(ball_server, name, [tiny], size=-2)
    assert "size -2 gives the mask of size -1" in reply.headers["X-Warning"]


def parts_of(reply):
    """Return the parts of a multipart reply by name."""
    assert reply.status_code == 200, reply.text
    message = email.message_from_bytes(
        b"Content-Type: " + reply.headers["content-type"].encode() + b"\r\n\r\n" + reply.content
    )
    return {
        part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
        for part in message.get_payload()
    }


MAPS = ["uncertainty", "probability"]


def test_maps_come_beside_the_mask(ball_server, name):
    reply = ask(ball_server, name, [point(CENTER)], output="all", outputs=[*MAPS, "next_click"])
    parts = parts_of(reply)
    assert list(parts) == ["params", "image", "probability", "uncertainty"]
    arrays = {
        name: np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(content)).dataobj)
        for name, content in parts.items()
        if name != "params"
    }
    assert all(array.shape == SHAPE_IJK for array in arrays.values())
    inside = arrays["image"] == 1
    assert arrays["probability"][inside].mean() > arrays["probability"][~inside].mean() + 50
    both = arrays["uncertainty"][inside].astype(int) + arrays["probability"][inside]
    assert np.median(np.abs(both - 255)) < 10  # the border's cells are interpolated
    places = json.loads(parts["params"])["next_click"]
    assert len(places["places_ijk"]) == len(places["places_lps_mm"]) == 5
    back = nib.affines.apply_affine(
        np.linalg.inv(AFFINE_MM), np.array(places["places_lps_mm"]) * [-1, -1, 1]
    )
    np.testing.assert_allclose(back, places["places_ijk"], atol=0.01)


def test_the_box_holds_the_maps_too(ball_server, name):
    reply = ask(ball_server, name, [point(CENTER)], output="box", outputs=[*MAPS, "next_click"])
    assert reply.status_code == 200, reply.text
    place = json.loads(reply.headers["X-Mask-Box"])
    assert place["arrays"] == ["mask", "probability", "uncertainty"]
    assert len(place["next_click"]["places_ijk"]) == 5
    arrays = np.frombuffer(reply.content, np.uint8).reshape(3, -1)
    shape = place["size_ijk"]
    whole = mask(ask(ball_server, name, [point(CENTER)]))
    box = tuple(
        slice(start, start + count) for start, count in zip(place["offset_ijk"], shape, strict=True)
    )
    np.testing.assert_array_equal(arrays[0].reshape(shape, order="F"), whole[box])
    assert whole[box].sum() == whole.sum()
    assert arrays[1][arrays[0] == 1].min() > arrays[1][arrays[0] == 0].min()


@pytest.mark.parametrize("output", ["image", "json"])
def test_a_reply_without_room_for_maps_says_so(ball_server, name, output):
    reply = ask(ball_server, name, [point(CENTER)], output=output, outputs=["uncertainty"])
    assert reply.status_code == 400 and "has no room for uncertainty" in reply.text


def test_each_form_of_the_reply_holds_the_next_click(ball_server, name):
    replies = {
        output: ask(ball_server, name, [point(CENTER)], output=output, outputs=["next_click"])
        for output in ("image", "json", "box", "all")
    }
    expected = replies["json"].json()["next_click"]
    assert len(expected["places_ijk"]) == len(expected["places_lps_mm"]) == 5
    assert json.loads(replies["image"].headers["X-Next-Click"]) == expected
    assert json.loads(replies["box"].headers["X-Mask-Box"])["next_click"] == expected
    assert json.loads(parts_of(replies["all"])["params"])["next_click"] == expected
    plain = ask(ball_server, name, [point(CENTER)])
    assert "X-Next-Click" not in plain.headers


@pytest.mark.parametrize("outputs", ["uncertainty", ["logits"], 7, [["uncertainty"]]])
def test_unknown_outputs_are_named(ball_server, name, outputs):
    reply = ask(ball_server, name, [point(CENTER)], output="all", outputs=outputs)
    assert reply.status_code == 400 and "outputs is" in reply.json()["detail"]


def spatial(subtype, places, structure=1):
    return {**point(places, structure), "subtype": subtype}


@pytest.mark.parametrize(
    ("subtype", "places"),
    [
        ("bounding_box", [[22, 42, 14], [38, 58, 26]]),
        ("bounding_box", [[22, 42, 20], [38, 58, 20]]),
        ("lasso", [[22, 42, 20], [38, 42, 20], [38, 58, 20], [22, 58, 20]]),
        ("scribble", [[24, 50, 20], [36, 50, 20]]),
    ],
)
def test_each_drawing_gives_a_mask_in_its_place(ball_server, name, subtype, places):
    drawn = mask(ask(ball_server, name, [spatial(subtype, places)]))
    center = np.argwhere(drawn).mean(axis=0)
    np.testing.assert_allclose(center, CENTER, atol=4)
    removed = mask(
        ask(
            ball_server,
            name,
            [spatial(subtype, places), spatial("scribble", [[24, 50, 20], [26, 50, 20]], 0)],
        )
    )
    assert removed[25, 50, 20] == 0 and removed.sum() <= drawn.sum()


def test_a_background_box_takes_its_voxels_off(ball_server, name):
    prompts = [point(CENTER), spatial("bounding_box", [[31, 40, 10], [45, 60, 30]], 0)]
    left, whole = (mask(ask(ball_server, name, prompts[:count])) for count in (2, 1))
    taken = (slice(31, 46), slice(40, 61), slice(10, 31))
    assert whole[taken].any() and not left[taken].any()
    # the cells are finer than those of the network's logits, so the surface may move a little
    assert (left[:28] != whole[:28]).sum() < 0.02 * whole.sum()


def test_ignored_keys_are_not_kept_in_the_journal(ball_server, name):
    prompt = {**point([30, 50, 21]), "aux": {"note": "x" * 1000}, "other": "y"}
    assert ask(ball_server, name, [prompt], output="json", label="liver").status_code == 200
    lines = requests.get(f"{ball_server.url}/interactions/{name}", timeout=60).json()
    lines = lines if isinstance(lines, list) else lines["interactions"]
    assert lines[-1]["prompts"] == [point([30, 50, 21])]


@pytest.mark.parametrize("key", ["label", "prompts"])
def test_deeply_nested_values_are_refused(ball_server, name, key):
    deep = "[" * 700 + "]" * 700
    text = f'{{"foreground": [[30, 50, 20]], "{key}": {deep}}}'
    reply = ball_server.infer("fastsam3d", name, text)
    assert reply.status_code == 400 and "nested more than 20 levels" in reply.json()["detail"]


def test_a_number_that_the_type_cannot_hold_is_refused(ball_server, name):
    reply = ask(ball_server, name, [point(CENTER, 200)], result_dtype="int8")
    assert reply.status_code == 400 and "up to 127" in reply.json()["detail"]


def test_next_sample_by_uncertainty(ball_server, name):
    url = f"{ball_server.url}/activelearning"
    sample = requests.post(f"{url}/uncertainty", json={"client_id": "me"}, timeout=120).json()
    assert sample["id"] in ball_server.images() and sample["score"] > 0
    for strategy in ("random", "first"):
        assert requests.post(f"{url}/{strategy}", json={}, timeout=60).json()["id"]
    reply = requests.post(f"{url}/other", json={}, timeout=60)
    assert reply.status_code == 400 and "no strategy" in reply.json()["detail"]


def test_info_says_what_a_model_takes(ball_server):
    interactions = ball_server.info()["models"]["fastsam3d"]["interactions"]
    subtypes = ["point", "scribble", "lasso", "bounding_box"]
    assert interactions["prompts"] == [{"type": "spatial", "subtypes": subtypes}]
    assert interactions["labels"][0] == {"name": "target", "semantic_id": 1}
    assert {"probability", "uncertainty", "next_click"} < set(interactions["outputs"])
