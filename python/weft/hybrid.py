# SPDX-License-Identifier: Apache-2.0
"""Hybrid search: one generation of an index, asked in several fields at once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.arrays import query_rows
from weft.checks import check_int
from weft.errors import InvalidArgumentError
from weft.fusion import NAMES, Fusion, ReciprocalRank
from weft.lifecycle.filters import check_allow
from weft.types import Hit, Hits, OperatingPoint, SearchParams, defaults

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from weft.lifecycle.snapshot import Place
    from weft.searcher import Searcher
    from weft.types import Document


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
        recall, params
            As for `Searcher.search`: of `multi` and `dense`, and of `multi` alone.

        Returns
        -------
        Hits with `scores`, those of each field as they were joined: of `multi` the mean over the
        query's tokens; a field in which the document was neither found nor asked for is left out.

        Raises
        ------
        InvalidArgumentError
            A field that is not there or not part of the fusion; or what the field's search raises.
        """
        fields = _fields_of(query)
        self._fusion.check(fields)
        k = check_int("k", k, 1)
        allow = None if allow is None else check_allow(allow)
        depth = max(self._fusion.depth, k)
        timings: dict[str, float] = {}
        lists: dict[str, dict[str, float]] = {}
        answers: list[Hits] = []
        legs = {name: self._leg(name, query[name]) for name in fields}
        listed = self._fusion.listed(fields)
        for name in listed:
            started = time.perf_counter()
            options: dict[str, Any] = {"where": where, "allow": allow}
            if name != "sparse":
                options["recall"] = recall
            if name == "multi":
                options["params"] = params
            hits = legs[name].search(depth, options)
            lists[name] = dict(zip(hits.ids, hits.scores, strict=True))
            answers.append(hits)
            timings[name] = 1_000 * (time.perf_counter() - started)
        started = time.perf_counter()
        exact = self._exact(legs, self._fusion.rescored(fields), lists)
        timings["rescore"] = 1_000 * (time.perf_counter() - started)
        started = time.perf_counter()
        fused = self._fusion.fused(lists, exact)
        best = sorted(fused.items(), key=lambda item: (-item[1], item[0].encode()))[:k]
        known = {**lists, **exact}
        hits = answers[0].replace(
            Hit(doc, score, scores={n: known[n][doc] for n in fields if doc in known.get(n, ())})
            for doc, score in best
        )
        timings["fuse"] = 1_000 * (time.perf_counter() - started)
        point = OperatingPoint(k, None, None, None, answers[0].operating_point.params)
        if "multi" in listed:
            point = answers[listed.index("multi")].operating_point
        return dataclasses.replace(
            hits,
            n_matching=max(answer.n_matching for answer in answers),
            operating_point=point,
            timings_ms=timings,
        )

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
        exact = {}
        for name in names:
            known = dict(lists.get(name, {})) if legs[name].exact else {}
            absent = [at for at, doc in enumerate(candidates) if doc not in known]
            scores = legs[name].rescore([places[at] for at in absent])
            scores = np.where(np.isfinite(scores), scores, 0.0)
            known.update(zip((candidates[at] for at in absent), scores.tolist(), strict=True))
            exact[name] = known
        return exact

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

    exact = True
    """Whether a search gives the scores that `rescore` does."""

    def search(self, depth: int, options: Mapping[str, Any]) -> Hits:
        """Give the best `depth` documents; options as of the field's own search."""
        raise NotImplementedError

    def rescore(self, places: Sequence[Place]) -> NDArray[Any]:
        raise NotImplementedError


class _Multi(_Leg):
    """MaxSim, divided by the number of the query's tokens."""

    def __init__(self, searcher: Searcher, query: object) -> None:
        self._searcher = searcher
        self._rows = query_rows(query, searcher.dim)

    def search(self, depth: int, options: Mapping[str, Any]) -> Hits:
        hits = self._searcher.search(self._rows, depth, **options)
        self.exact = self._searcher.scores_are_exact(hits)
        n = len(self._rows)
        return hits.replace(Hit(hit.id, hit.score / n) for hit in hits)

    def rescore(self, places: Sequence[Place]) -> NDArray[Any]:
        found = self._searcher.score_places(self._rows, places).astype(np.float64)
        return found / len(self._rows)


class _Dense(_Leg):
    def __init__(self, searcher: Searcher, query: object) -> None:
        self._searcher, self._query = searcher.dense, query

    def search(self, depth: int, options: Mapping[str, Any]) -> Hits:
        hits = self._searcher.search(self._query, depth, **options)
        self.exact = self._searcher.scores_are_exact(hits)
        return hits

    def rescore(self, places: Sequence[Place]) -> NDArray[Any]:
        return self._searcher.score_places(self._query, places)


class _Sparse(_Leg):
    """Keeps the product with all documents: to score some of them takes nothing more."""

    def __init__(self, searcher: Searcher, query: object) -> None:
        self._searcher = searcher.sparse
        self._products = self._searcher.products(self._searcher.query(query, empty=True))

    def search(self, depth: int, options: Mapping[str, Any]) -> Hits:
        return self._searcher.search_products(self._products, depth, **options)

    def rescore(self, places: Sequence[Place]) -> NDArray[Any]:
        return self._searcher.at_places(self._products, places)
