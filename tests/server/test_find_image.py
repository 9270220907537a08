"""The image of a request: IDs are names, never paths, and copies of sent files are removed."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import UploadFile

from lib.errors import InputError, NotFoundError
from lib.server.find_image import image_file


class FakeApp:
    """An app whose datastore and sessions open any path, as MONAI Label's do."""

    def __init__(self, folder):
        self.folder = folder

    def datastore(self):
        return SimpleNamespace(get_image_uri=lambda image: str(self.folder / image))

    def sessions(self):
        def get_session(session_id):
            path = self.folder / session_id
            return SimpleNamespace(image=str(path)) if path.exists() else None

        return SimpleNamespace(get_session=get_session)


@pytest.fixture
def app(tmp_path):
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "head").write_bytes(b"scan")
    (tmp_path / "secret").write_bytes(b"not a study")
    return FakeApp(folder)


NRRD = b"NRRD0004\ntype: short\n\nvoxels"
NIFTI = b"\x5c\x01" + b"\0" * 342 + b"n+1\0voxels"


def sent_file(name):
    return UploadFile(io.BytesIO(NRRD if name.endswith("nrrd") else NIFTI), filename=name)


def test_a_study_is_found_by_its_name(app):
    with image_file(app, "head", "", None) as path:
        assert path == str(app.folder / "head")


@pytest.mark.parametrize("path", ["../secret", "/secret", "./head"])
def test_an_id_is_never_a_path(app, tmp_path, path):
    path = str(tmp_path / "secret") if path == "/secret" else path
    assert (app.folder / path).exists()
    with pytest.raises(NotFoundError, match="there is no image"), image_file(app, path, "", None):
        pass
    with pytest.raises(NotFoundError, match="has expired"), image_file(app, "head", path, None):
        pass


def test_an_unknown_session_is_an_error_despite_an_image(app):
    with (
        pytest.raises(NotFoundError, match="session 'gone' has expired"),
        image_file(app, "head", "gone", None),
    ):
        pass


def test_a_server_without_sessions_has_no_session(app):
    app.sessions = lambda: None
    with pytest.raises(NotFoundError, match="has expired"), image_file(app, "", "head", None):
        pass


@pytest.mark.parametrize(
    ("name", "extension"),
    [("a.nrrd", ".nrrd"), ("a.b.nii.gz", ".nii.gz"), ("", ".nii.gz"), ("../x.NII", ".nii")],
)
def test_the_copy_of_a_sent_file_is_removed(app, name, extension):
    with image_file(app, "", "", sent_file(name)) as path:
        assert Path(path).read_bytes().endswith(b"voxels")
        assert path.endswith(f"upload{extension}")
    assert not Path(path).parent.exists()


def test_the_copy_is_removed_after_an_error(app):
    with pytest.raises(OSError, match="disk"), image_file(app, "", "", sent_file("a.nrrd")) as path:
        raise OSError("disk")
    assert not Path(path).parent.exists()


@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr", "a.zip", "a", "a.nii.gz.exe"])
def test_files_of_other_kinds_are_refused(app, name):
    with pytest.raises(InputError, match="send one of"), image_file(app, "", "", sent_file(name)):
        pass


def test_a_header_that_names_another_file_is_refused(app):
    file = UploadFile(io.BytesIO(b"NRRD0004\ndata file: /etc/passwd\n\n"), filename="a.nrrd")
    with pytest.raises(InputError, match="another file"), image_file(app, "", "", file):
        pass


def test_a_request_without_an_image(app):
    with pytest.raises(InputError, match="there is no image"), image_file(app, "", "", None):
        pass
