# SPDX-License-Identifier: Apache-2.0
"""One generation of an index, with all of its files open."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from weft import _native
from weft.errors import CorruptIndexError, InvalidArgumentError, NotFoundError
from weft.lifecycle.bitmaps import as_mask, is_set
from weft.lifecycle.documents import DocumentStore
from weft.lifecycle.windows import WINDOW_MARK
from weft.sparse import SparsePart

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from weft.lifecycle.entries import CodecEntry, SegmentEntry
    from weft.lifecycle.manifest import Manifest
    from weft.lifecycle.storage import Directory


@dataclass(frozen=True)
class OpenSegment:
    """A segment with its documents and fields, and a bit for each window that is deleted, if any.

    Ordinals are the same in all of them. A document's vectors are those of its first window. A
    field is None where the index does not have it.
    """

    entry: SegmentEntry
    native: _native.Segment
    documents: DocumentStore | None
    deleted: NDArray[np.uint64] | None
    dense: _native.Segment | None = None
    sparse: SparsePart | None = None

    def lengths(self, field: str = "multi") -> NDArray[np.uint32]:
        """Give how many tokens or terms a field has of each window."""
        part = {"multi": self.native, "dense": self.dense, "sparse": self.sparse}[field]
        return np.zeros(self.entry.n_windows, np.uint32) if part is None else part.lengths()


@dataclass(frozen=True)
class Place:
    """Where the windows of a document are: consecutive ordinals of one segment."""

    segment: int
    first: int
    n_windows: int


class Snapshot:
    """Every file of a generation, open: what a writer removes later is still there for us.

    Raises
    ------
    CorruptIndexError
        A file is missing, is not the one that the manifest names, or is damaged.
    """

    def __init__(self, directory: Directory, manifest: Manifest) -> None:
        self.manifest = manifest
        if manifest.encoder_file is not None:
            require_size(directory, manifest, manifest.encoder_file)
        self.codec = open_codec(directory, manifest, manifest.codec)
        self.dense_codec = open_codec(directory, manifest, manifest.dense.codec)
        segments = []
        for entry in manifest.segments:
            native = open_segment(directory, manifest, entry, "multi", self.codec)
            if native.n_tokens != entry.n_tokens:
                path = directory.path / entry.file
                raise CorruptIndexError(
                    f"{path}: holds {native.n_tokens} tokens, expected {entry.n_tokens}", str(path)
                )
            dense = sparse = None
            if "dense" in entry.fields:
                dense = open_segment(directory, manifest, entry, "dense", self.dense_codec)
            if "sparse" in entry.fields:
                sparse = open_sparse(directory, manifest, entry)
            documents = None
            if entry.documents:
                documents = DocumentStore(require_size(directory, manifest, entry.documents_file))
            deleted = (
                None if entry.tombstones is None else read_tombstones(directory, manifest, entry)
            )
            segments.append(OpenSegment(entry, native, documents, deleted, dense, sparse))
        self.segments = tuple(segments)

    def of_dense(self) -> Snapshot:
        """Give this generation as if dense vectors were all its rows: a token per document."""
        view, manifest = copy.copy(self), self.manifest
        view.codec = self.dense_codec
        view.segments = tuple(_of_dense(segment) for segment in self.segments)
        view.manifest = replace(
            manifest,
            config=manifest.config.of_dense(),
            codec=manifest.dense.codec,
            segments=tuple(segment.entry for segment in view.segments),
            operating_points=manifest.dense.operating_points,
            tuning=manifest.dense.tuning,
        )
        return view

    @property
    def deleted(self) -> list[NDArray[np.uint64] | None]:
        """The tombstones of each segment."""
        return [segment.deleted for segment in self.segments]

    def find(
        self, doc_id: str, deleted: Sequence[NDArray[np.uint64] | None] | None = None
    ) -> Place | None:
        """Give the place of a document that is not deleted, by these tombstones or by our own."""
        for number, words in enumerate(self.deleted if deleted is None else deleted):
            place = self._find_in(number, doc_id)
            if place is not None and (words is None or not is_set(words, place.first)):
                return place
        return None

    def places(self, ids: Sequence[str]) -> list[Place]:
        """Give the place of each document.

        Raises
        ------
        NotFoundError
            An id is unknown.
        """
        if isinstance(ids, str):
            raise InvalidArgumentError(f"ids={ids!r}: expected a sequence of ids; use [id]")
        places = []
        for doc_id in ids:
            if not isinstance(doc_id, str):
                raise InvalidArgumentError(f"id {doc_id!r}: expected a string")
            place = None if WINDOW_MARK in doc_id else self.find(doc_id)
            if place is None:
                raise NotFoundError(f"id {doc_id!r}: no such document in the index")
            places.append(place)
        return places

    def _find_in(self, number: int, doc_id: str) -> Place | None:
        native, entry = self.segments[number].native, self.segments[number].entry
        first = native.find(doc_id)
        if first >= 0:
            return Place(number, first, 1)
        if entry.n_windows == entry.n_docs:
            return None
        first = native.find(f"{doc_id}{WINDOW_MARK}0")
        if first < 0:
            return None
        n_windows = 1
        while native.find(f"{doc_id}{WINDOW_MARK}{n_windows}") >= 0:
            n_windows += 1
        return Place(number, first, n_windows)


def _of_dense(segment: OpenSegment) -> OpenSegment:
    """Give a segment whose rows are its dense vectors."""
    assert segment.dense is not None
    entry, tombstones = segment.entry, segment.entry.tombstones
    if tombstones is not None:
        deleted = as_mask(segment.deleted, entry.n_windows)
        n_tokens = int(segment.dense.lengths()[deleted].sum())
        n_empty = tombstones.n_docs - n_tokens
        tombstones = replace(tombstones, n_tokens=n_tokens, n_empty=n_empty)
    n_tokens = segment.dense.n_tokens
    return replace(
        segment,
        native=segment.dense,
        entry=replace(
            entry, n_tokens=n_tokens, n_empty=entry.n_docs - n_tokens, tombstones=tombstones
        ),
    )


def open_codec(
    directory: Directory, manifest: Manifest, entry: CodecEntry | None
) -> _native.Codec | None:
    """Open a codec, if there is one."""
    if entry is None:
        return None
    path = require_size(directory, manifest, entry.file)
    codec = _native.Codec.open(str(path))
    require_checksum(manifest, path, codec.checksum)
    return codec


def open_segment(
    directory: Directory,
    manifest: Manifest,
    entry: SegmentEntry,
    field: str,
    codec: _native.Codec | None,
) -> _native.Segment:
    """Open the file of a field of rows."""
    path = require_size(directory, manifest, entry.field_file(field))
    native = _native.Segment.open(str(path), codec)
    require_checksum(manifest, path, native.checksum)
    _require_windows(path, native.n_docs, entry)
    return native


def open_sparse(directory: Directory, manifest: Manifest, entry: SegmentEntry) -> SparsePart:
    """Open the sparse vectors of a segment."""
    path = require_size(directory, manifest, entry.field_file("sparse"))
    part = SparsePart(path)
    require_checksum(manifest, path, part.checksum)
    _require_windows(path, part.n_docs, entry)
    return part


def _require_windows(path: Path, found: int, entry: SegmentEntry) -> None:
    if found != entry.n_windows:
        raise CorruptIndexError(
            f"{path}: holds {found} windows, expected {entry.n_windows}", str(path)
        )


def read_tombstones(
    directory: Directory, manifest: Manifest, entry: SegmentEntry
) -> NDArray[np.uint64]:
    """Give a bit for each window of a segment that is deleted, all of the file checked."""
    assert entry.tombstones is not None
    path = require_size(directory, manifest, entry.tombstones.file)
    words, n_windows, checksum = _native.read_tombstones(str(path))
    require_checksum(manifest, path, checksum)
    n_deleted = int(as_mask(words, n_windows).sum())
    if (n_windows, n_deleted) != (entry.n_windows, entry.tombstones.n_windows):
        raise CorruptIndexError(
            f"{path}: {n_deleted} of {n_windows} windows deleted, expected "
            f"{entry.tombstones.n_windows} of {entry.n_windows}",
            str(path),
        )
    return words


def require_size(directory: Directory, manifest: Manifest, name: str) -> Path:
    """Give the path of a file that has the size which the manifest names."""
    path = directory.path / name
    expected, found = manifest.files[name].size, directory.size(name)
    if found != expected:
        size = "is missing" if found is None else f"has {found} bytes"
        raise CorruptIndexError(
            f"{path}: {size}, expected {expected} bytes; restore the file or rebuild the index",
            str(path),
        )
    return path


def require_checksum(manifest: Manifest, path: Path, checksum: int) -> None:
    """Refuse a file whose checksum is not the one that the manifest names."""
    expected = manifest.files[path.name].checksum
    if f"{checksum:08x}" != expected:
        raise CorruptIndexError(
            f"{path}: checksum {checksum:08x}, expected {expected}; "
            f"restore the file or rebuild the index",
            str(path),
        )
