"""DICOMweb servers differ: capped answers, ignored filters, refused transfer syntaxes."""

import http.server
import socket
import threading

import pydicom
import pytest
import requests
from dicomweb_client import DICOMwebClient
from monailabel.config import settings
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError

from lib.datastore.pacs_client import PacsClient, limit_waiting
from lib.errors import InputError

EXPLICIT, HTJ2K = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.202"
AS_STORED = (("application/dicom", "*"),)


def refuse(status):
    response = requests.Response()
    response.status_code = status
    raise requests.HTTPError(f"{status}", response=response)


class Server:
    """A DICOMweb server with 250 series."""

    def __init__(self, cap=None, knows_offset=True, knows_filter=True, end=None, stored=EXPLICIT):
        self.cap, self.knows_offset, self.knows_filter = cap, knows_offset, knows_filter
        self.end, self.stored = end, stored
        self.refuses = {}
        self.asked = []

    def search_for_series(self, search_filters, offset=None):
        uids = [f"1.2.{number}" for number in range(250)]
        wanted = search_filters.get("SeriesInstanceUID")
        if wanted and self.knows_filter:
            uids = [uid for uid in uids if uid == wanted]
        if self.knows_offset:
            if self.end is not None and offset and offset >= len(uids):
                refuse(self.end)
            uids = uids[offset or 0 :]
        return [{"0020000E": {"vr": "UI", "Value": [uid]}} for uid in uids[: self.cap]]

    def retrieve_series(self, study_uid, series_uid, media_types=None):
        self.asked.append(media_types)
        if media_types in self.refuses:
            refuse(self.refuses[media_types])
        instance = Dataset()
        instance.file_meta = FileMetaDataset()
        is_stored = media_types == AS_STORED
        instance.file_meta.TransferSyntaxUID = self.stored if is_stored else EXPLICIT
        return [instance]


@pytest.mark.parametrize("knows_offset", [True, False])
@pytest.mark.parametrize("end", [None, 400, 404])
@pytest.mark.parametrize("cap", [None, 100, 1, 250])
def test_a_server_may_cap_its_answers(cap, knows_offset, end):
    found = PacsClient(Server(cap, knows_offset, end=end)).search({"Modality": "CT"})
    uids = [series.SeriesInstanceUID for series in found]
    expected = 250 if knows_offset or cap is None else min(cap, 250)
    assert uids == [f"1.2.{number}" for number in range(expected)]


@pytest.mark.parametrize("knows_filter", [True, False])
def test_a_series_is_found_behind_the_first_page(knows_filter):
    reader = PacsClient(Server(100, knows_filter=knows_filter))
    assert reader.find_series("1.2.240").SeriesInstanceUID == "1.2.240"
    assert reader.find_series("1.2.999") is None


def test_an_error_of_the_first_page_is_none_of_the_last():
    server = Server()
    server.search_for_series = lambda **arguments: refuse(503)
    with pytest.raises(requests.HTTPError):
        list(PacsClient(server).search({"Modality": "CT"}))


def test_series_are_asked_for_as_stored():
    server = Server(stored="1.2.840.10008.1.2.4.90")
    (instance,) = PacsClient(server).retrieve("1", "2")
    assert instance.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.90"
    assert server.asked == [AS_STORED]


@pytest.mark.parametrize("status", [400, 406, 415, 501])
def test_a_server_that_does_not_send_as_stored_is_asked_again_without(status):
    server = Server()
    server.refuses[AS_STORED] = status
    (instance,) = PacsClient(server).retrieve("1", "2")
    assert instance.file_meta.TransferSyntaxUID == EXPLICIT
    assert server.asked == [AS_STORED, None]


def test_other_errors_are_not_asked_again():
    server = Server()
    server.refuses[AS_STORED] = 404
    with pytest.raises(requests.HTTPError):
        PacsClient(server).retrieve("1", "2")
    assert len(server.asked) == 1


def test_what_cannot_be_decoded_here_is_decompressed_by_the_server():
    server = Server(stored=HTJ2K)
    (instance,) = PacsClient(server).retrieve("1", "2")
    assert instance.file_meta.TransferSyntaxUID == EXPLICIT


def test_a_server_that_cannot_decompress_sends_what_it_has():
    server = Server(stored=HTJ2K)
    server.refuses[(("application/dicom", EXPLICIT),)] = 406
    (instance,) = PacsClient(server).retrieve("1", "2")
    assert instance.file_meta.TransferSyntaxUID == HTJ2K


def test_a_segmentation_without_its_series_is_named():
    server = Server()
    header = pydicom.Dataset()
    server.retrieve_series_metadata = lambda study, series: [header.to_json_dict()]
    with pytest.raises(InputError, match="does not name the series"):
        PacsClient(server).referenced_series("1", "2")
    item = pydicom.Dataset()
    item.SeriesInstanceUID = "1.2.3"
    header.ReferencedSeriesSequence = [item]
    assert PacsClient(server).referenced_series("1", "2") == ["1.2.3"]


@pytest.mark.parametrize(
    "error",
    [InvalidDicomError("x"), KeyError("content-type"), ValueError("boundary")],
    ids=lambda error: type(error).__name__,
)
def test_all_errors_of_a_server_are_of_one_kind(error):
    """The libraries raise these for a page to sign in at, or a multipart body that is cut off."""

    def fail(*arguments, **options):
        raise error

    server = Server()
    server.search_for_series = server.retrieve_series = server.retrieve_series_metadata = fail
    server.store_instances = fail
    client = PacsClient(server)
    for ask in (
        lambda: list(client.search({"Modality": "CT"})),
        lambda: client.retrieve("1", "2"),
        lambda: client.referenced_series("1", "2"),
    ):
        with pytest.raises(requests.RequestException):
            ask()


@pytest.mark.parametrize("answer", [[1], ["text"], [{"0020000E": 3}], 7])
def test_json_that_is_no_dicom(answer):
    server = Server()
    server.search_for_series = lambda **arguments: answer
    with pytest.raises(requests.RequestException):
        list(PacsClient(server).search({"Modality": "CT"}))


def test_a_silent_server_is_given_up(monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = DICOMwebClient(f"http://127.0.0.1:{silent.getsockname()[1]}")
        limit_waiting(client)
        with pytest.raises(requests.Timeout):
            list(PacsClient(client).search({"Modality": "CT"}))


class BusyServer(http.server.BaseHTTPRequestHandler):
    """Is busy for the first `left` requests."""

    left = 0

    def do_GET(self):
        self.send_response(503 if BusyServer.left > 0 else 204)
        BusyServer.left -= 1
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize(("busy", "is_answered"), [(1, True), (99, False)])
def test_a_busy_server_is_asked_again_but_not_for_long(busy, is_answered):
    BusyServer.left = busy
    with http.server.HTTPServer(("127.0.0.1", 0), BusyServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = DICOMwebClient(f"http://127.0.0.1:{server.server_address[1]}")
        limit_waiting(client)
        search = PacsClient(client).search({"Modality": "CT"})
        if is_answered:
            assert list(search) == []
        else:
            with pytest.raises(requests.HTTPError):
                list(search)
            assert BusyServer.left == busy - 3
        server.shutdown()


def test_a_server_that_is_down():
    client = DICOMwebClient("http://127.0.0.1:9")
    limit_waiting(client)
    with pytest.raises(requests.ConnectionError):
        list(PacsClient(client).search({"Modality": "CT"}))
