"""The journal gives back each interaction, after a kill and a torn line too, and is bounded."""

import hashlib
import os
import stat
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lib.datastore.journal import FOLDER, Interaction, Journal


def interaction(image="head", number=0, **changes):
    fields = {
        "label": "Leber",
        "prompts": {"foreground": [[number, 2, 3]], "background": []},
        "options": {"size": -1},
        "weights_sha256": "a" * 64,
        "mask_sha256": hashlib.sha256(bytes([number % 256])).hexdigest(),
        "user": "Anna",
    }
    return Interaction(image=image, **{**fields, **changes})


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "labels", max_bytes=1 << 20)


def numbers(journal, image="head"):
    return [entry["prompts"]["foreground"][0][0] for entry in journal.read(image)]


def test_lines_come_back_in_their_order_from_another_process(journal, tmp_path):
    for number in range(3):
        journal.append(interaction(number=number))
    journal.append(interaction("other", 7))
    again = Journal(tmp_path / "labels", max_bytes=1 << 20)
    assert numbers(again) == [0, 1, 2]
    (entry,) = again.read("other")
    assert entry.pop("time").endswith("+00:00")
    assert entry == vars(interaction("other", 7))
    assert again.read("nobody") == []


def test_a_torn_line_spoils_no_other(journal, tmp_path):
    journal.append(interaction(number=1))
    path = tmp_path / "labels" / FOLDER / "head.jsonl"
    with path.open("ab") as file:
        file.write(b'{"time": "2026-')
    assert numbers(journal) == [1]
    journal.append(interaction(number=2))
    assert numbers(journal) == [1, 2]


def test_a_full_journal_drops_its_older_half(tmp_path):
    journal = Journal(tmp_path, max_bytes=4000)
    for number in range(100):
        journal.append(interaction(number=number))
    kept = numbers(journal)
    assert kept == list(range(kept[0], 100)) and 3 <= len(kept) <= 12
    assert (tmp_path / FOLDER / "head.jsonl").stat().st_size <= 4000


def test_off(tmp_path):
    Journal(tmp_path, max_bytes=0).append(interaction())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("image", ["../../etc/x", "/etc/passwd", "..", ".", "", "a" * 300, "a\0b"])
def test_an_id_is_never_a_path(journal, tmp_path, image):
    journal.append(interaction(image))
    assert journal.read(image)[0]["image"] == image
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert path.parent == tmp_path / "labels" / FOLDER


def test_only_the_server_may_read_it(journal, tmp_path):
    journal.append(interaction())
    path = tmp_path / "labels" / FOLDER / "head.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_disk_that_cannot_be_written_is_logged(journal, tmp_path, caplog):
    (tmp_path / "labels").write_text("a file, where the folder should be")
    journal.append(interaction())
    assert "an interaction is not in the journal head.jsonl" in caplog.text


def test_many_threads_at_once(journal):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: journal.append(interaction(number=n)), range(200)))
    assert sorted(numbers(journal)) == list(range(200))


def test_a_line_is_synced_and_does_not_wait_for_it(journal, monkeypatch):
    synced = []

    def slow(handle):
        time.sleep(0.05)
        synced.append(handle)

    monkeypatch.setattr(os, "fsync", slow)
    seconds = []
    for number in range(20):
        start = time.perf_counter()
        journal.append(interaction(number=number))
        seconds.append(time.perf_counter() - start)
    journal.flush()
    assert synced
    assert statistics.median(seconds) < 0.005
