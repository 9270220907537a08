"""The requests that 3D Slicer's plugin sends to the server, in its order and form.

The plugin contains MONAI Label's client unchanged, so the same class makes the requests here. Its
arguments are copied from the plugin's source.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from monailabel.client import MONAILabelClient

CLIENT_ID = "user-xyz"
Clicks = Sequence[Sequence[int]]


class SlicerPlugin:
    """The plugin of one user, connected to a server, with one volume open."""

    def __init__(self, url: str, folder: Path) -> None:
        self.client = MONAILabelClient(url, str(folder), CLIENT_ID)
        self.folder = folder
        self.session = ""
        self._probe()
        self.info = self.client.info()

    def _probe(self) -> None:
        """Ask for the login and the training status, as the plugin does before each request."""
        assert not self.client.auth_enabled()
        self.client.train_status(True)

    def open_local(self, path: Path) -> None:
        """Upload a volume that is not among the server's studies."""
        self._probe()
        self.session = self.client.create_session(str(path))["session_id"]

    def config(self, kind: str, name: str) -> dict:
        """Return the settings in the plugin's table, which shows the first element of a list."""
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
        """Place points; return the mask as Slicer reads it, and the reply's parameters."""
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
        path, reply = self.client.infer(model, image, params, session_id=self.session or None)
        return sitk.ReadImage(path), reply

    def next_sample(self) -> dict:
        self._probe()
        return self.client.next_sample("random", {})

    def keep_local(self, path: Path) -> None:
        """Add an own volume to the studies, as the plugin does when its label is submitted."""
        self.client.upload_image(str(path), path.name.partition(".")[0])

    def save(self, image: str, mask: sitk.Image, names: Sequence[str]) -> dict:
        """Submit a label map and the names of its segments."""
        self._probe()
        path = self.folder / "tmp1a2b3c.nii.gz"
        sitk.WriteImage(mask, str(path))
        names = [{"name": name, "idx": index} for index, name in enumerate(names, start=1)]
        return self.client.save_label(image, str(path), params={"label_info": names})


def voxels(image: sitk.Image) -> np.ndarray:
    """Return the voxels (I, J, K)."""
    return sitk.GetArrayFromImage(image).transpose()
