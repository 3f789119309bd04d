# SPDX-License-Identifier: Apache-2.0
"""Whoever can rank documents for a query, or score given ones: BM25, an index, a run, a callable.

Mining asks them for candidates, distillation for the teacher's scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from weft.errors import InvalidArgumentError
from weft.exporting import stored_rows
from weft.fusion import Weighted

if TYPE_CHECKING:
    from weft.evaluation import Run
    from weft.hybrid_retriever import HybridRetriever
    from weft.lexical import BM25
    from weft.retriever import Retriever

Asked: TypeAlias = "tuple[str, str, Sequence[str]]"
"""Id of a query, its text, and documents."""

Predict: TypeAlias = "Callable[[list[tuple[str, str]]], Sequence[float]]"
"""Pairs of query and passage, as texts, to scores; a cross-encoder's `predict`."""


class Scorer(Protocol):
    """Gives scores to documents of a query."""

    @property
    def name(self) -> str:
        """Who it is, for what is written about the scores."""

    def score(self, asked: Sequence[Asked]) -> list[dict[str, float]]:
        """Give id -> score of the documents of each query.

        A run may leave some out, and so may joined fields that have nothing of a document; others
        raise for a document that they do not know.
        """


class Ranker(Scorer, Protocol):
    """A scorer that finds documents by itself."""

    def rank(self, queries: Mapping[str, str], k: int) -> Run:
        """Give for each query, id -> text, its best k documents, best first."""


class BM25Scorer:
    """Words: BM25 over the given documents."""

    name = "bm25"

    def __init__(self, engine: BM25) -> None:
        self._engine = engine

    def rank(self, queries: Mapping[str, str], k: int) -> Run:
        """Rank by BM25; documents that share no word with the query are not among them."""
        return {query: self._engine.search(text, k) for query, text in queries.items()}

    def score(self, asked: Sequence[Asked]) -> list[dict[str, float]]:
        """Score by BM25."""
        return [self._engine.score(text, ids) for _, text, ids in asked]


class IndexScorer:
    """Vectors: the index and the encoder of a `Retriever`; scores are sums over query tokens.

    Parameters
    ----------
    recall
        Of the search, as `Retriever.search` takes it. Scores of given documents come from codes.
    """

    def __init__(self, retriever: Retriever, name: str, *, recall: float | None = None) -> None:
        self.name = name
        self._retriever = retriever
        self._recall = recall

    def rank(self, queries: Mapping[str, str], k: int) -> Run:
        """Rank by a search of the index."""
        found = self._retriever.search_batch(list(queries.values()), k, recall=self._recall)
        return {
            query: dict(zip(hits.ids, hits.scores, strict=True))
            for query, hits in zip(queries, found, strict=True)
        }

    def score(self, asked: Sequence[Asked]) -> list[dict[str, float]]:
        """Score by MaxSim."""
        searcher = self._retriever.index.searcher()
        encoded = self._retriever.encode_queries([text for _, text, _ in asked])
        return [
            dict(zip(ids, map(float, searcher.score(rows.values, ids)), strict=True))
            for rows, (_, _, ids) in zip(encoded, asked, strict=True)
        ]


class HybridScorer:
    """Several fields of an index, or one of them: dense, sparse or multi; and the encoder of all.

    It scores given documents where fusion is `weft.Weighted` with missing scores computed; ranks,
    and lists in which a document counts nothing, depend on what else is in them.
    """

    def __init__(self, retriever: HybridRetriever, name: str) -> None:
        self.name = name
        self._retriever = retriever

    def rank(self, queries: Mapping[str, str], k: int) -> Run:
        """Rank by the joined fields."""
        found = {query: self._retriever.search(text, k) for query, text in queries.items()}
        return {query: {hit.id: hit.score for hit in hits} for query, hits in found.items()}

    def score(self, asked: Sequence[Asked]) -> list[dict[str, float]]:
        """Score by the joined fields."""
        fusion = self._retriever._fusion
        if not (isinstance(fusion, Weighted) and fusion.missing == "rescore"):
            raise InvalidArgumentError(
                f"{self.name}: fusion by {fusion}, expected weft.Weighted with missing='rescore' "
                f"(--weights), whose scores do not depend on other documents"
            )
        found = []
        for _, text, ids in asked:
            hits = self._retriever.search(text, len(ids), recall=1.0, allow=ids)
            scores = {hit.id: hit.score for hit in hits}
            found.append({name: scores[name] for name in ids if name in scores})
        return found


class RunScorer:
    """A run that somebody made: what is in it, and nothing else."""

    def __init__(self, run: Run, name: str) -> None:
        self.name = name
        self._run = run

    def rank(self, queries: Mapping[str, str], k: int) -> Run:
        """Give the first k of the run."""
        return {query: dict(list(self._run.get(query, {}).items())[:k]) for query in queries}

    def score(self, asked: Sequence[Asked]) -> list[dict[str, float]]:
        """Give the scores of the run."""
        return [
            {name: self._run[query][name] for name in ids if name in self._run.get(query, {})}
            for query, _, ids in asked
        ]


def index_similarity(retriever: Retriever) -> Callable[[str, Sequence[str]], list[float]]:
    """Give how much documents of an index are like one of them: MaxSim, divided by its tokens."""
    searcher = retriever.index.searcher()

    def like(name: str, others: Sequence[str]) -> list[float]:
        rows = stored_rows(searcher, [name])[0]
        return [float(score) / len(rows) for score in searcher.score(rows, others)]

    return like


class PairScorer:
    """A callable over pairs of texts, such as a cross-encoder's `predict`.

    Parameters
    ----------
    predict
        Takes (query, passage) pairs and gives as many numbers; called once a batch.
    documents
        Id -> text.

    Examples
    --------
    >>> from weft.training.scorers import PairScorer
    >>> shared = lambda pairs: [len(set(q.split()) & set(p.split())) for q, p in pairs]
    >>> PairScorer(shared, {"a": "green tea", "b": "keys"}).score([("q", "tea", ["a", "b"])])
    [{'a': 1.0, 'b': 0.0}]
    """

    def __init__(
        self, predict: Predict, documents: Mapping[str, str], name: str = "callable"
    ) -> None:
        self.name = name
        self._predict = predict
        self._documents = documents

    def score(self, asked: Sequence[Asked]) -> list[dict[str, float]]:
        """Score by the callable."""
        pairs = [(text, self._documents[name]) for _, text, ids in asked for name in ids]
        scores = [float(score) for score in self._predict(pairs)] if pairs else []
        if len(scores) != len(pairs):
            raise InvalidArgumentError(
                f"{self.name}: {len(scores)} scores for {len(pairs)} pairs, expected as many"
            )
        rest = iter(scores)
        return [{name: next(rest) for name in ids} for _, _, ids in asked]
