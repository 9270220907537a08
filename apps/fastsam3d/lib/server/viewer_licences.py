"""The licence notices of what the viewer's package bundles, read from the bundles themselves."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Mapping
from functools import cache

from lib.server.viewer_package import PACKAGE, VERSION, ViewerFile, viewer_files

OWN_LICENCE = "LICENSE.txt"
"""OWN_LICENCE: the file with the licence of the package itself."""

BUNDLED = re.compile(rb"node_modules/((?:@[a-z0-9.-]+/)?[A-Za-z0-9][A-Za-z0-9._-]*)")
"""BUNDLED: path of a bundled module; the group is the name of its npm package."""

COMMENT = re.compile(rb"/\*.*?\*/|(?:^[ \t]*//[^\n]*\n)+", re.DOTALL | re.MULTILINE)

NOTICE = re.compile(rb"@licen[cs]e|@preserve|copyright|licensed under", re.IGNORECASE)

LONGEST_NOTICE = 20_000
"""LONGEST_NOTICE: bytes; a longer comment is code that was commented out."""


@cache
def licence_notices() -> str:
    """Return the text of all notices; raises ViewerError if the viewer was not fetched."""
    return notices_of(viewer_files())


def notices_of(files: Mapping[str, ViewerFile]) -> str:
    """Return licence of the package, names of the bundled packages, and notices in their code."""
    names: set[str] = set()
    notices: dict[str, None] = {}
    for name in sorted(files):
        if name.endswith((".js", ".css")):
            content = _content(files[name])
            names |= {found.decode() for found in BUNDLED.findall(content)}
            notices |= dict.fromkeys(_notices(content))
    licence = _content(files[OWN_LICENCE]).decode("utf-8", "replace")
    parts = [
        f"{PACKAGE} {VERSION}\n\n{licence.strip()}",
        "It bundles these npm packages, whose licences are at "
        "https://www.npmjs.com/package/NAME:\n\n" + "\n".join(sorted(names)),
        "Notices in their code:",
        *notices,
    ]
    return ("\n\n" + "-" * 80 + "\n\n").join(parts) + "\n"


def _content(file: ViewerFile) -> bytes:
    content = file.path.read_bytes()
    return gzip.decompress(content) if file.is_gzipped else content


def _notices(content: bytes) -> Iterable[str]:
    for comment in COMMENT.findall(content):
        if len(comment) <= LONGEST_NOTICE and NOTICE.search(comment):
            text = comment.decode("utf-8", "replace").strip("/*! \n")
            yield "\n".join(line.strip().lstrip("/*").strip() for line in text.splitlines())
