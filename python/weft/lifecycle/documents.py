# SPDX-License-Identifier: Apache-2.0
"""Texts, metadata and places of tokens: one SQLite file per segment, written once.

A long document is stored as several windows with consecutive ordinals. It is known by the ordinal
of its first window, and that is where its text and metadata are kept, once. Places of tokens are
kept per window, in code points of the document's whole text.

The same tables, with the ids, hold what a writer has been given and not committed yet.
"""

from __future__ import annotations

import contextlib
import errno
import math
import sqlite3
import threading
import urllib.parse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.errors import (
    CorruptIndexError,
    IncompatibleIndexError,
    InvalidArgumentError,
    StorageError,
)
from weft.types import Scalar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

VERSION = 1
SPANS_VERSION = 1
SCHEMA = """
CREATE TABLE document(doc INTEGER PRIMARY KEY, n_windows INTEGER NOT NULL, text TEXT);
CREATE TABLE metadata(doc INTEGER NOT NULL, field TEXT NOT NULL, type TEXT NOT NULL, value,
                      PRIMARY KEY(doc, field)) WITHOUT ROWID;
CREATE TABLE spans(window INTEGER PRIMARY KEY, places BLOB NOT NULL);
"""
BY_VALUE = "CREATE INDEX metadata_by_value ON metadata(field, type, value);"
"""What filters look things up in; a file without it is read just the same, from end to end."""
TABLES = {
    "document": ("doc", "n_windows", "text"),
    "metadata": ("doc", "field", "type", "value"),
    "spans": ("window", "places"),
}
"""Columns of each table; the first is an ordinal."""
_TYPES = {"str": str, "int": int, "float": float, "bool": bool}
_SYSTEM = (10, 13, 14)  # SQLITE_IOERR, SQLITE_FULL, SQLITE_CANTOPEN: not the file's fault


@contextlib.contextmanager
def sqlite_errors(path: Path, *, reading: bool) -> Iterator[None]:
    """Turn SQLite's errors into ours: what we read is damaged, what we write did not fit."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter where names are damaged
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if reading and code not in _SYSTEM:
            raise CorruptIndexError(
                f"{path}: {error}; the file is damaged, restore it or rebuild the index", str(path)
            ) from error
        verb = "read" if reading else "write"
        number = errno.ENOSPC if code == _SYSTEM[1] else None
        raise StorageError(f"{path}: cannot {verb}: {error}", str(path), number) from error


def connect_new(path: Path) -> sqlite3.Connection:
    """Open an empty file for writing, without journal on disk: a crash leaves it to be removed."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.executescript(
        f"PRAGMA journal_mode=MEMORY; PRAGMA synchronous=OFF; PRAGMA temp_store=MEMORY;"
        f"PRAGMA user_version={VERSION};"
    )
    return connection


def copy_documents(
    made: sqlite3.Connection, source: str, first: int, last: int, new_first: int
) -> None:
    """Copy the documents of the windows [first, last) of an attached file, numbered anew."""
    for table, (key, *others) in TABLES.items():
        columns = "".join(f", {column}" for column in others)
        made.execute(
            f"INSERT INTO {table} SELECT {key} + ?3{columns} FROM {source}.{table} "
            f"WHERE {key} >= ?1 AND {key} < ?2 ORDER BY {key}",
            (first, last, new_first - first),
        )


def merge_documents(
    path: Path, parts: Iterable[tuple[DocumentStore | None, Sequence[Sequence[int]]]]
) -> None:
    """Fill an empty file with ranges of windows of other files; None has no documents."""
    with sqlite_errors(path, reading=False), contextlib.closing(connect_new(path)) as made:
        made.executescript(SCHEMA)
        place = 0
        for store, runs in parts:
            if store is not None:
                made.execute("ATTACH ? AS source", (str(store.path),))
                made.execute("BEGIN")
            for first, last in runs:
                if store is not None:
                    copy_documents(made, "source", first, last, place)
                place += last - first
            if store is not None:
                made.execute("COMMIT")
                made.execute("DETACH source")
        made.execute(BY_VALUE)


class DocumentStore:
    """The documents of one segment, read-only. Safe from any thread: a lock guards the connection.

    Raises
    ------
    CorruptIndexError, IncompatibleIndexError
        Not such a file, or one of a newer format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        quoted = urllib.parse.quote(str(path.absolute()))
        with sqlite_errors(path, reading=True):
            self._connection = sqlite3.connect(
                f"file:{quoted}?mode=ro&immutable=1", uri=True, check_same_thread=False
            )
            try:
                self._connection.execute("PRAGMA trusted_schema=OFF")
                self._connection.execute("PRAGMA cell_size_check=ON")
                (version,) = self._connection.execute("PRAGMA user_version").fetchone()
                if version == VERSION:
                    self._connection.execute("SELECT doc, n_windows, text FROM document LIMIT 0")
                    self._connection.execute("SELECT window, places FROM spans LIMIT 0")
            except BaseException:
                self._connection.close()
                raise
        if version != VERSION:
            self._connection.close()
            if version > VERSION:
                raise IncompatibleIndexError(
                    f"{path}: documents of format {version} were written by a newer weft, "
                    f"this version reads format {VERSION}; upgrade weft",
                    version,
                    VERSION,
                )
            raise CorruptIndexError(f"{path}: not a file of documents", str(path))

    def select(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Give the rows of a statement."""
        with self._lock, sqlite_errors(self.path, reading=True):
            return self._connection.execute(sql, values).fetchall()

    def get(self, doc: int) -> tuple[str | None, dict[str, Scalar]]:
        """Give text and metadata of the document whose first window has this ordinal."""
        found = self.select("SELECT text FROM document WHERE doc = ?", doc)
        if not found:
            return None, {}
        rows = self.select(
            "SELECT field, type, value FROM metadata WHERE doc = ? ORDER BY field", doc
        )
        return self._text(found[0][0]), {
            self._field(field): self._value(kind, value) for field, kind, value in rows
        }

    def spans(self, window: int, n_tokens: int) -> NDArray[np.uint32] | None:
        """Give start and end of each token of a window, uint32 `[n_tokens, 2]`, where stored."""
        found = self.select("SELECT places FROM spans WHERE window = ?", window)
        if not found:
            return None
        try:
            return decode_spans(found[0][0], n_tokens)
        except (ValueError, TypeError) as error:
            raise CorruptIndexError(
                f"{self.path}: places of tokens of window {window}: {error}; "
                f"the file is damaged, restore it or rebuild the index",
                str(self.path),
            ) from error

    def _text(self, text: object) -> str | None:
        if text is not None and not isinstance(text, str):
            raise CorruptIndexError(f"{self.path}: a text is no text", str(self.path))
        return text

    def _field(self, field: object) -> str:
        if not isinstance(field, str):
            raise CorruptIndexError(f"{self.path}: a field's name is no text", str(self.path))
        return field

    def _value(self, kind: object, value: object) -> Scalar:
        wanted = _TYPES.get(kind) if isinstance(kind, str) else None
        if wanted is bool and value in (0, 1):
            return bool(value)
        if wanted is None or type(value) is not wanted:
            raise CorruptIndexError(
                f"{self.path}: metadata value {value!r} is not of type {kind!r}", str(self.path)
            )
        return value  # type: ignore[return-value]

    def long_documents(self) -> list[tuple[int, int]]:
        """Give ordinal and number of windows of the documents that have several."""
        return self.select("SELECT doc, n_windows FROM document WHERE n_windows > 1")

    def check(self, n_windows: int) -> None:
        """Read everything: SQLite's own check, then every row against what it must be."""
        (result,) = self.select("PRAGMA quick_check(1)")[0]
        if result != "ok":
            raise CorruptIndexError(f"{self.path}: {result}", str(self.path))
        end = 0
        for doc, count in self.select("SELECT doc, n_windows FROM document ORDER BY doc"):
            if doc < end or count < 1 or doc + count > n_windows:
                raise CorruptIndexError(
                    f"{self.path}: document {doc} has windows {doc}..{doc + count} of {n_windows}",
                    str(self.path),
                )
            end = doc + count
        for kind, value in self.select("SELECT DISTINCT type, value FROM metadata"):
            self._value(kind, value)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()


def check_metadata(metadata: object, what: str) -> dict[str, tuple[str, Scalar]]:
    """Give a document's metadata as field -> (type, value), or refuse it naming the field."""
    if not isinstance(metadata, Mapping):
        raise InvalidArgumentError(
            f"{what}: metadata is {type(metadata).__name__}, expected a dictionary"
        )
    checked: dict[str, tuple[str, Scalar]] = {}
    for field, given in metadata.items():
        if not isinstance(field, str) or not field:
            raise InvalidArgumentError(f"{what}: metadata field {field!r}, expected a string")
        check_text(field, f"{what}: metadata field {field!r}")
        checked[field] = check_scalar(
            given, f"{what}: metadata field {field!r}", "; leave out what is unknown"
        )
    return checked


def check_scalar(given: object, what: str, remedy: str) -> tuple[str, Scalar]:
    """Give the type of a value of metadata, and the value; or refuse it."""
    value: Any = given.item() if isinstance(given, np.generic) else given
    kind = type(value).__name__
    if type(value) not in (str, int, float, bool):
        raise InvalidArgumentError(
            f"{what} is {type(given).__name__}, expected str, int, float or bool{remedy}"
        )
    if kind == "str":
        check_text(value, what)
    if kind == "int" and not -(2**63) <= value < 2**63:
        raise InvalidArgumentError(f"{what} takes {value.bit_length()} bits, expected 63 at most")
    if kind == "float" and not math.isfinite(value):
        raise InvalidArgumentError(f"{what} is {value}, expected a finite number")
    return kind, value


def check_text(text: object, what: str) -> str:
    """Give a text, or refuse what UTF-8 cannot hold."""
    if not isinstance(text, str):
        raise InvalidArgumentError(f"{what}: {type(text).__name__}, expected a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"{what}: character {error.start} is half a surrogate pair, which is no text"
        ) from None
    return text


def check_spans(spans: object, n_tokens: int, text: str | None, what: str) -> NDArray[np.int64]:
    """Give a window's places as int64 `[n_tokens, 2]`, or refuse them naming the token."""
    array = np.asarray(spans)
    if array.shape != (n_tokens, 2) or (array.dtype.kind not in "iu" and array.size):
        raise InvalidArgumentError(
            f"{what}: spans are {array.dtype} {array.shape}, expected integers ({n_tokens}, 2)"
        )
    places = array.astype(np.int64).reshape(n_tokens, 2)
    limit = 2**31 if text is None else len(text)
    wrong = (places[:, 0] < 0) | (places[:, 0] > places[:, 1]) | (places[:, 1] > limit)
    if wrong.any():
        token = int(np.flatnonzero(wrong)[0])
        start, end = places[token].tolist()
        raise InvalidArgumentError(
            f"{what}: span of token {token} is {start}..{end}, expected "
            f"0 <= start <= end <= {limit}"
        )
    return places


def encode_spans(places: NDArray[np.int64]) -> bytes:
    """Pack places: a version byte, then per token two varints of 7 bits a byte, lowest first.

    The first is the distance from the previous start (0 at first), folded so that small negative
    ones are short too (0, -1, 1, -2 ... -> 0, 1, 2, 3 ...); the second is the length.
    """
    distance = np.diff(places[:, 0], prepend=0)
    folded = np.where(distance >= 0, 2 * distance, -2 * distance - 1)
    values = np.stack([folded, places[:, 1] - places[:, 0]], axis=1).ravel().astype(np.uint64)
    digits = (values[:, None] >> np.arange(0, 35, 7, dtype=np.uint64)) & np.uint64(127)
    used = np.maximum.accumulate((digits > 0)[:, ::-1], axis=1)[:, ::-1]
    used[:, 0] = True
    more = np.zeros_like(used)
    more[:, :-1] = used[:, 1:]
    packed: NDArray[np.uint8] = (digits | (more.astype(np.uint64) << np.uint64(7)))[used].astype(
        np.uint8
    )
    return bytes([SPANS_VERSION]) + packed.tobytes()


def decode_spans(blob: bytes, n_tokens: int) -> NDArray[np.uint32]:
    """Unpack what `encode_spans` made; ValueError where it cannot have made it."""
    data = np.frombuffer(blob, np.uint8)
    if len(data) == 0 or data[0] != SPANS_VERSION:
        raise ValueError("unknown version")
    data = data[1:].astype(np.int64)
    ends = np.flatnonzero(data < 128)
    if len(ends) != 2 * n_tokens or (len(data) and data[-1] >= 128):
        raise ValueError(f"{len(ends)} numbers, expected {2 * n_tokens}")
    if n_tokens == 0:
        return np.empty((0, 2), np.uint32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(data)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 4:
        raise ValueError("a number of more than 5 bytes")
    values = np.add.reduceat((data & 127) << (7 * place), starts).reshape(n_tokens, 2)
    distance = np.where(values[:, 0] % 2 == 0, values[:, 0] // 2, -(values[:, 0] + 1) // 2)
    start = np.cumsum(distance)
    if start.min() < 0 or (start + values[:, 1]).max() >= 2**32:
        raise ValueError("a place outside any text")
    return np.stack([start, start + values[:, 1]], axis=1).astype(np.uint32)
