"""Benchmarks of accuracy, speed and memory; run them from the repository's root."""

import sys
from pathlib import Path

# MONAI Label runs the app from its folder, so the app is not an installed package.
_APP = str(Path(__file__).resolve().parents[1] / "apps" / "fastsam3d")
if _APP not in sys.path:
    sys.path.insert(0, _APP)
