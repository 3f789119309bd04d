# SPDX-License-Identifier: Apache-2.0
"""What a spool's SQLite file holds beside the tables of documents, and how a batch gets there."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.errors import InvalidArgumentError
from weft.fields import FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from weft.lifecycle.windows import Batch

TABLES_OF_SPOOL = """
CREATE TABLE dense(doc INTEGER PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE sparse(doc INTEGER PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE ids(doc INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE);
CREATE TABLE batch(window INTEGER PRIMARY KEY, n_docs INTEGER NOT NULL, lengths BLOB NOT NULL,
                   checksum INTEGER NOT NULL, has_documents INTEGER NOT NULL);
CREATE TABLE made(stage TEXT PRIMARY KEY, files TEXT NOT NULL);
"""
"""`batch`: what each call of `append` brought; `made`: files of the index made of all of it."""


@dataclass(frozen=True)
class Mark:
    """A state of the spool to go back to."""

    n_windows: int
    n_docs: int
    n_tokens: int
    n_dropped: int
    has_documents: bool


@dataclass(frozen=True)
class Past:
    """A batch that has been added before: the states before and after it, and what it is."""

    before: Mark
    after: Mark
    lengths: list[int]
    checksum: int

    @property
    def n_docs(self) -> int:
        """Its documents."""
        return self.after.n_docs - self.before.n_docs

    @property
    def n_windows(self) -> int:
        """Their windows."""
        return len(self.lengths)


def batches(select: Callable[..., Iterator[tuple[Any, ...]]], mark: Mark) -> Iterator[Past]:
    """Give the batches that were added after a state, up to the first that is missing."""
    found = select(
        "SELECT window, n_docs, lengths, checksum, has_documents FROM batch WHERE window >= ? "
        "ORDER BY window",
        mark.n_windows,
    )
    for window, n_docs, blob, checksum, has_documents in found:
        if window != mark.n_windows:
            break
        lengths = np.frombuffer(blob, np.uint32).tolist()
        after = Mark(
            n_windows=window + len(lengths),
            n_docs=mark.n_docs + n_docs,
            n_tokens=mark.n_tokens + sum(lengths),
            n_dropped=mark.n_dropped,
            has_documents=bool(has_documents),
        )
        yield Past(mark, after, lengths, checksum)
        mark = after


def holds_documents(batch: Batch) -> bool:
    """Tell whether a batch has something for a file of documents."""
    return (
        any(text is not None for text in batch.texts)
        or any(batch.metadata)
        or any(n_windows > 1 for n_windows in batch.n_windows)
        or any(places is not None for places in batch.spans)
    )


def insert(
    connection: sqlite3.Connection, window: int, batch: Batch, checksum: int, *, documents: bool
) -> None:
    """Put a batch into the tables, from this window on; `documents`: whether any are to be written.

    Raises
    ------
    InvalidArgumentError
        An id is there already.
    """
    doc = window
    vectors = dict(zip(FIELDS, (batch.dense, batch.sparse), strict=True))
    rows = zip(batch.ids, batch.n_windows, batch.texts, batch.metadata, strict=True)
    for number, (doc_id, n_windows, text, metadata) in enumerate(rows):
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
        for field, values in vectors.items():
            if values[number] is not None:
                connection.execute(f"INSERT INTO {field} VALUES (?, ?)", (doc, values[number]))
        doc += n_windows
    for at, places in enumerate(batch.spans, start=window):
        if places is not None:
            connection.execute("INSERT INTO spans VALUES (?, ?)", (at, places))
    if len(batch.lengths) > 0:
        lengths = batch.lengths.astype(np.uint32).tobytes()
        connection.execute(
            "INSERT INTO batch VALUES (?, ?, ?, ?, ?)",
            (window, len(batch.ids), lengths, checksum, documents),
        )
    connection.execute("DELETE FROM made")
