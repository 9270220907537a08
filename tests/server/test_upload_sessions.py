"""Uploaded volumes: private, and a description that a crash left broken harms nothing."""

import stat

import pytest

from lib.server.upload_sessions import PrivateSessions


@pytest.fixture
def sessions(tmp_path):
    return PrivateSessions(str(tmp_path / "sessions"), expiry=3600)


def add(sessions, tmp_path, name="a.nii", expiry=0):
    path = tmp_path / name
    path.write_bytes(b"voxels")
    return sessions.add_session(str(path), expiry)


def test_the_folder_is_private(sessions, tmp_path):
    session_id, session = add(sessions, tmp_path)
    assert stat.S_IMODE((tmp_path / "sessions").stat().st_mode) == 0o700
    assert sessions.get_session(session_id).image == session.image


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_broken_description_is_an_expired_session(sessions, tmp_path, content):
    session_id, session = add(sessions, tmp_path)
    other, _ = add(sessions, tmp_path, "b.nii")
    (tmp_path / "sessions" / session_id / "meta.info").write_text(content)
    again = PrivateSessions(str(tmp_path / "sessions"))
    assert again.get_session(session_id) is None
    assert again.get_session(other) is not None


def test_what_has_expired_or_is_broken_is_removed(sessions, tmp_path, monkeypatch):
    old, _ = add(sessions, tmp_path, "a.nii", expiry=10)
    young, _ = add(sessions, tmp_path, "b.nii", expiry=3000)
    (tmp_path / "sessions" / "empty").mkdir()
    monkeypatch.setattr("lib.server.upload_sessions.time.time", lambda: 60 + _now())
    assert sessions.remove_expired() == 2
    assert [path.name for path in (tmp_path / "sessions").iterdir()] == [young]


def _now():
    import datetime

    return datetime.datetime.now().timestamp()


@pytest.mark.parametrize("name", ["..", "../sessions", "/etc", ".", ""])
def test_a_path_is_no_session(sessions, tmp_path, name):
    add(sessions, tmp_path)
    assert sessions.get_session(name) is None
    sessions.remove_session(name)
    assert len(list((tmp_path / "sessions").iterdir())) == 1
