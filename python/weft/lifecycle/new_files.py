# SPDX-License-Identifier: Apache-2.0
"""Files of a generation to come: made, synced, and known with size and checksum."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from weft import _native
from weft.arrays import crc32c
from weft.errors import WeftError
from weft.lifecycle.documents import merge_documents
from weft.lifecycle.entries import FileEntry
from weft.lifecycle.verification import checksum_of
from weft.sparse import merge_sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from weft.lifecycle.compaction import Merge
    from weft.lifecycle.storage import Directory
    from weft.types import Progress


class NewFiles:
    """Files that no manifest names yet; `entries` is what one will say of them."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._made: list[str] = []
        self.entries: dict[str, FileEntry] = {}

    def write(self, name: str, fill: Callable[[int, str], int]) -> None:
        """Make and sync a file; `fill` is given its descriptor and path and gives its checksum."""
        fd = self._directory.create(name)
        self._made.append(name)
        try:
            checksum = fill(fd, str(self._directory.path / name))
            self._directory.sync(fd, name)
            self.entries[name] = FileEntry(os.fstat(fd).st_size, f"{checksum:08x}")
        finally:
            os.close(fd)

    def write_codec(self, codec: _native.Codec) -> str:
        """Write a codec and give the name of its file."""
        name = f"codec-{uuid.uuid4().hex}.weft"

        def write(fd: int, path: str) -> int:
            codec.write(fd, path)
            return codec.checksum

        self.write(name, write)
        return name

    def open_codec(self, name: str) -> _native.Codec:
        """Open a codec that was made."""
        return _native.Codec.open(str(self._directory.path / name))

    def write_encoder(self, data: bytes) -> str:
        """Write the large settings of an encoder and give the name of their file."""
        name = f"encoder-{uuid.uuid4().hex}.json"

        def write(fd: int, _path: str) -> int:
            self._directory.write(fd, data, name)
            return crc32c(data)

        self.write(name, write)
        return name

    def write_documents(self, name: str, fill: Callable[[Path], None]) -> None:
        """Make and sync a file of documents; `fill` is given its path."""

        def filled(fd: int, path: str) -> int:
            fill(Path(path))
            return checksum_of(fd)

        self.write(name, filled)

    def write_tombstones(self, name: str, words: NDArray[np.uint64], n_windows: int) -> None:
        """Write which windows of a segment are deleted."""
        self.write(name, lambda fd, path: _native.write_tombstones(fd, path, words, n_windows))

    def write_merged(
        self, merge: Merge, progress: Progress, dense: Callable[[int, str], int] | None = None
    ) -> None:
        """Write a segment that is made of old ones; `dense` fills the file of dense vectors anew.

        The old ones have all fields of the new, but for sparse vectors that are lost.
        """
        parts = [(segment.native, runs) for segment, runs in merge.parts]
        self.write(
            merge.entry.file,
            lambda fd, path: _native.merge_segments(fd, path, parts, progress)["checksum"],
        )
        if "dense" in merge.entry.fields:
            vectors = [(segment.dense, runs) for segment, runs in merge.parts if segment.dense]

            def copied(fd: int, path: str) -> int:
                return _native.merge_segments(fd, path, vectors, progress)["checksum"]

            self.write(merge.entry.field_file("dense"), dense or copied)
        if "sparse" in merge.entry.fields:
            lists = [(segment.sparse, runs) for segment, runs in merge.parts]
            self.write(
                merge.entry.field_file("sparse"), lambda fd, path: merge_sparse(fd, path, lists)
            )
        if merge.entry.documents:
            stores = [(segment.documents, runs.tolist()) for segment, runs in merge.parts]
            self.write_documents(
                merge.entry.documents_file, lambda path: merge_documents(path, stores)
            )

    def adopt(self, files: Mapping[str, FileEntry]) -> bool:
        """Take files that were made before, if they are all there."""
        whole = bool(files) and all(
            self._directory.size(name) == entry.size for name, entry in files.items()
        )
        if whole:
            self._made += files
            self.entries.update(files)
        return whole

    def discard(self) -> None:
        """Remove what was made; what cannot be removed is left to the next writer."""
        for name in self._made:
            with contextlib.suppress(WeftError):
                self._directory.remove(name)
