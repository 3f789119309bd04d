# SPDX-License-Identifier: Apache-2.0
"""Hybrid search: one generation of an index, asked in several fields at once."""

from __future__ import annotations

import dataclasses
import heapq
import threading
import time
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from weft.arrays import query_rows
from weft.checks import check_int
from weft.errors import InvalidArgumentError
from weft.fusion import NAMES, Fusion, ReciprocalRank
from weft.lifecycle.filters import check_allow
from weft.types import Hit, Hits, OperatingPoint, SearchParams, defaults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from weft.field_searchers import DenseSearcher
    from weft.lifecycle.snapshot import Place
    from weft.searcher import Searcher
    from weft.types import Document


_T = TypeVar("_T")


class HybridSearcher:
    """Joins the fields of one generation of an index.

    Parameters
    ----------
    searcher
        Of the generation, as `Index.searcher` gives it.
    fusion
        How the fields become one ranking; None: `weft.ReciprocalRank()`.

    Raises
    ------
    InvalidArgumentError
        Something that is no rule of fusion.

    Examples
    --------
    >>> import numpy as np, weft
    >>> config = weft.IndexConfig(dim=4, dense=weft.DenseConfig(2), sparse=weft.SparseConfig())
    >>> index = weft.Index.create("hybrid.index", config)
    >>> index.add(
    ...     ["a", "b"],
    ...     [np.eye(4)[:2], np.eye(4)[2:]],
    ...     dense=[[1.0, 0.0], [0.6, 0.8]],
    ...     sparse=[{7: 1.0}, {9: 2.0}],
    ... )
    2
    >>> fusion = weft.Weighted({"multi": 0.4, "dense": 0.4, "sparse": 0.2})
    >>> hybrid = weft.HybridSearcher(index.searcher(), fusion)
    >>> hits = hybrid.search({"multi": np.eye(4)[:1], "dense": [0.0, 1.0], "sparse": {9: 0.5}})
    >>> [(hit.id, round(hit.score, 2)) for hit in hits]
    [('b', 0.52), ('a', 0.4)]
    >>> {name: round(score, 2) for name, score in hits[0].scores.items()}
    {'multi': 0.0, 'dense': 0.8, 'sparse': 1.0}
    """

    def __init__(self, searcher: Searcher, fusion: Fusion | None = None) -> None:
        if fusion is None:
            fusion = ReciprocalRank()
        if not isinstance(fusion, Fusion):
            raise InvalidArgumentError(
                f"fusion={fusion!r}: expected weft.Weighted, weft.ReciprocalRank or weft.Rerank"
            )
        self._searcher = searcher
        self._fusion = fusion

    @property
    def generation(self) -> int:
        """Generation of the index that is searched."""
        return self._searcher.generation

    def documents(self, ids: Sequence[str]) -> tuple[Document, ...]:
        """Give texts and metadata; see `Searcher.documents`."""
        return self._searcher.documents(ids)

    def search(
        self,
        query: Mapping[str, Any],
        k: int = defaults.k,
        *,
        recall: float | None = None,
        params: SearchParams | None = None,
        where: Mapping[str, Any] | None = None,
        allow: Iterable[str] | None = None,
    ) -> Hits:
        """Give the k best documents of all fields together, best first; equal scores by id.

        Parameters
        ----------
        query
            Field -> query: token embeddings of `multi`, a vector of `dense`, weights of terms of
            `sparse`; any of them. A sparse query may be empty here: every document scores 0.
        k, where, allow
            As for `Searcher.search`. No more documents are given than are candidates.
        recall
            Of the k best of `multi` and `dense`: their operating points are those of k documents,
            though the lists that are joined are longer.
        params
            As for `Searcher.search`, of `multi` alone.

        Returns
        -------
        Hits with `scores`, those of each field as they were joined: of `multi` the mean over the
        query's tokens; a field in which the document was neither found nor asked for is left out.

        Raises
        ------
        InvalidArgumentError
            A field that is not there or not part of the fusion; or what the field's search raises.
        """
        k = check_int("k", k, 1)
        asked = {"where": where, "allow": None if allow is None else check_allow(allow)}

        def search(leg: _Leg, depth: int) -> Hits:
            if params is not None and leg.name == "multi":
                return leg.search(depth, {**asked, "recall": recall, "params": params})
            return leg.search_for(k, depth, recall, asked)

        return self._joined(query, k, search)

    def exact_search(
        self,
        query: Mapping[str, Any],
        k: int = defaults.k,
        *,
        where: Mapping[str, Any] | None = None,
        allow: Iterable[str] | None = None,
    ) -> Hits:
        """Join the exact lists of the fields: every document scored from the best form stored.

        Parameters, result and errors are those of `search` and of `Searcher.exact_search`.
        """
        asked = {"where": where, "allow": None if allow is None else check_allow(allow)}
        return self._joined(query, k, lambda leg, depth: leg.exact_search(depth, asked))

    def _joined(
        self, query: Mapping[str, Any], k: int, search: Callable[[_Leg, int], Hits]
    ) -> Hits:
        fields = _fields_of(query)
        self._fusion.check(fields)
        k = check_int("k", k, 1)
        depth = max(self._fusion.depth, k)
        legs = {name: self._leg(name, query[name]) for name in fields}
        listed = self._fusion.listed(fields)
        started = time.perf_counter()
        answers, timings = self._of_each(listed, lambda name: search(legs[name], depth))
        lists = {
            name: dict(zip(hits.ids, hits.scores, strict=True))
            for name, hits in zip(listed, answers, strict=True)
        }
        searched = time.perf_counter()
        exact = self._exact(legs, self._fusion.rescored(fields), lists)
        rescored = time.perf_counter()
        fused = self._fusion.fused(lists, exact)
        best = heapq.nsmallest(k, fused.items(), key=lambda item: (-item[1], item[0].encode()))
        known = {**lists, **exact}
        hits = answers[0].replace(
            Hit(doc, score, scores={n: known[n][doc] for n in fields if doc in known.get(n, ())})
            for doc, score in best
        )
        timings["search"] = 1_000 * (searched - started)
        timings["rescore"] = 1_000 * (rescored - searched)
        timings["fuse"] = 1_000 * (time.perf_counter() - rescored)
        point = OperatingPoint(k, None, None, None, answers[0].operating_point.params)
        if "multi" in listed:
            point = answers[listed.index("multi")].operating_point
        return dataclasses.replace(
            hits,
            n_matching=max(answer.n_matching for answer in answers),
            operating_point=point,
            timings_ms=timings,
        )

    def _of_each(
        self, names: Sequence[str], work: Callable[[str], _T]
    ) -> tuple[list[_T], dict[str, float]]:
        """Do the work of each field: what it gives, and its milliseconds.

        The first has the largest share: the others are done on a second thread meanwhile, one after
        the other, unless the searcher may have one thread alone.
        """
        done: dict[str, _T] = {}
        timings: dict[str, float] = {}
        failed: list[BaseException] = []

        def run(some: Sequence[str]) -> None:
            for name in some:
                started = time.perf_counter()
                done[name] = work(name)
                timings[name] = 1_000 * (time.perf_counter() - started)

        def run_aside() -> None:
            try:
                run(names[1:])
            except BaseException as error:
                failed.append(error)

        if len(names) < 2 or self._searcher.threads == 1:
            run(names)
        else:
            aside = threading.Thread(target=run_aside)
            aside.start()
            try:
                run(names[:1])
            finally:
                aside.join()
            if failed:
                raise failed[0]
        return [done[name] for name in names], {name: timings[name] for name in names}

    def _exact(
        self,
        legs: Mapping[str, _Leg],
        names: Sequence[str],
        lists: Mapping[str, Mapping[str, float]],
    ) -> dict[str, dict[str, float]]:
        """Give the exact score of every candidate in some fields; 0 where a field has nothing."""
        if not names:
            return {}
        candidates = list(dict.fromkeys(doc for found in lists.values() for doc in found))
        places = self._searcher.places(candidates)

        def scores_of(name: str) -> dict[str, float]:
            known = dict(lists.get(name, {})) if legs[name].exact else {}
            absent = [at for at, doc in enumerate(candidates) if doc not in known]
            scores = legs[name].rescore([places[at] for at in absent])
            scores = np.where(np.isfinite(scores), scores, 0.0)
            known.update(zip((candidates[at] for at in absent), scores.tolist(), strict=True))
            return known

        found, _ = self._of_each(names, scores_of)
        return dict(zip(names, found, strict=True))

    def _leg(self, name: str, query: object) -> _Leg:
        if name == "multi":
            return _Multi(self._searcher, query)
        if name == "dense":
            return _Dense(self._searcher, query)
        return _Sparse(self._searcher, query)


def _fields_of(query: object) -> tuple[str, ...]:
    if not isinstance(query, Mapping) or not query:
        raise InvalidArgumentError(
            f"query: found {type(query).__name__}, expected a mapping, field -> query"
        )
    for name in query:
        if name not in NAMES:
            raise InvalidArgumentError(f"field {name!r}: expected one of {', '.join(NAMES)}")
    return tuple(name for name in NAMES if name in query)


class _Leg:
    """One field with what is asked of it."""

    name: str
    exact = True
    """Whether a search has given the scores that `rescore` does."""

    def search(self, depth: int, options: Mapping[str, Any]) -> Hits:
        """Give the best `depth` documents; options as of the field's own search."""
        raise NotImplementedError

    def exact_search(self, depth: int, options: Mapping[str, Any]) -> Hits:
        """Give the best `depth` documents by the scores of `rescore`."""
        raise NotImplementedError

    def rescore(self, places: Sequence[Place]) -> NDArray[Any]:
        """Score documents from the best form stored."""
        raise NotImplementedError

    def search_for(
        self, k: int, depth: int, recall: float | None, options: Mapping[str, Any]
    ) -> Hits:
        """Give the best `depth` documents, of which the first k are found with some recall."""
        raise NotImplementedError


class _Rows(_Leg):
    """A field that has operating points."""

    def __init__(self, searcher: Searcher | DenseSearcher, query: object) -> None:
        self._searcher, self._query = searcher, query

    def search(self, depth: int, options: Mapping[str, Any]) -> Hits:
        hits = self._searcher.search(self._query, depth, **options)
        self.exact = self._searcher.scores_are_exact(hits)
        return hits

    def search_for(
        self, k: int, depth: int, recall: float | None, options: Mapping[str, Any]
    ) -> Hits:
        point = self._searcher.operating_point(k, recall)
        if point.params.exhaustive:  # the rerank is of as many as the list is long
            return self.search(depth, {**options, "recall": recall})
        hits = self.search(depth, {**options, "params": point.params.widened(depth)})
        path = hits.operating_point.path
        return dataclasses.replace(hits, operating_point=dataclasses.replace(point, path=path))

    def exact_search(self, depth: int, options: Mapping[str, Any]) -> Hits:
        return self._searcher.exact_search(self._query, depth, **options)


class _Multi(_Rows):
    """MaxSim, divided by the number of the query's tokens."""

    name = "multi"

    def __init__(self, searcher: Searcher, query: object) -> None:
        self._rows = query_rows(query, searcher.dim)
        super().__init__(searcher, self._rows)
        self._places = searcher.score_places

    def search(self, depth: int, options: Mapping[str, Any]) -> Hits:
        return self._mean(super().search(depth, options))

    def exact_search(self, depth: int, options: Mapping[str, Any]) -> Hits:
        return self._mean(super().exact_search(depth, options))

    def _mean(self, hits: Hits) -> Hits:
        n = len(self._rows)
        return hits.replace(Hit(hit.id, hit.score / n) for hit in hits)

    def rescore(self, places: Sequence[Place]) -> NDArray[Any]:
        return self._places(self._rows, places).astype(np.float64) / len(self._rows)


class _Dense(_Rows):
    name = "dense"

    def __init__(self, searcher: Searcher, query: object) -> None:
        super().__init__(searcher.dense, query)
        searcher.dense.check(query)
        self._places = searcher.dense.score_places

    def rescore(self, places: Sequence[Place]) -> NDArray[Any]:
        return self._places(self._query, places)


class _Sparse(_Leg):
    """Keeps the product with all documents: to score some of them takes nothing more."""

    name = "sparse"

    def __init__(self, searcher: Searcher, query: object) -> None:
        self._searcher = searcher.sparse
        self._terms = self._searcher.query(query, empty=True)

    @cached_property
    def _products(self) -> list[NDArray[Any]]:
        return self._searcher.products(self._terms)

    def search(self, depth: int, options: Mapping[str, Any]) -> Hits:
        return self._searcher.search_products(self._products, depth, **options)

    exact_search = search

    def search_for(
        self, k: int, depth: int, recall: float | None, options: Mapping[str, Any]
    ) -> Hits:
        del k, recall
        return self.search(depth, options)

    def rescore(self, places: Sequence[Place]) -> NDArray[Any]:
        return self._searcher.at_places(self._products, places)
