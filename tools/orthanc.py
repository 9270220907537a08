"""Run Debian's Orthanc, a small DICOM server, for this machine only, with files of a folder.

    python tools/orthanc.py --storage DIR [--dicom DIR] [--port 8043] [-- COMMAND ...]

Its DICOMweb address is http://127.0.0.1:PORT/dicom-web. It runs until the command ends or, without
a command, until Ctrl-C. All data are in the storage folder, so saved labels are there next time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
PROGRAM_FOLDERS = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"  # not every PATH has sbin
START_SECONDS = 60


class OrthancError(RuntimeError):
    """Orthanc is missing, does not start, or refuses a file; the message gives the reason."""


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc; ``url`` has no final slash."""

    url: str

    @property
    def dicomweb_url(self) -> str:
        return f"{self.url}/dicom-web"

    def upload(self, folder: Path) -> int:
        """Store every .dcm file below ``folder`` and return their number.

        Files that Orthanc has already count too. Raises OrthancError if it refuses a file.
        """
        paths = sorted(folder.rglob("*.dcm"))
        for path in paths:
            try:
                self._request("/instances", path.read_bytes())
            except urllib.error.HTTPError as error:
                raise OrthancError(f"Orthanc refused {path}: {error}") from error
        return len(paths)

    def studies(self) -> list[str]:
        """Return the StudyInstanceUIDs."""
        studies = self._request("/studies?expand")
        return [study["MainDicomTags"]["StudyInstanceUID"] for study in studies]

    def is_up(self) -> bool:
        try:
            self._request("/system")
        except OSError:
            return False
        return True

    def _request(self, path: str, body: bytes | None = None) -> Any:
        with urllib.request.urlopen(self.url + path, data=body, timeout=30) as reply:
            return json.load(reply)


@contextmanager
def running_orthanc(storage: Path, port: int) -> Iterator[Orthanc]:
    """Start Orthanc on a port of 127.0.0.1, yield it once it answers, then stop it.

    Raises OrthancError if Orthanc is missing, the port is taken, or Orthanc does not start.
    """
    orthanc = Orthanc(f"http://127.0.0.1:{port}")
    program = shutil.which("Orthanc", path=PROGRAM_FOLDERS)
    if program is None or not PLUGIN.exists():
        raise OrthancError(
            "Orthanc or its DICOMweb plugin is missing: on Debian and Ubuntu, "
            "apt install orthanc orthanc-dicomweb"
        )
    if _is_taken(port):  # another Orthanc there would look like the one to start
        raise OrthancError(f"port {port} is taken; choose another one")
    storage.mkdir(parents=True, exist_ok=True)
    config = storage / "orthanc.json"
    config.write_text(json.dumps(configuration(storage.resolve(), port), indent=2))
    log = storage / "orthanc.log"
    with log.open("wb") as file:
        # a session of its own: Ctrl-C reaches the server that uses Orthanc, and Orthanc ends last
        process = subprocess.Popen(
            [program, str(config)], stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield _wait_until_up(orthanc, process, log)
    finally:
        process.terminate()
        process.wait(timeout=30)


def configuration(storage: Path, port: int) -> dict[str, Any]:
    """Return a configuration without passwords, for DICOMweb requests of this machine only."""
    return {
        "Name": "FastSAM3D sample data",
        "StorageDirectory": str(storage / "db"),
        "IndexDirectory": str(storage / "db"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }


def _wait_until_up(orthanc: Orthanc, process: subprocess.Popen, log: Path) -> Orthanc:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if orthanc.is_up():
            return orthanc
        time.sleep(0.1)
    end = log.read_text(errors="replace")[-2000:]
    raise OrthancError(f"Orthanc did not start on {orthanc.url}; its log ends with:\n{end}")


def _is_taken(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # as Ctrl-C does, so that all processes end
    try:
        with running_orthanc(options.storage, options.port) as orthanc:
            if options.dicom:
                count = orthanc.upload(options.dicom)
                print(f"Orthanc has {count} files of {options.dicom}")
            print(f"DICOMweb: {orthanc.dicomweb_url}", flush=True)
            if options.viewer:
                announce = Thread(target=_announce, args=(options.viewer, orthanc), daemon=True)
                announce.start()
            return _run(options.command)
    except OrthancError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def _run(command: list[str]) -> int:
    """Run a command and return its exit code; without one, wait for Ctrl-C."""
    if not command:
        Event().wait()
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait(timeout=30)
        raise


def _announce(viewer: str, orthanc: Orthanc) -> None:
    """Print the address of each study in the viewer, once the viewer's server answers.

    It is that of the stock viewer if the current one was not fetched.
    """
    while not _answers(f"{viewer}/ohif/"):
        time.sleep(1)
    mode = "viewer/fastsam3d" if _answers(f"{viewer}/viewer/") else "ohif/monai-label"
    links = [f"  {viewer}/{mode}?StudyInstanceUIDs={uid}" for uid in orthanc.studies()]
    print("", "Ready. Ctrl-C stops it. Open in a browser:", *links, "", sep="\n", flush=True)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=30):
            return True
    except OSError:
        return False


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", type=Path, required=True, help="where Orthanc keeps its data")
    parser.add_argument("--dicom", type=Path, help="folder of .dcm files to store")
    parser.add_argument("--port", type=int, default=8043, help="for HTTP (%(default)s)")
    parser.add_argument(
        "--viewer", help="address of a server with OHIF: print the address of each study there"
    )
    parser.add_argument("command", nargs="*", help="command to run beside Orthanc, after --")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
