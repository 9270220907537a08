"""The services of compose.yaml, run from its files: clicks, labels, a killed server, a restart."""

import gzip
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import requests
from compose_site import PROGRAM_PATH, running_site, servers
from nibabel.affines import from_matvec

from ct_series import write_ct_series

SHAPE_IJK = (44, 36, 22)
AFFINE_MM = from_matvec(np.diag([-1.8, -1.4, 3.0]), [40, 25, -30])
USERS = 8


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for program in ("nginx", "Orthanc", "openssl"):
        if shutil.which(program, path=PROGRAM_PATH) is None:
            pytest.skip(f"{program} is missing")
    with running_site(tmp_path_factory.mktemp("site")) as running:
        upload(running, tmp_path_factory.mktemp("series"))
        yield running


def upload(site, folder):
    """Store a CT on the PACS, where its modality would send it by DICOM."""
    scan = np.random.default_rng(3).integers(-900, 900, SHAPE_IJK, dtype=np.int16)
    for path in write_ct_series(scan, AFFINE_MM, folder):
        url = f"http://127.0.0.1:{site.ports['pacs']}/instances"
        requests.post(url, data=path.read_bytes(), timeout=30).raise_for_status()


@pytest.fixture(scope="module")
def uid(site):
    """The SeriesInstanceUID of the CT."""
    return site.session().post(f"{site.url}/activelearning/first", timeout=60).json()["id"]


def click(site, session, uid, number=0):
    """Click through the proxy; return the reply."""
    params = {"foreground": [[20 + number % 8, 18, 11]], "result_extension": ".nii.gz"}
    return session.post(
        f"{site.url}/infer/fastsam3d",
        params={"image": uid, "output": "image"},
        data={"params": json.dumps(params)},
        timeout=120,
    )


def signed_in(site, user):
    """Return a browser that has signed in; it knows the cookie, not the key."""
    browser = site.session()
    del browser.headers["Authorization"]
    reply = browser.post(
        f"{site.url}/sign-in",
        data={"user": user, "key": site.key},
        allow_redirects=False,
        timeout=30,
    )
    assert reply.status_code == 303
    assert "Secure" in reply.headers["Set-Cookie"]
    return browser


def label_versions(site, uid):
    reply = site.session().get(
        f"{site.url}/datastore/label/versions", params={"image": uid, "tag": "final"}, timeout=30
    )
    versions = reply.json()
    return versions["current"]["version"], [old["version"] for old in versions["versions"]]


def save(site, uid, mask):
    reply = site.session().put(
        f"{site.url}/datastore/label",
        params={"image": uid, "tag": "final"},
        data={"params": json.dumps({"label_info": [{"name": "liver", "idx": 1}]})},
        files={"label": ("mask.nii.gz", mask)},
        timeout=120,
    )
    assert reply.status_code == 200, reply.text


def test_a_click_through_tls_and_key(site, uid):
    reply = click(site, site.session(), uid)
    assert reply.status_code == 200, reply.text
    mask = nib.Nifti1Image.from_bytes(gzip.decompress(reply.content))
    assert mask.shape == SHAPE_IJK
    assert np.asarray(mask.dataobj)[20, 18, 11] == 1
    stranger = site.session()
    del stranger.headers["Authorization"]
    assert click(site, stranger, uid).status_code == 401


def test_http_leads_to_https(site):
    plain = f"http://127.0.0.1:{site.ports['http']}/viewer/?StudyInstanceUIDs=1"
    reply = requests.get(plain, allow_redirects=False, timeout=30)
    assert reply.status_code == 308
    assert reply.headers["Location"] == "https://127.0.0.1/viewer/?StudyInstanceUIDs=1"


def test_a_browser_stays_with_its_server_and_several_use_all(site, uid):
    used = set()
    for number in range(USERS):
        browser = signed_in(site, f"user {number}")
        replies = [click(site, browser, uid, step) for step in range(3)]
        (server,) = {reply.headers["X-Server"] for reply in replies}
        used.add(server)
    assert used == {f"127.0.0.1:{site.ports[name]}" for name in servers()}


def test_a_killed_server_loses_no_prompt(site, uid):
    """The next server answers the clicks of its users, and the journal has all of them."""
    browsers = [signed_in(site, f"user {number}") for number in range(USERS)]
    before = len(journal(site, uid))
    with ThreadPoolExecutor(USERS) as pool:
        replies = [pool.submit(click, site, b, uid, n) for b in browsers for n in range(6)]
        victim = site.processes.pop("server-1")
        victim.kill()
        victim.wait()
        statuses = [reply.result().status_code for reply in replies]
    assert statuses == [200] * len(replies)
    assert len(journal(site, uid)) >= before + len(replies)
    site.start_server("server-1")
    site.wait("server-1", f"http://127.0.0.1:{site.ports['server-1']}/healthz")


def journal(site, uid):
    reply = site.session().get(f"{site.url}/interactions/{uid}", timeout=30)
    return reply.json()["interactions"]


def test_labels_and_versions_are_there_after_a_restart(site, uid):
    for number in range(2):
        save(site, uid, click(site, site.session(), uid, number).content)
    assert label_versions(site, uid) == (2, [1])
    prompts = journal(site, uid)
    for name in servers():  # each knows what the other saved
        port = site.ports[name]
        reply = site.session().get(
            f"http://127.0.0.1:{port}/datastore/label/info?label={uid}&tag=final", timeout=30
        )
        assert reply.json().get("version") == 2, (name, reply.text)
    site.stop()
    site.start()
    assert label_versions(site, uid) == (2, [1])
    assert journal(site, uid) == prompts
    assert click(site, site.session(), uid).status_code == 200
