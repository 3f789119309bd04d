# SPDX-License-Identifier: Apache-2.0
"""Whether the files of a generation are those that its manifest names, and sound."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from weft import _native
from weft.arrays import crc32c
from weft.documents import DocumentStore
from weft.errors import WeftError
from weft.snapshot import OpenSegment, read_tombstones, require_checksum, require_size
from weft.storage import os_errors
from weft.types import Problem

if TYPE_CHECKING:
    from pathlib import Path

    from weft.manifest import Manifest, SegmentEntry
    from weft.storage import Directory

READ_BYTES = 1 << 20


def verify(directory: Directory, manifest: Manifest, *, deep: bool) -> tuple[Problem, ...]:
    """Check every file of a generation, each by itself; `deep` reads all of it."""
    problems: list[Problem] = []
    for name in sorted(manifest.files):
        try:
            _verify_file(directory, manifest, name, deep=deep)
        except WeftError as error:
            problems.append(Problem(name, str(error)))
    return tuple(problems)


def verify_segment(manifest: Manifest, segment: OpenSegment) -> None:
    """Read all of an open segment and its documents.

    Raises
    ------
    CorruptIndexError
        Something in there is not as it was written.
    """
    segment.native.verify()
    if segment.documents is not None:
        _verify_documents(manifest, segment.entry, segment.documents)


def _verify_file(directory: Directory, manifest: Manifest, name: str, *, deep: bool) -> None:
    path = require_size(directory, manifest, name)
    segment = next((s for s in manifest.segments if name in s.files), None)
    if segment is None:
        require_checksum(manifest, path, _native.Codec.open(str(path)).checksum)
    elif name == segment.file:
        codec = manifest.codec
        opened = None if codec is None else _native.Codec.open(str(directory.path / codec.file))
        native = _native.Segment.open(str(path), opened)
        if deep:
            native.verify()
        require_checksum(manifest, path, native.checksum)
    elif name == segment.documents_file:
        store = DocumentStore(path)
        try:
            if deep:
                _verify_documents(manifest, segment, store)
        finally:
            store.close()
    else:
        read_tombstones(directory, manifest, segment)


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
