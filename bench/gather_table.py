# SPDX-License-Identifier: Apache-2.0
"""Proof 3: how much of the exact top k survives gather and interact, and at which settings.

With f16 rows stored and every survivor reranked, recall is the share of the exact top k that a
stage let through. Rows vary one thing at a time: fine centroids, floor, budget, candidates; queries
are as given, or padded with near-duplicates of their own tokens, as [MASK] expansion does.

    python bench/gather_table.py SET [SET ...] --out results/gather.jsonl
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from data import EmbeddingSet, load_set
from engine import build, exact, overlap, params, train

HEADER = """\
| n/fine | queries | floor | nprobe | budget | n1 | n2 | r10 | r100 | postings |
|---|---|---|---|---|---|---|---|---|---|"""


def padded_queries(data: EmbeddingSet, length: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Every query filled to `length` rows with slightly perturbed copies of its own tokens."""
    rng = np.random.default_rng(5)
    rows, offsets = [], [0]
    for q in range(data.n_queries):
        own = data.query(q)
        missing = max(0, length - len(own))
        near = own[rng.integers(0, len(own), missing)]
        near = near + rng.normal(0, 0.02, near.shape)
        near /= np.linalg.norm(near, axis=1, keepdims=True)
        rows.append(np.concatenate([own, near]))
        offsets.append(offsets[-1] + len(rows[-1]))
    return np.concatenate(rows).astype(np.float32), np.array(offsets, np.uint64)


def main() -> None:
    """Run the grid and print one markdown table per set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("gather.jsonl"))
    parser.add_argument("--ratios", default="200,100,50")
    parser.add_argument("--queries", type=int, default=100)
    args = parser.parse_args()
    with args.out.open("a") as out:
        for folder in args.sets:
            data = load_set(folder, args.queries)
            print(f"\n## {folder.name}: {data.n_docs} documents, {len(data.values)} tokens\n")
            print(
                "| n/fine | queries | floor | nprobe | budget | n1 | n2 | r10 | r100 | postings |"
            )
            print("|---|---|---|---|---|---|---|---|---|---|")
            kinds = {
                "as given": (data.query_values, data.query_offsets),
                "masked": padded_queries(data),
            }
            with tempfile.TemporaryDirectory() as work:
                for ratio in map(int, args.ratios.split(",")):
                    codec = train(data, Path(work), n_fine=len(data.values) // ratio)
                    searcher, _ = build(data, Path(work), codec, "f16")
                    for kind, (values, offsets) in kinds.items():
                        truth = exact(data, values, offsets)
                        for row in grid(ratio, kind):
                            how = params(
                                nprobe=row["nprobe"],
                                budget=row["budget"],
                                ncandidates=row["n1"],
                                nrefine=row["n2"],
                                nrerank=row["n2"],
                                floor=row["floor"],
                                pruned=True,
                            )
                            found = searcher.search_batch(values, offsets, 100, how)
                            row |= {
                                "set": folder.name,
                                "r10": overlap(truth, found, 10),
                                "r100": overlap(truth, found, 100),
                                "postings": int(np.mean([f.counts["postings"] for f in found])),
                            }
                            out.write(json.dumps(row) + "\n")
                            out.flush()
                            print(markdown(row), flush=True)


def markdown(row: dict[str, object]) -> str:
    """One line of the table."""
    cells = [row[name] for name in ("ratio", "queries", "floor", "nprobe", "budget", "n1", "n2")]
    cells += [f"{row['r10']:.3f}", f"{row['r100']:.3f}", row["postings"]]
    return "| " + " | ".join(map(str, cells)) + " |"


def grid(ratio: int, kind: str) -> list[dict[str, object]]:
    """Settings around the defaults, one thing varied at a time."""
    base = {"ratio": ratio, "queries": kind, "nprobe": 16, "floor": 0.75}
    rows: list[dict[str, object]] = []
    for budget in (10_000, 50_000, 100_000):
        for n1 in (500, 2_000):
            rows.append(base | {"budget": budget, "n1": n1, "n2": n1})
    for n2 in (100, 200, 400):
        rows.append(base | {"budget": 50_000, "n1": 2_000, "n2": n2})
    if ratio == 100:
        for floor in (0.0, 0.5, 0.7, 0.8, 0.9, 1.0):
            rows.append(base | {"floor": floor, "budget": 50_000, "n1": 1_000, "n2": 1_000})
        for nprobe in (4, 8, 32):
            rows.append(base | {"nprobe": nprobe, "budget": 50_000, "n1": 1_000, "n2": 1_000})
    return rows


if __name__ == "__main__":
    main()
