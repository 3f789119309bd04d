# SPDX-License-Identifier: Apache-2.0
"""Searching the fields beside the token embeddings of one generation: dense and sparse vectors."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from weft.checks import check_int
from weft.dense_vectors import dense_query
from weft.errors import InvalidArgumentError
from weft.lifecycle.bitmaps import as_mask
from weft.lifecycle.filters import Filters, check_allow
from weft.lifecycle.windows import document_id
from weft.sparse_vectors import IMPACT_UNIT, Terms, sparse_vectors, stored_form
from weft.types import Hit, Hits, OperatingPoint, SearchParams, defaults

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from weft.dense_vectors import DenseVectors
    from weft.fields import DenseConfig, SparseConfig
    from weft.lifecycle.filters import Allowed
    from weft.lifecycle.snapshot import Place, Snapshot
    from weft.sparse_vectors import SparseVectors


GROUP = 64
"""Documents in a group of those that are looked at when the best are sought."""


class RowSearcher(Protocol):
    """A `Searcher` of documents of one token."""

    def search(
        self,
        query: object,
        k: int,
        *,
        recall: float | None = None,
        params: SearchParams | None = None,
        where: Mapping[str, Any] | None = None,
        allow: Iterable[str] | None = None,
    ) -> Hits:
        """As `Searcher.search`."""

    def exact_search(
        self,
        query: object,
        k: int,
        *,
        where: Mapping[str, Any] | None = None,
        allow: Iterable[str] | None = None,
    ) -> Hits:
        """As `Searcher.exact_search`."""

    def score(self, query: object, ids: Sequence[str]) -> NDArray[np.float32]:
        """As `Searcher.score`."""

    def score_places(
        self, rows: NDArray[np.float32], places: Sequence[Place]
    ) -> NDArray[np.float32]:
        """As `Searcher.score_places`."""

    def scores_are_exact(self, hits: Hits) -> bool:
        """As `Searcher.scores_are_exact`."""

    def operating_point(self, k: int, recall: float | None = None) -> OperatingPoint:
        """As `Searcher.operating_point`."""


class DenseSearcher:
    """The dense vectors of one generation of an index. Made by `Searcher.dense`.

    Scores are cosines, or inner products where the field has a `max_norm`.

    Examples
    --------
    >>> import numpy as np, weft
    >>> config = weft.IndexConfig(dense=weft.DenseConfig(dim=2))
    >>> index = weft.Index.create("dense.index", config)
    >>> index.add(["a", "b"], dense=[[1.0, 0.0], [0.0, 3.0]])
    2
    >>> hits = index.searcher().dense.search([0.0, 2.0], k=1)
    >>> hits.ids, hits.scores
    (('b',), (1.0,))
    """

    def __init__(self, rows: RowSearcher, config: DenseConfig) -> None:
        self._rows = rows
        self._config = config

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
        """Give the k documents with the highest score, best first; equal scores by id.

        Parameters
        ----------
        query
            One vector of the field's dim.
        k, recall, params, where, allow
            As for `Searcher.search`.
        """
        row, factor = dense_query(query, self._config)
        hits = self._rows.search(row, k, recall=recall, params=params, where=where, allow=allow)
        return _scaled(hits, factor)

    def search_batch(
        self,
        queries: DenseVectors,
        k: int = defaults.k,
        *,
        recall: float | None = None,
        params: SearchParams | None = None,
        where: Mapping[str, Any] | None = None,
        allow: Iterable[str] | None = None,
    ) -> tuple[Hits, ...]:
        """Answer many queries: what `search` gives for each."""
        allow = None if allow is None else check_allow(allow)
        return tuple(
            self.search(query, k, recall=recall, params=params, where=where, allow=allow)
            for query in queries
        )

    def exact_search(
        self,
        query: object,
        k: int = defaults.k,
        *,
        where: Mapping[str, Any] | None = None,
        allow: Iterable[str] | None = None,
    ) -> Hits:
        """Score every document from the best that is stored of it; give the k best."""
        row, factor = dense_query(query, self._config)
        return _scaled(self._rows.exact_search(row, k, where=where, allow=allow), factor)

    def score(self, query: object, ids: Sequence[str]) -> NDArray[np.float32]:
        """Score exactly these documents; minus infinity for one without a vector.

        Raises
        ------
        NotFoundError
            An id is unknown.
        """
        row, factor = dense_query(query, self._config)
        return _scores(self._rows.score(row, ids), factor)

    def operating_point(self, k: int, recall: float | None = None) -> OperatingPoint:
        """Give what a search for k documents at a recall does; None means 0.95."""
        return self._rows.operating_point(k, recall)

    def check(self, query: object) -> None:
        """Refuse what is no vector of the field."""
        dense_query(query, self._config)

    def scores_are_exact(self, hits: Hits) -> bool:
        """Tell whether the scores of a search are those that `score` gives."""
        return self._rows.scores_are_exact(hits)

    def score_places(self, query: object, places: Sequence[Place]) -> NDArray[np.float32]:
        """Score documents whose places are known, as `score` does."""
        row, factor = dense_query(query, self._config)
        return _scores(self._rows.score_places(row, places), factor)


def _candidates(scores: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Give the documents with the k highest scores above 0, and all that tie with the last.

    Of k disjoint groups the best are k documents: none below the worst of these is looked at.
    """
    least: Any = 0
    n_groups = len(scores) // GROUP
    if n_groups > k:
        best = scores[: n_groups * GROUP].reshape(GROUP, n_groups).max(axis=0)
        least = np.partition(best, n_groups - k)[n_groups - k]
    docs = np.flatnonzero(scores >= least if least > 0 else scores > 0)
    values = scores[docs]
    if len(docs) > k:
        docs = docs[values >= np.partition(values, len(values) - k)[len(values) - k]]
    return docs


def _scores(found: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    scores: NDArray[np.float32] = found * np.float32(factor)
    scores.flags.writeable = False
    return scores


def _scaled(hits: Hits, factor: float) -> Hits:
    """Give hits with their scores multiplied; a document's vector is of no passage."""
    scores = _scores(np.array(hits.scores, np.float32), factor).tolist()
    return hits.replace(Hit(doc_id, score) for doc_id, score in zip(hits.ids, scores, strict=True))


class SparseSearcher:
    """The sparse vectors of one generation of an index. Made by `Searcher.sparse`.

    Every search is exact. A document that shares no term with the query is not found.

    Examples
    --------
    >>> import weft
    >>> index = weft.Index.create("sparse.index", weft.IndexConfig(sparse=weft.SparseConfig()))
    >>> index.add(["a", "b"], sparse=[{7: 0.5, 9: 1.0}, {"9": 2.0}])
    2
    >>> hits = index.searcher().sparse.search({9: 1.5}, k=2)
    >>> hits.ids, hits.scores
    (('b', 'a'), (3.0, 1.5))
    """

    def __init__(self, snapshot: Snapshot, config: SparseConfig) -> None:
        self._snapshot = snapshot
        self._config = config
        self._filters = Filters(snapshot, "sparse")
        self._live = [
            None if segment.deleted is None else ~as_mask(segment.deleted, segment.entry.n_windows)
            for segment in snapshot.segments
        ]

    def search(
        self,
        query: Mapping[int, float] | Mapping[str, float] | SparseVectors,
        k: int = defaults.k,
        *,
        where: Mapping[str, Any] | None = None,
        allow: Iterable[str] | None = None,
    ) -> Hits:
        """Give the k documents with the highest dot product, best first; equal scores by id.

        Parameters
        ----------
        query
            Term -> weight, or a scipy.sparse matrix of one row. Terms that no document has count 0.
        k, where, allow
            As for `Searcher.search`.

        Raises
        ------
        InvalidArgumentError
            A query without any weight above 0, or one that cannot be.
        """
        terms = self.query(query)
        k = check_int("k", k, 1)
        started = time.perf_counter()
        hits = self.search_products(self.products(terms), k, where=where, allow=allow)
        timings = {"search": 1_000 * (time.perf_counter() - started)}
        return dataclasses.replace(hits, timings_ms=timings)

    def search_products(
        self,
        products: Sequence[NDArray[Any]],
        k: int,
        *,
        where: Mapping[str, Any] | None,
        allow: Iterable[str] | None,
    ) -> Hits:
        """Give what `search` does, of products that are known."""
        allowed = self._filters.allowed(where, allow)
        found = self._best(products, k, allowed)
        params = SearchParams(exhaustive=True, nrerank=0)
        point = OperatingPoint(k, None, None, None, params, "exhaustive")
        n_matching = self._filters.n_findable if allowed is None else allowed.n_matching
        return Hits(
            hits=tuple(Hit(doc_id, score) for doc_id, score in found),
            n_matching=n_matching,
            operating_point=point,
            timings_ms={},
            device="cpu",
            generation=self._snapshot.manifest.generation,
        )

    def score(
        self, query: Mapping[int, float] | Mapping[str, float] | SparseVectors, ids: Sequence[str]
    ) -> NDArray[np.float64]:
        """Score exactly these documents: float64, 0 for those that share no term with the query.

        Raises
        ------
        NotFoundError
            An id is unknown.
        """
        places = self._snapshot.places(ids)
        return self.at_places(self.products(self.query(query)), places)

    def query(self, given: SparseVectors, *, empty: bool = False) -> Terms:
        """Give a query as it is searched for: checked, pruned, and as impacts where it must be."""
        vectors = sparse_vectors(
            given if hasattr(given, "tocsr") else [given], lambda _: "sparse query"
        )
        if len(vectors) != 1:
            raise InvalidArgumentError(f"sparse query: found {len(vectors)} rows, expected 1")
        if len(vectors[0].terms) == 0 and not empty:
            raise InvalidArgumentError("sparse query: empty, expected a weight above 0")
        return stored_form(vectors[0], self._config, "sparse query", query=True)

    def products(self, terms: Terms) -> list[NDArray[Any]]:
        """Give the dot product with every document of every segment; integers of impacts."""
        return [
            segment.sparse.scores(terms)
            for segment in self._snapshot.segments
            if segment.sparse is not None
        ]

    def _best(
        self, products: Sequence[NDArray[Any]], k: int, allowed: Allowed | None
    ) -> list[tuple[str, float]]:
        """Give id and score of the k best documents above 0, in order."""
        found: list[tuple[str, float]] = []
        for number, scores in enumerate(products):
            kept = self._live[number]
            if allowed is not None:
                mask = as_mask(allowed.bitmaps[number], len(scores))
                kept = mask if kept is None else kept & mask
            docs = _candidates(scores if kept is None else scores * kept, k)
            values = scores[docs]
            ids = self._snapshot.segments[number].native.ids(docs.astype(np.uint32))
            found += zip(map(document_id, ids), self._scores(values).tolist(), strict=True)
        return sorted(found, key=lambda pair: (-pair[1], pair[0].encode()))[:k]

    def at_places(
        self, products: Sequence[NDArray[Any]], places: Sequence[Place]
    ) -> NDArray[np.float64]:
        """Give the scores of documents whose places are known."""
        scores = self._scores(
            np.array([products[place.segment][place.first] for place in places], np.float64)
        )
        scores.flags.writeable = False
        return scores

    def _scores(self, products: NDArray[Any]) -> NDArray[np.float64]:
        divisor = IMPACT_UNIT**2 if self._config.impacts else 1
        return products.astype(np.float64) / divisor
