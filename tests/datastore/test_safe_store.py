"""A folder of studies: a saved label is never lost, and never replaced by a bad one."""

import errno
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import from_matvec

from lib.atomic_file import SUFFIX, is_full
from lib.datastore import label_history, stored_list
from lib.datastore.safe_store import FolderDatastore
from lib.errors import ConflictError, InputError, NotFoundError, ReadOnlyError
from lib.imaging import nifti_file

SHAPE_IJK = (21, 17, 13)
AFFINE_MM = from_matvec(np.diag([-1.5, -0.9, 2.5]), [20, -30, 40])
EXTENSIONS = ["*.nii.gz", "*.nii", "*.nrrd"]
NAMES = [{"name": "Leber", "idx": 1}, {"name": "肝臓", "idx": 2}]


def label_array(value=1, start=3):
    array = np.zeros(SHAPE_IJK, np.uint8)
    array[start : start + 6, 4:11, 2:9] = value
    return array


def write(path, array, affine_mm=AFFINE_MM):
    nib.save(nib.Nifti1Image(array, affine_mm), path)
    return path


def read(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture
def studies(tmp_path):
    folder = tmp_path / "studies"
    folder.mkdir()
    scan = np.random.default_rng(1).integers(-1000, 1000, SHAPE_IJK, dtype=np.int16)
    write(folder / "a.nii.gz", scan)
    write(folder / "b.nii", scan)
    return folder


def opened(folder):
    return FolderDatastore(str(folder), extensions=EXTENSIONS, auto_reload=False)


@pytest.fixture
def store(studies):
    return opened(studies)


@pytest.fixture
def label(tmp_path):
    return write(tmp_path / "label.nii.gz", label_array())


def final(studies, name="a.nii.gz"):
    return studies / "labels" / "final" / name


def save(store, label, image="a", **options):
    return store.store_label(image, label, "final", {"label_info": NAMES}, **options)


# --- versions -------------------------------------------------------------------------------------


def test_what_is_replaced_stays_with_time_and_user(store, studies, tmp_path):
    saved = []
    for number in (1, 2, 3):
        path = write(tmp_path / "label.nii.gz", label_array(number))
        saved.append(save(store, path, user=f"user {number}"))
    assert [result.version.number for result in saved] == [1, 2, 3]
    assert [r.replaced and r.replaced.user for r in saved] == [None, "user 1", "user 2"]
    current, earlier = store.label_versions("a", "final")
    assert (current.number, current.user) == (3, "user 3")
    assert [(v.number, v.user) for v in earlier] == [(2, "user 2"), (1, "user 1")]
    assert all(v.time.endswith("+00:00") and v.info["label_info"] == NAMES for v in earlier)
    restored = store.restore_label("a", "final", 1, user="user 4")
    np.testing.assert_array_equal(read(final(studies)), label_array(1))
    assert (restored.version.number, restored.replaced.number) == (4, 3)
    assert store.get_label_info("a", "final")["label_info"] == NAMES
    with pytest.raises(NotFoundError, match="no earlier version 9; kept: 1, 2, 3"):
        store.restore_label("a", "final", 9)


def test_a_version_that_does_not_fit_its_image_any_more_is_not_restored(store, studies, tmp_path):
    for number in (1, 2):
        save(store, write(tmp_path / "label.nii.gz", label_array(number)))
    write(studies / "a.nii.gz", np.ones((21, 17, 14), np.int16))
    with pytest.raises(InputError, match="21 × 17 × 13 voxels, its image 21 × 17 × 14"):
        store.restore_label("a", "final", 1)
    np.testing.assert_array_equal(read(final(studies)), label_array(2))
    assert store.label_versions("a", "final")[0].number == 2
    with pytest.raises(NotFoundError, match="no image 'c'"):
        store.restore_label("c", "final", 1)


def test_versions_are_bounded(store, tmp_path):
    store.keep_versions = 2
    for number in range(1, 6):
        save(store, write(tmp_path / "label.nii.gz", label_array(number)))
    _, earlier = store.label_versions("a", "final")
    assert [version.number for version in earlier] == [4, 3]


def test_two_people_on_one_label(store, label, tmp_path):
    assert save(store, label, user="Anna", base=0).version.number == 1
    other = write(tmp_path / "other.nii.gz", label_array(2))
    with pytest.raises(ConflictError, match="since version 0: Anna saved version 1 at 20"):
        save(store, other, user="Ben", base=0)
    result = save(store, other, user="Ben")
    assert result.replaced.user == "Anna"


def test_a_label_of_another_program_is_a_version_too(store, studies, label, tmp_path):
    save(store, label, user="Anna")
    write(final(studies), label_array(7))
    result = save(store, write(tmp_path / "new.nii.gz", label_array(2)), user="Ben")
    assert (result.replaced.number, result.replaced.user) == (2, "")
    assert result.version.number == 3
    store.restore_label("a", "final", 2)
    np.testing.assert_array_equal(read(final(studies)), label_array(7))


def test_a_label_in_another_format_replaces_the_one_before(store, studies, label, tmp_path):
    save(store, label)
    image = sitk.ReadImage(str(label)) * 2
    sitk.WriteImage(image, str(tmp_path / "label.nrrd"))
    save(store, tmp_path / "label.nrrd")
    assert store.get_label_uri("a", "final") == str(final(studies, "a.nrrd"))
    assert not final(studies).exists()
    assert opened(studies).get_label_uri("a", "final") == str(final(studies, "a.nrrd"))


# --- what does not replace a label ----------------------------------------------------------------


def shifted(path):
    return write(path, label_array(), AFFINE_MM @ from_matvec(np.eye(3), [0, 0, 1]))


BAD = {
    "five letters": (lambda path: path.write_bytes(b"Label") and path, "no NIfTI file in one"),
    "cut off": (lambda path: cut(write(path, label_array())), "cannot be read"),
    "cut off NRRD": (lambda path: cut(write_nrrd(path)), "cannot be read"),
    "other shape": (lambda path: write(path, label_array()[1:]), "has 20 × 17 × 13 voxels"),
    "other place": (shifted, "lies elsewhere than its image, by up to 2.5 mm"),
    "mirrored": (
        lambda path: write(path, label_array(), np.diag([-1, 1, 1, 1]) @ AFFINE_MM),
        "lies elsewhere",
    ),
    "two channels": (
        lambda path: write(path, np.stack([label_array()] * 2, -1)[:, :, :, None]),
        "voxels",
    ),
    "NaN": (lambda path: write(path, label_array() * np.float32("nan")), "NaN"),
    "fractions": (
        lambda path: write(path, label_array() * np.float32(0.4)),
        "no numbers of seg",
    ),
    "large": (
        lambda path: write(path, label_array() * np.int32(65536)),
        "holds the value 65536; save values from 0 to 65535",
    ),
    "negative": (lambda path: write(path, -label_array().astype(np.int16)), "no numbers of seg"),
}


def write_nrrd(path):
    path = path.with_name("bad.nrrd")
    image = sitk.ReadImage(str(write(path.with_name("good.nii.gz"), label_array())))
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


def cut(path):
    path.write_bytes(path.read_bytes()[:-60])
    return path


@pytest.mark.parametrize("case", BAD)
def test_a_bad_label_is_refused_and_the_old_one_kept(store, studies, label, tmp_path, case):
    save(store, label)
    before = final(studies).read_bytes()
    make, says = BAD[case]
    with pytest.raises(InputError, match=says):
        save(store, make(tmp_path / "bad.nii.gz"))
    assert final(studies).read_bytes() == before
    assert store.label_versions("a", "final")[1] == []


@pytest.mark.parametrize(
    ("name", "start", "says"),
    [
        (
            "x.nrrd",
            b"NRRD0004\ntype: short\ndata file: /etc/passwd\n\n",
            "voxels are in another file",
        ),
        (
            "x.nrrd",
            b"NRRD0004\r\ntype: short\r\nDataFile : LIST\r\n\r\n",
            "voxels are in another file",
        ),
        ("x.nrrd", b"Label", "no NRRD file"),
        ("x.nii", b"\0" * 344 + b"ni1\0", "no NIfTI file in one piece"),
    ],
)
def test_headers_that_point_elsewhere_are_never_opened(
    store, tmp_path, monkeypatch, name, start, says
):
    monkeypatch.setattr(sitk, "ReadImage", lambda *_: pytest.fail("a reader saw the file"))
    (tmp_path / name).write_bytes(start)
    with pytest.raises(InputError, match=says):
        save(store, tmp_path / name)


def test_an_empty_label_replaces_a_full_one_only_on_request(store, studies, label, tmp_path):
    empty = write(tmp_path / "empty.nii.gz", label_array(0))
    save(store, empty, image="b")  # a healthy case
    save(store, empty, image="b")
    save(store, label)
    with pytest.raises(ConflictError, match="the label is empty, and the one that is there is not"):
        save(store, empty)
    np.testing.assert_array_equal(read(final(studies)), label_array())
    assert save(store, empty, allow_empty=True).replaced.number == 1


def test_raw_voxels_get_the_geometry_of_the_image(store, studies, tmp_path):
    path = tmp_path / "voxels.bin"
    path.write_bytes(label_array(2).tobytes(order="F"))
    save(store, path)
    saved = nib.load(final(studies))
    np.testing.assert_array_equal(np.asarray(saved.dataobj), label_array(2))
    np.testing.assert_allclose(saved.affine, AFFINE_MM, atol=1e-5)
    path.write_bytes(b"12345")
    with pytest.raises(InputError, match=r"has 5 voxels, not those of its image \(4641\)"):
        save(store, path)


def test_many_values_are_kept_exactly(store, studies, tmp_path):
    array = label_array().astype(np.uint16)
    array[0, :3, 0] = [300, 301, 65535]
    save(store, write(tmp_path / "label.nii.gz", array))
    np.testing.assert_array_equal(read(final(studies)), array)


def test_a_label_of_a_scaled_header_is_a_label(store, tmp_path):
    image = nib.Nifti1Image(label_array().astype(np.int16), AFFINE_MM)
    image.header.set_slope_inter(3.0000458, 0)
    nib.save(image, tmp_path / "label.nii.gz")
    assert save(store, tmp_path / "label.nii.gz").version.number == 1


# --- the list -------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b'{"name": "x", "obj', b"\xff\xfe", b"[]", None])
def test_a_broken_list_is_made_anew_with_the_names(store, studies, label, content):
    save(store, label, user="Anna")
    path = studies / "datastore_v2.json"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    again = opened(studies)
    assert set(again.list_images()) == {"a", "b"}
    info = again.get_label_info("a", "final")
    assert (info["label_info"], info["user"], info["version"]) == (NAMES, "Anna", 1)
    assert set(json.loads(path.read_bytes())["objects"]) == {"a", "b"}
    aside = list(studies.glob("datastore_v2.json.broken-*"))
    assert [file.read_bytes() for file in aside] == ([] if content is None else [content])


def test_a_label_behind_whose_voxels_much_follows(store, studies, label, tmp_path, monkeypatch):
    """A few kilobytes can unpack to terabytes; the server does not unpack them."""
    save(store, label)
    monkeypatch.setattr(nifti_file, "MAX_EXTRA_BYTES", 2**22)
    plain = nib.Nifti1Image(label_array(2), AFFINE_MM).to_bytes()
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(plain + bytes(2**23)))
    with pytest.raises(InputError, match="the label cannot be read"):
        save(store, tmp_path / "bomb.nii.gz")
    np.testing.assert_array_equal(read(final(studies)), label_array())


def test_names_of_monai_labels_own_list_are_kept_beside_the_label(studies, label):
    from monailabel.datastore.local import LocalDatastore

    stock = LocalDatastore(str(studies), extensions=EXTENSIONS, auto_reload=False)
    stock.save_label("a", str(label), "final", {"label_info": NAMES})
    opened(studies)
    (studies / "datastore_v2.json").unlink()
    assert opened(studies).get_label_info("a", "final")["label_info"] == NAMES


def test_a_crash_between_label_and_list_keeps_both_right(store, studies, label, tmp_path):
    save(store, label)
    old_list = (studies / "datastore_v2.json").read_bytes()
    other = write(tmp_path / "other.nii.gz", label_array(2))
    store.store_label("a", other, "final", {"label_info": NAMES[:1]})
    (studies / "datastore_v2.json").write_bytes(old_list)
    assert opened(studies).get_label_info("a", "final")["label_info"] == NAMES[:1]
    # the description was written, the label not yet
    shutil.copy(final(studies).parent / ".versions/a/000001.nii.gz", final(studies))
    (studies / "datastore_v2.json").unlink()
    assert opened(studies).get_label_info("a", "final")["label_info"] == NAMES


def test_pipes_devices_and_links_to_nothing_are_no_studies(studies, tmp_path):
    os.mkfifo(studies / "pipe.nii")
    for name, target in (("zero", "/dev/zero"), ("loop", "loop.nii"), ("gone", tmp_path / "no")):
        (studies / f"{name}.nii").symlink_to(target)
    (studies / "folder.nii").mkdir()
    assert set(opened(studies).list_images()) == {"a", "b"}


@pytest.mark.parametrize("name", [b"back\\slash", b"new\nline", b"tab\t", b"not-utf-8-\xff"])
def test_a_name_that_no_request_can_send_is_left_out_and_named(studies, caplog, name):
    shutil.copy(studies / "a.nii.gz", os.fsdecode(os.fsencode(studies) + b"/" + name + b".nii.gz"))
    store = opened(studies)
    assert set(store.list_images()) == {"a", "b"}
    assert "is left out: rename it without backslash and control codes" in caplog.text


def test_a_name_that_is_too_long_is_left_out_and_named(studies, caplog):
    for name in ("ü" * 120, "ü" * 120 + "x"):
        shutil.copy(studies / "a.nii.gz", studies / f"{name}.nii.gz")
    assert set(opened(studies).list_images()) == {"a", "b", "ü" * 120}
    assert "is left out: shorten its name to 240 bytes" in caplog.text


def test_hidden_files_are_no_studies_and_names_keep_their_dots(studies):
    scan = studies / "a.nii.gz"
    for name in ("._a.nii.gz", ".hidden.nii", "P.001.nii.gz", "P.002.nii.gz", "UP.NII.GZ"):
        shutil.copy(scan, studies / name)
    sitk.WriteImage(sitk.ReadImage(str(scan)), str(studies / "a.nrrd"))
    store = opened(studies)
    assert set(store.list_images()) == {"a", "b", "P.001", "P.002", "UP", "a.nrrd"}
    assert store.get_image_uri("UP") == str(studies / "UP.NII.GZ")
    assert store.get_image_uri("a.nrrd") == str(studies / "a.nrrd")


def test_a_link_keeps_its_own_name(studies, tmp_path):
    shutil.copy(studies / "a.nii.gz", tmp_path / "object-4711")
    (studies / "linked.nii.gz").symlink_to(tmp_path / "object-4711")
    store = opened(studies)
    assert store.get_image_uri("linked") == str(studies / "linked.nii.gz")
    assert store.get_image_info("linked")["path"] == str(studies / "linked.nii.gz")


def test_a_new_image_never_replaces_another(store, studies, tmp_path):
    other = write(tmp_path / "up.nii.gz", np.ones(SHAPE_IJK, np.int16))
    before = (studies / "a.nii.gz").read_bytes()
    with pytest.raises(ConflictError, match="there is an image 'a' already"):
        store.add_new_image("a", other, {})
    assert (studies / "a.nii.gz").read_bytes() == before
    assert store.add_new_image("c", other, {}) == "c"
    assert (studies / "c.nii.gz").is_file()


def test_a_removed_image_keeps_its_labels_as_versions(store, studies, label):
    save(store, label)
    store.remove_image("a")
    assert set(store.list_images()) == {"b"}
    assert (final(studies).parent / ".versions/a/000001.nii.gz").read_bytes() == label.read_bytes()


def test_a_folder_that_may_not_be_written(studies, label, monkeypatch, caplog):
    save(opened(studies), label)
    before = {path: path.stat().st_mtime_ns for path in studies.rglob("*")}
    monkeypatch.setattr(stored_list, "can_write", lambda folder: False)
    shutil.rmtree(studies / "labels" / "original")
    store = opened(studies)
    assert "may not be written: clicks work" in caplog.text
    assert store.get_image_uri("a") == str(studies / "a.nii.gz")
    assert store.get_label_info("a", "final")["label_info"] == NAMES
    store.update_image_info("a", {"strategy": 1})
    for change in (
        lambda: save(store, label),
        lambda: store.restore_label("a", "final", 1),
        lambda: store.update_label_info("a", "final", {}),
        lambda: store.add_image("c", str(label), {}),
        lambda: store.remove_image("a"),
    ):
        with pytest.raises(ReadOnlyError, match="give its account the right to write there"):
            change()
    after = {path: path.stat().st_mtime_ns for path in studies.rglob("*")}
    before.pop(studies / "labels" / "original")
    before.pop(studies / "labels")
    after.pop(studies / "labels")
    assert after == before


# --- faults ---------------------------------------------------------------------------------------


def test_labels_are_read_from_a_disk_that_became_read_only(store, label, monkeypatch):
    def refuse():
        raise OSError(errno.EROFS, "read-only file system")

    save(store, label)
    monkeypatch.setattr(store, "_file_lock", refuse)
    assert store.label_versions("a", "final")[0].number == 1
    assert store.get_label_info("a", "final")["label_info"] == NAMES
    with pytest.raises(OSError, match="read-only"):
        save(store, label)
    monkeypatch.setattr(store, "_file_lock", no_space)
    with pytest.raises(OSError, match="no space"):
        store.label_versions("a", "final")


@contextmanager
def small_disk(folder, size):
    """Mount a file system of ``size`` on ``folder``; skip the test without the right to."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs an administrator")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def check_full_disk(store, studies, tmp_path):
    """Save labels of voxels that no format makes smaller until the disk is full."""
    noise = np.random.default_rng(0)
    kept, error = {}, None
    for number in range(400):
        image = ("a", "b")[number % 2]
        array = noise.integers(0, 255, SHAPE_IJK, dtype=np.uint8)
        path = write(tmp_path / "noise.nii", array)
        try:
            store.store_label(image, path, "final", {"label_info": NAMES, "number": number})
            kept[image] = array
        except OSError as full:
            error = full
            break
    assert error is not None and is_full(error)
    for image, array in kept.items():
        path = store.get_label_uri(image, "final")
        np.testing.assert_array_equal(read(path), array)
    assert not [p for p in studies.rglob("*") if p.name.endswith(SUFFIX)]
    return kept


def test_a_full_disk_keeps_every_label(studies, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk, "256k"):
        shutil.copy(studies / "a.nii.gz", disk)
        shutil.copy(studies / "a.nii.gz", disk / "b.nii.gz")
        kept = check_full_disk(opened(disk), disk, tmp_path)
        again = opened(disk)
        for image, array in kept.items():
            np.testing.assert_array_equal(read(again.get_label_uri(image, "final")), array)


@pytest.mark.parametrize("is_new", [True, False])
def test_a_failed_save_changes_no_fact(studies, label, tmp_path, monkeypatch, is_new):
    """Neither the version nor the user, also if the same voxels are saved again."""
    store = opened(studies)
    save(store, label, user="Anna")
    before, _ = store.label_versions("a", "final")
    path = write(tmp_path / "new.nii.gz", label_array(2)) if is_new else label

    def no_space(*arguments):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(shutil, "copyfile", no_space)
    with pytest.raises(OSError):
        save(store, path, user="Ben")
    assert store.label_versions("a", "final")[0] == before
    assert opened(studies).label_versions("a", "final")[0] == before


def test_a_failed_description_changes_none(studies, label, monkeypatch):
    store = opened(studies)
    save(store, label)

    def no_space(*arguments):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(label_history, "write_text_atomically", no_space)
    with pytest.raises(OSError):
        store.update_label_info("a", "final", {"label_info": [{"name": "spleen", "idx": 1}]})
    assert store.get_label_info("a", "final")["label_info"] == NAMES


def child_saves_forever(folder, path, pipe):
    store = opened(folder)
    while True:
        for number in range(1, 250):
            array = np.full(SHAPE_IJK, number, np.uint8)
            write(path, array)
            info = {"label_info": [{"name": f"n{number}", "idx": number}]}
            store.store_label("a", path, "final", info)
            os.write(pipe, b"%03d\n" % number)


def kill_a_saving_child(studies, path, seconds):
    """Return the number of the last label that a child acknowledged before it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            child_saves_forever(studies, path, writing)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        first = pipe.readline()
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        lines = [first, *pipe.readlines()]
    return int([line for line in lines if line.endswith(b"\n")][-1])


def test_kills_while_saving_lose_no_acknowledged_label(studies, tmp_path):
    seconds = random.Random(3)
    for _ in range(15):
        last = kill_a_saving_child(studies, tmp_path / "mine.nii.gz", seconds.uniform(0, 0.15))
        store = opened(studies)
        array = read(store.get_label_uri("a", "final"))
        (number,) = np.unique(array)
        assert array.shape == SHAPE_IJK
        assert number in (last, last % 249 + 1)  # the next one may be in place, unacknowledged
        names = store.get_label_info("a", "final")["label_info"]
        assert names == [{"name": f"n{number}", "idx": number}]
        assert not [p for p in Path(studies).rglob("*") if p.name.endswith(SUFFIX)]
        assert not list(studies.glob("*.broken-*"))


def no_space(*arguments):
    raise OSError(errno.ENOSPC, "no space")


def test_an_image_info_that_could_not_be_written_is_not_kept(studies, monkeypatch):
    """The list is the only file that holds it."""
    store = opened(studies)
    store.update_image_info("a", {"note": "old"})
    monkeypatch.setattr(stored_list, "write_text_atomically", no_space)
    with pytest.raises(OSError):
        store.update_image_info("a", {"note": "new"})
    monkeypatch.undo()
    for each in (store, opened(studies)):
        assert each.get_image_info("a")["note"] == "old"


def test_an_image_info_that_no_file_can_hold_is_not_kept(studies, label):
    store = opened(studies)
    with pytest.raises(ValueError):
        store.update_image_info("a", {"note": "\ud800"})
    assert "note" not in store.get_image_info("a")
    save(store, label)  # writes the list


def test_an_image_whose_info_could_not_be_written_is_not_added(studies, tmp_path, monkeypatch):
    store = opened(studies)
    path = write(tmp_path / "new.nii.gz", label_array())
    monkeypatch.setattr(stored_list, "write_text_atomically", no_space)
    with pytest.raises(OSError):
        store.add_new_image("new", path, {"user": "Anna"})
    monkeypatch.undo()
    assert store.get_image_uri("new") == "" and not (studies / "new.nii.gz").exists()
    assert store.add_new_image("new", path, {"user": "Anna"}) == "new"
    assert opened(studies).get_image_info("new")["user"] == "Anna"
