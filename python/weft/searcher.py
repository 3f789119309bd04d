# SPDX-License-Identifier: Apache-2.0
"""Searching one generation of an index."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from weft import _native
from weft.arrays import Embeddings, check_threads, query_rows, ragged
from weft.checks import check_fraction, check_int
from weft.errors import CorruptIndexError, DeviceError, InvalidArgumentError
from weft.field_searchers import DenseSearcher, SparseSearcher
from weft.lifecycle.filters import Filters
from weft.lifecycle.windows import WINDOW_MARK
from weft.types import (
    Alignment,
    Document,
    Hit,
    Hits,
    Match,
    OperatingPoint,
    SearchParams,
    defaults,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from weft.lifecycle.filters import Allowed
    from weft.lifecycle.snapshot import Place, Snapshot


class Searcher:
    """One generation of an index, open for searching.

    It is immutable and may be shared by threads; a later commit does not change it. Made by
    `Index.searcher`.

    Examples
    --------
    >>> import numpy as np, weft
    >>> index = weft.Index.create("searched.index", weft.IndexConfig(dim=4))
    >>> index.add(["a", "b"], [np.eye(4)[:2], np.eye(4)[2:]])
    2
    >>> searcher = index.searcher()
    >>> searcher.search(np.eye(4)[2:], k=1)[0]
    Hit(id='b', score=2.0, text=None, metadata=None, passage=None, matches=None)
    """

    def __init__(
        self, snapshot: Snapshot, *, device: str = "cpu", threads: int | None = None
    ) -> None:
        self._snapshot = snapshot
        self._manifest = snapshot.manifest
        self._n_windows = self._manifest.n_windows
        self._n_matching = self._manifest.n_docs - self._manifest.n_empty
        self._has_windows = self._manifest.n_docs != self._n_windows
        self._native = _native.Searcher(
            [segment.native for segment in snapshot.segments],
            snapshot.codec,
            check_threads(threads),
            snapshot.deleted,
            str(device),
        )
        self._filters = Filters(snapshot)
        self._threads = threads
        self._dense: DenseSearcher | None = None
        self._sparse: SparseSearcher | None = None

    @property
    def generation(self) -> int:
        """Generation of the index that is searched."""
        return self._manifest.generation

    @property
    def device(self) -> str:
        """Where documents are scored: "cpu" or "cuda:0"; decided when the searcher was opened."""
        return self._native.device

    @property
    def truth(self) -> Literal["rows", "stored"]:
        """What `exact_search` scores: the rows, or the best codes that are stored of them."""
        has_rows = self._snapshot.codec is None or self._manifest.config.rerank == "f16"
        return "rows" if has_rows else "stored"

    @property
    def threads(self) -> int:
        """Threads that a search may use."""
        return self._native.threads

    @property
    def dim(self) -> int:
        """Values in a row of a query."""
        return self._manifest.config.dim

    def __len__(self) -> int:
        """Count the documents."""
        return self._manifest.n_docs

    def search(
        self,
        query: object,
        k: int = defaults.k,
        *,
        recall: float | None = None,
        params: SearchParams | None = None,
        where: Mapping[str, Any] | None = None,
        allow: Iterable[str] | None = None,
    ) -> Hits:
        """Give the k documents with the highest MaxSim score, best first; equal scores by id.

        Parameters
        ----------
        query
            `(n_tokens, dim)`, any float type, in host memory or on a GPU, from where it is copied;
            used as given, not scaled.
        k
            How many documents; all that match, if there are fewer.
        recall
            Use the operating point that was tuned for this recall@k; 1.0 scores every document.
            None means 0.95.
        params
            Set every stage by hand instead; with `recall` an error.
        where
            Return only documents whose metadata match: `{"lang": "ja", "year": {"$gte": 2024}}`.
            Operators are `$eq`, `$ne`, `$gt`, `$gte`, `$lt`, `$lte`, `$in`, `$nin`, `$prefix` and
            `$exists`, joined by `$and`, `$or` and `$not`; several fields or operators mean all of
            them. Nothing is coerced: 1, 1.0, "1" and true are different values, and a field that
            is missing or of another type fails. `$ne`, `$nin` and `$not` are plain negations.
        allow
            Return only documents with these ids. Unknown ones are no error.

        Raises
        ------
        InvalidArgumentError
            An empty query, another dim, a row that is not finite or all zero; k, recall, params,
            where or allow that cannot be; a field that no document has.
        """
        rows = query_rows(query, self._manifest.config.dim)
        k = check_int("k", k, 1)
        point = self._operating_point(k, recall, params)
        return self._search(rows, k, point, self._filters.allowed(where, allow))

    def search_batch(
        self,
        queries: Embeddings,
        k: int = defaults.k,
        *,
        recall: float | None = None,
        params: SearchParams | None = None,
        where: Mapping[str, Any] | None = None,
        allow: Iterable[str] | None = None,
    ) -> tuple[Hits, ...]:
        """Answer many queries, spread over threads: what `search` gives for each.

        Parameters
        ----------
        queries
            A sequence of `(n_tokens, dim)` arrays, or packed `(values, offsets)`.
        k, recall, params, where, allow
            As for `search`.
        """
        dim = self._manifest.config.dim
        found = ragged(queries, dim, name=lambda i: f"query {i}")
        bounds = found.offsets.astype(np.int64)
        values = found.packed(dim).astype(np.float32, copy=False)
        rows = [
            query_rows(values[first:last], dim, f"query {i}")
            for i, (first, last) in enumerate(pairwise(bounds.tolist()))
        ]
        k = check_int("k", k, 1)
        point = self._operating_point(k, recall, params)
        allowed = self._filters.allowed(where, allow)
        if not rows or self._n_windows == 0:
            return tuple(self._search(row, k, point, allowed) for row in rows)
        n = self._first_n(k)
        answers = self._native.search_batch(
            np.ascontiguousarray(values),
            found.offsets,
            n,
            native_params(point.params, n),
            None if allowed is None else allowed.bitmaps,
        )
        return tuple(
            self._search(row, k, point, allowed, first=answer)
            for row, answer in zip(rows, answers, strict=True)
        )

    def exact_search(
        self,
        query: object,
        k: int = defaults.k,
        *,
        where: Mapping[str, Any] | None = None,
        allow: Iterable[str] | None = None,
    ) -> Hits:
        """Score every document from the best form that is stored of it; give the k best.

        That is the rows themselves in a small index and with `rerank="f16"`, else the codes with
        what `rerank` adds to them. Parameters are those of `search`.

        Raises
        ------
        DeviceError
            The searcher's device holds codes alone, and there is a better form.
        """
        config = self._manifest.config
        if self.device != "cpu" and (config.rerank is not None or config.nbits == 8):
            raise DeviceError(
                f"device={self.device!r}: holds codes alone, expected a searcher on the CPU, which "
                f"reads the best form of every document"
            )
        rows = query_rows(query, self._manifest.config.dim)
        k = check_int("k", k, 1)
        params = SearchParams(exhaustive=True, nrerank=max(self._n_windows, 1))
        point = OperatingPoint(k, None, None, None, params)
        return self._search(rows, k, point, self._filters.allowed(where, allow))

    def score(self, query: object, ids: Sequence[str]) -> NDArray[np.float32]:
        """Score exactly these documents, from the best form that is stored of them.

        Returns
        -------
        float32 `[len(ids)]`, read-only, in the order of `ids`; minus infinity for an empty one.

        Raises
        ------
        NotFoundError
            An id is unknown.
        """
        rows = query_rows(query, self._manifest.config.dim)
        return self.score_places(rows, self._snapshot.places(ids))

    def scores_are_exact(self, hits: Hits) -> bool:
        """Tell whether the scores of a search are those that `score` gives."""
        return self._snapshot.codec is None or hits.operating_point.params.nrerank > 0

    def places(self, ids: Sequence[str]) -> list[Place]:
        """Give where documents are, for `score_places`."""
        return self._snapshot.places(ids)

    def score_places(
        self, rows: NDArray[np.float32], places: Sequence[Place]
    ) -> NDArray[np.float32]:
        """Score documents whose places are known, as `score` does."""
        scores = np.full(len(places), -np.inf, np.float32)
        for number in range(len(self._snapshot.segments)):
            chosen = [i for i, place in enumerate(places) if place.segment == number]
            if not chosen:
                continue
            counts = [places[i].n_windows for i in chosen]
            docs = np.concatenate(
                [np.arange(places[i].first, places[i].first + places[i].n_windows) for i in chosen]
            )
            found = self._native.score(rows, number, docs.astype(np.uint32))
            starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
            scores[chosen] = np.maximum.reduceat(found, starts)
        scores.flags.writeable = False
        return scores

    def explain(self, query: object, id: str) -> Alignment:
        """Tell why a document has its score: for each query token, the document token that won.

        Places in the text are given where the document was added with them.

        Raises
        ------
        NotFoundError
            The id is unknown.
        InvalidArgumentError
            The document is empty.
        """
        rows = query_rows(query, self._manifest.config.dim)
        (place,) = self._snapshot.places([id])
        docs = np.arange(place.first, place.first + place.n_windows, dtype=np.uint32)
        scores = self._native.score(rows, place.segment, docs)
        passage = int(scores.argmax())
        if scores[passage] == -np.inf:
            raise InvalidArgumentError(f"id {id!r}: the document is empty, nothing to explain")
        window = place.first + passage
        tokens, similarities = self._native.align(rows, place.segment, window)
        spans = self._spans(place.segment, window)
        matches = []
        for number, (token, similarity) in enumerate(
            zip(tokens.tolist(), similarities.tolist(), strict=True)
        ):
            start, end = (None, None) if spans is None else spans[token].tolist()
            matches.append(Match(number, token, similarity, start, end))
        return Alignment(
            id, float(scores[passage]), passage if place.n_windows > 1 else None, tuple(matches)
        )

    def documents(self, ids: Sequence[str]) -> tuple[Document, ...]:
        """Give texts and metadata, in the order of `ids`.

        Raises
        ------
        NotFoundError
            An id is unknown.
        """
        found = []
        for doc_id, place in zip(ids, self._snapshot.places(ids), strict=True):
            store = self._snapshot.segments[place.segment].documents
            text, metadata = (None, {}) if store is None else store.get(place.first)
            found.append(Document(doc_id, text, metadata))
        return tuple(found)

    @property
    def dense(self) -> DenseSearcher:
        """The same generation, searched by dense vectors.

        Raises
        ------
        InvalidArgumentError
            The index has no such field.
        """
        config = self._manifest.config.dense
        if config is None:
            raise InvalidArgumentError('the index has no field "dense"; see IndexConfig')
        if self._dense is None:
            rows = Searcher(self._snapshot.of_dense(), threads=self._threads)
            self._dense = DenseSearcher(rows, config)
        return self._dense

    @property
    def sparse(self) -> SparseSearcher:
        """The same generation, searched by sparse vectors.

        Raises
        ------
        InvalidArgumentError
            The index has no such field.
        """
        config = self._manifest.config.sparse
        if config is None:
            raise InvalidArgumentError('the index has no field "sparse"; see IndexConfig')
        if self._sparse is None:
            self._sparse = SparseSearcher(self._snapshot, config)
        return self._sparse

    def _spans(self, number: int, window: int) -> NDArray[np.uint32] | None:
        segment = self._snapshot.segments[number]
        if segment.documents is None:
            return None
        return segment.documents.spans(window, segment.native.rows(window).shape[0])

    def _operating_point(
        self, k: int, recall: float | None, params: SearchParams | None
    ) -> OperatingPoint:
        if params is not None:
            if recall is not None:
                raise InvalidArgumentError("recall and params: expected one of them, found both")
            if not isinstance(params, SearchParams):
                raise InvalidArgumentError(f"params={params!r}: expected weft.SearchParams or None")
            params.check(min(k, max(self._n_windows, 1)))
            return OperatingPoint(k, None, None, None, params)
        return self.operating_point(k, recall)

    def operating_point(self, k: int, recall: float | None = None) -> OperatingPoint:
        """Give what a search for k documents at a recall does; None means 0.95."""
        target = defaults.recall if recall is None else check_fraction("recall", recall, zero=False)
        if self._snapshot.codec is None:  # the rows themselves are scored
            return OperatingPoint(
                k, target, 1.0, reached=True, params=SearchParams(exhaustive=True, nrerank=0)
            )
        points = [p for p in self._manifest.operating_points if p.k >= k]
        points = [p for p in points if p.target is not None and p.target >= target]
        if points:
            point = min(points, key=lambda p: (p.k, p.target))
            reached = None if point.measured is None else point.measured >= target
            return replace(point, target=target, reached=reached, stale=self._manifest.stale)
        params = exhaustive_params(k)
        return OperatingPoint(k, target, None, None, params)

    def _first_n(self, k: int) -> int:
        """How many windows to ask for at first, to find k documents."""
        return max(min(4 * k if self._has_windows else k, self._n_windows), 1)

    def _search(
        self,
        rows: NDArray[np.float32],
        k: int,
        point: OperatingPoint,
        allowed: Allowed | None,
        first: _native.Found | None = None,
    ) -> Hits:
        started = time.perf_counter()
        timings: dict[str, float] = {}
        hits: list[Hit] = []
        path = "exhaustive"
        n = self._first_n(k)
        bitmaps = None if allowed is None else allowed.bitmaps
        while self._n_windows > 0:
            found = first or self._native.search(rows, n, native_params(point.params, n), bitmaps)
            first = None
            for stage, value in found.timings_ms.items():
                timings[stage] = timings.get(stage, 0.0) + value
            hits = best_windows(found, grouped=self._has_windows)
            path = found.path
            if len(hits) >= k or n >= self._n_windows or len(found.ids) < n:
                break
            n = min(2 * n, self._n_windows)
        if not timings:
            timings["search"] = 1_000 * (time.perf_counter() - started)
        return Hits(
            hits=tuple(hits[:k]),
            n_matching=self._n_matching if allowed is None else allowed.n_matching,
            operating_point=point if path == point.path else replace(point, path=path),
            timings_ms=timings,
            device=self.device,
            generation=self.generation,
        )


def exhaustive_params(k: int) -> SearchParams:
    """Give the parameters of recall 1.0: every document scored, three times k of them reranked."""
    return SearchParams(exhaustive=True, nrerank=min(3 * k, 2**32 - 1))


def best_windows(found: _native.Found, *, grouped: bool) -> list[Hit]:
    """Give one hit per document, from its best window; best first, equal scores by id."""
    scores = found.scores.tolist()
    if not grouped:
        return [Hit(doc_id, score) for doc_id, score in zip(found.ids, scores, strict=True)]
    best: dict[str, Hit] = {}
    for window_id, score in zip(found.ids, scores, strict=True):
        doc_id, mark, number = window_id.partition(WINDOW_MARK)
        if mark and not number.isdecimal():
            raise CorruptIndexError(f"id {window_id!r}: not the id of a window; verify the index")
        if doc_id not in best:
            best[doc_id] = Hit(doc_id, score, passage=int(number) if mark else None)
    return sorted(best.values(), key=lambda hit: (-hit.score, hit.id.encode()))


@lru_cache(maxsize=256)  # the same few serve query after query
def native_params(params: SearchParams, n: int) -> _native.SearchParams:
    """Give the parameters as the engine takes them, wide enough for n documents."""
    wide = params.widened(n)
    return _native.SearchParams(
        nprobe=wide.nprobe,
        budget=wide.budget,
        ncandidates=wide.ncandidates,
        nskim=wide.nskim,
        nrefine=wide.nrefine,
        nrerank=wide.nrerank,
        exhaustive=wide.exhaustive,
        floor=wide.floor,
    )
