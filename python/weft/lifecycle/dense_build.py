# SPDX-License-Identifier: Apache-2.0
"""The dense field of one commit: its rows, its codec and its files.

A commit that trains a codec, the first or one for far more vectors than the last, writes all
segments anew with it: what they hold beside is copied. Rows go through one file of the spool, in
the order in which the segments of the commit have them, so that memory does not grow with their
number.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from weft.lifecycle.codec_build import share_beyond
from weft.lifecycle.codec_sizes import outgrown
from weft.lifecycle.entries import DenseEntry
from weft.lifecycle.row_files import IdTable, rows_file
from weft.lifecycle.stored import live_lengths, stored_vectors
from weft.types import defaults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from weft import _native
    from weft.lifecycle.codec_build import CodecBuild
    from weft.lifecycle.compaction import Merge
    from weft.lifecycle.manifest import Manifest
    from weft.lifecycle.new_files import NewFiles
    from weft.lifecycle.snapshot import OpenSegment, Snapshot
    from weft.lifecycle.spool import Spool

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
        device: _native.BuildDevice | None,
        threads: int,
    ) -> None:
        self.config = base.config.of_dense()
        self.entry: DenseEntry = base.dense
        self.codec = snapshot.dense_codec
        self.trained = False
        self._spool = spool
        self._files = files
        self._device = device
        self._threads = threads
        self._is_growing = base.n_docs > 0
        self.drift: float | None = None
        self._n = self._n_old = self._n_merged = 0

    def prepare(
        self,
        kept: Sequence[OpenSegment],
        codecs: CodecBuild,
        *,
        retrain: bool,
        has_room: Callable[[], bool],
    ) -> None:
        """Lay out the rows of what is added, and find the codec for them.

        Where one is trained, the rows of all that is kept are laid out, too. Asked by `retrain`, or
        because the field has outgrown its codec and there is room to write all segments anew.
        """
        lengths = np.zeros(self._spool.n_windows, np.uint32)
        for doc, _ in self._spool.vectors("dense", 0, len(lengths)):
            lengths[doc] = 1
        self.lengths = lengths
        n_kept = sum(int(live_lengths(segment, "dense").sum()) for segment in kept)
        n_new = int(lengths.sum())
        self._n = n = n_kept + n_new
        entry = self.entry.codec
        if entry is None or retrain:
            trains = n >= defaults.codec_tokens
        else:
            trains = n_new > 0 and outgrown(self.config, entry, n) and has_room()
        old = (row for segment in kept for row in stored_vectors(segment)) if trains else iter(())
        self._n_old = n_kept if trains else 0
        added = (value for _, value in self._spool.vectors("dense", 0, len(lengths)))
        rows = self._spool.lay_out("dense.f16", _joined(itertools.chain(old, added)))
        self._rows = rows.view(np.float16).reshape(-1, self.config.dim)
        if trains:
            ahead = defaults.growth_ahead if self._is_growing and not retrain else 1
            self.codec, made = codecs.train(self._rows, ahead * n)
            self.entry, self.trained = DenseEntry(made), True
        elif self.codec is not None and entry is not None and n_new > 0:
            used = [segment.dense.codec_checksum for segment in kept if segment.dense is not None]
            self.codec, made = codecs.grow(self.codec, entry, self._rows, used, n)
            self.entry = replace(self.entry, codec=made)
        self.drift = share_beyond(self.codec, self._rows, self._threads)

    @property
    def is_untuned(self) -> bool:
        """Whether there are no operating points for so many vectors with this codec."""
        tuning = self.entry.tuning
        return self.trained or tuning is None or tuning.is_outgrown(self._n)

    @property
    def added_rows(self) -> NDArray[np.float16]:
        """The rows of what is added."""
        return self._rows[self._n_old :]

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
        rows = self._rows[first : self._n_merged]
        ids = merge.stored_ids()
        return self._file(rows, offsets, IdTable.of(ids, len(ids)))

    def of_added(self, first: int, last: int, ids: IdTable) -> Callable[[int, str], int]:
        """Give what fills the file of a segment made of the added windows [first, last)."""
        begin = int(self.lengths[:first].sum())
        offsets = _offsets(self.lengths[first:last])
        rows = self.added_rows[begin : begin + int(offsets[-1])]
        return self._file(rows, offsets, ids)

    def _file(
        self, rows: NDArray[np.float16], offsets: NDArray[np.uint64], ids: IdTable
    ) -> Callable[[int, str], int]:
        return rows_file(
            *(self.config, self.codec, rows, offsets, ids),
            device=self._device,
            threads=self._threads,
        )


def _offsets(lengths: NDArray[np.uint32]) -> NDArray[np.uint64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.uint64)]).astype(np.uint64)


def _joined(rows: Iterator[bytes]) -> Iterator[bytes]:
    while some := list(itertools.islice(rows, BLOCK_ROWS)):
        yield b"".join(some)
