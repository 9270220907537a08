"""3D Slicer's plugin as far as the server sees it: its calls, in its order and form.

The plugin ships MONAI Label's client as it is, so that class makes the bytes; what it is called
with is written down here from the plugin's source.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from monailabel.client import MONAILabelClient

CLIENT_ID = "user-xyz"
Clicks = Sequence[Sequence[int]]


class Slicer:
    """One user's module: connected to a server, with one volume open."""

    def __init__(self, url: str, folder: Path) -> None:
        self.client = MONAILabelClient(url, str(folder), CLIENT_ID)
        self.folder = folder
        self.session = ""
        self._probe()
        self.info = self.client.info()

    def _probe(self) -> None:
        """What goes before each call: is there a login, and does a training run?"""
        assert not self.client.auth_enabled()
        self.client.train_status(True)

    def open_local(self, path: Path) -> None:
        """Upload a volume that the server does not know."""
        self._probe()
        self.session = self.client.create_session(str(path))["session_id"]

    def config(self, kind: str, name: str) -> dict:
        """The settings that the plugin's table shows: of a list, its first element."""
        values = self.info[kind][name].get("config", {})
        return {k: v[0] if isinstance(v, list) else v for k, v in values.items()}

    def click(
        self,
        image: str,
        foreground: Clicks,
        background: Clicks = (),
        *,
        label: str = "organ",
        roi: Sequence[int] | None = None,
        reset_state: bool = False,
        model: str = "fastsam3d",
    ) -> tuple[sitk.Image, dict]:
        """A point was placed: the mask as Slicer reads it, and what was said beside it."""
        self._probe()
        if self.session:
            self.client.get_session(self.session)
        params = {"label": label, "foreground": list(foreground), "background": list(background)}
        params.update(self.config("models", model))
        if reset_state:
            params["reset_state"] = True
        if roi is not None:
            params["roi"] = list(roi)
        params.update({"result_extension": ".nrrd", "result_dtype": "uint8"})
        path, said = self.client.infer(model, image, params, session_id=self.session or None)
        return sitk.ReadImage(path), said

    def next_sample(self) -> dict:
        self._probe()
        return self.client.next_sample("random", {})

    def keep_local(self, path: Path) -> None:
        """Submit, for a volume of one's own: first the image joins the server's studies."""
        self.client.upload_image(str(path), path.name.partition(".")[0])

    def save(self, image: str, mask: sitk.Image, names: Sequence[str]) -> dict:
        """Submit: the label map and the names of its segments."""
        self._probe()
        path = self.folder / "tmp1a2b3c.nii.gz"
        sitk.WriteImage(mask, str(path))
        names = [{"name": name, "idx": index} for index, name in enumerate(names, start=1)]
        return self.client.save_label(image, str(path), params={"label_info": names})


def voxels(image: sitk.Image) -> np.ndarray:
    """(I, J, K)"""
    return sitk.GetArrayFromImage(image).transpose()
