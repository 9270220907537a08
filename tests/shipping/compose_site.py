"""Run compose.yaml as processes: the same files, with addresses and folders of this machine.

It reads services, commands, environment, secrets and volumes from compose.yaml, the upstream and
the TLS of deploy/nginx.conf, and Orthanc's deploy/orthanc.json. Only what a container engine does
is replaced: host names and ports, /data and /models, /run/secrets, and /tmp.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import yaml

from serving import BALL_WEIGHTS, START_SECONDS, free_port

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM_PATH = f"{Path(sys.executable).parent}:/usr/sbin:/usr/local/sbin:/usr/bin:/bin"


def compose() -> dict[str, Any]:
    """Return the content of compose.yaml."""
    content: dict[str, Any] = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
    return content


def servers() -> list[str]:
    """Return the names of the services that compute masks."""
    return [name for name in compose()["services"] if name.startswith("server-")]


class Site:
    """The services of compose.yaml as processes.

    url: HTTPS address of the proxy. key: of the servers. certificate: that clients trust.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen] = {}
        self.ports = {name: free_port() for name in (*servers(), "pacs", "dicom", "http", "https")}
        self.url = f"https://localhost:{self.ports['https']}"
        for name in ("secrets", "pacs", "labels", "models", "tmp"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [REPOSITORY / "deploy" / "make-secrets.sh", "localhost"],
            env={**os.environ, "SECRETS": str(folder / "secrets")},
            check=True,
            capture_output=True,
        )
        self.key = (folder / "secrets" / "api_key").read_text().strip()
        self.certificate = folder / "secrets" / "tls.crt"

    def session(self) -> requests.Session:
        """Return a client that knows the key and trusts the certificate of the site only."""
        session = requests.Session()
        session.trust_env = False
        session.headers["Authorization"] = f"Bearer {self.key}"
        session.verify = str(self.certificate)
        return session

    def start(self) -> None:
        """Start all services, and wait until each answers."""
        self.start_pacs()
        for name in servers():
            self.start_server(name)
        for name in servers():
            self.wait(name, f"http://127.0.0.1:{self.ports[name]}/healthz")
        self.start_proxy()

    def start_pacs(self) -> None:
        config = json.loads((REPOSITORY / "deploy" / "orthanc.json").read_text())
        assert config["HttpPort"] == 8042 and "/data" in compose()["services"]["pacs"]["volumes"][0]
        config |= {"HttpPort": self.ports["pacs"], "DicomPort": self.ports["dicom"]}
        config |= {
            name: str(self.folder / "pacs") for name in ("StorageDirectory", "IndexDirectory")
        }
        file = self.folder / "orthanc.json"
        file.write_text(json.dumps(config))
        self._run("pacs", ["Orthanc", str(file)])
        self.wait("pacs", f"http://127.0.0.1:{self.ports['pacs']}/system")

    def start_server(self, name: str) -> None:
        service = compose()["services"][name]
        pacs = f"http://127.0.0.1:{self.ports['pacs']}"
        command = [text.replace("http://pacs:8042", pacs) for text in service["command"]]
        labels = self.folder / "labels"
        env = {
            key: re.sub(r"\$\{\w+:-(.*)\}", r"\1", text)
            for key, text in service["environment"].items()
        }
        env |= {
            "HOST": "127.0.0.1",
            "PORT": str(self.ports[name]),
            "FASTSAM3D_API_KEY_FILE": str(self.folder / "secrets" / "api_key"),
            "FASTSAM3D_DATA": str(labels),
            "FASTSAM3D_MODELS": str(self.folder / "models"),
            "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(labels / "dicom"),
            "MONAI_LABEL_SESSION_PATH": str(labels / "sessions"),
        }
        self._run(name, [str(REPOSITORY / "deploy" / "start-server"), *command, *BALL_WEIGHTS], env)

    def start_proxy(self) -> None:
        text = (REPOSITORY / "deploy" / "nginx.conf").read_text()
        text = text.replace("/tmp/", f"{self.folder}/tmp/")
        for name in servers():
            assert f"server {name}:8000 " in text, f"{name} is missing in deploy/nginx.conf"
            text = text.replace(f"{name}:8000", f"127.0.0.1:{self.ports[name]}")
        secrets = compose()["secrets"]
        for name in compose()["services"]["proxy"]["secrets"]:
            file = self.folder / "secrets" / Path(secrets[name]["file"]).name
            text = text.replace(f"/run/secrets/{name};", f"{file};")
        text = text.replace("listen 8443", f"listen 127.0.0.1:{self.ports['https']}")
        text = text.replace("listen 8080", f"listen 127.0.0.1:{self.ports['http']}")
        config = self.folder / "nginx.conf"
        config.write_text(text)
        self._run("proxy", ["nginx", "-e", "stderr", "-c", str(config)])
        self.wait("proxy", f"{self.url}/healthz")

    def stop(self, *names: str) -> None:
        """Stop services, or all of them, as a container engine does."""
        for name in names or tuple(self.processes):
            process = self.processes.pop(name)
            process.terminate()
            process.wait(timeout=60)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def wait(self, name: str, url: str) -> None:
        """Wait until a service answers; raises RuntimeError with its log if it does not."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.processes[name].poll() is None:
            try:
                if self.session().get(url, timeout=5).ok:
                    return
            except requests.ConnectionError:
                time.sleep(0.2)
        raise RuntimeError(f"{url} does not answer\n{self.log(name)[-3000:]}")

    def _run(self, name: str, command: list[str], env: dict[str, str] | None = None) -> None:
        program = shutil.which(command[0], path=PROGRAM_PATH)
        assert program is not None, f"{command[0]} is missing"
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [program, *command[1:]],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PATH": PROGRAM_PATH, **(env or {})},
                cwd=self.folder,
            )


@contextmanager
def running_site(folder: Path) -> Iterator[Site]:
    """Start the site, and end it after the block."""
    site = Site(folder)
    try:
        site.start()
        yield site
    finally:
        site.stop()
