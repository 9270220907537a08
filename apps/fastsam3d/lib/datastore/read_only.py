"""A folder of studies that the account of the server may not write."""

from __future__ import annotations

import os

from monailabel.datastore.local import LocalDatastoreModel


class ReadOnlyModel(LocalDatastoreModel):
    """The list of a folder that may not be written: folders that are missing are empty ones."""

    empty_folder: str = ""

    def label_path(self, tag: str | None) -> str:
        path = str(super().label_path(tag))
        return path if os.path.isdir(path) else self.empty_folder
