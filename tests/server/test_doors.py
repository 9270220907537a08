"""What the doors let in: addresses, pages of other sites, keys, sizes, numbers of requests."""

import asyncio
import json
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi import FastAPI, Request, UploadFile
from fastapi.testclient import TestClient

from lib.options import Options
from lib.server.audit import AuditLog, id_hash
from lib.server.credentials import COOKIE, TOKEN_SECONDS, Credentials
from lib.server.doors import DoorPolicy, audit_log, is_local
from lib.server.install import ROUTERS, install
from lib.server.routes import ROUTES, check_routes, is_open

KEY = "a key with ümlauts and 7 words"
HERE, AWAY = ("127.0.0.1", 5000), ("10.1.2.3", 5000)


def open_client(audit=None, client=HERE, host="127.0.0.1", **options):
    app = FastAPI()
    values = {"max_upload_mb": 1, "requests_per_minute": 0, **options}
    install(app, DoorPolicy(Options(**values), AuditLog(audit)))

    @app.post("/upload")
    async def upload(file: UploadFile) -> int:
        return len(await file.read())

    @app.post("/body")
    async def body(request: Request) -> int:
        return len(await request.body())

    @app.put("/change")
    def change(image: str = "", tag: str = "") -> None:
        if image == "broken":
            raise KeyError(image)

    return TestClient(
        app,
        base_url=f"http://{host}",
        client=client,
        raise_server_exceptions=False,
        follow_redirects=False,
    )


# --- routes ---------------------------------------------------------------------------------------


def test_the_server_has_the_routes_of_the_table_and_no_other():
    from monailabel.app import app

    install(app)
    names = {
        f"{method.upper()} {path}"
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    }
    hidden = {name for name in ROUTES if name.split(" ")[1] not in app.openapi()["paths"]}
    plain = {name.replace(":path}", "}") for name in ROUTES}
    assert names <= plain
    client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    for gone in (
        "DELETE /datastore/image",
        "DELETE /datastore/label",
        "DELETE /datastore/",
        "GET /datastore/dataset",
        "GET /logs/",
        "GET /logs/gpu",
        "GET /model/fastsam3d",
        "GET /model/info/fastsam3d",
        "PUT /model/fastsam3d",
        "DELETE /model/fastsam3d",
        "POST /infer/wsi/fastsam3d",
        "POST /infer/wsi_v2/fastsam3d",
        "POST /batch/infer/fastsam3d",
        "GET /batch/infer/",
        "POST /scoring/dice",
        "GET /scoring/",
        "POST /reload",
        "GET /static/favicon.ico",
        "GET /redoc",
        "GET /docs/oauth2-redirect",
    ):
        method, path = gone.split(" ")
        assert client.request(method, path).status_code in (404, 405), gone
        assert gone not in ROUTES
    assert {"GET /", "GET /docs", "GET /ohif/{path:path}", "GET /sign-in"} <= hidden


def test_a_route_without_a_line_in_the_table_stops_the_start():
    from fastapi import APIRouter

    router = APIRouter()
    router.add_api_route("/secret", lambda: None, methods=["GET"])
    with pytest.raises(RuntimeError, match="differ in GET /secret"):
        check_routes([*ROUTERS, router])
    with pytest.raises(RuntimeError, match="differ in .*GET /healthz"):
        check_routes(ROUTERS[1:])


# --- addresses and origins ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("", True),  # a socket of this machine
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("0.0.0.0", False),  # noqa: S104
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
    ],
)
def test_what_is_this_machine(host, expected):
    assert is_local(host) is expected


def test_without_a_key_only_this_machine_gets_an_answer():
    for case in ({"client": AWAY}, {"host": "evil.example"}):
        reply = open_client(**case).get("/healthz")
        assert reply.status_code == 403
        assert "start it with --conf api_key KEY" in reply.json()["detail"]
        assert open_client(**case, allow_open=True).get("/docs").status_code == 200
    assert open_client().get("/docs").status_code == 200
    assert open_client(client=AWAY, api_key=KEY).get("/healthz").status_code == 200


def test_pages_of_other_sites_may_not_use_the_server():
    client = open_client(cors_origins=("https://viewer.example.org",))
    for origin, status in (
        ("https://evil.example", 403),
        ("null", 403),
        ("http://127.0.0.1", 200),
        ("https://viewer.example.org", 200),
    ):
        reply = client.put("/change", headers={"origin": origin})
        assert reply.status_code == status, origin
        allowed = reply.headers.get("access-control-allow-origin")
        assert allowed == (origin if "viewer" in origin else None)
    behind_proxy = {"origin": "https://segment.example.org", "sec-fetch-site": "same-origin"}
    assert client.put("/change", headers=behind_proxy).status_code == 200
    asked = {"origin": "https://viewer.example.org", "access-control-request-method": "PUT"}
    assert client.options("/change", headers=asked).status_code == 200
    assert open_client().options("/change", headers=asked).status_code == 403


# --- the key --------------------------------------------------------------------------------------


def bearer(token):
    return {"authorization": f"Bearer {token}".encode()}


def test_what_a_viewer_shows_of_a_patient_is_no_file_of_the_viewer():
    assert is_open("GET", "/viewer/app.js") and is_open("HEAD", "/viewer/fastsam3d")
    for path in (
        "/viewer/series/1.2",
        "/viewer/series/1.2/grid",
        "/viewer/series/1.2/labels/final",
    ):
        assert not is_open("GET", path) and not is_open("HEAD", path)


def test_every_route_but_the_open_ones_needs_the_key():
    client = open_client(client=AWAY, api_key=KEY)
    for name in ROUTES:
        method, path = name.split(" ")
        path = path.replace("{path:path}", "x.js").replace("{", "").replace("}", "")
        if is_open(method, path):
            assert path.startswith(
                ("/healthz", "/auth/", "/sign-", "/ohif/", "/viewer", "/favicon")
            )
            assert "Authorization: Bearer" not in client.request(method, path).text
        else:
            reply = client.request(method, path)
            assert reply.status_code == 401, name
            assert reply.headers["www-authenticate"] == "Bearer"
            assert method == "HEAD" or "Authorization: Bearer KEY" in reply.json()["detail"]
    for path in ("/openapi.json", "/nowhere", "//ohif/x", "/ohif", "/healthz/", "/OHIF/x"):
        assert client.get(path).status_code == 401, path


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (bearer(KEY), 200),
        ({"authorization": f"bearer  {KEY}".encode()}, 200),
        (bearer(KEY[:-1]), 401),
        (bearer(""), 401),
        (bearer("x.y"), 401),
        ({"authorization": f"Basic {KEY}".encode()}, 401),
        ({"authorization": KEY.encode()}, 401),
        ({"cookie": f"{COOKIE}=x.y"}, 401),
        ({"cookie": "a=b; ;=;"}, 401),
        ({"x-api-key": "a"}, 401),
    ],
)
def test_keys(headers, status):
    client = open_client(client=AWAY, api_key=KEY)
    assert client.get("/docs", headers=headers).status_code == status


def test_a_token_ends_with_its_time_and_with_the_key(monkeypatch):
    credentials = Credentials(KEY)
    token = credentials.make_token("Änna")
    assert credentials.user_of_token(token) == "Änna"
    assert Credentials("another").user_of_token(token) is None
    body, _, signature = token.partition(".")
    assert credentials.user_of_token(f"{body}x.{signature}") is None
    assert credentials.user_of_token(f"{body}.{signature[:-1]}") is None
    later = time.time() + TOKEN_SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert credentials.user_of_token(token) is None


def test_a_person_signs_in_once_for_the_viewers():
    client = open_client(client=AWAY, api_key=KEY)
    page = {"accept": "text/html,application/xhtml+xml"}
    reply = client.get("/ohif/monai-label?StudyInstanceUIDs=1.2", headers=page)
    assert reply.status_code == 303
    form = client.get(reply.headers["location"])
    assert 'value="/ohif/monai-label?StudyInstanceUIDs=1.2"' in form.text
    assert "http://" not in form.text and "https://" not in form.text
    wrong = client.post("/sign-in", data={"user": "Anna", "key": "x", "next": "/ohif/"})
    assert wrong.status_code == 401 and "not the key" in wrong.text
    right = client.post("/sign-in", data={"user": "Anna", "key": KEY, "next": "/ohif/?a=1"})
    assert (right.status_code, right.headers["location"]) == (303, "/ohif/?a=1")
    cookie = right.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert client.get("/auth/token/valid").json()["username"] == "Anna"
    assert client.get("/ohif/", headers=page).status_code == 200
    client.post("/sign-out")
    assert client.get("/auth/token/valid").status_code == 401


@pytest.mark.parametrize(
    "target", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:1", "/a\nb"]
)
def test_signing_in_leads_to_this_server_only(target):
    client = open_client(api_key=KEY)
    reply = client.post("/sign-in", data={"user": "Anna", "key": KEY, "next": target})
    assert reply.headers["location"] == "/"


def test_a_page_shows_what_was_sent_as_text():
    text = open_client(api_key=KEY).get("/sign-in", params={"next": '/"><script>'}).text
    assert "<script>" not in text


def test_wrong_keys_are_limited_and_the_right_one_is_not_counted():
    client = open_client(client=AWAY, api_key=KEY)
    data = {"username": "Anna", "password": KEY}
    for _ in range(20):
        assert client.post("/auth/token", data=data).status_code == 200
    statuses = [client.post("/auth/token", data={**data, "password": "x"}) for _ in range(11)]
    assert [reply.status_code for reply in statuses] == [401] * 10 + [429]
    assert client.post("/auth/token", data=data).status_code == 429


# --- limits ---------------------------------------------------------------------------------------


def chunks(count):
    for _ in range(count):
        yield b"x" * 2**18


def test_a_body_is_refused_while_it_arrives():
    client = open_client()
    small = client.post("/upload", files={"file": b"x" * 2**19})
    assert small.json() == 2**19
    large = client.post("/upload", files={"file": b"x" * 2**20})
    assert large.status_code == 413
    assert large.json()["detail"] == (
        "the request is larger than 1 MB; raise --conf max_upload_mb to allow it"
    )
    assert client.post("/body", content=chunks(8)).json() == 2**21  # without a length
    assert client.post("/body", content=chunks(33)).status_code == 413


def test_an_endless_upload_is_not_read_on():
    client = open_client()
    received, sent = [], []
    start = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'

    async def receive():
        received.append(None)
        body = start if len(received) == 1 else b"x" * 2**18
        return {"type": "http.request", "body": body, "more_body": True}

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"multipart/form-data; boundary=b")]
    scope = {"type": "http", "method": "POST", "path": "/upload", "query_string": b""}
    scope |= {"headers": headers, "client": HERE, "http_version": "1.1", "scheme": "http"}
    # in a thread of its own: the browser tests leave an event loop in this one
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, client.app(scope, receive, send)).result()
    assert sent[0]["status"] == 413
    assert len(received) == 5


def test_requests_are_limited_for_each_client():
    app_client = open_client(client=AWAY, allow_open=True, requests_per_minute=3)
    assert [app_client.get("/healthz").status_code for _ in range(4)] == [200, 200, 200, 429]
    assert open_client(requests_per_minute=0).get("/healthz").status_code == 200


# --- the audit log --------------------------------------------------------------------------------


def test_each_change_is_a_line_without_names_of_patients(tmp_path):
    path = tmp_path / "logs" / "audit.jsonl"
    client = open_client(path, client=AWAY, api_key=KEY)
    client.post("/sign-in", data={"user": "Anna", "key": KEY})
    query = {"image": "Mueller_Hans", "tag": "final"}
    client.put("/change", params=query)
    client.put("/change", params={"image": "broken"})
    client.get("/docs")
    client.cookies.clear()
    client.put("/change", params=query)
    text = path.read_text()
    assert "Mueller" not in text and KEY not in text
    lines = [json.loads(line) for line in text.splitlines()]
    seen = [(line["request"], line["status"], line["user"], line["client"]) for line in lines]
    assert seen == [
        ("POST /sign-in", 303, "Anna", "10.1.2.3"),
        ("PUT /change", 200, "Anna", "10.1.2.3"),
        ("PUT /change", 500, "Anna", "10.1.2.3"),
        ("PUT unknown", 401, "", "10.1.2.3"),
    ]
    assert (lines[1]["image"], lines[1]["tag"]) == (id_hash("Mueller_Hans"), "final")
    assert lines[1]["time"].endswith("+00:00")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_audit_log_is_where_the_site_wants_it(tmp_path):
    audit_log(Options(), tmp_path).record("PUT", "/x", {}, "", "", 200)
    assert (tmp_path / "logs" / "audit.jsonl").is_file()
    audit_log(Options(audit_log=str(tmp_path / "a")), tmp_path).record("PUT", "/x", {}, "", "", 200)
    assert (tmp_path / "a").is_file()
    off = audit_log(Options(audit_log="off"), tmp_path / "none")
    off.record("PUT", "/x", {}, "", "", 200)
    assert not (tmp_path / "none").exists()
