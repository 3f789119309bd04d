# SPDX-License-Identifier: Apache-2.0
"""Hard negatives: documents that rank high for a query and do not answer it.

Each ranker's list is cut to a window of ranks and filtered, the lists are interleaved, copies are
dropped, and some documents are chosen. Everything is a function of the input and the seed.
"""

from __future__ import annotations

import dataclasses
import math
import random
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from weft.checks import check_int
from weft.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from weft.training.scorers import Ranker
    from weft.types import Progress

    Similarity: TypeAlias = Callable[[str, Sequence[str]], Sequence[float]]
    """A document and others, by id, to how much each of these is like it."""

FILTERED_DEPTH = 100
"""Documents asked for beyond a window that counts what is left of the list."""
BATCH_QUERIES = 256
RANDOM = "random"


@dataclass(frozen=True)
class MiningRule:
    """Which documents of a ranked list become negatives.

    Parameters
    ----------
    n
        Negatives of a query, at most.
    window
        Ranks from which they come, 0-based, the end not included.
    ranks
        The window is on the list as it is ("raw") or on what the filters leave of it ("filtered").
    choose
        From the window: the first n ("top"), n at random ("random"), or as many from its start as
        from its end ("ends").
    min_score, max_score
        Bounds of a negative's score.
    margin, relative_margin
        A negative's score is at most s - margin, and at most s - |s| · relative_margin, where s is
        the least score of a positive in the same list.
    max_similarity
        How much a negative may be like a positive, passage against passage.
    fill
        Documents at random take the places that stay free.
    rows
        The negatives of a query are dealt in turn to so many examples.
    seed
        Of what is random, together with the query's id.

    Examples
    --------
    >>> from weft.training.mining import MiningRule
    >>> MiningRule(window=(10, 5))
    Traceback (most recent call last):
    weft.errors.InvalidArgumentError: window=(10, 5): expected 0 <= start < end
    """

    n: int = 7
    window: tuple[int, int] = (0, 100)
    ranks: Literal["raw", "filtered"] = "filtered"
    choose: Literal["top", "random", "ends"] = "top"
    min_score: float | None = None
    max_score: float | None = None
    margin: float | None = None
    relative_margin: float | None = None
    max_similarity: float | None = None
    fill: bool = False
    rows: int = 1
    seed: int = 42

    def __post_init__(self) -> None:
        """Check every field."""
        check_int("n", self.n, 1)
        check_int("rows", self.rows, 1, self.n)
        start, end = self.window
        if not 0 <= start < end:
            raise InvalidArgumentError(f"window={self.window}: expected 0 <= start < end")
        for name in ("min_score", "max_score", "margin", "relative_margin", "max_similarity"):
            bound = getattr(self, name)
            if bound is not None and not math.isfinite(bound):
                raise InvalidArgumentError(f"{name}={bound}: expected a finite number")
        for name, allowed in (
            ("ranks", ("raw", "filtered")),
            ("choose", ("top", "random", "ends")),
        ):
            if getattr(self, name) not in allowed:
                raise InvalidArgumentError(
                    f"{name}={getattr(self, name)!r}: expected one of {', '.join(allowed)}"
                )

    @property
    def depth(self) -> int:
        """How many documents of a list it needs."""
        return self.window[1] + (FILTERED_DEPTH if self.ranks == "filtered" else 0)

    @property
    def needs_positive_scores(self) -> bool:
        """Whether it compares with the scores of the positives."""
        return self.margin is not None or self.relative_margin is not None


def _ragatouille(n_documents: int, start: int) -> MiningRule:
    end = max(min(110, n_documents // 10), start + 1)
    return MiningRule(10, (start, end), "raw", "random")


_PRESETS: dict[str, Callable[[int], MiningRule]] = {
    "flagembedding": lambda _: MiningRule(15, (10, 210), "raw", "random", fill=True),
    "ragatouille": lambda n: _ragatouille(n, 10),
    "ragatouille-as-run": lambda n: _ragatouille(n, 0),
    "st": lambda _: MiningRule(3, (0, 100), "filtered", "top"),
    "amharic-bm25": lambda _: MiningRule(5, (10, 100), "raw", "random"),
    "amharic-colbert": lambda _: MiningRule(8, (0, 100), "filtered", "ends", rows=2),
    "granite": lambda _: MiningRule(1, (0, 100), "raw", "top"),
    "granite-distill": lambda _: MiningRule(3, (0, 100), "raw", "top"),
}
PRESETS = tuple(_PRESETS)


def preset(name: str, n_documents: int, *, max_similarity: float | None = None) -> MiningRule:
    """Give the rule of a published recipe.

    Parameters
    ----------
    name
        flagembedding: ranks 10 to 210, 15 at random, filled. ragatouille: ranks 10 to
        min(110, documents/10), 10 at random, as its documentation says; ragatouille-as-run: from
        rank 0 on, as its code does. st: sentence-transformers, the first 3 of what margins leave.
        amharic-bm25: ranks 10 to 100, 5 at random. amharic-colbert: the first 4 and the last 4, in
        two rows. granite and granite-distill: the first 1 or 3 of 100 that are not too like a
        positive; how like is not published, so `max_similarity` must be given.
    n_documents
        Of the collection.
    max_similarity
        For the rule.

    Raises
    ------
    InvalidArgumentError
        There is no such recipe, or it lacks a number.
    """
    if name not in _PRESETS:
        raise InvalidArgumentError(f"preset={name!r}: expected one of {', '.join(PRESETS)}")
    if name.startswith("granite") and max_similarity is None:
        raise InvalidArgumentError(
            f"preset={name!r}: drops passages too like a positive; expected max_similarity with it"
        )
    return dataclasses.replace(_PRESETS[name](n_documents), max_similarity=max_similarity)


@dataclass(frozen=True)
class Negative:
    """A chosen document: who found it at which rank (from 0) and score; None if filled in."""

    id: str
    ranker: str
    rank: int | None
    score: float | None


@dataclass(frozen=True)
class Example:
    """A query, what answers it, what does not, and what a teacher thinks of both."""

    query: str
    text: str
    positives: tuple[str, ...]
    negatives: tuple[Negative, ...]
    scores: Mapping[str, float] | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        """All its documents, positives first."""
        return (*self.positives, *(negative.id for negative in self.negatives))

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(found: Any) -> Example:  # noqa: ANN401
        """Read what `to_json` gives.

        Raises
        ------
        InvalidArgumentError
            It is not that.
        """
        try:
            return Example(
                str(found["query"]),
                str(found["text"]),
                tuple(map(str, found["positives"])),
                tuple(Negative(**negative) for negative in found["negatives"]),
                found.get("scores"),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidArgumentError(
                f"not an example of query, text, positives and negatives ({error})"
            ) from error


@dataclass
class Mined:
    """Examples, and why documents and queries were left out.

    Attributes
    ----------
    dropped
        Reason -> how many documents of the lists.
    short
        Queries with fewer negatives than asked for, those without any included.
    """

    examples: list[Example] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    n_queries: int = 0
    short: int = 0


def mine(
    queries: Mapping[str, str],
    documents: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    rankers: Sequence[Ranker],
    rule: MiningRule,
    *,
    exclude: Collection[str] = (),
    similarity: Similarity | None = None,
    progress: Progress | None = None,
) -> Mined:
    """Find hard negatives for the queries that have a positive document.

    A document is never a negative if it is judged relevant, if its text is that of a positive, of
    the query or of another negative (NFKC, without outer white space), or if it is excluded. What
    several rankers find is taken in turn, each list's first, then each list's second, and so on.

    Parameters
    ----------
    queries, documents
        Id -> text.
    qrels
        Query -> document -> grade; above 0 is a positive.
    rankers
        At least one, each with a name of its own.
    exclude
        Documents that must not become negatives: those of the evaluation.
    similarity
        Needed where the rule has `max_similarity`.
    progress
        Called with ("mine", queries done, all queries).

    Raises
    ------
    InvalidArgumentError
        No query has a positive, a positive has no text, two rankers have one name, a ranker found
        what is no document, or the rule needs a similarity and none is given.
    """
    names = [ranker.name for ranker in rankers]
    if not names or len(set(names)) < len(names):
        raise InvalidArgumentError(f"rankers {names}: expected at least one, each once")
    if (rule.max_similarity is not None) != (similarity is not None):
        raise InvalidArgumentError(
            f"max_similarity={rule.max_similarity}: expected together with a similarity, "
            f"which needs an index of the documents"
        )
    positives = {
        query: tuple(name for name, grade in qrels.get(query, {}).items() if grade > 0)
        for query in queries
    }
    wanted = [query for query in queries if positives[query]]
    if not wanted:
        raise InvalidArgumentError("qrels: no relevant document of any query in them")
    miner = _Miner(documents, rule, exclude, similarity)
    batches = iter(wanted)
    while batch := list(islice(batches, BATCH_QUERIES)):
        texts = {query: queries[query] for query in batch}
        found = {ranker.name: ranker.rank(texts, rule.depth) for ranker in rankers}
        least = {ranker.name: _least(ranker, texts, positives, rule) for ranker in rankers}
        for query in batch:
            miner.add(
                query,
                queries[query],
                positives[query],
                {name: list(run[query].items()) for name, run in found.items()},
                {name: scores[query] for name, scores in least.items()},
            )
        if progress is not None:
            progress("mine", miner.mined.n_queries, len(wanted))
    return miner.mined


def _least(
    ranker: Ranker,
    texts: Mapping[str, str],
    positives: Mapping[str, tuple[str, ...]],
    rule: MiningRule,
) -> dict[str, float | None]:
    """Give the least score of a positive of each query; None where one has no score."""
    if not rule.needs_positive_scores:
        return dict.fromkeys(texts)
    found = ranker.score([(query, text, positives[query]) for query, text in texts.items()])
    return {
        query: min(scores.values()) if len(scores) == len(positives[query]) else None
        for query, scores in zip(texts, found, strict=True)
    }


class _Miner:
    def __init__(
        self,
        documents: Mapping[str, str],
        rule: MiningRule,
        exclude: Collection[str],
        similarity: Similarity | None,
    ) -> None:
        self.mined = Mined()
        self._documents = documents
        self._sorted = sorted(documents)
        self._rule = rule
        self._exclude = frozenset(exclude)
        self._similarity = similarity

    def add(
        self,
        query: str,
        text: str,
        positives: tuple[str, ...],
        lists: Mapping[str, list[tuple[str, float]]],
        least: Mapping[str, float | None],
    ) -> None:
        rule = self._rule
        taken = {same_text(text), *(same_text(self._text(name)) for name in positives)}
        columns = []
        for ranker, ranking in lists.items():
            ranked = [
                Negative(name, ranker, rank, score) for rank, (name, score) in enumerate(ranking)
            ]
            start, end = rule.window
            if rule.ranks == "raw":
                columns.append(self._allowed(ranked[start:end], positives, taken, least[ranker]))
            else:
                columns.append(self._allowed(ranked, positives, taken, least[ranker])[start:end])
        candidates = []
        seen: set[str] = set()
        for one in chain.from_iterable(zip_longest(*columns)):
            if one is None:
                continue
            text_of = same_text(self._text(one.id))
            if one.id in seen:
                self.mined.dropped["found by several"] += 1
            elif text_of in taken:
                self.mined.dropped["same text as another"] += 1
            else:
                candidates.append(one)
                taken.add(text_of)
            seen.add(one.id)
        stream = random.Random(f"{rule.seed}\x1f{query}")
        chosen = self._choose(candidates, stream)
        if rule.fill and len(chosen) < rule.n:
            own = {same_text(self._text(one.id)) for one in chosen}
            own |= {same_text(text), *(same_text(self._text(name)) for name in positives)}
            free = self._random(stream, {*positives, *self._exclude}, own)
            chosen += islice(free, rule.n - len(chosen))
        self.mined.n_queries += 1
        self.mined.short += len(chosen) < rule.n
        for row in range(rule.rows):
            if negatives := tuple(chosen[row :: rule.rows]):
                self.mined.examples.append(Example(query, text, positives, negatives))

    def _allowed(
        self,
        ranked: list[Negative],
        positives: tuple[str, ...],
        taken: set[str],
        least: float | None,
    ) -> list[Negative]:
        """Leave out what must not be a negative, and count why."""
        left = []
        for one in ranked:
            reason = self._refusal(one, positives, taken, least)
            if reason is None:
                left.append(one)
            else:
                self.mined.dropped[reason] += 1
        if self._similarity is None or not left:
            return left
        ids = [one.id for one in left]
        each = [self._similarity(positive, ids) for positive in positives]
        assert self._rule.max_similarity is not None
        near = [max(like) > self._rule.max_similarity for like in zip(*each, strict=True)]
        self.mined.dropped["too like a positive"] += sum(near)
        return [one for one, is_near in zip(left, near, strict=True) if not is_near]

    def _refusal(
        self,
        one: Negative,
        positives: tuple[str, ...],
        taken: set[str],
        least: float | None,
    ) -> str | None:
        rule, score, text = self._rule, one.score, same_text(self._text(one.id))
        assert score is not None
        if one.id in positives:
            return "a positive"
        if one.id in self._exclude:
            return "excluded"
        if text in taken:
            return "text of a positive or of the query"
        if not text:
            return "no text"
        if (rule.max_score is not None and score > rule.max_score) or (
            rule.min_score is not None and score < rule.min_score
        ):
            return "score out of bounds"
        if rule.needs_positive_scores:
            if least is None:
                return "a positive has no score to compare with"
            bound = min(
                least - (rule.margin or 0.0), least - abs(least) * (rule.relative_margin or 0.0)
            )
            if score > bound:
                return "within the margin"
        return None

    def _choose(self, candidates: list[Negative], stream: random.Random) -> list[Negative]:
        n = self._rule.n
        if len(candidates) <= n:
            return candidates
        if self._rule.choose == "top":
            return candidates[:n]
        if self._rule.choose == "ends":
            return candidates[: n - n // 2] + candidates[len(candidates) - n // 2 :]
        return [candidates[at] for at in sorted(stream.sample(range(len(candidates)), n))]

    def _random(
        self, stream: random.Random, barred: set[str], taken: set[str]
    ) -> Iterator[Negative]:
        """Give documents at random, each once, until there are no more."""
        tried: set[int] = set()
        while len(tried) < len(self._sorted):
            at = stream.randrange(len(self._sorted))
            if at in tried:
                continue
            tried.add(at)
            name = self._sorted[at]
            text = same_text(self._documents[name])
            if name not in barred and text and text not in taken:
                taken.add(text)
                yield Negative(name, RANDOM, None, None)

    def _text(self, name: str) -> str:
        try:
            return self._documents[name]
        except KeyError:
            raise InvalidArgumentError(
                f"document {name!r}: judged or ranked, but not among the documents"
            ) from None


def same_text(text: str) -> str:
    """Give what two texts share that count as the same."""
    return unicodedata.normalize("NFKC", text).strip()
