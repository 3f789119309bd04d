# SPDX-License-Identifier: Apache-2.0
"""What a segment stores of its documents, read back as a writer was given them.

Rows are the best that is kept of them: themselves, or what their codes stand for.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from weft.lifecycle.bitmaps import as_mask
from weft.lifecycle.compaction import first_windows
from weft.lifecycle.documents import check_metadata, encode_spans
from weft.lifecycle.windows import Batch, document_id
from weft.sparse_vectors import pack
from weft.tuner import Rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from weft.lifecycle.snapshot import OpenSegment

BLOCK_WINDOWS = 1 << 12


def live_lengths(segment: OpenSegment, field: str) -> NDArray[np.int64]:
    """Give how many rows or terms a field has of each window; deleted ones have none."""
    lengths = segment.lengths(field).astype(np.int64)
    lengths[as_mask(segment.deleted, len(lengths))] = 0
    return lengths


def stored_rows(segment: OpenSegment) -> Iterator[Rows]:
    """Walk over the rows of a segment, as float16; none of deleted windows."""
    lengths = live_lengths(segment, "multi")
    n = len(lengths)
    for first in range(0, n, BLOCK_WINDOWS):
        windows = range(first, min(first + BLOCK_WINDOWS, n))
        found = [segment.native.rows(w)[: lengths[w]].astype(np.float16) for w in windows]
        offsets = np.cumsum([0, *lengths[first : first + BLOCK_WINDOWS]], dtype=np.uint64)
        yield Rows(np.concatenate(found), offsets)


def stored_vectors(segment: OpenSegment) -> Iterator[bytes]:
    """Give the dense vectors of a segment, as float16; none of deleted documents."""
    if segment.dense is not None:
        for window in np.flatnonzero(live_lengths(segment, "dense")).tolist():
            yield segment.dense.rows(window).astype(np.float16).tobytes()


def stored_documents(segment: OpenSegment) -> Iterator[tuple[Batch, list[NDArray[np.float16]]]]:
    """Walk over the documents of a segment that are not deleted, and their rows."""
    live = np.flatnonzero(~as_mask(segment.deleted, segment.entry.n_windows))
    starts = first_windows(segment, live)
    has_dense = live_lengths(segment, "dense") > 0
    sparse = iter(()) if segment.sparse is None else segment.sparse.vectors()
    waiting = next(sparse, None)
    for first, last in _cuts(np.append(starts, len(live))):
        windows = live[first:last].tolist()
        begins = starts[(starts >= first) & (starts < last)]
        docs = live[begins].tolist()
        terms: dict[int, bytes] = {}
        while waiting is not None and waiting[0] <= windows[-1]:
            terms[waiting[0]] = pack(waiting[1])
            waiting = next(sparse, None)
        rows = [segment.native.rows(window).astype(np.float16) for window in windows]
        store, lengths = segment.documents, [len(of_window) for of_window in rows]
        found = [(None, {}) if store is None else store.get(doc) for doc in docs]
        places = [
            None if store is None else store.spans(window, length)
            for window, length in zip(windows, lengths, strict=True)
        ]
        batch = Batch(
            ids=[document_id(stored) for stored in segment.native.ids(np.array(docs, np.uint32))],
            n_windows=np.diff(begins, append=last).tolist(),
            lengths=np.array(lengths, np.int64),
            texts=[text for text, _ in found],
            metadata=[check_metadata(fields, segment.entry.name) for _, fields in found],
            spans=[None if p is None else encode_spans(p.astype(np.int64)) for p in places],
            dense=[_dense(segment, doc) if has_dense[doc] else None for doc in docs],
            sparse=[terms.get(doc) for doc in docs],
        )
        yield batch, rows


def _cuts(ends: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cut documents, by their first windows and the end, into ranges of BLOCK_WINDOWS at most.

    A document that has more is alone in one.
    """
    first = 0
    for start, end in pairwise(ends.tolist()):
        if end - first > BLOCK_WINDOWS and start > first:
            yield first, start
            first = start
    if len(ends) > 1:
        yield first, int(ends[-1])


def _dense(segment: OpenSegment, doc: int) -> bytes:
    assert segment.dense is not None
    return segment.dense.rows(doc).astype(np.float16).tobytes()
