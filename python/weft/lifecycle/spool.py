# SPDX-License-Identifier: Apache-2.0
"""What a writer has been given and not committed yet: a `build-*` folder inside the index.

Rows are appended to one file as float16 and read back mapped; ids, texts, metadata and places of
tokens go to one SQLite file. So memory does not grow with what is added, but for 4 bytes a
document. Whatever fails half-way is taken back by `rewind`.

A spool can outlive its writer, to be taken over by another that is given the same documents again.
What it holds is known batch by batch, each with the checksum of its rows; what was being written
when the process died, or was lost in a power cut, is cut off.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import sqlite3
import uuid
from array import array
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.arrays import crc32c
from weft.errors import CorruptIndexError, WeftError
from weft.fields import FIELDS
from weft.lifecycle.documents import (
    BY_VALUE,
    SCHEMA,
    TABLES,
    check_metadata,
    connect_new,
    copy_documents,
    sqlite_errors,
)
from weft.lifecycle.entries import FileEntry
from weft.lifecycle.spool_tables import (
    TABLES_OF_SPOOL,
    Mark,
    Past,
    batches,
    holds_documents,
    insert,
)
from weft.lifecycle.windows import Batch, window_ids

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from weft.lifecycle.storage import Directory
    from weft.types import Document, Scalar

logger = logging.getLogger("weft")

REFILL_DOCUMENTS = 1_024
READ_BYTES = 1 << 20


class Spool:
    """A build folder, locked for as long as it is open.

    Parameters
    ----------
    directory, dim
        Of the index.
    base
        The generation that the documents are added to, if another writer may take over; else 0.
    name
        A folder to take over. None makes a new one.

    Raises
    ------
    StorageError
        From every method, where the operating system says no.
    """

    def __init__(
        self, directory: Directory, dim: int, *, base: int = 0, name: str | None = None
    ) -> None:
        self._directory = directory
        self._dim = dim
        self.name = name or f"build-{uuid.uuid4().hex}"
        self._rows = f"{self.name}/rows.f16"
        self.n_docs = 0
        self.n_tokens = 0
        self.n_dropped = 0
        self.has_documents = False
        self._lengths = array("I")
        self._fd = -1
        self._path = directory.path / self.name / "documents.sqlite"
        self._left: deque[Past] = deque()
        if name is None:
            directory.make_folder(self.name)
        self._lock = directory.lock(self.name)
        try:
            self._fd = directory.open(self._rows) if name else directory.create(self._rows)
            self._connection = self._reopen_documents() if name else self._create_documents(base)
            if name:
                self._take_over(base)
        except BaseException:
            self._remove()
            raise

    @classmethod
    def left_behind(cls, directory: Directory, dim: int, base: int) -> Spool | None:
        """Take over what a writer has left that was interrupted, if there is something."""
        for name in directory.list():
            if name.startswith("build-"):
                with contextlib.suppress(WeftError, sqlite3.Error):
                    return cls(directory, dim, base=base, name=name)
        return None

    def _create_documents(self, base: int) -> sqlite3.Connection:
        os.close(self._directory.create(f"{self.name}/{self._path.name}"))
        with sqlite_errors(self._path, reading=False):
            connection = connect_new(self._path)
            connection.executescript(
                f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA user_version={base};"
                f"{SCHEMA} {TABLES_OF_SPOOL}"
            )
        return connection

    def _reopen_documents(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)

    def _take_over(self, base: int) -> None:
        """Learn what is there, and cut off what is not whole."""
        (found,) = next(self.select("PRAGMA user_version"))
        (sound,) = next(self.select("PRAGMA quick_check(1)"))
        (n_dropped,) = next(
            self.select("SELECT (SELECT count(*) FROM document) - (SELECT count(*) FROM ids)")
        )
        if found != base or sound != "ok" or n_dropped != 0:
            raise CorruptIndexError(f"{self._path}: nothing to go on from", str(self._path))
        for past in list(batches(self.select, self.mark())):
            if past.checksum != self._checksum_of_rows(past.after.n_tokens - self.n_tokens):
                break
            self._left.append(past)
            self._lengths.extend(past.lengths)
            self.n_docs, self.n_tokens = past.after.n_docs, past.after.n_tokens
            self.has_documents = past.after.has_documents
        self.rewind(self.mark())
        if self.n_docs == 0:
            raise CorruptIndexError(f"{self._path}: nothing to go on from", str(self._path))
        logger.info(
            "going on from %d documents with %d tokens that were added before an interruption",
            self.n_docs,
            self.n_tokens,
        )

    def _checksum_of_rows(self, n_tokens: int) -> int | None:
        """Give the checksum of so many rows after those that are known; None if there are fewer."""
        place, left, checksum = 2 * self._dim * self.n_tokens, 2 * self._dim * n_tokens, 0
        while left > 0:
            block = os.pread(self._fd, min(left, READ_BYTES), place)
            if not block:
                return None
            checksum = crc32c(block, checksum)
            place, left = place + len(block), left - len(block)
        return checksum

    @property
    def n_windows(self) -> int:
        """Windows, one per document but for long ones."""
        return len(self._lengths)

    def mark(self) -> Mark:
        """Remember the state."""
        return Mark(self.n_windows, self.n_docs, self.n_tokens, self.n_dropped, self.has_documents)

    def given(self) -> Mark:
        """Give the state without what was taken over or set aside, and has not been given again."""
        return self._left[0].before if self._left else self.mark()

    def set_aside(self, mark: Mark) -> None:
        """Go back to a state, but keep what was added since, to be recognised when it comes again.

        So a commit that is tried again finds what it had put in beside what was given.
        """
        self._left = deque(batches(self.select, mark))

    def rewind(self, mark: Mark) -> None:
        """Go back to a state, as if nothing had been added since; what was dropped, stays so."""
        with sqlite_errors(self._path, reading=False):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            keys = {table: key for table, (key, *_) in TABLES.items()}
            keys |= {"ids": "doc", "batch": "window", **dict.fromkeys(FIELDS, "doc")}
            for table, key in keys.items():
                self._connection.execute(f"DELETE FROM {table} WHERE {key} >= ?", (mark.n_windows,))
            if mark.n_windows < self.n_windows:
                self._connection.execute("DELETE FROM made")
        self._left = deque(p for p in self._left if p.before.n_windows < mark.n_windows)
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

        With `replace` they take the place of documents in the spool that have their ids. A batch
        that is the next of those taken over is there already.

        Raises
        ------
        InvalidArgumentError
            An id is in the spool already; or whatever walking over `blocks` raises.
        """
        if self._left:
            blocks = list(blocks)
            if not replace and self._is_next(batch, blocks):
                self._left.popleft()
                return
            self.forget_the_rest()
        with self.all_or_nothing():
            checksum = 0
            for block in blocks:
                data = block.tobytes()
                checksum = crc32c(data, checksum)
                self._directory.write(self._fd, data, self._rows)
            with sqlite_errors(self._path, reading=False):
                self._connection.execute("BEGIN")
                n_replaced = self._forget(batch.ids) if replace else 0
                self.has_documents |= holds_documents(batch)
                insert(
                    *(self._connection, self.n_windows, batch, checksum),
                    documents=self.has_documents,
                )
                self._connection.execute("COMMIT")
            self.n_dropped += n_replaced
            self._lengths.extend(batch.lengths.tolist())
            self.n_docs += len(batch.ids)
            self.n_tokens += int(batch.lengths.sum())

    def drop(self, ids: Sequence[str]) -> int:
        """Forget documents; count those that were there. Their rows stay until `refill`."""
        if self._left and self._any_left(ids):
            self.forget_the_rest()
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

    def _any_left(self, ids: Sequence[str]) -> bool:
        """Tell whether one of the documents is among those that have not been given again."""
        first = self._left[0].before.n_windows
        found = (self.select("SELECT doc FROM ids WHERE id = ?", doc_id) for doc_id in ids)
        return any(doc >= first for rows in found for (doc,) in rows)

    def _forget(self, ids: Sequence[str]) -> int:
        """Take ids away: a document without one is dropped."""
        before = self._connection.total_changes
        self._connection.executemany("DELETE FROM ids WHERE id = ?", ((doc_id,) for doc_id in ids))
        return self._connection.total_changes - before

    def refill(self, old: Spool) -> None:
        """Take over what another spool holds, without what was dropped from it."""
        lengths, rows = old.lengths().astype(np.int64), old.rows()
        row_of = np.concatenate([[0], np.cumsum(lengths)])
        starts = (doc for (doc,) in old.select("SELECT doc FROM ids ORDER BY doc"))
        while some := list(itertools.islice(starts, REFILL_DOCUMENTS)):
            batch = old._stored(some[0], some[-1] + 1)
            places = zip(some, batch.n_windows, strict=True)
            self.append(batch, (rows[row_of[doc] : row_of[doc + n]] for doc, n in places))

    def _stored(self, first: int, last: int) -> Batch:
        """Give the documents that begin in the windows [first, last) and were not dropped."""
        found = list(
            self.select(
                "SELECT doc, n_windows, id, text FROM ids JOIN document USING (doc) "
                "WHERE doc >= ? AND doc < ? ORDER BY doc",
                first,
                last,
            )
        )
        windows = [window for doc, n, _, _ in found for window in range(doc, doc + n)]
        return Batch(
            ids=[doc_id for _, _, doc_id, _ in found],
            n_windows=[n for _, n, _, _ in found],
            lengths=np.array([self._lengths[window] for window in windows], np.int64),
            texts=[text for _, _, _, text in found],
            metadata=[self._metadata(doc) for doc, _, _, _ in found],
            spans=[self._blob("SELECT places FROM spans WHERE window = ?", w) for w in windows],
            dense=[self._blob("SELECT value FROM dense WHERE doc = ?", doc) for doc, *_ in found],
            sparse=[self._blob("SELECT value FROM sparse WHERE doc = ?", doc) for doc, *_ in found],
        )

    def _is_next(self, batch: Batch, blocks: Sequence[NDArray[np.float16]]) -> bool:
        """Tell whether a batch is the next of those taken over."""
        past, checksum = self._left[0], 0
        for block in blocks:
            checksum = crc32c(block.tobytes(), checksum)
        first = past.before.n_windows
        stored = self._stored(first, first + past.n_windows)
        return checksum == past.checksum and batch.is_same(stored)

    def unspooled(self, documents: Iterable[Document], fields: Sequence[str]) -> Iterator[Document]:
        """Skip documents that were taken over, from the first on that is not the same none.

        Those that came with other fields are not the same. What there is more of them than is given
        stays, for a commit to tell whether it put it there.
        """
        documents = iter(documents)
        while self._left:
            past = self._left[0]
            given = list(itertools.islice(documents, past.n_docs))
            if not given:
                break
            first = past.before.n_windows
            stored = self._stored(first, first + past.n_windows)
            if not (
                stored.fields == set(fields)
                and [document.id for document in given] == stored.ids
                and [document.text for document in given] == stored.texts
                and [check_metadata(d.metadata, d.id) for d in given] == stored.metadata
            ):
                self.forget_the_rest()
                yield from given
                break
            self._left.popleft()
        yield from documents

    def forget_the_rest(self) -> None:
        """Drop what was taken over and not been given again."""
        if self._left:
            before = self._left[0].before
            logger.info("%d documents of them are not the same now", self.n_docs - before.n_docs)
            self.rewind(before)

    def made(self, stage: str) -> dict[str, FileEntry]:
        """Give the files that were made in a stage of building from all that is here."""
        found = list(self.select("SELECT files FROM made WHERE stage = ?", stage))
        entries = json.loads(found[0][0]) if found else {}
        return {name: FileEntry(**entry) for name, entry in entries.items()}

    def note_made(self, stage: str, files: Mapping[str, FileEntry]) -> None:
        """Remember the files of a stage, complete and synced."""
        entries = json.dumps({name: vars(entry) for name, entry in files.items()})
        with sqlite_errors(self._path, reading=False):
            self._connection.execute("INSERT OR REPLACE INTO made VALUES (?, ?)", (stage, entries))

    def all_made(self) -> set[str]:
        """Give the names of the files of all stages."""
        return {
            name for (files,) in self.select("SELECT files FROM made") for name in json.loads(files)
        }

    def _metadata(self, doc: int) -> dict[str, tuple[str, Scalar]]:
        found = self.select("SELECT field, type, value FROM metadata WHERE doc = ?", doc)
        return {field: (kind, value) for field, kind, value in found}

    def _blob(self, sql: str, place: int) -> bytes | None:
        return next((blob for (blob,) in self.select(sql, place)), None)

    def rows(self) -> NDArray[np.float16]:
        """Map all rows, `[n_tokens, dim]`."""
        if self.n_tokens == 0:
            return np.empty((0, self._dim), np.float16)
        return np.memmap(
            self._directory.path / self._rows, np.float16, "r", shape=(self.n_tokens, self._dim)
        )

    def lay_out(self, name: str, blocks: Iterable[bytes]) -> NDArray[np.uint8]:
        """Give some bytes as a mapped file of the spool."""
        name = f"{self.name}/{name}"
        self._directory.remove(name)
        fd = self._directory.create(name)
        try:
            for block in blocks:
                self._directory.write(fd, block, name)
            if os.fstat(fd).st_size == 0:
                return np.empty(0, np.uint8)
            return np.memmap(self._directory.path / name, np.uint8, "r")
        finally:
            os.close(fd)

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

    def vectors(self, field: str, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        """Give ordinal, counted from `first`, and vector of each document that has one there."""
        sql = f"SELECT doc - ?1, value FROM {field} WHERE doc >= ?1 AND doc < ?2 ORDER BY doc"
        yield from self.select(sql, first, last)

    def count_vectors(self, field: str, n_windows: int) -> tuple[int, int]:
        """Give how many vectors of a field are in the first windows, and their bytes.

        Dropped ones are counted, too.
        """
        sql = f"SELECT count(*), total(length(value)) FROM {field} WHERE doc < ?"
        found = self.select(sql, n_windows)
        return next((n, int(n_bytes)) for n, n_bytes in found)

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

    def close(self, *, keep: bool = False) -> None:
        """Close the files and remove the folder; what cannot go, stays for the next writer.

        With `keep` the folder stays, for one that takes over.
        """
        if not self.closed:
            self._connection.close()
            if keep:
                os.close(self._fd)
                self._fd = -1
                self._lock.release()
            else:
                self._remove()

    def _remove(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._lock.release()
        with contextlib.suppress(WeftError):
            self._directory.remove(self.name)
