# SPDX-License-Identifier: Apache-2.0
"""The files of one commit: codec, segments, documents and operating points, written and synced.

Nothing here changes the index: the files exist under names that no manifest knows until the writer
publishes one.
"""

from __future__ import annotations

import logging
import shutil
import uuid
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from weft import _native
from weft.errors import OutOfMemoryError, StorageError
from weft.lifecycle.additions import require_room_for
from weft.lifecycle.codec_build import CodecBuild, share_beyond
from weft.lifecycle.codec_sizes import outgrown
from weft.lifecycle.compaction import must_be_merged, plan_merges, worth_merging
from weft.lifecycle.dense_build import DenseBuild
from weft.lifecycle.entries import SegmentEntry, TombstonesEntry, Tuning
from weft.lifecycle.manifest import Manifest
from weft.lifecycle.new_files import NewFiles
from weft.lifecycle.planning import segment_cuts, size, sorted_postings
from weft.lifecycle.row_files import IdTable, rows_file
from weft.lifecycle.snapshot import OpenSegment, Snapshot
from weft.lifecycle.spool import Spool
from weft.lifecycle.stored import live_lengths, stored_documents, stored_rows
from weft.lifecycle.verification import verify_segment
from weft.sparse import write_sparse
from weft.tuner import PIECES, Rows, Tuner, TuningQueries, choose_tokens
from weft.types import defaults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from weft.lifecycle.storage import Directory
    from weft.lifecycle.tombstones import Deletions
    from weft.types import IndexConfig, OperatingPoint, Progress

logger = logging.getLogger("weft")

BLOCK_TOKENS = 1 << 17


class Build:
    """One commit in the making."""

    def __init__(
        self,
        directory: Directory,
        snapshot: Snapshot,
        spool: Spool,
        deletions: Deletions,
        *,
        device: _native.BuildDevice | None,
        threads: int,
        max_ram: int,
        progress: Progress,
    ) -> None:
        self._directory = directory
        self._snapshot = snapshot
        self._base = snapshot.manifest
        self._spool, self._given = spool, spool.given()
        self._deletions = deletions
        self._device = device
        self._threads = threads
        self._max_ram = max_ram
        self._progress = progress
        self._files = NewFiles(directory)

    def run(
        self,
        generation: int,
        *,
        compact: bool,
        retrain: bool,
        tune: bool,
        queries: TuningQueries | None,
    ) -> Manifest:
        """Write every file, sync the folder and give the manifest that names them.

        `compact` merges the old segments that are worth it; without it, those that must be.
        `retrain` trains a codec anew and encodes everything again, the old from what is stored.
        `tune` asks for operating points even if the codec is an old one, measured on `queries` or,
        where there are none, on sampled documents.
        """
        base, spool, asked = self._base, self._spool, tune
        dense = self._dense_build()
        codec, entry, kept = self._snapshot.codec, base.codec, self._remaining()
        n_tokens = sum(segment.entry.live("n_tokens") for segment in kept)
        n_all = n_tokens + self._given.n_tokens
        trains = self._is_to_train(n_tokens, retrain=retrain)
        decodes = trains and codec is not None and base.config.rerank != "f16"
        for segment in kept if trains else ():
            self._absorb(segment)
        spool.forget_the_rest()
        if trains:
            kept, grows = (), base.n_tokens > 0 and not retrain
            made_for = (defaults.growth_ahead if grows else 1) * n_all
            codec, entry = self._codec_build(base.config, "codec").train(spool.rows(), made_for)
            tune = tune or retrain or base.tuning is None or base.tuning.is_sampled
        elif codec is not None and entry is not None and spool.n_tokens > 0:
            used = [segment.native.codec_checksum for segment in kept]
            codecs = self._codec_build(base.config, "codec")
            codec, entry = codecs.grow(codec, entry, spool.rows(), used, n_all)
            tune = tune or (base.tuning is not None and base.tuning.is_outgrown(n_all))
        if entry is not None and n_all > defaults.retrain_growth * entry.n_tokens:
            logger.warning(
                "the index has %d tokens, its codec is made for %d and has no room to grow: recall "
                "may fall; compact(retrain=True) trains another",
                n_all,
                entry.n_tokens,
            )
        if dense is not None:
            dense.prepare(
                *(kept, self._codec_build(dense.config, "dense codec")),
                retrain=retrain,
                has_room=partial(self._has_room_for, [segment.entry for segment in kept]),
            )
        kept = self._merge(kept, dense, asked=compact)
        self._write_tombstones(kept)
        made = self._write_segments(codec, dense)
        manifest = base.next(
            generation,
            codec=entry,
            dense=base.dense if dense is None else dense.entry,
            segments=(*(segment.entry for segment in kept), *made),
            files={**base.files, **self._files.entries},
        )
        if codec is not None and tune and manifest.n_tokens > 0:
            manifest = self._tune(manifest, kept, queries, decodes=decodes)
        if dense is not None and dense.codec is not None and (dense.is_untuned or asked):
            manifest = self._tune_dense(manifest, kept, dense)
        self._directory.sync_directory()
        return manifest

    def _codec_build(self, config: IndexConfig, stage: str) -> CodecBuild:
        return CodecBuild(
            *(config, self._files, self._made_once, stage),
            device=self._device,
            threads=self._threads,
            max_ram=self._max_ram,
            progress=self._progress,
        )

    def _dense_build(self) -> DenseBuild | None:
        if self._base.config.dense is None:
            return None
        return DenseBuild(
            *(self._base, self._snapshot, self._spool, self._files),
            device=self._device,
            threads=self._threads,
        )

    def _remaining(self) -> tuple[OpenSegment, ...]:
        """Give the old segments of which something is left, with what is newly deleted in them."""
        kept = []
        for number, segment in enumerate(self._snapshot.segments):
            changed = self._deletions.changed.get(number)
            if changed is None:
                kept.append(segment)
            elif changed.n_docs < segment.entry.n_docs:
                tombstones = TombstonesEntry(
                    file=f"{segment.entry.name}.del-{uuid.uuid4().hex}.weft",
                    n_docs=changed.n_docs,
                    n_windows=changed.n_windows,
                    n_empty=changed.n_empty,
                    n_tokens=changed.n_tokens,
                )
                entry = replace(segment.entry, tombstones=tombstones)
                kept.append(replace(segment, entry=entry, deleted=changed.words))
        return tuple(kept)

    def _merge(
        self, segments: tuple[OpenSegment, ...], dense: DenseBuild | None, *, asked: bool
    ) -> tuple[OpenSegment, ...]:
        """Write some of them into new ones, without what is deleted; give what there is then.

        They are read in full before, so that no damage gets a new checksum. A new codec of dense
        vectors asks for all of them.
        """
        entries = [segment.entry for segment in segments]
        if dense is None or not dense.trained:
            entries = (worth_merging if asked else must_be_merged)(entries, self._max_ram)
            if not asked and not self._has_room_for(entries):
                return segments
        if not entries:
            return segments
        chosen = [segment for segment in segments if segment.entry in entries]
        kept = tuple(segment for segment in segments if segment.entry not in entries)
        for number, segment in enumerate(chosen, start=1):
            verify_segment(self._base, segment)
            self._progress("verify", number, len(chosen))
        made = []
        for merge in plan_merges(chosen, self._max_ram):
            vectors = None if dense is None else dense.of_merge(merge)
            self._files.write_merged(merge, self._progress, vectors)
            entry = merge.entry
            if vectors is not None and dense is not None:
                entry = replace(entry, dense_drift=dense.drift)
            made.append(entry)
        self._write_tombstones(kept)
        now = self._base.next(
            self._base.generation,
            dense=self._base.dense if dense is None else dense.entry,
            segments=(*(segment.entry for segment in kept), *made),
            files={**self._base.files, **self._files.entries},
        )
        return Snapshot(self._directory, now).segments

    def _has_room_for(self, entries: Sequence[SegmentEntry]) -> bool:
        """Tell whether the disk holds some segments twice; deleting must work on a full one."""
        files = {name for entry in entries for name in entry.files} & self._base.files.keys()
        needed = sum(self._base.files[name].size for name in files)
        free = shutil.disk_usage(self._directory.path).free
        if needed > free:
            logger.warning(
                "%d segments should be merged: that needs %s on disk, %s are free",
                len(entries),
                size(needed),
                size(free),
            )
        return needed <= free

    def _write_tombstones(self, kept: tuple[OpenSegment, ...]) -> None:
        known = {**self._base.files, **self._files.entries}
        for segment in kept:
            entry, words = segment.entry, segment.deleted
            if entry.tombstones is not None and entry.tombstones.file not in known:
                assert words is not None
                self._files.write_tombstones(entry.tombstones.file, words, entry.n_windows)

    def _is_to_train(self, n_tokens: int, *, retrain: bool) -> bool:
        """Tell whether a codec is trained, for the new tokens and those that remain.

        Where nobody has asked for it, only if there is room.

        Raises
        ------
        OutOfMemoryError, StorageError
            There is no room for the commit.
        """
        base, given = self._base, self._given
        n_all = n_tokens + given.n_tokens
        require = partial(
            require_room_for,
            *(self._spool, base, self._directory.path),
            max_ram=self._max_ram,
        )
        if base.codec is None or retrain:
            trains = n_all >= defaults.codec_tokens
            if trains or given.n_docs > 0:
                require(retrain=trains and base.codec is not None)
            return trains
        n_strange = self._n_strange() if given.n_tokens > 0 else 0
        if given.n_tokens > 0 and outgrown(base.config, base.codec, n_all, n_strange):
            try:
                require(retrain=not outgrown(base.config, base.codec, n_all))
            except (OutOfMemoryError, StorageError) as error:
                logger.warning("the index has outgrown its codec, which stays: %s", error)
            else:
                return True
        if given.n_docs > 0:
            require(stays=True)
        return False

    def _n_strange(self) -> int:
        """Count the tokens of segments, and of what is added, that do not fit the codec."""
        rows = self._spool.rows()[: self._given.n_tokens]
        parts = [(share_beyond(self._snapshot.codec, rows, self._threads), len(rows))]
        parts += [(s.drift, s.live("n_tokens")) for s in self._base.segments]
        return sum(n for drift, n in parts if drift is not None and drift > defaults.drift)

    def discard(self) -> None:
        """Remove what was made."""
        self._files.discard()

    def _absorb(self, segment: OpenSegment) -> None:
        """Put the documents of an old segment into the spool, to be encoded with the new ones."""
        verify_segment(self._base, segment)
        for batch, rows in stored_documents(segment):
            self._spool.append(batch, rows)

    def _made_once(self, stage: str, make: Callable[[], Sequence[str]]) -> list[str]:
        """Give the files of a stage: those of a commit that was interrupted, or made now."""
        found = self._spool.made(stage)
        if self._files.adopt(found):
            logger.info("%s: was made before the interruption", stage)
            return list(found)
        names = make()
        self._spool.note_made(stage, {name: self._files.entries[name] for name in names})
        return list(names)

    def _write_segments(
        self, codec: _native.Codec | None, dense: DenseBuild | None
    ) -> list[SegmentEntry]:
        spool = self._spool
        starts, lengths = spool.doc_starts(), spool.lengths()
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.uint64)]).astype(np.uint64)
        rows = spool.rows()
        drift = share_beyond(codec, rows, self._threads)
        codecs = [codec, dense.codec if dense is not None else None]
        checksums = ", ".join(f"codec {c.checksum:08x}" for c in codecs if c is not None)
        entries = []
        for first, last in segment_cuts(starts, lengths, self._max_ram):
            docs = starts[(starts >= first) & (starts < last)]
            entry = SegmentEntry.new(
                lengths[first:last],
                docs - first,
                documents=spool.has_documents,
                fields=self._base.config.fields,
                drift=drift,
                dense_drift=None if dense is None else dense.drift,
            )
            make = partial(
                self._write_segment, entry, codec, rows, offsets[first : last + 1], first, dense
            )
            names = self._made_once(f"segment {first}..{last}, {checksums}", make)
            entries.append(replace(entry, name=names[0].partition(".")[0]))
        return entries

    def _write_segment(
        self,
        entry: SegmentEntry,
        codec: _native.Codec | None,
        rows: NDArray[np.float16],
        offsets: NDArray[np.uint64],
        first: int,
        dense: DenseBuild | None,
    ) -> list[str]:
        first_row, last_row = int(offsets[0]), int(offsets[-1])
        last = first + entry.n_windows
        ids = IdTable.of(self._spool.ids(first, last), entry.n_windows)

        def progress(stage: str, done: int, _: int) -> None:
            self._progress(stage, first_row + done, len(rows))

        self._files.write(
            entry.file,
            rows_file(
                self._base.config,
                codec,
                rows[first_row:last_row],
                offsets - np.uint64(first_row),
                ids,
                device=self._device,
                threads=self._threads,
                progress=progress,
            ),
        )
        if dense is not None:
            self._files.write(entry.field_file("dense"), dense.of_added(first, last, ids))
        if self._base.config.sparse is not None:
            vectors = partial(self._spool.vectors, "sparse", first, last)
            integers = self._base.config.sparse.impacts
            most = sorted_postings(self._max_ram)
            self._files.write(
                entry.field_file("sparse"),
                lambda fd, path: write_sparse(
                    fd, path, entry.n_windows, vectors, integers=integers, most=most
                ),
            )
        if entry.documents:
            fill = partial(self._spool.write_documents, first=first, last=last)
            self._files.write_documents(entry.documents_file, fill)
        return list(entry.files)

    def _tune(
        self,
        manifest: Manifest,
        kept: tuple[OpenSegment, ...],
        given: TuningQueries | None,
        *,
        decodes: bool,
    ) -> Manifest:
        """Give the manifest with operating points, found on the files it names.

        `decodes` says that what was spooled is, in part, what codes were decoded to.
        """
        snapshot = Snapshot(self._directory, manifest)
        rows, lengths = self._spool.rows(), self._spool.lengths()
        queries = given or self._sample_queries(kept, rows, lengths)
        exact = manifest.config.rerank == "f16" or not (kept or decodes)
        tuned_on = "sampled documents" if given is None else "given queries"
        truth = self._all_rows(kept, rows, lengths)
        points, tuning = self._points(snapshot, queries, truth, tuned_on, exact=exact)
        return manifest.next(manifest.generation, operating_points=points, tuning=tuning)

    def _tune_dense(
        self, manifest: Manifest, kept: tuple[OpenSegment, ...], dense: DenseBuild
    ) -> Manifest:
        """Give the manifest with operating points of the dense field.

        A sampled query is the mean of two documents' vectors: that of one is found too easily.
        """
        snapshot = Snapshot(self._directory, manifest).of_dense()
        if snapshot.manifest.n_tokens == 0:
            return manifest
        views = snapshot.segments[: len(kept)]
        rows, lengths = dense.added_rows, dense.lengths
        queries = self._sample_queries(views, rows, lengths, pieces=2).as_means()
        exact = dense.config.rerank == "f16" or (dense.trained and self._base.dense.codec is None)
        truth = self._all_rows(views, rows, lengths)
        points, tuning = self._points(snapshot, queries, truth, "sampled documents", exact=exact)
        entry = replace(dense.entry, operating_points=points, tuning=tuning)
        return manifest.next(manifest.generation, dense=entry)

    def _points(
        self,
        snapshot: Snapshot,
        queries: TuningQueries,
        truth: Iterator[Rows],
        tuned_on: str,
        *,
        exact: bool,
    ) -> tuple[tuple[OperatingPoint, ...], Tuning]:
        """Find the operating points of a field; `truth` walks over all of its rows."""
        manifest = snapshot.manifest
        assert snapshot.codec is not None
        searcher = _native.Searcher(
            [segment.native for segment in snapshot.segments],
            snapshot.codec,
            self._threads,
            snapshot.deleted,
        )
        tuner = Tuner(
            searcher,
            snapshot.codec,
            [segment.native.n_docs for segment in snapshot.segments],
            manifest.n_tokens,
            queries,
            reranks=manifest.config.rerank is not None or manifest.config.nbits == 8,
        )
        tuner.answer_exactly(truth, self._threads, self._progress)
        tuning = Tuning(tuned_on, len(queries), manifest.n_tokens, "rows" if exact else "stored")
        return tuner.points(tuned_on, self._progress), tuning

    def _sample_queries(
        self,
        kept: tuple[OpenSegment, ...],
        rows: NDArray[np.float16],
        spooled: NDArray[np.uint32],
        pieces: int = PIECES,
    ) -> TuningQueries:
        stored = [live_lengths(segment, "multi") for segment in kept]
        lengths = np.concatenate([*stored, spooled]).astype(np.int64)
        first_window = np.cumsum([0, *(len(found) for found in stored)])
        row_starts = np.concatenate([[0], np.cumsum(spooled, dtype=np.int64)])
        chosen = choose_tokens(lengths, self._base.config.seed, pieces)
        values: list[NDArray[Any]] = [np.empty((0, rows.shape[1]), np.float32)]
        for window, first, last in (piece for query in chosen for piece in query):
            number = int(np.searchsorted(first_window, window, side="right")) - 1
            inside = window - int(first_window[number])
            if number < len(kept):
                values.append(kept[number].native.rows(inside)[first:last])
            else:
                values.append(rows[row_starts[inside] + first : row_starts[inside] + last])
        counts = [sum(last - first for _, first, last in query) for query in chosen]
        offsets = np.cumsum([0, *counts], dtype=np.uint64)
        sources = np.array([[window for window, _, _ in query] for query in chosen], np.uint32)
        return TuningQueries(np.concatenate(values, dtype=np.float32), offsets, sources)

    def _all_rows(
        self,
        kept: tuple[OpenSegment, ...],
        rows: NDArray[np.float16],
        lengths: NDArray[np.uint32],
    ) -> Iterator[Rows]:
        """Walk over the rows of every window of the new generation, in its order."""
        for segment in kept:
            yield from stored_rows(segment)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.uint64)]).astype(np.uint64)
        first = 0
        while first < len(lengths):
            last = (
                int(np.searchsorted(offsets, offsets[first] + np.uint64(BLOCK_TOKENS), "right")) - 1
            )
            last = max(last, first + 1)
            begin, end = int(offsets[first]), int(offsets[last])
            yield Rows(rows[begin:end], offsets[first : last + 1] - np.uint64(begin))
            first = last
