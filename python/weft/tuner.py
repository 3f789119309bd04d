# SPDX-License-Identifier: Apache-2.0
"""Operating points: the least work that reaches a recall, found on sample queries.

Each sample query is answered exactly and by the search itself; recall@k is the share of the exact
top k that the search returns. For the highest target all parameters are raised together until the
recall reaches the aim; then, for this target and each one below it, one after another is lowered
as far as the recall allows, the costliest stage first. Work is counted, not timed, so the same
index and queries give the same points on any machine.

A sampled query is made of a few tokens of each of eight documents, because a run of tokens of one
is much easier to answer than a query that somebody asks: where such runs reached a recall of .97
and .98, real queries reached .88 and .96 (docs/adr/0017). The aim lies between the target and the
recall of an exhaustive search, since the sample is small and the cheapest passing parameters are
picked on it: half of the way, and three quarters for a target near 1, where queries unlike the
sample lose several times as much as it does. Where pruning misses the aim, every document is
scored instead; where even that misses the target, the point says so.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from weft import _native
from weft.arrays import Embeddings, query_rows, ragged
from weft.errors import InvalidArgumentError
from weft.searcher import exhaustive_params, native_params
from weft.types import OperatingPoint, SearchParams, defaults

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weft.types import Progress

LADDERS = {
    "nprobe": (2, 4, 8, 16, 32, 64, 128, 256),
    "budget": tuple(3_125 << step for step in range(11)),
    "ncandidates": (250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000),
    "nskim": (50, 100, 200, 300, 400, 600, 800, 1_200, 1_600, 2_400, 3_200, 6_400, 12_800),
    "nrefine": (15, 25, 40, 60, 100, 150, 200, 300, 400, 600, 1_000, 2_000),
}
RERANK_LADDER = (1.5, 2, 3)  # times k
PROBE_MOST, PROBED_SHARE = 64, 32  # cells: more only where that is such a part of them
LEAST_LOSS = 0.003  # of recall: less is chance
AIM, CAREFUL_AIM = 0.5, 0.75  # share of the way from a target to what is possible
CAREFUL_FROM = 0.99  # the target
PIECES = 8  # documents that a sampled query takes tokens from
MIN_TOKENS, MAX_TOKENS = 1, 4  # of each of them
SAMPLED_HITS = 3_200  # exact answers that a recall is measured on, with sampled queries
TIES = 16  # exact answers kept beyond k, where the k-th has equals
LARGEST_K_SHARE = 20  # k is tuned where there are this many times as many windows

# Nanoseconds on one core, for 32 query tokens of 128 dims (docs/performance.md, "Cost model").
POSTING_COST, INTERACT_COST, SKIM_COST, REFINE_COST = 5.0, 3.2, 17.0, 65.0
RERANK_COST, CENTROID_COST = 72.0, 40.0


class Rows(NamedTuple):
    """Some consecutive windows: their float16 rows, and where each begins among them."""

    values: NDArray[np.float16]
    offsets: NDArray[np.uint64]


@dataclass(frozen=True)
class TuningQueries:
    """Query rows, where each query begins, and the windows it was taken from, if it was."""

    values: NDArray[np.float32]
    offsets: NDArray[np.uint64]
    sources: NDArray[np.uint32] | None  # [n, PIECES]

    @classmethod
    def given(cls, queries: Embeddings, dim: int) -> TuningQueries:
        """Take what somebody will ask.

        Raises
        ------
        InvalidArgumentError
            There are none, or one is empty or has other dims or values that are not finite.
        """
        found = ragged(queries, dim, name=lambda i: f"query {i}")
        if len(found) == 0:
            raise InvalidArgumentError("queries: found none, expected at least one, or None")
        values = np.ascontiguousarray(found.packed(dim), np.float32)
        for i, (first, last) in enumerate(pairwise(found.offsets.tolist())):
            query_rows(values[first:last], dim, f"query {i}")
        return cls(values, found.offsets, None)

    def __len__(self) -> int:
        """Count the queries."""
        return len(self.offsets) - 1

    def as_means(self) -> TuningQueries:
        """Give queries of one row each: the mean of the rows, scaled to unit length.

        Those whose rows cancel out are left out.
        """
        sums = np.add.reduceat(self.values, self.offsets[:-1].astype(np.int64))
        norms = np.linalg.norm(sums, axis=1)
        usable = norms > 0
        rows = sums[usable] / norms[usable, None]
        offsets = np.arange(len(rows) + 1, dtype=np.uint64)
        sources = None if self.sources is None else self.sources[usable]
        return TuningQueries(rows.astype(np.float32), offsets, sources)


def choose_tokens(
    lengths: NDArray[np.int64], seed: int, n_pieces: int = PIECES
) -> list[list[tuple[int, int, int]]]:
    """Choose the pieces of every sampled query: (window, first token, last + 1)."""
    random = np.random.default_rng(seed)
    usable = np.flatnonzero(lengths >= max(1, min(MIN_TOKENS, lengths.max(initial=0))))
    if len(usable) == 0:
        return []
    queries = []
    for _ in range(min(defaults.tuning_queries, len(usable))):
        pieces = []
        for window in random.choice(usable, min(n_pieces, len(usable)), replace=False).tolist():
            length = int(lengths[window])
            take = min(int(random.integers(MIN_TOKENS, MAX_TOKENS + 1)), length)
            first = int(random.integers(0, length - take + 1))
            pieces.append((window, first, first + take))
        queries.append(pieces)
    return queries


@dataclass(frozen=True)
class _Measure:
    recall: float
    cost: float


def _raised_together(ladders: dict[str, tuple[int, ...]]) -> list[SearchParams]:
    """Give the narrowest parameters, then all of them raised a step, and so on to the widest."""
    steps = range(max(map(len, ladders.values())))
    return [
        SearchParams(**{n: ladder[min(i, len(ladder) - 1)] for n, ladder in ladders.items()})  # type: ignore[arg-type]
        for i in steps
    ]


def _next_lower(
    params: SearchParams, name: str, ladders: dict[str, tuple[int, ...]]
) -> SearchParams | None:
    """Give the parameters with one of them a rung lower; None at the bottom, or below the next."""
    for value in reversed(ladders[name]):
        if value < getattr(params, name):
            less = replace(params, **{name: value})  # type: ignore[arg-type]
            narrows = less.ncandidates >= less.nskim >= less.nrefine >= less.nrerank
            return less if narrows else None
    return None


def _lowered(
    params: SearchParams,
    ladders: dict[str, tuple[int, ...]],
    measure: Callable[[SearchParams], _Measure],
    aim: float,
) -> SearchParams:
    """Give the parameters with one after another lowered as far as they still reach the aim.

    First that which saves most for the recall it loses.
    """
    now = measure(params)

    def worth(name: str) -> float:
        less = _next_lower(params, name, ladders)
        if less is None or (there := measure(less)).recall < aim:
            return -1.0
        return (now.cost - there.cost) / (max(now.recall - there.recall, 0.0) + LEAST_LOSS)

    for name in sorted(ladders, key=worth, reverse=True):
        while (less := _next_lower(params, name, ladders)) and measure(less).recall >= aim:
            params = less
    return params


class Tuner:
    """Finds the operating points of one snapshot, whose windows are numbered in order."""

    def __init__(
        self,
        searcher: _native.Searcher,
        codec: _native.Codec,
        windows_per_segment: list[int],
        n_tokens: int,
        queries: TuningQueries,
        *,
        reranks: bool,
    ) -> None:
        self._searcher = searcher
        self._codec = codec
        self._first = np.concatenate([[0], np.cumsum(windows_per_segment)])
        self._n_windows = int(self._first[-1])
        self._tokens_per_window = n_tokens / max(self._n_windows, 1)
        self._queries = queries
        self._reranks = reranks
        # A sampled query finds its own sources, which are left out.
        self._extra = 0 if queries.sources is None else queries.sources.shape[1]
        self._relevant: list[list[int]] = []
        self._scores: list[NDArray[np.float32]] = []

    def answer_exactly(self, blocks: Iterable[Rows], threads: int, progress: Progress) -> None:
        """Find the exact top of every query among all windows, which come in order."""
        queries = self._queries
        depth = self._largest_k() + self._extra + TIES
        truth = _native.Truth(queries.values, queries.offsets, min(depth, self._n_windows), threads)
        first = 0
        for block in blocks:
            truth.scan(block.values, block.offsets, first)
            first += len(block.offsets) - 1
            progress("truth", first, self._n_windows)
        for number, (docs, scores) in enumerate(zip(*truth.result(), strict=True)):
            keep = np.isfinite(scores) & ~np.isin(docs, self._sources(number))
            self._relevant.append(docs[keep].tolist())
            self._scores.append(scores[keep])

    def _sources(self, number: int) -> list[int]:
        sources = self._queries.sources
        return [] if sources is None else sources[number].tolist()

    def points(self, tuned_on: str, progress: Progress) -> tuple[OperatingPoint, ...]:
        """Give an operating point for each k and target, and the exhaustive one for recall 1.0."""
        found: list[OperatingPoint] = []
        sizes = self._sizes()
        for number, k in enumerate(sizes):
            progress("tune", number, len(sizes))
            found += self._points_for(k, tuned_on)
        progress("tune", len(sizes), len(sizes))
        return tuple(found)

    def _sizes(self) -> list[int]:
        first, *others = defaults.tuned_k
        return [first, *(k for k in others if k * LARGEST_K_SHARE <= self._n_windows)]

    def _largest_k(self) -> int:
        return max(self._sizes())

    def _points_for(self, k: int, tuned_on: str) -> list[OperatingPoint]:
        measured: dict[SearchParams, _Measure] = {}

        def measure(params: SearchParams) -> _Measure:
            if params not in measured:
                measured[params] = self._measure(k, params)
            return measured[params]

        everything, ladders = exhaustive_params(k), self.ladders(k)
        ceiling = measure(everything).recall
        found, best = {1.0: everything}, None
        for target in sorted(defaults.targets, reverse=True):
            # Some of the way to what is possible, to be sure; the target where that is too far.
            share = AIM if target < CAREFUL_FROM else CAREFUL_AIM
            for aim in (target + max(ceiling - target, 0.0) * share, target):

                def reaches(params: SearchParams, aim: float = aim) -> bool:
                    return measure(params).recall >= aim

                if best is None:
                    wider = _raised_together(ladders)
                    place = bisect_left(wider, True, key=reaches)  # noqa: FBT003
                    best = wider[place] if place < len(wider) else None
                if best is not None and reaches(best):
                    best = _lowered(best, ladders, measure, aim)
                    break
            found[target] = everything if best is None else best
        return [
            OperatingPoint(
                k=k,
                target=target,
                measured=measure(params).recall,
                reached=measure(params).recall >= target,
                params=params,
                tuned_on=tuned_on,
                cost_ms=round(measure(params).cost / 1e6, 4),
            )
            for target, params in sorted(found.items())
        ]

    def ladders(self, k: int) -> dict[str, tuple[int, ...]]:
        """Give the values of every parameter that can matter for k, ascending."""
        ladders = dict(LADDERS)
        ladders["nrerank"] = (0, *(int(k * step) for step in RERANK_LADDER))
        if not self._reranks:
            ladders["nrerank"] = (0,)
        n_probed = max(PROBE_MOST, self._codec.n_coarse // PROBED_SHARE)
        ladders["nprobe"] = tuple(n for n in ladders["nprobe"] if n <= n_probed)
        for name in ("ncandidates", "nskim", "nrefine"):
            ladder = tuple(n for n in ladders[name] if k < n)
            n_useful = sum(n < self._n_windows for n in ladder)
            ladders[name] = ladder[: n_useful + 1]
        return ladders

    def _measure(self, k: int, params: SearchParams) -> _Measure:
        n = k + self._extra
        queries = self._queries
        n_asked = len(queries) if queries.sources is None else max(SAMPLED_HITS // k, 16)
        offsets = queries.offsets[: n_asked + 1]
        answers = self._searcher.search_batch(
            queries.values[: int(offsets[-1])], offsets, n, native_params(params, n)
        )
        recalls = [self._recall(k, i, answer) for i, answer in enumerate(answers)]
        costs = [self._cost(i, params, answer) for i, answer in enumerate(answers)]
        return _Measure(float(np.mean(recalls)), float(np.mean(costs)))

    def _recall(self, k: int, number: int, answer: _native.Found) -> float:
        """Share of the exact top k that was found; what ties with the last of them counts."""
        scores, relevant = self._scores[number], self._relevant[number]
        wanted = min(k, len(scores))
        if wanted == 0:
            return 1.0
        good = relevant[: int(np.count_nonzero(scores >= scores[wanted - 1]))]
        windows = (self._first[answer.segments] + answer.docs).tolist()
        sources = self._sources(number)
        windows = [window for window in windows if window not in sources]
        return min(len(set(windows[:k]) & set(good)), wanted) / wanted

    def _cost(self, number: int, params: SearchParams, answer: _native.Found) -> float:
        """Nanoseconds that the counted work takes."""
        counts, length = answer.counts, self._tokens_per_window
        scored = length * (
            counts["skimmed"] * SKIM_COST
            + counts["refined"] * REFINE_COST
            + counts["reranked"] * RERANK_COST
        )
        if answer.path == "exhaustive":
            return float(scored)
        coarse, fine = self._codec.n_coarse, self._codec.n_fine
        n_tokens = int(self._queries.offsets[number + 1] - self._queries.offsets[number])
        opened = min(coarse, n_tokens * params.nprobe)
        return float(
            (coarse + opened * fine / coarse) * CENTROID_COST
            + counts["postings"] * POSTING_COST
            + counts["candidates"] * length * INTERACT_COST
            + scored
        )
