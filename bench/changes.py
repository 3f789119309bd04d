# SPDX-License-Identifier: Apache-2.0
"""What it costs to delete documents, and what a search costs after it.

Token embeddings are synthetic: points around common centres. The index before the deletion and the
one after it are searched in turn, so that whatever else the machine does meets both.

    python bench/changes.py work --docs 1000000 --tokens 8 --dim 32 --delete 1000
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

import weft

CENTRES = 20_000
BATCH = 50_000
ROUNDS = 10


def rows(random: np.random.Generator, centres: np.ndarray, n: int) -> np.ndarray:
    """Unit rows around the centres."""
    found = centres[random.integers(0, len(centres), n)]
    found = found + 0.5 * random.normal(size=found.shape).astype(np.float32) / found.shape[1] ** 0.5
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def build(path: Path, docs: int, tokens: int, dim: int) -> weft.Index:
    """Make the index, unless it is there."""
    if path.exists():
        return weft.Index.open(path)
    random = np.random.default_rng(1)
    centres = rows(random, random.normal(size=(CENTRES, dim)).astype(np.float32), CENTRES)
    index = weft.Index.create(path, weft.IndexConfig(dim=dim))
    with index.writer() as writer:
        for first in range(0, docs, BATCH):
            n = min(BATCH, docs - first)
            offsets = np.arange(n + 1, dtype=np.uint64) * np.uint64(tokens)
            ids = [f"doc-{number}" for number in range(first, first + n)]
            writer.add(ids, (rows(random, centres, n * tokens), offsets))
    return index


def compare(before: weft.Searcher, after: weft.Searcher, queries: list, params: object) -> dict:
    """Median processor milliseconds of a search by each, and the ratio."""
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS):
        for query in queries:
            for which in (0, 1) if number % 2 else (1, 0):
                started = time.thread_time()
                (before, after)[which].search(query, 10, params=params)
                taken[which].append(1_000 * (time.thread_time() - started))
    medians = [float(np.median(times)) for times in taken]
    return {
        "before_ms": round(medians[0], 4),
        "after_ms": round(medians[1], 4),
        "ratio": round(medians[1] / medians[0], 4),
    }


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--docs", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--delete", type=int, default=1_000)
    given = parser.parse_args()
    name = f"changes-{given.docs}-{given.tokens}-{given.dim}.index"
    started = time.perf_counter()
    index = build(given.work / name, given.docs, given.tokens, given.dim)
    result: dict = {"docs": len(index), "tokens": index.info.n_tokens, "dim": given.dim}
    result["build_s"] = round(time.perf_counter() - started, 1)

    random = np.random.default_rng(2)
    before = index.searcher(threads=1)
    alive = before.search(np.eye(given.dim, dtype=np.float32)[:1], 1, recall=1.0).n_matching
    chosen = random.choice(given.docs, given.delete, replace=False)
    started = time.perf_counter()
    result["deleted"] = index.delete([f"doc-{number}" for number in chosen])
    result["delete_s"] = round(time.perf_counter() - started, 3)
    result["alive"] = [alive, len(index)]
    started = time.perf_counter()
    after = index.searcher(threads=1)
    result["open_s"] = round(time.perf_counter() - started, 4)

    queries = [
        before._snapshot.segments[0].native.rows(int(doc)).repeat(4, axis=0)
        + 0.3 * random.normal(size=(4 * given.tokens, given.dim)).astype(np.float32)
        for doc in random.choice(given.docs, 40)
    ]
    pruned = weft.SearchParams()
    full = weft.SearchParams(exhaustive=True)
    result["path"] = before.search(queries[0], 10, params=pruned).operating_point.path
    result["pruned"] = compare(before, after, queries, pruned)
    result["exhaustive"] = compare(before, after, queries[:5], full)
    started = time.perf_counter()
    index.compact()
    result["compact_s"] = round(time.perf_counter() - started, 2)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
