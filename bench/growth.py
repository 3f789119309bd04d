# SPDX-License-Identifier: Apache-2.0
"""Whether an index that has grown in many commits is as good as one that was built at once.

    python bench/growth.py same SET [--commits 20] [--until 20] [--queries 200]
    python bench/growth.py foreign-start FIRST THEN [...]

same: the documents of a set in an order of chance. foreign-start: all of one set first, then those
of another, in commits of equal size; queries of both. --until stops after so many commits: what is
measured then is how good an index is just before, or after, it trains its codec anew.

All are searched in turn with the same parameters, the operating point of the one built at once, and
the grown one with its own, too. Times are processor milliseconds of a query, the least of several
rounds; `ratio` is the mean over that of the index built at once.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

import weft
from data import EmbeddingSet, load_set

K = 10
ROUNDS = 5


def both(first: EmbeddingSet, then: EmbeddingSet) -> EmbeddingSet:
    """Join two sets."""

    def joined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.concatenate([a, b[1:] + a[-1]])

    return EmbeddingSet(
        f"{first.name}, {then.name}",
        np.concatenate([first.values, then.values]),
        joined(first.offsets, then.offsets),
        np.concatenate([first.query_values, then.query_values]),
        joined(first.query_offsets, then.query_offsets),
    )


def grow(data: EmbeddingSet, path: Path, parts: list[np.ndarray]) -> weft.Index:
    """Add some documents in a commit each."""
    index = weft.Index.create(path, weft.IndexConfig(dim=data.values.shape[1]))
    for part in parts:
        rows = [data.values[data.offsets[doc] : data.offsets[doc + 1]] for doc in part]
        index.add([str(doc) for doc in part], rows)
    return index


def default_params(index: weft.Index) -> weft.SearchParams:
    """What an index searches with unless told otherwise."""
    points = index.info.operating_points
    return next(p.params for p in points if (p.k, p.target) == (K, weft.types.defaults.recall))


def exact_answers(data: EmbeddingSet, n_docs: int, order: np.ndarray) -> list[set[str]]:
    """The ids of the best K of the first n_docs documents in the order given, for each query."""
    among = np.sort(order[:n_docs])
    truth = []
    for number in range(data.n_queries):
        scores = weft.maxsim(data.query(number), (data.values, data.offsets))[among]
        best = np.argsort(-scores, kind="stable")[:K]
        truth.append({str(among[place]) for place in best})
    return truth


def measure(searchers: dict, data: EmbeddingSet, truth: list[set[str]]) -> dict:
    """Recall against the truth, and processor milliseconds of a query, searched in turn.

    `searchers`: name -> searcher and parameters; the first is what the others are compared with.
    """
    least = {name: np.full(data.n_queries, np.inf) for name in searchers}
    recalls: dict = {name: [] for name in searchers}
    for turn in range(ROUNDS):
        for number in range(data.n_queries):
            names = list(searchers) if turn % 2 else list(searchers)[::-1]
            for name in names:
                started = time.thread_time()
                searcher, params = searchers[name]
                hits = searcher.search(data.query(number), K, params=params)
                elapsed = 1_000 * (time.thread_time() - started)
                least[name][number] = min(least[name][number], elapsed)
                if turn == 0:
                    recalls[name].append(len(truth[number] & set(hits.ids)) / K)
    reference = least[next(iter(searchers))].mean()
    return {
        name: {
            "recall@10": round(float(np.mean(recalls[name])), 4),
            "median_ms": round(float(np.median(least[name])), 3),
            "ratio": round(float(least[name].mean() / reference), 3),
        }
        for name in searchers
    }


def described(index: weft.Index) -> dict:
    """What an index says of its codec."""
    info = index.info
    return {
        "segments": info.n_segments,
        "n_coarse": info.n_coarse,
        "n_fine": info.n_fine,
        "drift": info.drift,
    }


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenario", choices=["same", "foreign-start"])
    parser.add_argument("sets", type=Path, nargs="+")
    parser.add_argument("--commits", type=int, default=20)
    parser.add_argument("--until", type=int)
    parser.add_argument("--queries", type=int, default=200)
    given = parser.parse_args()
    if len(given.sets) != (1 if given.scenario == "same" else 2):
        parser.error("expected one set for same, two for foreign-start")
    data = load_set(given.sets[0], given.queries)
    random = np.random.default_rng(1)
    order = random.permutation(data.n_docs)
    if given.scenario == "foreign-start":
        then = load_set(given.sets[1], given.queries)
        order = np.concatenate([order, data.n_docs + random.permutation(then.n_docs)])
        data = both(data, then)
    parts = np.array_split(order, given.commits)[: given.until]
    n_docs = sum(map(len, parts))
    truth = exact_answers(data, n_docs, order)
    lengths = np.diff(data.offsets.astype(np.int64))
    result: dict = {"scenario": given.scenario, "set": data.name, "commits": len(parts)}
    result["tokens"] = int(lengths[order[:n_docs]].sum())
    with tempfile.TemporaryDirectory() as work:
        searchers = {}
        for name, some in (("at once", [order[:n_docs]]), ("grown", parts)):
            started = time.process_time()
            index = grow(data, Path(work) / name.replace(" ", "-"), some)
            result[name] = {"cpu_s": round(time.process_time() - started, 1), **described(index)}
            if name == "at once":
                params = default_params(index)
            searchers[name] = (index.searcher(threads=1), params)
        searchers["grown, its own point"] = (index.searcher(threads=1), default_params(index))
        index.compact()
        searchers["grown and compacted"] = (index.searcher(threads=1), params)
        index.compact(retrain=True)
        searchers["grown and retrained"] = (index.searcher(threads=1), params)
        for name, values in measure(searchers, data, truth).items():
            result[name] = {**result.get(name, {}), **values}
        result["params"] = params.to_json()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
