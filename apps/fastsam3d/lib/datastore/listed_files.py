"""The files of a datastore: what lies in the folders, and the list that is made of them."""

from __future__ import annotations

import copy
import fnmatch
import logging
import os
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from monailabel.datastore.local import DataModel, ImageLabelModel
from monailabel.interfaces.datastore import DefaultLabelTag

from lib.atomic_file import remove_leftovers
from lib.datastore.label_history import VERSIONS, LabelHistory, LabelVersion
from lib.datastore.stored_list import StoredList

logger = logging.getLogger(__name__)

LABEL_VERSIONS = 20
"""LABEL_VERSIONS: default number of earlier versions of a label that stay."""

LONGEST_ID_BYTES = 240
"""LONGEST_ID_BYTES: of an ID, so that a file of that name can have any extension here."""


class ListedFiles(StoredList):
    """The images and labels of a folder, and the list of them; the subclasses change them."""

    keep_versions = LABEL_VERSIONS

    # --- paths ------------------------------------------------------------------------------------

    def get_image_uri(self, image_id: str) -> str:
        """Return the path of an image, or "" if there is none; a link keeps its own name."""
        self._refresh()
        image = self._datastore.objects.get(image_id)
        return str(self._image_file(image_id, image.image.ext)) if image else ""

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return what is known about an image, its path included."""
        self._refresh()
        image = self._datastore.objects.get(image_id)
        if image is None:
            return {}
        path = str(self._image_file(image_id, image.image.ext))
        return {**copy.deepcopy(image.image.info), "path": path}

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Return the path of a label, or "" if there is none."""
        self._refresh()
        label = self._datastore.label(label_id, label_tag)
        return str(self._label_folder(label_tag) / f"{label_id}{label.ext}") if label else ""

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Return the description of a label; empty if there is none."""
        self._refresh()
        label = self._datastore.label(label_id, label_tag)
        return dict(label.info) if label else {}

    def get_labeled_images(
        self, label_tag: str | None = None, labels: list[str] | None = None
    ) -> list[str]:
        """Return the images with a label."""
        self._refresh()
        return list(super().get_labeled_images(label_tag, labels))

    def find_label(self, image_id: str, tag: str) -> str:
        """Return the path of an image's label, or "" if there is none here or elsewhere."""
        return self.get_label_uri(image_id, tag)

    def labels_folder(self) -> Path:
        """Return the folder with one folder of labels a tag."""
        return Path(os.path.abspath(self._datastore.label_path(None)))

    def _image_file(self, image_id: str, extension: str) -> Path:
        return Path(os.path.abspath(self._datastore.image_path()), f"{image_id}{extension}")

    def _label_folder(self, tag: str) -> Path:
        return Path(os.path.abspath(self._datastore.label_path(tag)))

    def _history(self, tag: str) -> LabelHistory:
        return LabelHistory(self._label_folder(tag), self.keep_versions)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Return the paths of all images with a final label and of these labels."""
        return [
            {
                "image": str(self._image_file(image_id, entry.image.ext)),
                "label": ListedFiles.get_label_uri(self, image_id, DefaultLabelTag.FINAL),
            }
            for image_id, entry in self._datastore.objects.items()
            if DefaultLabelTag.FINAL in entry.labels
        ]

    # --- the list made of the files ---------------------------------------------------------------

    def _reconcile_datastore(self) -> None:
        """Make the list that of the files in the folders."""
        with self._exclusive():
            self._load_list()
            if not self._is_started and not self.read_only:
                self._remove_leftovers()
            objects = self._list_images()
            for folder in sorted(self.labels_folder().iterdir()):
                if folder.is_dir() and not folder.name.startswith("."):
                    self._list_labels(folder.name, objects)
            is_changed = objects != self._datastore.objects
            self._datastore.objects = objects
            self._is_started = True
            if is_changed:
                self._update_datastore_file()

    def _list_images(self) -> dict[str, ImageLabelModel]:
        """Return the entry of each image file; of two with one stem, one has its whole name."""
        files = self._list_files(self._datastore.image_path(), self._extensions)
        known = self._datastore.objects
        objects = {
            image_id: entry.model_copy(deep=True)
            for image_id, entry in known.items()
            if f"{image_id}{entry.image.ext}" in files
        }
        listed = {f"{image_id}{entry.image.ext}" for image_id, entry in objects.items()}
        for name in files:
            if name in listed:
                continue
            image_id, extension = self._to_id(name)
            if image_id in objects:
                logger.warning("image %s has the name of another; its ID is %r", name, name)
                image_id, extension = name, ""
            info = {"ts": int(time.time()), "name": name}
            objects[image_id] = ImageLabelModel(image=DataModel(info=info, ext=extension))
        return objects

    def _list_labels(self, tag: str, objects: dict[str, ImageLabelModel]) -> None:
        """Put the label files of a tag into the entries of their images."""
        history, folder = self._history(tag), self._label_folder(tag)
        names: dict[str, list[str]] = {}
        for name in self._list_files(str(folder), self._extensions):
            names.setdefault(self._to_id(name)[0], []).append(name)
        for label_id, entry in objects.items():
            found = names.pop(label_id, [])
            listed = entry.labels.get(tag)
            if not found:
                entry.labels.pop(tag, None)
            elif self._is_started and listed and f"{label_id}{listed.ext}" in found:
                continue
            else:
                entry.labels[tag] = self._describe_label(history, label_id, folder, listed)
        for name in sorted(names):
            logger.warning("label %s of tag %s has no image, and is ignored", name, tag)

    def _describe_label(
        self, history: LabelHistory, label_id: str, folder: Path, listed: DataModel | None
    ) -> DataModel:
        """Return the entry of a label from the description beside it, or else from the list."""
        newest = history.newest(label_id)
        is_listed = listed is not None and (folder / f"{label_id}{listed.ext}").is_file()
        if listed and is_listed and newest and newest.sha256 == listed.info.get("sha256"):
            return listed
        path = history.find(label_id)
        current = history.current(label_id, path) if path else None
        if path is None or current is None:  # of a format that is no longer saved
            extension = next(
                self._to_id(name)[1]
                for name in self._list_files(str(folder), self._extensions)
                if self._to_id(name)[0] == label_id
            )
            return DataModel(info={"ts": int(time.time())}, ext=extension)
        if newest is None and not self.read_only:  # as MONAI Label leaves it: names in the list
            info = dict(listed.info) if listed else {"ts": int(time.time()), "name": path.name}
            history.describe(label_id, path, info)
            current = history.current(label_id, path) or current
        return list_entry(current)

    def _list_files(self, path: str, patterns: Sequence[str]) -> dict[str, str]:
        """Return the files of a folder that fit a pattern, in the order of the patterns.

        Upper and lower case do not matter. Hidden files, such as ``._scan.nii``, are left out, and
        what is no file: a pipe would hold a reader forever. A name that no request can send is left
        out with a warning.
        """
        names = sorted(
            name
            for name in os.listdir(path)
            if not name.startswith(".")
            and os.path.isfile(os.path.join(path, name))
            and _can_be_sent(self._to_id(name)[0])
        )
        return {
            name: name
            for pattern in patterns
            for name in names
            if fnmatch.fnmatchcase(name.lower(), pattern.lower())
        }

    def _to_id(self, file: str) -> tuple[str, str]:
        """Split a file name into the ID and the extension; only the end counts as extension."""
        extensions = sorted((e.replace("*", "") for e in self._extensions), key=len, reverse=True)
        for extension in extensions:
            if file.lower().endswith(extension.lower()):
                return file[: -len(extension)], file[-len(extension) :]
        stem, extension = os.path.splitext(file)
        return stem, extension

    def _remove_leftovers(self) -> None:
        """Remove the temporary files of killed processes; the lock keeps all others away."""
        labels = self.labels_folder()
        folders = [Path(self._datastore_path), Path(self._datastore.image_path()), labels]
        folders += [path for path in labels.glob("*") if path.is_dir()]
        folders += [path for path in labels.glob(f"*/{VERSIONS}/*") if path.is_dir()]
        removed = [
            path for folder in folders if folder.is_dir() for path in remove_leftovers(folder)
        ]
        if removed:
            logger.info("removed %d temporary files that a killed server left", len(removed))


@lru_cache(maxsize=4096)
def _can_be_sent(name: str) -> bool:
    """Return whether a file name without its extension is an ID that requests can name.

    The first time it is not, that is logged.
    """
    if not name.isprintable() or "\\" in name:
        logger.warning("file %r is left out: rename it without backslash and control codes", name)
        return False
    if len(os.fsencode(name)) > LONGEST_ID_BYTES:
        logger.warning("file %r is left out: shorten its name to %d bytes", name, LONGEST_ID_BYTES)
        return False
    return True


def list_entry(version: LabelVersion) -> DataModel:
    """Return the entry of a label in the list."""
    facts = {"version": version.number, "time": version.time, "sha256": version.sha256}
    return DataModel(ext=version.extension, info={**version.info, **facts})
