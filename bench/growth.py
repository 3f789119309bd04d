# SPDX-License-Identifier: Apache-2.0
"""Whether an index that has grown in many commits is as good as one that was built at once.

All are searched in turn with the same parameters, the operating point of the one built at once, and
the grown one with its own, too. Its codec was trained by the commit that crossed 100,000 tokens and
has grown since. With --then the documents of another set follow those of the first.

    python bench/growth.py SET [--then SET] [--commits 20] [--queries 300]
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


def grow(data: EmbeddingSet, path: Path, commits: int, order: np.ndarray) -> weft.Index:
    """Add the documents in so many commits of equal size, in the order given."""
    index = weft.Index.create(path, weft.IndexConfig(dim=data.values.shape[1]))
    for part in np.array_split(order, commits):
        rows = [data.values[data.offsets[doc] : data.offsets[doc + 1]] for doc in part]
        index.add([str(doc) for doc in part], rows)
    return index


def default_params(index: weft.Index) -> weft.SearchParams:
    """What an index searches with unless told otherwise."""
    points = index.info.operating_points
    return next(p.params for p in points if (p.k, p.target) == (K, weft.types.defaults.recall))


def measure(searchers: dict, data: EmbeddingSet, truth: list) -> dict:
    """Recall against the truth, and processor milliseconds of a query, searched in turn.

    `searchers`: name -> searcher and parameters.
    """
    times: dict = {name: [] for name in searchers}
    recalls: dict = {name: [] for name in searchers}
    for turn in range(ROUNDS):
        for number in range(data.n_queries):
            names = list(searchers) if turn % 2 else list(searchers)[::-1]
            for name in names:
                started = time.thread_time()
                searcher, params = searchers[name]
                hits = searcher.search(data.query(number), K, params=params)
                times[name].append(1_000 * (time.thread_time() - started))
                if turn == 0:
                    recalls[name].append(len(truth[number] & set(hits.ids)) / K)
    return {
        name: {
            "recall@10": round(float(np.mean(recalls[name])), 4),
            "median_ms": round(float(np.median(times[name])), 4),
            "mean_ms": round(float(np.mean(times[name])), 4),
        }
        for name in searchers
    }


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", type=Path)
    parser.add_argument("--then", type=Path, help="documents of another kind, added after those")
    parser.add_argument("--commits", type=int, default=20)
    parser.add_argument("--queries", type=int, default=300)
    given = parser.parse_args()
    data = load_set(given.set, given.queries)
    random = np.random.default_rng(1)
    order = random.permutation(data.n_docs)
    if given.then is not None:
        then = load_set(given.then, given.queries)
        order = np.concatenate([order, data.n_docs + random.permutation(then.n_docs)])
        data = both(data, then)
    ends = data.offsets.tolist()
    truth = []
    for number in range(data.n_queries):
        scores = weft.maxsim(data.query(number), (data.values, data.offsets))
        best = np.argsort(-scores, kind="stable")[:K]
        truth.append({str(doc) for doc in best})
    with tempfile.TemporaryDirectory() as work:
        result: dict = {"set": data.name, "tokens": ends[-1], "commits": given.commits}
        searchers = {}
        for name, commits in (("at once", 1), ("grown", given.commits)):
            started = time.process_time()
            index = grow(data, Path(work) / name.replace(" ", "-"), commits, order)
            result[name] = {"cpu_s": round(time.process_time() - started, 1)}
            info = index.info
            result[name] |= {"segments": info.n_segments, "drift": info.drift}
            result[name] |= {"n_coarse": info.n_coarse, "n_fine": info.n_fine}
            if commits == 1:
                params = default_params(index)
            searchers[name] = (index.searcher(threads=1), params)
        searchers["grown, its own point"] = (index.searcher(threads=1), default_params(index))
        index.compact()
        searchers["grown and compacted"] = (index.searcher(threads=1), params)
        index.compact(retrain=True)
        searchers["grown and retrained"] = (index.searcher(threads=1), params)
        found = measure(searchers, data, truth)
        for name, values in found.items():
            result[name] = {**result.get(name, {}), **values}
        result["params"] = params.to_json()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
