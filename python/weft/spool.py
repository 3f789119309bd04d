# SPDX-License-Identifier: Apache-2.0
"""What a writer has been given and not committed yet: a `build-*` folder inside the index.

Rows are appended to one file as float16 and read back mapped; ids, texts, metadata and places of
tokens go to one SQLite file. So memory does not grow with what is added, but for 4 bytes a
document. Whatever fails half-way is taken back by `rewind`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import uuid
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.documents import BY_VALUE, SCHEMA, TABLES, connect_new, copy_documents, sqlite_errors
from weft.errors import InvalidArgumentError, WeftError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from weft.storage import Directory
    from weft.types import Scalar

REFILL_DOCUMENTS = 1_024

WINDOW_MARK = "\x1f"
"""Between the id of a long document and the number of one of its windows."""


def window_ids(doc_id: str, n_windows: int) -> list[str]:
    """Give the ids that the windows of a document are stored under."""
    if n_windows == 1:
        return [doc_id]
    return [f"{doc_id}{WINDOW_MARK}{number}" for number in range(n_windows)]


def document_id(stored_id: str) -> str:
    """Give the id of the document that a window belongs to."""
    return stored_id.partition(WINDOW_MARK)[0]


def starts_document(stored_id: str) -> bool:
    """Tell whether a window with such an id is the first of its document."""
    _, mark, number = stored_id.partition(WINDOW_MARK)
    return not mark or number == "0"


@dataclass(frozen=True)
class Mark:
    """A state of the spool to go back to."""

    n_windows: int
    n_docs: int
    n_tokens: int
    n_dropped: int
    has_documents: bool


@dataclass(frozen=True)
class Batch:
    """Documents whose form has been checked.

    `lengths` and `spans` have one entry per window, the rest one per document.
    """

    ids: Sequence[str]
    n_windows: Sequence[int]
    lengths: NDArray[np.int64]
    texts: Sequence[str | None]
    metadata: Sequence[dict[str, tuple[str, Scalar]]]
    spans: Sequence[bytes | None]


class Spool:
    """A build folder, locked for as long as it is open.

    Raises
    ------
    StorageError
        From every method, where the operating system says no.
    """

    def __init__(self, directory: Directory, dim: int) -> None:
        self._directory = directory
        self._dim = dim
        self.name = f"build-{uuid.uuid4().hex}"
        self._rows = f"{self.name}/rows.f16"
        self.n_docs = 0
        self.n_tokens = 0
        self.n_dropped = 0
        self.has_documents = False
        self._lengths = array("I")
        self._fd = -1
        self._path = directory.path / self.name / "documents.sqlite"
        directory.make_folder(self.name)
        self._lock = directory.lock(self.name)
        try:
            self._fd = directory.create(self._rows)
            self._connection = self._open_documents()
        except BaseException:
            self._remove()
            raise

    def _open_documents(self) -> sqlite3.Connection:
        os.close(self._directory.create(f"{self.name}/{self._path.name}"))
        with sqlite_errors(self._path, reading=False):
            connection = connect_new(self._path)
            connection.executescript(
                f"{SCHEMA} CREATE TABLE ids(doc INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE);"
            )
        return connection

    @property
    def n_windows(self) -> int:
        """Windows, one per document but for long ones."""
        return len(self._lengths)

    def mark(self) -> Mark:
        """Remember the state."""
        return Mark(self.n_windows, self.n_docs, self.n_tokens, self.n_dropped, self.has_documents)

    def rewind(self, mark: Mark) -> None:
        """Go back to a state, as if nothing had been added since; what was dropped, stays so."""
        with sqlite_errors(self._path, reading=False):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            for table, (key, *_) in {**TABLES, "ids": ("doc",)}.items():
                self._connection.execute(f"DELETE FROM {table} WHERE {key} >= ?", (mark.n_windows,))
        del self._lengths[mark.n_windows :]
        self.n_docs, self.n_tokens, self.n_dropped = mark.n_docs, mark.n_tokens, mark.n_dropped
        self.has_documents = mark.has_documents
        self._directory.truncate(self._fd, 2 * self._dim * mark.n_tokens, self._rows)

    @contextlib.contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Take back what the block added if it fails.

        Where even that fails, the spool is closed: what it holds can no longer be told.
        """
        mark = self.mark()
        try:
            yield
        except BaseException:
            try:
                self.rewind(mark)
            except (WeftError, sqlite3.Error):
                self.close()
            raise

    def append(
        self, batch: Batch, blocks: Iterable[NDArray[np.float16]], *, replace: bool = False
    ) -> None:
        """Add documents and their rows, all of them or none.

        With `replace` they take the place of documents in the spool that have their ids.

        Raises
        ------
        InvalidArgumentError
            An id is in the spool already; or whatever walking over `blocks` raises.
        """
        with self.all_or_nothing():
            for block in blocks:
                self._directory.write(self._fd, block.tobytes(), self._rows)
            with sqlite_errors(self._path, reading=False):
                self._connection.execute("BEGIN")
                n_replaced = self._forget(batch.ids) if replace else 0
                self._insert(batch)
                self._connection.execute("COMMIT")
            self.n_dropped += n_replaced
            self._lengths.extend(batch.lengths.tolist())
            self.n_docs += len(batch.ids)
            self.n_tokens += int(batch.lengths.sum())

    def drop(self, ids: Sequence[str]) -> int:
        """Forget documents; count those that were there. Their rows stay until `refill`."""
        with sqlite_errors(self._path, reading=False):
            self._connection.execute("BEGIN")
            try:
                n_dropped = self._forget(ids)
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
        self.n_dropped += n_dropped
        return n_dropped

    def _forget(self, ids: Sequence[str]) -> int:
        """Take ids away: a document without one is dropped."""
        before = self._connection.total_changes
        self._connection.executemany("DELETE FROM ids WHERE id = ?", ((doc_id,) for doc_id in ids))
        return self._connection.total_changes - before

    def refill(self, old: Spool) -> None:
        """Take over what another spool holds, without what was dropped from it."""
        found = old.select(
            "SELECT doc, n_windows, id, text FROM ids JOIN document USING (doc) ORDER BY doc"
        )
        lengths, rows = old.lengths().astype(np.int64), old.rows()
        row_of = np.concatenate([[0], np.cumsum(lengths)])
        while some := list(itertools.islice(found, REFILL_DOCUMENTS)):
            windows = np.concatenate([np.arange(doc, doc + n) for doc, n, _, _ in some])
            batch = Batch(
                ids=[doc_id for _, _, doc_id, _ in some],
                n_windows=[n for _, n, _, _ in some],
                lengths=lengths[windows],
                texts=[text for _, _, _, text in some],
                metadata=[old._metadata(doc) for doc, _, _, _ in some],
                spans=[old._places(window) for window in windows.tolist()],
            )
            blocks = (rows[row_of[doc] : row_of[doc + n]] for doc, n, _, _ in some)
            self.append(batch, blocks)

    def _metadata(self, doc: int) -> dict[str, tuple[str, Scalar]]:
        found = self.select("SELECT field, type, value FROM metadata WHERE doc = ?", doc)
        return {field: (kind, value) for field, kind, value in found}

    def _places(self, window: int) -> bytes | None:
        found = list(self.select("SELECT places FROM spans WHERE window = ?", window))
        return found[0][0] if found else None

    def _insert(self, batch: Batch) -> None:
        connection = self._connection
        doc = self.n_windows
        rows = zip(batch.ids, batch.n_windows, batch.texts, batch.metadata, strict=True)
        for doc_id, n_windows, text, metadata in rows:
            try:
                connection.execute("INSERT INTO ids VALUES (?, ?)", (doc, doc_id))
            except sqlite3.IntegrityError:
                raise InvalidArgumentError(
                    f"id {doc_id!r}: added before, expected each document once"
                ) from None
            connection.execute("INSERT INTO document VALUES (?, ?, ?)", (doc, n_windows, text))
            for field, (kind, value) in metadata.items():
                connection.execute(
                    "INSERT INTO metadata VALUES (?, ?, ?, ?)", (doc, field, kind, value)
                )
            if text is not None or metadata or n_windows > 1:
                self.has_documents = True
            doc += n_windows
        for window, places in enumerate(batch.spans, start=self.n_windows):
            if places is not None:
                connection.execute("INSERT INTO spans VALUES (?, ?)", (window, places))
                self.has_documents = True

    def rows(self) -> NDArray[np.float16]:
        """Map all rows, `[n_tokens, dim]`."""
        if self.n_tokens == 0:
            return np.empty((0, self._dim), np.float16)
        return np.memmap(
            self._directory.path / self._rows, np.float16, "r", shape=(self.n_tokens, self._dim)
        )

    def lengths(self) -> NDArray[np.uint32]:
        """Give the tokens of each window."""
        return np.array(self._lengths, np.uint32)

    def doc_starts(self) -> NDArray[np.int64]:
        """Give the first window of each document, and the number of windows at the end."""
        if self.n_docs == self.n_windows:
            return np.arange(self.n_docs + 1)
        found = self.select("SELECT doc FROM document ORDER BY doc")
        starts = np.fromiter((row[0] for row in found), np.int64, self.n_docs)
        return np.append(starts, self.n_windows)

    def ids(self, first: int, last: int) -> Iterator[str]:
        """Give the ids that the windows [first, last) are stored under."""
        found = self.select(
            "SELECT id, n_windows FROM ids JOIN document USING (doc) WHERE doc >= ? AND doc < ? "
            "ORDER BY doc",
            first,
            last,
        )
        for doc_id, n_windows in found:
            yield from window_ids(doc_id, n_windows)

    def write_documents(self, path: Path, first: int, last: int) -> None:
        """Fill an empty file with the documents of the windows [first, last), counted from 0."""
        with sqlite_errors(path, reading=False), contextlib.closing(connect_new(path)) as made:
            made.execute("ATTACH ? AS spool", (str(self._path),))
            made.executescript(f"BEGIN; {SCHEMA}")
            copy_documents(made, "spool", first, last, 0)
            made.execute(BY_VALUE)
            made.execute("COMMIT")

    def select(self, sql: str, *values: object) -> Iterator[tuple[Any, ...]]:
        """Give the rows of a statement, one by one."""
        with sqlite_errors(self._path, reading=True):
            yield from self._connection.execute(sql, values)

    @property
    def closed(self) -> bool:
        """Whether `close` was called, or a failure could not be taken back."""
        return self._fd < 0

    def close(self) -> None:
        """Close the files and remove the folder; what cannot go, stays for the next writer."""
        if not self.closed:
            self._connection.close()
            self._remove()

    def _remove(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._lock.release()
        with contextlib.suppress(WeftError):
            self._directory.remove(self.name)
