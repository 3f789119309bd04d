# SPDX-License-Identifier: Apache-2.0
"""Which segments are merged into which: all that are worth it, or those that must be.

The former when an index is compacted, the latter at any commit, so that neither the number of
segments nor what is deleted in them grows without end.

What documents are stored as is copied: the rows that codes were made from are gone, and codes made
from codes would be worse. So a document keeps its codes, bit for bit, and its scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from weft.lifecycle.bitmaps import as_mask
from weft.lifecycle.entries import SegmentEntry
from weft.lifecycle.planning import segment_bytes, segment_cuts, segment_limits
from weft.lifecycle.windows import starts_document
from weft.types import defaults

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from weft.lifecycle.snapshot import OpenSegment


@dataclass(frozen=True)
class Merge:
    """A new segment and the windows of old ones that it is made of, ranges [first, last)."""

    entry: SegmentEntry
    parts: tuple[tuple[OpenSegment, NDArray[np.uint32]], ...]

    def windows(self) -> list[tuple[OpenSegment, NDArray[np.uint32]]]:
        """Give the segments again, with one by one what is taken of them."""
        return [
            (segment, np.concatenate([np.arange(*run, dtype=np.uint32) for run in runs.tolist()]))
            for segment, runs in self.parts
        ]

    def stored_ids(self) -> list[str]:
        """Give the ids of the windows."""
        return [one for segment, windows in self.windows() for one in segment.native.ids(windows)]


def worth_merging(entries: Sequence[SegmentEntry], max_ram: int) -> list[SegmentEntry]:
    """Give the segments that have tombstones or are at most half as large as one may be.

    A single one without tombstones is left as it is. So compacting twice changes nothing.
    """
    chosen = [e for e in entries if e.tombstones is not None or _is_small(e, max_ram)]
    return chosen if len(chosen) > 1 or any(entry.tombstones for entry in chosen) else []


def must_be_merged(entries: Sequence[SegmentEntry], max_ram: int) -> list[SegmentEntry]:
    """Give the segments that a commit writes anew though nobody asked for it.

    Those of which more than a fifth is deleted. And where there are 16 small ones or more, the
    smallest of them, up to the first that is larger than all before it together; a document that
    is copied then finds itself in a segment at least twice as large, so it is copied log2 n times
    at most, however small the commits are.
    """
    most = defaults.merged_deleted
    chosen = [entry for entry in entries if entry.deleted_share > most]
    small = sorted((e for e in entries if _is_small(e, max_ram)), key=_left)
    if len(small) >= defaults.merged_segments:
        merged = small[: _first_jump([_left(entry) for entry in small])]
        chosen += [entry for entry in merged if entry not in chosen]
    return chosen


def _first_jump(sizes: Sequence[int]) -> int:
    """Count the first sizes, ascending, that are less than the next; 0 where each doubles them.

    None of them is larger than the others together.
    """
    total = 0
    for number, size in enumerate(sizes, start=1):
        doubled = number > 1 and size <= total
        total += size
        if doubled and (number == len(sizes) or sizes[number] > total):
            return number
    return 0


def n_segments_compacted(entries: Sequence[SegmentEntry], max_ram: int) -> int:
    """Foretell how many segments compacting leaves."""
    worth = worth_merging(entries, max_ram)
    most_tokens, most_bytes = segment_limits(max_ram)
    n_tokens, n_windows = (sum(e.live(n) for e in worth) for n in ("n_tokens", "n_windows"))
    needed = (
        max(n_tokens, n_windows) / most_tokens,
        segment_bytes(n_tokens, n_windows) / most_bytes,
    )
    return len(entries) - len(worth) + math.ceil(max(needed))


def _is_small(entry: SegmentEntry, max_ram: int) -> bool:
    most_tokens, most_bytes = segment_limits(max_ram)
    n_bytes = segment_bytes(entry.n_tokens, entry.n_windows)
    n_units = max(entry.n_tokens, entry.n_windows)
    return n_units <= most_tokens // 2 and n_bytes <= most_bytes // 2


def _left(entry: SegmentEntry) -> int:
    return entry.live("n_tokens") + entry.live("n_windows")


def plan_merges(segments: Sequence[OpenSegment], max_ram: int) -> list[Merge]:
    """Cut what is not deleted of some segments into new ones, in order."""
    windows = [np.flatnonzero(~as_mask(s.deleted, s.entry.n_windows)) for s in segments]
    lengths = np.concatenate(
        [s.native.lengths()[kept] for s, kept in zip(segments, windows, strict=True)]
    )
    ends = np.cumsum([len(kept) for kept in windows]).tolist()
    begins = [0, *ends[:-1]]
    starts = np.concatenate(
        [
            begin + first_windows(s, kept)
            for s, kept, begin in zip(segments, windows, begins, strict=True)
        ]
    )
    merges = []
    for first, last in segment_cuts(np.append(starts, ends[-1]), lengths, max_ram):
        parts = []
        for segment, kept, begin, end in zip(segments, windows, begins, ends, strict=True):
            inside = kept[max(first - begin, 0) : max(min(last, end) - begin, 0)]
            if len(inside) > 0:
                parts.append((segment, _runs(inside)))
        entry = SegmentEntry.new(
            lengths[first:last],
            starts[(starts >= first) & (starts < last)] - first,
            documents=any(segment.entry.documents for segment, _ in parts),
            fields=parts[0][0].entry.fields,
            drift=mean_drift((segment.entry.drift, segment.entry.n_tokens) for segment, _ in parts),
            dense_drift=mean_drift(
                (segment.entry.dense_drift, segment.entry.n_docs) for segment, _ in parts
            ),
        )
        merges.append(Merge(entry, tuple(parts)))
    return merges


def mean_drift(parts: Iterable[tuple[float | None, int]]) -> float | None:
    """Give the mean over so many rows each; None where none of it is known."""
    known = [(drift, n_rows) for drift, n_rows in parts if drift is not None]
    n_all = sum(n_rows for _, n_rows in known)
    if n_all == 0:
        return None
    return round(sum(drift * n_rows for drift, n_rows in known) / n_all, 4)


def first_windows(segment: OpenSegment, kept: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give the places in `kept`, ascending windows, of those that begin a document."""
    if segment.entry.n_windows == segment.entry.n_docs:
        return np.arange(len(kept))
    if segment.documents is None:  # they were damaged, and left behind by a repair
        ids = segment.native.ids(kept.astype(np.uint32))
        return np.flatnonzero([starts_document(stored) for stored in ids])
    begins = np.ones(segment.entry.n_windows, np.bool_)
    for doc, n_windows in segment.documents.long_documents():
        begins[doc + 1 : doc + n_windows] = False
    return np.flatnonzero(begins[kept])


def _runs(windows: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Give ascending windows as ranges [first, last)."""
    breaks = np.flatnonzero(np.diff(windows) != 1) + 1
    firsts = windows[np.concatenate([[0], breaks])]
    lasts = windows[np.concatenate([breaks - 1, [-1]])] + 1
    return np.ascontiguousarray(np.stack([firsts, lasts], axis=1), np.uint32)
