"""The corrections to the OHIF viewer fit the installed MONAI Label; browser tests see them work."""

from lib.server.ohif import CORRECTIONS, FOLDER, corrected


def test_one_script_is_corrected() -> None:
    scripts = {path.name: corrected(path.name) for path in FOLDER.glob("*.js")}
    (script,) = filter(None, scripts.values())
    assert all(script.count(replacement) == 1 for _, replacement in CORRECTIONS)


def test_nothing_else_is_read() -> None:
    assert corrected("index.html") is None
    assert corrected("../ohif.py") is None
    assert corrected("1.bundle.0.js") is None
