# SPDX-License-Identifier: Apache-2.0
"""The dense field of one commit: its rows, its codec and its files.

The commit that first has enough vectors for a codec trains one, and writes all segments anew with
it: what they hold beside is copied. Rows go through one file of the spool, in the order in which
the segments of the commit have them, so that memory does not grow with their number.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from weft import _native
from weft.lifecycle.bitmaps import as_mask
from weft.lifecycle.entries import CodecEntry, DenseEntry
from weft.lifecycle.planning import sample_bytes
from weft.lifecycle.row_files import IdTable, rows_file
from weft.types import defaults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from weft.lifecycle.compaction import Merge
    from weft.lifecycle.manifest import Manifest
    from weft.lifecycle.new_files import NewFiles
    from weft.lifecycle.snapshot import OpenSegment, Snapshot
    from weft.lifecycle.spool import Spool
    from weft.types import Progress

    MadeOnce = Callable[[str, Callable[[], Sequence[str]]], list[str]]

BLOCK_ROWS = 4_096


class DenseBuild:
    """Writes the dense vectors of what is kept of an index, and of what is added to it."""

    def __init__(
        self,
        base: Manifest,
        snapshot: Snapshot,
        spool: Spool,
        files: NewFiles,
        *,
        threads: int,
        max_ram: int,
        progress: Progress,
    ) -> None:
        self.config = base.config.of_dense()
        self.entry: DenseEntry = base.dense
        self.codec = snapshot.dense_codec
        self.trained = False
        self._spool = spool
        self._files = files
        self._threads, self._max_ram, self._progress = threads, max_ram, progress
        self._n_old = self._n_merged = 0

    def prepare(self, kept: Iterable[OpenSegment], made_once: MadeOnce, *, retrain: bool) -> None:
        """Lay out the rows of what is added; and where a codec is trained, of all that is kept."""
        kept = list(kept)
        lengths = np.zeros(self._spool.n_windows, np.uint32)
        for doc, _ in self._spool.vectors("dense", 0, len(lengths)):
            lengths[doc] = 1
        self.lengths = lengths
        n_kept = sum(int(live_lengths(segment, "dense").sum()) for segment in kept)
        n = n_kept + int(lengths.sum())
        trains = n >= defaults.codec_tokens and (self.codec is None or retrain)
        old = (row for segment in kept for row in stored_vectors(segment)) if trains else iter(())
        self._n_old = n_kept if trains else 0
        added = (value for _, value in self._spool.vectors("dense", 0, len(lengths)))
        rows = self._spool.lay_out("dense.f16", _joined(itertools.chain(old, added)))
        self._rows = rows.view(np.float16).reshape(-1, self.config.dim)
        if trains:
            self._train(made_once)

    @property
    def added_rows(self) -> NDArray[np.float16]:
        """The rows of what is added."""
        return self._rows[self._n_old :]

    def _train(self, made_once: MadeOnce) -> None:
        config, rows = self.config, self._rows

        def make() -> list[str]:
            trained = _native.Codec.train(
                rows,
                nbits=config.nbits,
                n_coarse=0,
                n_fine=0,
                iterations=config.kmeans_iterations,
                seed=config.seed,
                max_sample_bytes=sample_bytes(self._max_ram),
                threads=self._threads,
                progress=self._progress,
            )
            return [self._files.write_codec(trained)]

        (name,) = made_once(f"dense codec {sample_bytes(self._max_ram)}", make)
        self.codec = self._files.open_codec(name)
        entry = CodecEntry(name, self.codec.n_coarse, self.codec.n_fine, len(rows))
        self.entry = DenseEntry(entry)
        self.trained = True

    def of_merge(self, merge: Merge) -> Callable[[int, str], int] | None:
        """Give what fills the file of a merged segment; None where vectors can be copied.

        Merges come in the order of the segments that were prepared.
        """
        if not self.trained:
            return None
        parts = [segment.lengths("dense")[windows] for segment, windows in merge.windows()]
        offsets = _offsets(np.concatenate(parts))
        first = self._n_merged
        self._n_merged += int(offsets[-1])
        ids = merge.stored_ids()
        rows = self._rows[first : self._n_merged]
        return rows_file(
            self.config, self.codec, rows, offsets, IdTable.of(ids, len(ids)), threads=self._threads
        )

    def of_added(self, first: int, last: int, ids: IdTable) -> Callable[[int, str], int]:
        """Give what fills the file of a segment made of the added windows [first, last)."""
        begin = int(self.lengths[:first].sum())
        offsets = _offsets(self.lengths[first:last])
        rows = self.added_rows[begin : begin + int(offsets[-1])]
        return rows_file(self.config, self.codec, rows, offsets, ids, threads=self._threads)


def _offsets(lengths: NDArray[np.uint32]) -> NDArray[np.uint64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.uint64)]).astype(np.uint64)


def _joined(rows: Iterator[bytes]) -> Iterator[bytes]:
    while some := list(itertools.islice(rows, BLOCK_ROWS)):
        yield b"".join(some)


def live_lengths(segment: OpenSegment, field: str) -> NDArray[np.int64]:
    """Give how many rows or terms a field has of each window; deleted ones have none."""
    lengths = segment.lengths(field).astype(np.int64)
    lengths[as_mask(segment.deleted, len(lengths))] = 0
    return lengths


def stored_vectors(segment: OpenSegment) -> Iterator[bytes]:
    """Give what a segment stores of its vectors, as float16; none of deleted documents."""
    if segment.dense is not None:
        for window in np.flatnonzero(live_lengths(segment, "dense")).tolist():
            yield segment.dense.rows(window).astype(np.float16).tobytes()
