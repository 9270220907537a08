"""Tell, for the packages that matter most, whether a newer release fits, and who refuses it.

    python tools/check_updates.py UV

UV: path of the program uv, which asks the package index; nothing is installed. The exit code is 0
in any case, so that a release of others never stops a build.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[1]
WATCHED = ("monailabel", "monai", "torch", "numpy", "pydicom", "SimpleITK")
"""WATCHED: packages whose releases are looked at."""


def main(uv: str) -> None:
    for name in WATCHED:
        print(report(uv, name), flush=True)


def report(uv: str, name: str) -> str:
    """Return one line, or several with the reasons, about the newest release of a package."""
    tested, newest = pin(name), newest_release(uv, name)
    if not newest:
        return f"{name} {tested}: the package index does not answer"
    if newest == tested:
        return f"{name} {tested}: there is no newer release"
    reasons = refusal(uv, name, newest) or own_reason(name, newest)
    if not reasons:
        return f"{name} {tested}: {newest} fits; try it with `make lock UPGRADE=1` and the tests"
    return f"{name} {tested}: {newest} does not fit:\n    " + "\n    ".join(reasons)


def pin(name: str) -> str:
    """Return the version in constraints.txt; "" if there is none."""
    text = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{name}==([^ ;\n]+)", text, flags=re.MULTILINE | re.IGNORECASE)
    return found[1] if found else ""


def newest_release(uv: str, name: str) -> str:
    """Return the newest release for the Python of the lock file; "" without an index."""
    lines = _compile(uv, "-", f"{name}\n", "--no-deps").stdout.splitlines()
    return lines[0].partition("==")[2] if lines else ""


def refusal(uv: str, name: str, version: str) -> list[str]:
    """Return the sentences of uv that say which package refuses a release; empty if none does.

    The range of this project's own requirements.txt is left out: it follows from the others.
    """
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    others = [line for line in lines if not re.match(rf"{name}\b(?!-)", line)]
    result = _compile(uv, "-", "\n".join([*others, f"{name}=={version}"]))
    text = re.sub(r"\s+", " ", result.stderr)
    because = re.findall(rf"[\w.=<>-]+ depends on {name}[<>=][^ ]*\d", text)
    return (because or [text[-300:]]) if result.returncode else []


def own_reason(name: str, version: str) -> list[str]:
    """Return the comment of requirements.txt on a package whose range leaves a release out."""
    text = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8")
    found = re.search(rf"^({name}[<>=].*?) *(?:# (.*))?$", text, flags=re.MULTILINE)
    if found is None or Requirement(found[1]).specifier.contains(version):
        return []
    return [f"requirements.txt, {found[1]}: {found[2] or 'no reason is given'}"]


def _compile(uv: str, source: str, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [uv, "pip", "compile", source, "--quiet", "--no-header", "--no-annotate"]
    command += ["--python-version", "3.11", "--python-platform", "linux", *options]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    main(sys.argv[1])
