# SPDX-License-Identifier: Apache-2.0
"""Whether the files of a generation are those that its manifest names, and sound."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from weft import _native
from weft.arrays import crc32c
from weft.errors import CorruptIndexError, StorageError, WeftError
from weft.fields import FIELDS
from weft.lifecycle.documents import DocumentStore
from weft.lifecycle.encoder_files import encoder_of
from weft.lifecycle.health import Problem
from weft.lifecycle.manifest import generations, manifest_name, read
from weft.lifecycle.snapshot import (
    OpenSegment,
    open_codec,
    open_segment,
    open_sparse,
    read_tombstones,
    require_checksum,
    require_size,
)
from weft.lifecycle.storage import os_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from weft.lifecycle.entries import CodecEntry, SegmentEntry
    from weft.lifecycle.manifest import Manifest
    from weft.lifecycle.storage import Directory
    from weft.sparse import SparsePart

READ_BYTES = 1 << 20
LISTS = {"list_offsets", "postings"}
"""Arrays of a segment that its others tell."""


@dataclass
class Examined:
    """A segment as it was found: what of it can be used, and what is wrong with its files."""

    entry: SegmentEntry
    native: _native.Segment | None = None
    documents: DocumentStore | None = None
    deleted: NDArray[np.uint64] | None = None
    dense: _native.Segment | None = None
    sparse: SparsePart | None = None
    errors: dict[str, WeftError] = field(default_factory=dict)

    @contextlib.contextmanager
    def noting(self, file: str) -> Iterator[None]:
        """Keep an error as one of this file."""
        try:
            yield
        except WeftError as error:
            self.errors[file] = error

    def problems(self) -> Iterator[Problem]:
        """Say what is wrong, and what is lost by it."""
        n_docs = self.entry.live("n_docs")
        for file, error in self.errors.items():
            if file == self.entry.documents_file:
                loss = f"texts and metadata of {n_docs} documents"
            elif field := next((f for f in FIELDS if file == self.entry.field_file(f)), None):
                loss = f"{field} vectors of {n_docs} documents"
            elif file != self.entry.file:
                loss = f"which documents are deleted, of {self.entry.n_docs}"
            elif self.native is None:
                loss = f"{n_docs} documents"
            else:
                loss = "nothing: the inverted lists can be made again"
            yield Problem(file, str(error), loss)

    @property
    def knows_deleted(self) -> bool:
        """Whether it can be told which of its documents are deleted."""
        return self.entry.tombstones is None or self.deleted is not None

    def close(self) -> None:
        """Close the file of documents."""
        if self.documents is not None:
            self.documents.close()


def verify(directory: Directory, manifest: Manifest, *, deep: bool) -> tuple[Problem, ...]:
    """Check every file of a generation, and the other manifests; `deep` reads all of them."""
    problems = damaged_manifests(directory, manifest.generation)
    problems += encoder_problems(directory, manifest)
    codecs = Codecs(directory, manifest)
    problems += codecs.problems
    for entry in manifest.segments:
        found = examine(directory, manifest, entry, codecs, deep=deep)
        problems += found.problems()
        found.close()
    return tuple(sorted(problems, key=lambda problem: problem.file))


def damaged_manifests(directory: Directory, generation: int) -> list[Problem]:
    """Tell which manifests of other generations cannot be read."""
    problems = []
    for other in generations(directory):
        if other != generation:
            try:
                read(directory, other)
            except (CorruptIndexError, StorageError) as error:
                if directory.size(manifest_name(other)) is None:  # a writer has removed it
                    continue
                loss = f"the changes of generation {other}" if other > generation else "nothing"
                problems.append(Problem(manifest_name(other), str(error), loss))
    return problems


def encoder_problems(directory: Directory, manifest: Manifest) -> list[Problem]:
    """Tell whether the large settings of the encoder can be read."""
    try:
        encoder_of(directory, manifest)
    except WeftError as error:
        assert manifest.encoder_file is not None
        loss = "what made the embeddings: the index cannot be asked in texts any more"
        return [Problem(manifest.encoder_file, str(error), loss)]
    return []


class Codecs:
    """The codecs of a generation, as far as they are whole, and what is wrong with the others."""

    def __init__(self, directory: Directory, manifest: Manifest) -> None:
        self.problems: list[Problem] = []
        n_docs = manifest.n_docs
        loss = f"{n_docs} documents, all that are stored as codes"
        self.multi = self._open(directory, manifest, manifest.codec, loss)
        self.multi_lost = bool(self.problems)
        loss = f"dense vectors of {n_docs} documents"
        self.dense = self._open(directory, manifest, manifest.dense.codec, loss)
        self.dense_lost = len(self.problems) > self.multi_lost

    def _open(
        self, directory: Directory, manifest: Manifest, entry: CodecEntry | None, loss: str
    ) -> _native.Codec | None:
        try:
            codec = open_codec(directory, manifest, entry)
            if entry is not None:
                path = directory.path / entry.file
                _require_whole(path, _native.damaged_arrays(str(path)))
        except WeftError as error:
            assert entry is not None
            self.problems.append(Problem(entry.file, str(error), loss))
            return None
        return codec


def examine(
    directory: Directory,
    manifest: Manifest,
    entry: SegmentEntry,
    codecs: Codecs,
    *,
    deep: bool,
) -> Examined:
    """Open a segment file by file, whatever is wrong with the others.

    Where the codec is damaged, codes are of no use: of them only the checksums are looked at.
    """
    found = Examined(entry)
    with found.noting(entry.file):
        path = require_size(directory, manifest, entry.file)
        if codecs.multi_lost:
            _require_whole(path, _native.damaged_arrays(str(path)) if deep else [])
        else:
            native = open_segment(directory, manifest, entry, "multi", codecs.multi)
            damaged = set(_native.damaged_arrays(str(path))) if deep else set()
            if damaged <= LISTS:
                found.native = native
            if deep:
                native.verify()
    if "dense" in entry.fields:
        with found.noting(entry.field_file("dense")):
            found.dense = _examine_dense(directory, manifest, entry, codecs, deep=deep)
    if "sparse" in entry.fields:
        with found.noting(entry.field_file("sparse")):
            part = open_sparse(directory, manifest, entry)
            if deep:
                part.verify()
            found.sparse = part
    if entry.documents:
        with found.noting(entry.documents_file):
            store = DocumentStore(require_size(directory, manifest, entry.documents_file))
            try:
                if deep:
                    _verify_documents(manifest, entry, store)
            except BaseException:
                store.close()
                raise
            found.documents = store
    if entry.tombstones is not None:
        with found.noting(entry.tombstones.file):
            found.deleted = read_tombstones(directory, manifest, entry)
    return found


def _examine_dense(
    directory: Directory, manifest: Manifest, entry: SegmentEntry, codecs: Codecs, *, deep: bool
) -> _native.Segment:
    path = directory.path / entry.field_file("dense")
    if codecs.dense_lost:
        raise CorruptIndexError(f"{path}: of no use without its codec, which is damaged", str(path))
    native = open_segment(directory, manifest, entry, "dense", codecs.dense)
    if deep:
        _require_whole(path, _native.damaged_arrays(str(path)))
        native.verify()
    return native


def _require_whole(path: Path, damaged: list[str]) -> None:
    if damaged:
        raise CorruptIndexError(
            f"{path}: {damaged[0]}: checksum mismatch; the file is damaged, restore it or rebuild",
            str(path),
        )


def verify_segment(manifest: Manifest, segment: OpenSegment) -> None:
    """Read all of an open segment and its documents.

    Raises
    ------
    CorruptIndexError
        Something in there is not as it was written.
    """
    for part in (segment.native, segment.dense, segment.sparse):
        if part is not None:
            part.verify()
    if segment.documents is not None:
        _verify_documents(manifest, segment.entry, segment.documents)


def _verify_documents(manifest: Manifest, segment: SegmentEntry, store: DocumentStore) -> None:
    require_checksum(manifest, store.path, _checksum_of_file(store.path))
    store.check(segment.n_windows)


def _checksum_of_file(path: Path) -> int:
    with os_errors("read", path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return checksum_of(fd)
        finally:
            os.close(fd)


def checksum_of(fd: int) -> int:
    """Give the CRC-32C of all bytes of an open file."""
    checksum, place = 0, 0
    while block := os.pread(fd, READ_BYTES, place):
        checksum = crc32c(block, checksum)
        place += len(block)
    return checksum
