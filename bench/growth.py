# SPDX-License-Identifier: Apache-2.0
"""Whether an index that has grown in many commits is as good as one that was built at once.

Both are searched in turn with the same parameters, the operating point of the one built at once.
The codec of the grown one was trained by the commit that crossed 100,000 tokens, on what was there.

    python bench/growth.py SET [--commits 20] [--queries 300]
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


def grow(data: EmbeddingSet, path: Path, commits: int) -> weft.Index:
    """Add the documents in so many commits of equal size, in an order of chance."""
    index = weft.Index.create(path, weft.IndexConfig(dim=data.values.shape[1]))
    order = np.random.default_rng(1).permutation(data.n_docs)
    for part in np.array_split(order, commits):
        rows = [data.values[data.offsets[doc] : data.offsets[doc + 1]] for doc in part]
        index.add([str(doc) for doc in part], rows)
    return index


def measure(searchers: dict, data: EmbeddingSet, params: weft.SearchParams, truth: list) -> dict:
    """Recall against the truth, and processor milliseconds of a query, searched in turn."""
    times: dict = {name: [] for name in searchers}
    recalls: dict = {name: [] for name in searchers}
    for turn in range(ROUNDS):
        for number in range(data.n_queries):
            names = list(searchers) if turn % 2 else list(searchers)[::-1]
            for name in names:
                started = time.thread_time()
                hits = searchers[name].search(data.query(number), K, params=params)
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
    parser.add_argument("--commits", type=int, default=20)
    parser.add_argument("--queries", type=int, default=300)
    given = parser.parse_args()
    data = load_set(given.set, given.queries)
    ends = data.offsets.tolist()
    truth = []
    for number in range(data.n_queries):
        scores = weft.maxsim(data.query(number), (data.values, data.offsets))
        best = np.argsort(-scores, kind="stable")[:K]
        truth.append({str(doc) for doc in best})
    with tempfile.TemporaryDirectory() as work:
        result: dict = {"set": given.set.name, "tokens": ends[-1], "commits": given.commits}
        searchers = {}
        for name, commits in (("at once", 1), ("grown", given.commits)):
            started = time.process_time()
            index = grow(data, Path(work) / name.replace(" ", "-"), commits)
            result[name] = {"cpu_s": round(time.process_time() - started, 1)}
            searchers[name] = index.searcher(threads=1)
            if commits == 1:
                params = next(
                    p.params for p in index.info.operating_points if (p.k, p.target) == (K, 0.95)
                )
            else:
                result[name]["segments"] = index.info.n_segments
                result[name]["n_fine"] = index.info.n_fine
                index.compact()
                searchers["grown and compacted"] = index.searcher(threads=1)
                index.compact(retrain=True)
                searchers["grown and retrained"] = index.searcher(threads=1)
        found = measure(searchers, data, params, truth)
        for name, values in found.items():
            result[name] = {**result.get(name, {}), **values}
        result["params"] = params.to_json()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
