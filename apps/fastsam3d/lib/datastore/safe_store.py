"""MONAI Label's datastore of files, with writes that a crash or a full disk cannot break.

MONAI Label copies labels in place. Here each file is written aside, synced and swapped, and what it
replaces stays as a version.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel.datastore.local import (
    DataModel,
    ImageLabelModel,
)
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

from lib.atomic_file import copy_atomically
from lib.datastore.label_files import as_image_file, check_label, has_voxels
from lib.datastore.label_history import LabelVersion
from lib.datastore.listed_files import ListedFiles, list_entry
from lib.errors import ConflictError, NotFoundError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedLabel:
    """The result of saving a label: its version, and the version that it replaced, if any."""

    version: LabelVersion
    replaced: LabelVersion | None


class SafeDatastore(ListedFiles):
    """A folder of images and labels on which an acknowledged label is never lost.

    Methods that change something raise ReadOnlyError if the folder may not be written, and OSError
    if the disk is full; what was there is unchanged then.
    """

    # --- labels -----------------------------------------------------------------------------------

    def store_label(
        self,
        image_id: str,
        path: str | Path,
        tag: str,
        info: Mapping[str, Any],
        *,
        user: str = "",
        base: int | None = None,
        allow_empty: bool = False,
    ) -> SavedLabel:
        """Check a label file against its image and save it; what it replaces stays as a version.

        base: the version that the client has loaded (0: there was none); None skips that check.
        Raises InputError if the file cannot be read or is on another grid, NotFoundError if there
        is no such image, and ConflictError if the label is newer than ``base``, or if an empty
        label would replace one with voxels and ``allow_empty`` is false.
        """
        self._check_writable()
        image = self.get_image_uri(image_id)
        if not image:
            raise NotFoundError(f"there is no image {image_id!r} among the studies of this server")
        with tempfile.TemporaryDirectory() as folder, as_image_file(path, image, folder) as file:
            facts = check_label(file, image)
            with self._exclusive():
                history = self._history(tag)
                existing = history.find(image_id)
                current = history.current(image_id, existing) if existing else None
                _check_base(current, base)
                if not (facts.voxels or allow_empty) and existing and has_voxels(existing):
                    raise ConflictError(
                        "the label is empty, and the one that is there is not; draw or click on "
                        "something first, or save with allow_empty=true"
                    )
                saved = self._replace_label(
                    image_id, file, tag, {**info, "voxels": facts.voxels}, user
                )
        self._label_was_saved(image_id, tag, saved)
        return saved

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]
    ) -> str:
        """Save a label without a look at it, as a label that comes from a DICOM server."""
        self._check_writable()
        self._replace_label(image_id, Path(label_filename), label_tag, label_info or {}, "")
        return image_id

    def label_versions(
        self, image_id: str, tag: str
    ) -> tuple[LabelVersion | None, list[LabelVersion]]:
        """Return the version of a label, None if there is no label, and the earlier ones."""
        with self._reading():
            history = self._history(tag)
            path = history.find(image_id)
            current = history.current(image_id, path) if path else None
            earlier = history.earlier(image_id)
        return current, [v for v in earlier if current is None or v.number != current.number]

    def restore_label(self, image_id: str, tag: str, number: int, user: str = "") -> SavedLabel:
        """Make an earlier version the label again, as a new version.

        Raises NotFoundError if there is no such image or version, and InputError if the label does
        not fit its image any more.
        """
        self._check_writable()
        image = self.get_image_uri(image_id)
        if not image:
            raise NotFoundError(f"there is no image {image_id!r} among the studies of this server")
        with self._exclusive():
            version, path = self._history(tag).version_file(image_id, number)
            check_label(path, image)  # the image may be another one now
            info = {**version.info, "restored_from": number}
            saved = self._replace_label(image_id, path, tag, info, user)
        self._label_was_saved(image_id, tag, saved)
        return saved

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to the description of a label."""
        self._check_writable()
        with self._exclusive():
            label = self._datastore.label(label_id, label_tag)
            if not label:
                raise LabelNotFoundException(f"Label: {label_id} Tag: {label_tag} not found")
            changed = {**label.info, **info}
            path = Path(self.get_label_uri(label_id, label_tag))
            self._history(label_tag).describe(label_id, path, changed)
            label.info = changed  # only now: the disk may be full
            self._update_datastore_file()

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Take a label off the list; it stays as an earlier version."""
        self._check_writable()
        with self._exclusive():
            path = self.get_label_uri(label_id, label_tag)
            if path:
                self._history(label_tag).keep_current(label_id)
                Path(path).unlink(missing_ok=True)
            self._reconcile_datastore()

    def _label_was_saved(self, image_id: str, tag: str, saved: SavedLabel) -> None:
        """Do what follows a saved label; nothing here."""

    def _replace_label(
        self, image_id: str, path: Path, tag: str, info: Mapping[str, Any], user: str
    ) -> SavedLabel:
        with self._exclusive():
            image = self._datastore.objects.get(image_id)
            if image is None:
                raise ImageNotFoundException(f"Image {image_id} not found")
            _, extension = self._to_id(path.name)
            self._label_folder(tag).mkdir(parents=True, exist_ok=True)
            facts = {"ts": int(time.time()), "name": f"{image_id}{extension}"}
            facts |= {"user": user} if user else {}
            history = self._history(tag)
            new, replaced = history.replace(image_id, path, extension, {**info, **facts}, user)
            image.labels = {**image.labels, tag: list_entry(new)}
            self._update_datastore_file()
        return SavedLabel(new, replaced)

    # --- images -----------------------------------------------------------------------------------

    def has_image(self, image_id: str) -> bool:
        """Return whether there is such an image; nothing is fetched."""
        self._refresh()
        return image_id in self._datastore.objects

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Add an image, or replace one of the same ID and format; return the ID."""
        self._check_writable()
        stem, extension = self._to_id(os.path.basename(image_filename))
        image_id = image_id or stem
        name = f"{image_id}{extension}"
        info = {**(image_info or {}), "ts": int(time.time()), "name": name}
        with self._exclusive():
            path = self._image_file(image_id, extension)
            is_new = not path.exists()
            copy_atomically(Path(image_filename), path)
            before = self._datastore.objects
            known = before.get(image_id)
            entry = ImageLabelModel(image=DataModel(info=info, ext=extension))
            entry.labels = known.labels if known else {}
            self._datastore.objects = {**before, image_id: entry}
            try:
                self._write_list()
            except OSError:
                self._datastore.objects = before
                if is_new:
                    path.unlink(missing_ok=True)
                raise
        return image_id

    def add_new_image(self, image_id: str, path: Path, info: dict[str, Any]) -> str:
        """Add an image under a name that is not used yet; raises ConflictError if it is."""
        is_used = bool(self.get_image_uri(image_id))  # without the lock: it may fetch a series
        with self._exclusive():
            _, extension = self._to_id(path.name)
            is_used = is_used or image_id in self._datastore.objects
            if is_used or self._image_file(image_id, extension).exists():
                raise ConflictError(
                    f"there is an image {image_id!r} already, with other voxels; upload this one "
                    "under another name"
                )
            return self.add_image(image_id, str(path), info)

    def remove_image(self, image_id: str) -> None:
        """Remove an image; its labels stay as earlier versions."""
        self._check_writable()
        with self._exclusive():
            image = self._datastore.objects.get(image_id)
            if image is None:
                raise ImageNotFoundException(f"Image {image_id} not found")
            for tag in list(image.labels):
                self.remove_label(image_id, tag)
            self._image_file(image_id, image.image.ext).unlink(missing_ok=True)
            self._reconcile_datastore()

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to the description of an image; in a read-only folder until the server stops."""
        with self._exclusive():
            image = self._datastore.objects.get(image_id)
            if image is None:
                raise ImageNotFoundException(f"Image {image_id} not found")
            before = image.image.info
            image.image.info = {**before, **info}
            try:
                self._write_list()
            except Exception:  # whatever cannot be written must not stay in the list
                image.image.info = before
                raise


class FolderDatastore(SafeDatastore):
    """A folder of image files: each label is checked against its image before it is saved."""

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]
    ) -> str:
        """Check and save a label; see `store_label`."""
        self.store_label(image_id, label_filename, label_tag, label_info or {})
        return image_id


def _check_base(current: LabelVersion | None, base: int | None) -> None:
    """Raise ConflictError if the label is not the version that the client knows."""
    number = current.number if current else 0
    if base is None or base == number:
        return
    if current is None:
        raise ConflictError(f"the label is gone since version {base}; save without base")
    raise ConflictError(
        f"the label changed since version {base}: {current.user or 'an unknown user'} saved "
        f"version {number} at {current.time}; load it, or save without base to replace it"
    )
