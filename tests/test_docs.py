"""The pages agree with the code: links, commands, paths, options, routes and messages."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from lib.infers.request import OPTIONS as REQUEST_KEYS
from lib.options import Options
from lib.server.doors import STATUSES
from lib.server.install import ERRORS, install
from lib.trainers.adapt_options import AdaptOptions
from lib.trainers.request_options import RequestOptions
from lib.trainers.train_options import TrainOptions
from test_repository import REPOSITORY, make_targets

APP = REPOSITORY / "apps" / "fastsam3d"
REFERENCE = REPOSITORY / "docs" / "options.md"
CHANGELOG = REPOSITORY / "CHANGELOG.md"
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "SECURITY.md",
    CHANGELOG,
    REPOSITORY / "benchmarks" / "README.md",
    REPOSITORY / "sample-data" / "README.md",
    REPOSITORY / "tests" / "golden" / "README.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
CURRENT_PAGES = [page for page in PAGES if page != CHANGELOG]
"""CURRENT_PAGES: pages about the present code; the changelog also names files that are gone."""

MAX_LINES = {"README.md": 110, "docs/model-card.md": 120}
LINE_WIDTH = 100

CODE_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", flags=re.DOTALL | re.MULTILINE)
CODE_SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE_FOLDERS = ("apps", "benchmarks", "docs", "sample-data", "tests", "tools", "training")
ENVIRONMENT_TOOLS = {"monailabel", "python", "tensorboard", "torchrun"}
"""ENVIRONMENT_TOOLS: commands that exist only in an active environment."""


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


# --- links ----------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    text = CODE_BLOCK.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    broken = []
    for link in LINK.findall(CODE_BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_linked() -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in LINK.findall(page.read_text(encoding="utf-8"))
    }
    pages = set((REPOSITORY / "docs").rglob("*.md"))
    assert pages <= linked


# --- form -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAX_LINES)
def test_pages_are_short(name: str) -> None:
    lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES[name]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_are_wrapped(page: Path) -> None:
    """Tables and pictures cannot be wrapped."""
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), start=1)
    long = [
        number
        for number, line in lines
        if len(line) > LINE_WIDTH and not line.lstrip().startswith(("|", "!["))
    ]
    assert not long


# --- commands and paths ---------------------------------------------------------------------------


def shell_blocks(page: Path) -> list[str]:
    """Return the shell code blocks of a page, with lines joined and comments removed."""
    text = page.read_text(encoding="utf-8")
    blocks = [code for language, code in CODE_BLOCK.findall(text) if language in ("", "bash")]
    joined = (re.sub(r"\\\n\s*", "", block) for block in blocks)
    return [re.sub(r"(^|\s)#.*$", "", block, flags=re.MULTILINE) for block in joined]


def commands(block: str) -> Iterator[list[str]]:
    """Yield the words of each command line, without the variables set before it."""
    for line in filter(None, map(str.strip, block.splitlines())):
        words = line.split()
        while re.match(r"[A-Z_]+=.*\S", words[0]) and len(words) > 1:
            words = words[1:]
        yield words


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=name_of)
def test_make_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    code = [*shell_blocks(page), *CODE_SPAN.findall(CODE_BLOCK.sub("", text))]
    named = re.findall(r"(?m)(?:^|&& )\s*(?:\w+='[^']*' )?make ([a-z][a-z-]*)", "\n".join(code))
    assert set(named) <= make_targets()
    if page.name == "README.md" and page.parent == REPOSITORY:
        assert {"serve", "test", "ohif", "accuracy"} <= set(named)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_run_in_the_state_of_the_reader(page: Path) -> None:
    """Commands of the environment have its path, or follow a line that activates it."""
    for block in shell_blocks(page):
        is_active = "source .venv/bin/activate" in block or "pip install" in block
        for words in commands(block):
            assert words[0] not in ENVIRONMENT_TOOLS or is_active, " ".join(words)


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=name_of)
def test_python_files_and_modules_of_commands_exist(page: Path) -> None:
    missing = []
    for block in shell_blocks(page):
        for words in commands(block):
            for word, following in zip(words, [*words[1:], ""], strict=True):
                if word.endswith(".py") and "/" in word and not (REPOSITORY / word).is_file():
                    missing.append(word)
                if word == "-m" and following.split(".")[0] in ("benchmarks", "training"):
                    path = REPOSITORY / (following.replace(".", "/") + ".py")
                    missing += [] if path.is_file() else [following]
    assert not missing


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=name_of)
def test_named_paths_exist(page: Path) -> None:
    """`lib/...` lies in the app; all other paths start at the repository; `name.py` is anywhere."""
    spans = CODE_SPAN.findall(CODE_BLOCK.sub("", page.read_text(encoding="utf-8")))
    files = {path.name for folder in CODE_FOLDERS for path in (REPOSITORY / folder).rglob("*.py")}
    assert {span for span in spans if re.fullmatch(r"\w+\.py", span)} <= files
    pattern = re.compile(r"(?:apps|benchmarks|docs|lib|sample-data|tests|tools|training)/[\w./-]+")
    paths = [span for span in spans if pattern.fullmatch(span)]
    made_at_run_time = ("sample-data/build", "apps/fastsam3d/model", "apps/fastsam3d/logs")
    missing = [
        path
        for path in paths
        if not path.startswith(made_at_run_time)
        and not any((root / path).exists() for root in (REPOSITORY, APP))
    ]
    assert not missing


def test_readme_names_every_room() -> None:
    """The tree contains every room, and three files that readers often look for."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (tree,) = (code for language, code in CODE_BLOCK.findall(readme) if language == "text")
    rooms = {path.parent.name for path in (APP / "lib").glob("*/__init__.py")}
    assert rooms <= set(re.findall(r"^    (\w+)/", tree, flags=re.MULTILINE))
    for room, file in (
        ("infers", "prompts.py"),
        ("infers", "random_walker.py"),
        ("weights", "served.py"),
    ):
        assert re.search(rf"^    {room}/(?:(?!^    \w).)*{file}", tree, flags=re.M | re.S), file
        assert (APP / "lib" / room / file).is_file()


# --- the reference --------------------------------------------------------------------------------


def tables(title: str) -> list[list[list[str]]]:
    """Return the cells of each table with this title in the reference."""
    text = REFERENCE.read_text(encoding="utf-8")
    marked = re.findall(rf"<!-- table: {title} -->\n((?:\|.*\n)+)", text)
    assert marked, f"no table {title}"
    return [
        [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table.splitlines()[2:]]
        for table in marked
    ]


def table(title: str) -> list[list[str]]:
    (rows,) = tables(title)
    return rows


def check_default(cell: str, default: object) -> None:
    """Compare a default in code font; a default in words means an empty value in the code."""
    span = CODE_SPAN.fullmatch(cell)
    if span is None:
        assert cell and not default
    elif isinstance(default, bool):
        assert span[1] == str(default).lower()
    elif isinstance(default, int | float):
        assert float(span[1]) == default
    elif isinstance(default, tuple):
        assert span[1] == ",".join(default)
    elif default:
        assert span[1] == default


def test_server_options_are_those_of_the_code() -> None:
    rows = {row[0].strip("`"): row[1] for row in table("server options")}
    defaults = {option.name: option.default for option in fields(Options)}
    assert list(rows) == list(defaults)
    for name, cell in rows.items():
        check_default(cell, defaults[name])


def test_request_keys_are_those_of_the_code() -> None:
    assert {row[0].strip("`") for row in table("request keys")} == set(REQUEST_KEYS)


OPTION_TABLES = {"train options": TrainOptions, "adaptation options": AdaptOptions}
OF_ALL_TRAINERS = [option.name for option in fields(RequestOptions)]
"""OF_ALL_TRAINERS: options that the table of the adaptation does not repeat."""


@pytest.mark.parametrize("title", OPTION_TABLES)
def test_train_options_are_those_of_the_code(title: str) -> None:
    rows = {row[0].strip("`"): row for row in table(title)}
    options = {option.name: option for option in fields(OPTION_TABLES[title])}
    repeated = [] if title == "train options" else OF_ALL_TRAINERS
    assert list(rows) == [name for name in options if name not in repeated]
    for name, row in rows.items():
        check_default(row[1], options[name].default)


@pytest.mark.parametrize("title", OPTION_TABLES)
def test_train_options_of_clients_are_marked(title: str) -> None:
    rows = table(title)
    marked = {row[0].strip("`") for row in rows if row[2] == "yes"}
    named = {row[0].strip("`") for row in rows}
    assert marked == set(OPTION_TABLES[title].config()) & named


def test_options_of_all_trainers_are_named_before_the_table_of_the_adaptation() -> None:
    text = " ".join(REFERENCE.read_text(encoding="utf-8").split())
    (sentence,) = re.findall(r"The body of `POST /train/fastsam3d_adapt` has (.*?) as above", text)
    assert CODE_SPAN.findall(sentence) == OF_ALL_TRAINERS


def routes_of(routes: list) -> set[str]:
    """Return `METHOD path` of each API route, included routers too."""
    names = set()
    for route in routes:
        if hasattr(route, "effective_candidates"):  # a router that is included, in newer FastAPI
            names |= routes_of(route.effective_candidates())
        elif isinstance(route, APIRoute) or isinstance(
            getattr(route, "original_route", None), APIRoute
        ):
            names |= {f"{method} {route.path}" for method in route.methods}
    return names


def test_routes_are_those_of_the_code() -> None:
    app = FastAPI()
    install(app)
    assert {row[0].strip("`") for row in table("routes")} == routes_of(app.router.routes)


def test_status_codes_are_those_of_the_code() -> None:
    documented = {int(row[0]) for row in table("status codes")}
    assert documented == {status for status, _ in ERRORS.values()} | set(STATUSES)


# --- messages -------------------------------------------------------------------------------------


def code_strings() -> list[str]:
    """Return every string in the app's code, without the values in f-strings."""
    strings = []
    for path in APP.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", None) for part in node.values)
                strings.append("".join(part if isinstance(part, str) else "\0" for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.append(node.value)
    return strings


def messages() -> list[str]:
    """Return the messages in the reference and in the page on OHIF; … stands for a value."""
    cells = [row[0] for rows in tables("messages") for row in rows]
    ohif = (REPOSITORY / "docs" / "ohif.md").read_text(encoding="utf-8")
    spans = [span for cell in cells for span in CODE_SPAN.findall(cell)]
    return spans + [span for span in CODE_SPAN.findall(ohif) if "…" in span]


def test_messages_are_those_of_the_code() -> None:
    strings = code_strings()
    missing = []
    for message in messages():
        pieces = [re.escape(piece.strip()) for piece in message.split("…") if piece.strip()]
        pattern = re.compile(".*".join(pieces), flags=re.DOTALL)
        if not any(map(pattern.search, strings)):
            missing.append(message)
    assert not missing
