# SPDX-License-Identifier: Apache-2.0
"""The sparse field of a segment: inverted lists in a `.weft` file, read mapped.

`terms`, ascending, are those that occur; list i is `docs` and `weights` from `offsets[i]` on to
`offsets[i + 1]`, ordinals ascending. Written and merged term by term, so that memory is bounded
whatever the size.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from weft import _native
from weft.errors import CorruptIndexError, IncompatibleIndexError
from weft.sparse_vectors import Terms, require_scipy, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Lists = tuple[NDArray[np.int32], NDArray[Any]]
    """Documents and weights of some inverted lists, one list after the other."""

VERSION = 1
LEAST_POSTINGS = 1 << 16
TERM_BYTES = 8
"""Document and weight of a posting on disk."""
BYTES_PER_POSTING = 24
"""Memory taken by a posting while it is being sorted."""
BLOCK_DOCUMENTS = 4_096


class SparsePart:
    """The sparse field of one segment, open: its file stays mapped as long as this is there.

    Raises
    ------
    CorruptIndexError, IncompatibleIndexError
        Not such a file, or one of a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        arrays, self.checksum = _native.map_arrays(str(path))
        self._check_structure(arrays)
        self.terms: NDArray[np.int32] = arrays["terms"]
        self.offsets: NDArray[np.int64] = arrays["offsets"]
        self.docs: NDArray[np.int32] = arrays["docs"]
        self.weights: NDArray[Any] = arrays["weights"]
        self._lengths: NDArray[np.uint32] = arrays["lengths"]
        self._first: list[int] = []

    def _check_structure(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Check everything but the postings, which are looked at as they are used."""
        expected = {"meta": "int64", "terms": "int32", "offsets": "int64", "docs": "int32"}
        expected |= {"lengths": "uint32"}
        for name, dtype in expected.items():
            if name not in arrays or arrays[name].dtype != dtype or arrays[name].ndim != 1:
                raise self._damaged(f"{name}: missing, or not a list of {dtype}")
        meta, terms, offsets = arrays["meta"], arrays["terms"], arrays["offsets"]
        if len(meta) == 0 or meta[0] > VERSION:
            raise IncompatibleIndexError(
                f"{self.path}: a sparse field of another version, expected {VERSION}; upgrade weft",
                meta.tolist(),
                VERSION,
            )
        n_postings = len(arrays["docs"])
        weights = arrays.get("weights", offsets)
        whole = (
            len(meta) == 2
            and meta[1] == len(arrays["lengths"])
            and weights.dtype in ("float32", "int32")
            and weights.shape == (n_postings,)
            and len(offsets) == len(terms) + 1
            and offsets[0] == 0
            and offsets[-1] == n_postings
            and bool((np.diff(offsets) >= 0).all())
            and bool((np.diff(terms) > 0).all())
        )
        if not whole:
            raise self._damaged("its arrays do not belong together")

    def _damaged(self, what: str) -> CorruptIndexError:
        return CorruptIndexError(
            f"{self.path}: {what}; the file is damaged, restore it or rebuild the index",
            str(self.path),
        )

    @property
    def n_docs(self) -> int:
        """Ordinals, those without a vector included."""
        return len(self._lengths)

    def lengths(self) -> NDArray[np.uint32]:
        """Give the number of terms of each document."""
        return self._lengths

    def scores(self, query: Terms) -> NDArray[Any]:
        """Give the dot product with every document: float64, or int64 of impacts; exact.

        Raises
        ------
        CorruptIndexError
            A list names a document that is not there.
        """
        dtype = np.int64 if self.weights.dtype.kind == "i" else np.float64
        at = np.searchsorted(self.terms, query.terms)
        known = at < len(self.terms)
        known[known] = self.terms[at[known]] == query.terms[known]
        if not known.any():
            return np.zeros(self.n_docs, dtype)
        bounds = [(int(self.offsets[i]), int(self.offsets[i + 1])) for i in at[known].tolist()]
        docs = np.concatenate([self.docs[first:last] for first, last in bounds])
        if len(docs) and int(docs.view(np.uint32).max()) >= self.n_docs:
            raise self._damaged("a list names a document that is not there")
        weights = np.concatenate([self.weights[first:last] for first, last in bounds])
        starts = np.cumsum([0, *(last - first for first, last in bounds)], dtype=np.int32)
        matrix = require_scipy().csc_array(
            (weights, docs, starts), shape=(self.n_docs, len(bounds))
        )
        found: NDArray[Any] = matrix @ query.weights[known].astype(dtype)
        return found

    def vectors(self) -> Iterator[tuple[int, Terms]]:
        """Give the vector of each document that has one, in order.

        Every list is read once for each so many postings: meant for a codec's training alone.
        """
        until = np.concatenate([[0], np.cumsum(self._lengths, dtype=np.int64)])
        for first, last in pairwise(_cuts(until, 16 * LEAST_POSTINGS)):
            found = [
                self._inside(first, last, low, high)
                for low, high in pairwise(_cuts(self.offsets, 16 * LEAST_POSTINGS))
            ]
            if found:
                docs, terms, weights = (np.concatenate(one) for one in zip(*found, strict=True))
                order = np.argsort(docs, kind="stable")
                docs, terms, weights = docs[order], terms[order], weights[order]
                for at, end in _runs_of(docs):
                    yield int(docs[at]), Terms(terms[at:end], weights[at:end])

    def _inside(
        self, first: int, last: int, low: int, high: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[Any]]:
        """Give documents, terms and weights of the lists [low, high), of documents in a range."""
        bounds = self.offsets[low : high + 1]
        docs = self.docs[bounds[0] : bounds[-1]]
        inside = (docs >= first) & (docs < last)
        terms = np.repeat(self.terms[low:high], np.diff(bounds))
        return docs[inside], terms[inside], self.weights[bounds[0] : bounds[-1]][inside]

    def verify(self) -> None:
        """Check every posting, and the checksum of every array.

        Raises
        ------
        CorruptIndexError
            Something is not as it was written.
        """
        for name in _native.damaged_arrays(str(self.path)):
            raise self._damaged(f"{name}: checksum mismatch")
        counts = np.zeros(self.n_docs, np.int64)
        for first, last in pairwise(_cuts(self.offsets, LEAST_POSTINGS)):
            docs = self.docs[self.offsets[first] : self.offsets[last]]
            if len(docs) and int(docs.view(np.uint32).max()) >= self.n_docs:
                raise self._damaged("a list names a document that is not there")
            counts += np.bincount(docs, minlength=self.n_docs)
        if not np.array_equal(counts, self._lengths):
            raise self._damaged("lengths: not the numbers of terms that the lists tell")


def _runs_of(sorted_values: NDArray[Any]) -> Iterator[tuple[int, int]]:
    ends = [*(np.flatnonzero(np.diff(sorted_values)) + 1).tolist(), len(sorted_values)]
    return pairwise([0, *ends]) if len(sorted_values) else iter(())


def _cuts(offsets: NDArray[np.int64], most: int) -> list[int]:
    """Cut lists into runs of at most so many postings; a longer list is a run of its own."""
    cuts, last = [0], len(offsets) - 1
    while cuts[-1] < last:
        end = int(np.searchsorted(offsets, offsets[cuts[-1]] + most, side="right")) - 1
        cuts.append(min(max(end, cuts[-1] + 1), last))
    return cuts


def _write(
    fd: int,
    path: str,
    terms: NDArray[np.int32],
    counts: NDArray[np.int64],
    lengths: NDArray[np.uint32],
    dtype: np.dtype[Any],
    lists: Iterable[Lists],
) -> int:
    """Write a file; `lists` gives the postings in order. Gives its checksum."""
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    n_postings = int(offsets[-1])
    writer = _native.ContainerWriter(
        fd,
        path,
        [
            ("meta", "int64", [2]),
            ("terms", "int32", [len(terms)]),
            ("offsets", "int64", [len(offsets)]),
            ("lengths", "uint32", [len(lengths)]),
            ("docs", "int32", [n_postings]),
            ("weights", str(dtype), [n_postings]),
        ],
    )
    writer.append(0, np.array([VERSION, len(lengths)], np.int64))
    writer.append(1, np.ascontiguousarray(terms, np.int32))
    writer.append(2, offsets)
    writer.append(3, np.ascontiguousarray(lengths, np.uint32))
    for docs, weights in lists:
        writer.append(4, np.ascontiguousarray(docs, np.int32))
        writer.append(5, np.ascontiguousarray(weights, dtype))
    return writer.finish()


def write_sparse(
    fd: int,
    path: str,
    n_docs: int,
    vectors: Callable[[], Iterator[tuple[int, bytes]]],
    *,
    integers: bool,
    most: int,
) -> int:
    """Write the sparse field of a new segment; gives the checksum of the file.

    `vectors` gives ordinal and packed vector of the documents that have one, ascending, and is
    walked over once to count and once more for each `most` postings, which are sorted at once; a
    longer list is sorted alone.
    """
    dtype = np.dtype(np.int32 if integers else np.float32)
    lengths = np.zeros(n_docs, np.uint32)
    terms, counts = np.empty(0, np.int32), np.empty(0, np.int64)
    for docs, found in _blocks(vectors(), dtype):
        lengths[docs] = np.diff(found.bounds)
        some, n_each = np.unique(found.terms, return_counts=True)
        terms, where = np.unique(np.concatenate([terms, some]), return_inverse=True)
        counts = np.bincount(where, np.concatenate([counts, n_each]), len(terms)).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def lists() -> Iterator[Lists]:
        sparse = require_scipy()
        for first, last in pairwise(_cuts(offsets, most)):
            n = int(offsets[last] - offsets[first])
            rows, columns = np.empty(n, np.int32), np.empty(n, np.int32)
            weights, place = np.empty(n, dtype), 0
            for docs, found in _blocks(vectors(), dtype):
                rank = np.searchsorted(terms, found.terms)
                inside = (rank >= first) & (rank < last)
                here = slice(place, place := place + int(np.count_nonzero(inside)))
                rows[here] = np.repeat(docs, np.diff(found.bounds))[inside]
                columns[here] = rank[inside] - first
                weights[here] = found.weights[inside]
            shape = (n_docs, last - first)
            matrix = sparse.coo_array((weights, (rows, columns)), shape=shape).tocsc()
            yield matrix.indices, matrix.data

    return _write(fd, path, terms, counts, lengths, dtype, lists())


class _Block:
    """Some vectors, one after the other."""

    def __init__(self, vectors: Sequence[Terms]) -> None:
        self.bounds = np.cumsum([0, *(len(vector.terms) for vector in vectors)])
        self.terms = np.concatenate([vector.terms for vector in vectors])
        self.weights = np.concatenate([vector.weights for vector in vectors])


def _blocks(
    vectors: Iterator[tuple[int, bytes]], dtype: np.dtype[Any]
) -> Iterator[tuple[NDArray[np.int64], _Block]]:
    docs: list[int] = []
    waiting: list[Terms] = []
    for doc, blob in vectors:
        docs.append(doc)
        waiting.append(unpack(blob, dtype))
        if len(docs) == BLOCK_DOCUMENTS:
            yield np.array(docs), _Block(waiting)
            docs, waiting = [], []
    if docs:
        yield np.array(docs), _Block(waiting)


def merge_sparse(
    fd: int,
    path: str,
    parts: Sequence[tuple[SparsePart | None, NDArray[np.uint32]]],
) -> int:
    """Write the sparse field of a segment that is made of ranges [first, last) of old ones.

    None has no vectors. Gives the checksum of the file.
    """
    n_docs, lengths = 0, []
    dtype = next((part.weights.dtype for part, _ in parts if part is not None), np.dtype("f4"))
    moved: list[tuple[SparsePart, NDArray[np.int32]]] = []
    for part, runs in parts:
        old = np.concatenate([np.arange(first, last) for first, last in runs.tolist()])
        if part is None:
            lengths.append(np.zeros(len(old), np.uint32))
        else:
            new = np.full(part.n_docs, -1, np.int32)
            new[old] = np.arange(n_docs, n_docs + len(old))
            lengths.append(part.lengths()[old])
            moved.append((part, new))
        n_docs += len(old)
    terms = np.unique(np.concatenate([np.empty(0, np.int32), *(part.terms for part, _ in moved)]))
    counts = np.zeros(len(terms), np.int64)
    for part, new in moved:
        counts[np.searchsorted(terms, part.terms)] += _kept_of_each(part, new)
    terms, counts = terms[counts > 0], counts[counts > 0]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def lists() -> Iterator[Lists]:
        for first, last in pairwise(_cuts(offsets, 16 * LEAST_POSTINGS)):
            found = [_moved(part, new, terms[first:last]) for part, new in moved]
            ranks, docs, weights = (np.concatenate(one) for one in zip(*found, strict=True))
            order = np.argsort(ranks, kind="stable")
            yield docs[order], weights[order]

    return _write(fd, path, terms, counts, np.concatenate(lengths), dtype, lists())


def _kept_of_each(part: SparsePart, new: NDArray[np.int32]) -> NDArray[np.int64]:
    """Count the postings of each list whose document moves on."""
    counts = np.zeros(len(part.terms), np.int64)
    for first, last in pairwise(_cuts(part.offsets, 16 * LEAST_POSTINGS)):
        bounds = part.offsets[first : last + 1]
        kept = new[part.docs[bounds[0] : bounds[-1]]] >= 0
        counts[first:last] = np.diff(np.concatenate([[0], np.cumsum(kept)])[bounds - bounds[0]])
    return counts


def _moved(
    part: SparsePart, new: NDArray[np.int32], terms: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[Any]]:
    """Give rank of the term, document and weight of the postings whose document moves on."""
    low, high = np.searchsorted(part.terms, [terms[0], terms[-1] + 1]).tolist()
    bounds = part.offsets[low : high + 1]
    ranks = np.repeat(np.searchsorted(terms, part.terms[low:high]), np.diff(bounds))
    docs = new[part.docs[bounds[0] : bounds[-1]]]
    kept = docs >= 0
    return ranks[kept], docs[kept], part.weights[bounds[0] : bounds[-1]][kept]
