"""Hide from a Python process all installed packages that the image leaves out.

Python imports this module at start-up if its folder is in PYTHONPATH. IMAGE_PACKAGES: file with the
packages of the image, one a line. Packages of the machine's own Python are not hidden.
"""

import os
import re
import sys
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions


def _canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def _hidden():
    with open(os.environ["IMAGE_PACKAGES"], encoding="utf-8") as file:
        kept = {_canonical(line.split("==")[0].strip()) for line in file} | {"torch", "pip"}
    return {
        module
        for module, distributions in packages_distributions().items()
        if not kept & {_canonical(name) for name in distributions}
    }


class Finder(PathFinder):
    """Finds modules as Python does, but for the hidden ones."""

    hidden = _hidden() - {"itk"}  # deploy/stand-ins comes before the package in PYTHONPATH

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in cls.hidden:
            return None
        return super().find_spec(name, path, target)


sys.meta_path = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
