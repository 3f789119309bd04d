# SPDX-License-Identifier: Apache-2.0
"""A new generation of what is whole of a damaged index; nothing damaged is removed.

What cannot be used is given a second name in the folder `damaged-<generation>`, which no writer
touches, with a file `lost.jsonl` of the documents that are lost and what is known of them.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from weft import _native
from weft.errors import CorruptIndexError, NotFoundError, WeftError
from weft.lifecycle.bitmaps import as_mask, is_set, n_words
from weft.lifecycle.compaction import plan_merges
from weft.lifecycle.entries import DenseEntry, SegmentEntry
from weft.lifecycle.health import Repair
from weft.lifecycle.manifest import generations, is_published, newest_readable, publish, read
from weft.lifecycle.new_files import NewFiles
from weft.lifecycle.planning import parse_ram
from weft.lifecycle.row_files import IdTable, rows_file
from weft.lifecycle.snapshot import OpenSegment, read_tombstones
from weft.lifecycle.verification import Codecs, damaged_manifests, encoder_problems, examine
from weft.lifecycle.windows import document_id, starts_document, window_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from weft.lifecycle.compaction import Merge
    from weft.lifecycle.health import Problem
    from weft.lifecycle.manifest import Manifest
    from weft.lifecycle.storage import Directory
    from weft.lifecycle.verification import Examined
    from weft.types import Progress

LOST = "lost.jsonl"


def repair(directory: Directory, progress: Progress) -> Repair:
    """Publish a generation of what is whole, if anything is not.

    Raises
    ------
    CorruptIndexError
        No manifest is whole.
    IncompatibleIndexError
        The newest was written by a newer weft.
    """
    if not directory.path.is_dir() or not generations(directory):
        raise NotFoundError(f"{directory.path}: no index there (no manifest in the folder)")
    lock = directory.lock()
    try:
        present = generations(directory)
        good = newest_readable(directory, present)
        if good is None:
            raise CorruptIndexError(
                f"{directory.path}: every manifest is damaged; restore one of them",
                str(directory.path),
            )
        problems = damaged_manifests(directory, good)
        return _Repairing(directory, read(directory, good), progress).run(present[-1] + 1, problems)
    finally:
        lock.release()


class _Repairing:
    def __init__(self, directory: Directory, base: Manifest, progress: Progress) -> None:
        self._directory = directory
        self._base = base
        self._progress = progress
        self._files = NewFiles(directory)

    def run(self, generation: int, problems: list[Problem]) -> Repair:
        base = self._base
        codecs = Codecs(self._directory, base)
        problems += codecs.problems
        encoder_lost = encoder_problems(self._directory, base)
        problems += encoder_lost
        manifests = [problem.file for problem in problems if problem.file.startswith("manifest-")]
        segments: list[Examined] = []
        made = None
        try:
            for number, entry in enumerate(base.segments, start=1):
                segments.append(examine(self._directory, base, entry, codecs, deep=True))
                problems += segments[-1].problems()
                self._progress("verify", number, len(base.segments))
            if not problems:
                return Repair(base.generation, (), base.n_docs, 0, None)
            kept = self._kept(segments, codecs)
            lost = [found for found in segments if found.native is None]
            folder = f"damaged-{generation:06d}"
            names = {problem.file for problem in problems}
            names.update(file for found in lost for file in found.entry.files)
            if manifests:
                names |= self._strays()
            self._keep_evidence(folder, sorted(names), lost)
            made = base.next(
                generation,
                codec=None if codecs.multi_lost else base.codec,
                dense=DenseEntry() if codecs.dense_lost else base.dense,
                encoder=None if encoder_lost else base.encoder,
                encoder_file=None if encoder_lost else base.encoder_file,
                segments=tuple(kept),
                files={**base.files, **self._files.entries},
            )
            if codecs.multi_lost:
                made = replace(made, operating_points=(), tuning=None)
            self._directory.sync_directory()
            publish(self._directory, made)
        except BaseException:
            if made is None or not is_published(self._directory, made):
                self._files.discard()
            raise
        finally:
            for found in segments:
                found.close()
        for name in manifests:  # they have second names
            with contextlib.suppress(WeftError):
                self._directory.remove(name)
        n_lost = sum(found.entry.live("n_docs") for found in lost)
        path = str(self._directory.path / folder)
        return Repair(generation, tuple(problems), made.n_docs, n_lost, path)

    def _kept(self, segments: Sequence[Examined], codecs: Codecs) -> list[SegmentEntry]:
        """Give the segments that stay, with those written anew of which something is damaged."""
        kept = []
        for number, found in enumerate(segments):
            if found.native is None:
                continue
            if not found.errors:
                kept.append(found.entry)
                continue
            words = found.deleted
            if found.entry.tombstones is not None and words is None:
                words = self._deleted_as_far_as_known(number, segments)
            entry = replace(found.entry, documents=found.documents is not None)
            segment = OpenSegment(
                entry, found.native, found.documents, words, found.dense, found.sparse
            )
            for merge in plan_merges([segment], parse_ram(None)):
                lost = "dense" in entry.fields and found.dense is None
                empty = self._no_vectors(merge, codecs) if lost else None
                self._files.write_merged(merge, self._progress, empty)
                kept.append(merge.entry)
        return kept

    def _no_vectors(self, merge: Merge, codecs: Codecs) -> Callable[[int, str], int]:
        """Give what fills the file of dense vectors where they are lost."""
        config = self._base.config.of_dense()
        ids = merge.stored_ids()
        rows, offsets = np.empty((0, config.dim), np.float16), np.zeros(len(ids) + 1, np.uint64)
        return rows_file(config, codecs.dense, rows, offsets, IdTable.of(ids, len(ids)))

    def _deleted_as_far_as_known(
        self, number: int, segments: Sequence[Examined]
    ) -> NDArray[np.uint64]:
        """Give tombstones of a segment that has lost them.

        They are the newest of an older generation; and whatever is in another segment was deleted
        here before.
        """
        found = segments[number]
        assert found.native is not None
        words = self._older_tombstones(found.entry)
        others = [
            other
            for place, other in enumerate(segments)
            if place > number or (place < number and other.knows_deleted)
        ]
        windows = np.arange(found.entry.n_windows, dtype=np.uint32)
        for window, stored in enumerate(found.native.ids(windows)):
            if any(_holds(other, document_id(stored)) for other in others):
                words[window >> 6] |= np.uint64(1 << (window & 63))
        return words

    def _older_tombstones(self, entry: SegmentEntry) -> NDArray[np.uint64]:
        words = np.zeros(n_words(entry.n_windows), np.uint64)
        for generation in reversed(generations(self._directory)):
            with contextlib.suppress(WeftError):
                manifest = read(self._directory, generation)
                same = [other for other in manifest.segments if other.name == entry.name]
                for other in same:
                    if other.tombstones is not None:
                        words[:] = read_tombstones(self._directory, manifest, other)
                    return words
        return words

    def _keep_evidence(self, folder: str, names: Iterable[str], lost: Sequence[Examined]) -> None:
        """Give files a second name, and list what is known of what is lost."""
        self._directory.remove(folder)  # of a repair that was interrupted
        self._directory.make_folder(folder)
        for name in names:
            if self._directory.size(name) is not None:
                self._directory.link(name, f"{folder}/{name}")
        list_name = f"{folder}/{LOST}"
        fd = self._directory.create(list_name)
        try:
            for document in (known for found in lost for known in self._known(found)):
                line = json.dumps(document, ensure_ascii=False) + "\n"
                self._directory.write(fd, line.encode(), list_name)
            self._directory.sync(fd, list_name)
        finally:
            os.close(fd)
        self._directory.sync_directory(folder)

    def _strays(self) -> set[str]:
        """Give the files that a damaged manifest may have named, since no other does."""
        named: set[str] = set()
        for generation in generations(self._directory):
            with contextlib.suppress(WeftError):
                named.update(read(self._directory, generation).files)
        files = {n for n in self._directory.list() if n.startswith(("seg-", "codec-", "encoder-"))}
        return files - named - self._files.entries.keys()

    def _known(self, found: Examined) -> Iterator[dict[str, object]]:
        """Give id, text and metadata of the documents of a lost segment, where they are whole."""
        path = self._directory.path / found.entry.file
        try:
            arrays = _native.whole_arrays(str(path), ["id_offsets", "id_bytes"])
            places, data = arrays["id_offsets"].tolist(), arrays["id_bytes"].tobytes()
        except (WeftError, KeyError):
            return
        deleted = as_mask(found.deleted, found.entry.n_windows)
        for window, (first, last) in enumerate(pairwise(places)):
            stored = data[first:last].decode()
            if starts_document(stored) and not deleted[window]:
                store = found.documents
                text, metadata = (None, {}) if store is None else store.get(window)
                yield {"id": document_id(stored), "text": text, "metadata": metadata}


def _holds(found: Examined, doc_id: str) -> bool:
    """Tell whether a document is in a segment, and not deleted there as far as is known."""
    if found.native is None:
        return False
    windows = (found.native.find(name) for name in (doc_id, window_ids(doc_id, 2)[0]))
    deleted = found.deleted
    return any(w >= 0 and not (deleted is not None and is_set(deleted, w)) for w in windows)
