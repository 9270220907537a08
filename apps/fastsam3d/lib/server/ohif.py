"""The OHIF viewer that MONAI Label serves, with its click panel corrected.

As it is, it hides why the server refuses a request and what the server warns of, it stops to react
when Run is pressed before any click, it has nothing to save a mask with, and it looks for the
server on port 8000. The corrections replace pieces of its script while it is served; the installed
files are left alone. A release of MONAI Label that has other pieces is served as it is.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Annotated

import monailabel.endpoints.ohif as stock
from fastapi import APIRouter, Depends, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User

FOLDER = Path(stock.__file__).parent / "static" / "ohif"

CORRECTIONS = (
    (  # say what the server says, and long enough to be read
        """message: 'Failed to Run Inference for Point Prompts',
          type: 'error',
          duration: 6000""",
        """message: (() => {
            try {
              return String(JSON.parse(new TextDecoder().decode(response.response.data)).detail);
            } catch {
              return 'The server did not answer: ' + response.message;
            }
          })(),
          type: 'error',
          duration: 15000""",
    ),
    (  # and what it warns of, which is beside the mask in the reply
        """message: 'Running Inference for Point Prompts - Successful',
        type: 'success',
        duration: 4000""",
        """message: response.headers['x-warning'] || 'The mask is there',
        type: response.headers['x-warning'] ? 'warning' : 'success',
        duration: response.headers['x-warning'] ? 15000 : 4000""",
    ),
    (  # without clicks: send none, and the server says what is missing
        "for (const annotation of annotations) {",
        "for (const annotation of annotations || []) {",
    ),
    (  # a mask can be saved; MONAI Label has the request for it, but nothing to click on
        "    this.clearAllPoints = () => {",
        """    this.saveLabel = async () => {
      const { segmentationService } = this.props.servicesManager.services;
      const { displaySet } = this.props.getActiveViewportInfo();
      const volume = segmentationService.getLabelmapVolume('1');
      const voxels = new Uint8Array(volume.voxelManager.getCompleteScalarDataArray());
      const used = new Set(voxels);
      const label_info = Object.entries(this.segmentInfo())
        .map(([name, { segmentIndex, color }]) => ({ name, idx: segmentIndex, color }))
        .filter(segment => used.has(segment.idx));
      const response = await this.props.client().save_label(
        displaySet.SeriesInstanceUID, new Blob([voxels]), { label_info });
      const saved = response.status === 200;
      this.notification.show({
        title: 'MONAI Label',
        message: saved ? 'The label is saved' : response.response?.data?.detail ?? response.message,
        type: saved ? 'success' : 'error',
        duration: saved ? 4000 : 15000
      });
    };
    this.clearAllPoints = () => {""",
    ),
    (
        """onClick: () => this.clearAllPoints()
      }, "Clear All Points")))""",
        """onClick: () => this.clearAllPoints()
      }, "Clear All Points")), ' | ', react.createElement("u", null, react.createElement("a", {
        style: {
          color: 'red',
          cursor: 'pointer'
        },
        onClick: () => this.saveLabel()
      }, "Save Label")))""",
    ),
    (  # the server is where the viewer comes from
        "'http://' + window.location.host.split(':')[0] + ':8000/'",
        "window.location.origin + '/'",
    ),
)

router = APIRouter(prefix="/ohif", tags=["Others"])


@router.get("/{path:path}", include_in_schema=False)
def get_viewer(
    path: str, user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))]
) -> Response:
    script = corrected(path)
    if script is None:
        return stock.get_ohif(path)
    # else a browser goes on with the script of the day before
    return Response(script, media_type="text/javascript", headers={"Cache-Control": "no-cache"})


@cache
def corrected(path: str) -> str | None:
    """The viewer's script at a path if it is the one to correct, corrected."""
    if not re.fullmatch(r"\d+\.bundle\.\w+\.js", path) or not (FOLDER / path).is_file():
        return None
    script = (FOLDER / path).read_text(encoding="utf-8")
    if any(script.count(piece) != 1 for piece, _ in CORRECTIONS):
        return None
    for piece, replacement in CORRECTIONS:
        script = script.replace(piece, replacement)
    return script
