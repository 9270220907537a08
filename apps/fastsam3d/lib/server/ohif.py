"""The OHIF viewer that MONAI Label serves, with corrections to its click panel.

The stock panel hides why the server refuses a request and what it warns of, hangs when Run is
pressed before any click, cannot save a mask, and expects the server on port 8000. The corrections
replace pieces of the panel's script when it is served; the installed files stay unchanged. If
another release of MONAI Label lacks one of the pieces, its script is served unchanged.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import monailabel.endpoints.ohif as stock
from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

from lib.server.names import is_name

FOLDER = Path(stock.__file__).parent / "static" / "ohif"

CORRECTIONS = (
    (  # show the reason of an error, for 15 s instead of 6
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
    (  # show the reply's warnings
        """message: 'Running Inference for Point Prompts - Successful',
        type: 'success',
        duration: 4000""",
        """message: response.headers['x-warning'] || 'The mask is there',
        type: response.headers['x-warning'] ? 'warning' : 'success',
        duration: response.headers['x-warning'] ? 15000 : 4000""",
    ),
    (  # without clicks, send an empty list: the server answers what is missing
        "for (const annotation of annotations) {",
        "for (const annotation of annotations || []) {",
    ),
    (  # save the mask; the client has a function for it, but the panel has no button
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
    (  # the button for it
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
    (  # the server's address is the one that the viewer was loaded from
        "'http://' + window.location.host.split(':')[0] + ':8000/'",
        "window.location.origin + '/'",
    ),
)
"""CORRECTIONS: (piece of the stock script, its replacement); each piece occurs once."""

router = APIRouter(prefix="/ohif", tags=["Others"])


@router.get("/{path:path}", include_in_schema=False)
def get_viewer(path: str) -> Response:
    """The files of the viewer hold no data, so that they need no key."""
    script = corrected(path)
    if script is None:
        is_file_of_viewer = all(map(is_name, path.split("/"))) and (FOLDER / path).is_file()
        return FileResponse(FOLDER / (path if is_file_of_viewer else "index.html"))
    # without this header a browser may use its cached copy of the stock script
    return Response(script, media_type="text/javascript", headers={"Cache-Control": "no-cache"})


@lru_cache(maxsize=64)  # clients choose the paths
def corrected(path: str) -> str | None:
    """Return the corrected script at a path, or None if nothing is to be corrected there."""
    if not re.fullmatch(r"\d+\.bundle\.\w+\.js", path) or not (FOLDER / path).is_file():
        return None
    script = (FOLDER / path).read_text(encoding="utf-8")
    if any(script.count(piece) != 1 for piece, _ in CORRECTIONS):
        return None
    for piece, replacement in CORRECTIONS:
        script = script.replace(piece, replacement)
    return script
