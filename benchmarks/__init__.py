"""What the app reaches: how often it is right, how long it takes. Run from the repository."""

import sys
from pathlib import Path

# The app is a folder that MONAI Label runs, not an installed package.
_APP = str(Path(__file__).resolve().parents[1] / "apps" / "fastsam3d")
if _APP not in sys.path:
    sys.path.insert(0, _APP)
