"""IDs and tags are names, never paths; every route that reads or writes files checks them here."""

from __future__ import annotations

import os
import re

from lib.datastore.listed_files import LONGEST_ID_BYTES
from lib.errors import InputError

LONGEST_TAG = 64
"""LONGEST_TAG: characters of a tag, which is the name of a folder."""


def is_name(text: str) -> bool:
    """Return whether a text can be the name of a file: no path, not hidden, no control codes."""
    is_plain = os.path.basename(text) == text and "\\" not in text and text.isprintable()
    return bool(text.strip()) and is_plain and not text.startswith(".") and fits(text)


def fits(text: str) -> bool:
    """Return whether a name is short enough, in the encoding of the file system."""
    return len(text.encode("utf-8", "replace")) <= LONGEST_ID_BYTES


def check_name(text: str, what: str) -> str:
    """Return a name; raises InputError if it is a path or cannot be the name of a file."""
    if not is_name(text):
        raise InputError(
            f"{what} is {text[:80]!r}; send a name without slashes, control codes and a leading "
            f"dot, of at most {LONGEST_ID_BYTES} bytes"
        )
    return text


def is_tag(tag: object) -> bool:
    """Return whether a value can be the tag of a label."""
    is_word = isinstance(tag, str) and re.fullmatch(r"[\w-]+", tag) is not None
    return is_word and len(str(tag)) <= LONGEST_TAG and fits(str(tag))


def check_tag(tag: str, default: str = "final") -> str:
    """Return the tag of a label, or the default for ""; raises InputError."""
    if tag and not is_tag(tag):
        raise InputError(f"tag is {tag[:80]!r}; a tag has letters, digits, - and _ only")
    return tag or default
