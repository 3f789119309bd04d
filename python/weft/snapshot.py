# SPDX-License-Identifier: Apache-2.0
"""One generation of an index, with all of its files open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from weft import _native
from weft.bitmaps import as_mask, is_set
from weft.documents import DocumentStore
from weft.errors import CorruptIndexError
from weft.windows import WINDOW_MARK

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from weft.manifest import Manifest, SegmentEntry
    from weft.storage import Directory


@dataclass(frozen=True)
class OpenSegment:
    """A segment with its documents, and a bit for each window that is deleted, if there are any."""

    entry: SegmentEntry
    native: _native.Segment
    documents: DocumentStore | None
    deleted: NDArray[np.uint64] | None


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
        self.codec: _native.Codec | None = None
        if manifest.codec is not None:
            path = require_size(directory, manifest, manifest.codec.file)
            self.codec = _native.Codec.open(str(path))
            require_checksum(manifest, path, self.codec.checksum)
        segments = []
        for entry in manifest.segments:
            path = require_size(directory, manifest, entry.file)
            native = _native.Segment.open(str(path), self.codec)
            require_checksum(manifest, path, native.checksum)
            if (native.n_docs, native.n_tokens) != (entry.n_windows, entry.n_tokens):
                raise CorruptIndexError(
                    f"{path}: holds {native.n_docs} windows and {native.n_tokens} tokens, expected "
                    f"{entry.n_windows} and {entry.n_tokens}",
                    str(path),
                )
            documents = None
            if entry.documents:
                documents = DocumentStore(require_size(directory, manifest, entry.documents_file))
            deleted = (
                None if entry.tombstones is None else read_tombstones(directory, manifest, entry)
            )
            segments.append(OpenSegment(entry, native, documents, deleted))
        self.segments = tuple(segments)

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
