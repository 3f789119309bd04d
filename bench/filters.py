# SPDX-License-Identifier: Apache-2.0
"""Filtered search: recall against the exact answer among the documents that match, and latency.

Two kinds of filters at every selectivity: documents at random, and documents that stand together in
the collection, as those of one book or author do. Exact is MaxSim in f32 over the rows themselves.
Times are of the processor, one thread, bitmaps kept; "first" is the clock with a new filter.

    python bench/filters.py SET --work FOLDER [--out docs/filters.png]
    python bench/filters.py SET --work FOLDER --pieces 20 --sweep

`--pieces` makes documents of every 20 tokens, so that real rows give many documents; `--sweep`
varies the budget by hand, never scans, and prints recall and milliseconds.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

import weft
from data import EmbeddingSet, load_set
from engine import params
from weft import _native

SELECTIVITIES = (1.0, 0.5, 0.1, 0.01, 0.001)
K = 10
ROUNDS = 5
BUDGETS = (2_000, 10_000, 50_000, 200_000)


def cut(data: EmbeddingSet, n_tokens: int) -> EmbeddingSet:
    """The same token embeddings in documents of at most n_tokens."""
    bounds = pairwise(data.offsets.tolist())
    starts = [start for first, last in bounds for start in range(first, last, n_tokens)]
    offsets = np.array([*starts, len(data.values)], np.uint64)
    return replace(data, name=f"{data.name}-{n_tokens}", offsets=offsets)


def build(data: EmbeddingSet, path: Path) -> weft.Index:
    """Make the index, unless it is there: every document has a random number and its place."""
    if path.exists():
        return weft.Index.open(path)
    numbers = np.random.default_rng(3).permutation(data.n_docs)
    metadata = [{"random": n, "place": i} for i, n in enumerate(numbers.tolist())]
    index = weft.Index.create(path, weft.IndexConfig(dim=data.values.shape[1]))
    ids = [str(number) for number in range(data.n_docs)]
    index.add(ids, (data.values, data.offsets), metadata=metadata)
    return index


def exact(data: EmbeddingSet, path: Path) -> np.ndarray:
    """Scores of every document for every query, f32 [n_queries, n_docs]; kept in a file."""
    if not path.exists():
        rows = [data.query(number) for number in range(data.n_queries)]
        np.save(path, [_native.maxsim(row, data.values, data.offsets, 0) for row in rows])
    return np.load(path)[: data.n_queries]


def wheres(kind: str, share: float, n_docs: int) -> tuple[dict | None, np.ndarray]:
    """A filter and the documents that match it."""
    if share == 1.0:
        return None, np.arange(n_docs)
    count = max(round(share * n_docs), 1)
    if kind == "random":
        numbers = np.random.default_rng(3).permutation(n_docs)
        return {"random": {"$lt": count}}, np.flatnonzero(numbers < count)
    first = (n_docs - count) // 3
    where = {"place": {"$gte": first, "$lt": first + count}}
    return where, np.arange(first, first + count)


def measure(
    searcher: weft.Searcher, data: EmbeddingSet, scores: np.ndarray, **how: object
) -> list[dict]:
    """One row per kind of filter and selectivity; the searches without a filter come in between."""
    cases = [("none", 1.0), *((k, s) for k in ("random", "place") for s in SELECTIVITIES[1:])]
    rows, filters = [], []
    for kind, share in cases:
        where, matching = wheres(kind, share, data.n_docs)
        started = time.perf_counter()
        searcher.search(data.query(0), K, where=where, **how)
        cold = 1_000 * (time.perf_counter() - started)
        found, paths = [], []
        for number in range(data.n_queries):
            hits = searcher.search(data.query(number), K, where=where, **how)
            paths.append(hits.operating_point.path)
            best = matching[np.argsort(-scores[number, matching], kind="stable")[:K]]
            found.append(len(set(map(str, best)) & set(hits.ids)) / len(best))
        filters.append(where)
        rows.append(
            {
                "kind": kind,
                "share": share,
                "matching": len(matching),
                "recall": round(float(np.mean(found)), 4),
                "exhaustive": round(paths.count("exhaustive") / len(paths), 3),
                "cold_ms": round(cold, 2),
            }
        )
    taken: list[list[float]] = [[] for _ in cases]
    for _ in range(ROUNDS):
        for number in range(data.n_queries):
            for case, where in enumerate(filters):
                started = time.thread_time()
                searcher.search(data.query(number), K, where=where, **how)
                taken[case].append(1_000 * (time.thread_time() - started))
    for row, times in zip(rows, taken, strict=True):
        row["p50_ms"] = round(float(np.median(times)), 3)
        row["p95_ms"] = round(float(np.quantile(times, 0.95)), 3)
    return rows


def sweep(searcher: weft.Searcher, data: EmbeddingSet, scores: np.ndarray) -> None:
    """Recall and median milliseconds of pruned searches, budget by selectivity, as markdown."""
    print("| filter | share | " + " | ".join(f"budget {b:,}" for b in BUDGETS) + " |")
    print("|---|---|" + "---|" * len(BUDGETS))
    filtered = [(kind, share) for kind in ("random", "place") for share in (0.5, 0.1, 0.03, 0.01)]
    for kind, share in [("none", 1.0), *filtered]:
        where, matching = wheres(kind, share, data.n_docs)
        allowed = searcher._filters.allowed(where, None)
        cells = []
        for budget in BUDGETS:
            how = params(budget=budget, nskim=400, nrefine=40, nrerank=20, pruned=True)
            recalls, taken = [], []
            for number in range(data.n_queries):
                found = searcher._native.search(
                    np.ascontiguousarray(data.query(number)), K, how, allowed and allowed.bitmaps
                )
                best = matching[np.argsort(-scores[number, matching], kind="stable")[:K]]
                recalls.append(len(set(map(str, best)) & set(found.ids)) / len(best))
                taken.append(sum(found.timings_ms.values()))
            cells.append(f"{np.mean(recalls):.3f}, {np.median(taken):.1f}")
        print(f"| {kind} | {100 * share:g} % | " + " | ".join(cells) + " |", flush=True)


def table(rows: list[dict]) -> str:
    """The rows as markdown."""
    lines = ["| filter | share | match | recall@10 | p50 ms | p95 ms | first ms | scanned |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    lines += [
        f"| {row['kind']} | {100 * row['share']:g} % | {row['matching']:,} | {row['recall']:.3f} "
        f"| {row['p50_ms']:.2f} | {row['p95_ms']:.2f} | {row['cold_ms']:.1f} "
        f"| {100 * row['exhaustive']:.0f} % |"
        for row in rows
    ]
    return "\n".join(lines)


def draw(rows: list[dict], name: str, path: Path) -> None:
    """Recall and latency over selectivity."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    unfiltered = rows[0]
    for kind, label, style in (("random", "random documents", "o-"),
                               ("place", "neighbouring documents", "s--")):  # fmt: skip
        some = [unfiltered, *(row for row in rows if row["kind"] == kind)]
        shares = [100 * row["share"] for row in some]
        left.plot(shares, [row["recall"] for row in some], style, label=label)
        right.plot(shares, [row["p50_ms"] for row in some], style, label=label)
    left.axhline(0.95, color="grey", linewidth=0.8, linestyle=":")
    right.axhline(unfiltered["p50_ms"], color="grey", linewidth=0.8, linestyle=":")
    for axes, label in (
        (left, "recall@10 among what matches"),
        (right, "processor milliseconds, p50"),
    ):
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_xticks([100 * share for share in SELECTIVITIES])
        axes.set_xticklabels([f"{100 * share:g}" for share in SELECTIVITIES])
        axes.minorticks_off()
        axes.set_xlabel("documents that match, %")
        axes.set_ylabel(label)
    left.set_ylim(0.85, 1.005)
    right.set_ylim(0)
    left.legend(loc="lower right", frameon=False)
    figure.suptitle(f"Filtered search on {name}, default settings, one thread", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Print a table, and JSON lines beside it; draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pieces", type=int)
    parser.add_argument("--sweep", action="store_true")
    args = parser.parse_args()
    data = load_set(args.set, args.queries)
    if args.pieces is not None:
        data = cut(data, args.pieces)
    index = build(data, args.work / f"filters-{data.name}.index")
    scores = exact(data, args.work / f"filters-{data.name}-{data.n_queries}.npy")
    if args.sweep:
        sweep(index.searcher(threads=1), data, scores)
        return
    rows = measure(index.searcher(threads=1), data, scores, recall=args.recall)
    print(table(rows))
    for row in rows:
        print(json.dumps({"set": data.name, "recall_asked": args.recall, **row}))
    if args.out is not None:
        draw(rows, data.name, args.out)


if __name__ == "__main__":
    main()
