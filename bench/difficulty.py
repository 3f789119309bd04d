# SPDX-License-Identifier: Apache-2.0
"""How hard a collection is to search: real and made ones side by side.

    python bench/difficulty.py FOLDER [FOLDER ...] [--synthetic 1000000 10000000] [--queries 100]

Two tables. Likeness: length of the mean token, spread of the cosines of random tokens, mean cosine
within a document, share of the variance between documents, and the scores of the 1st, 10th, 100th
and 1000th of 5,000 documents, per query token. Difficulty: recall@10 of 4-bit codes searched
exhaustively, and the share of the exact top 10 and top 100 that is left when gather, reading a 60th
of the postings, keeps the best 5 % and 10 % of the documents, and interact a tenth of those.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from data import EmbeddingSet, load_set, write_synthetic
from engine import build, exact, overlap, params, train
from synthetic import Synthetic

N_DOCS, N_TOKENS = 5_000, 20_000


def likeness(data: EmbeddingSet) -> str:
    """The cells of one line of the first table."""
    random = np.random.default_rng(0)
    offsets = data.offsets.astype(np.int64)
    some = np.sort(random.choice(len(data.values), min(N_TOKENS, len(data.values)), replace=False))
    tokens = data.values[some].astype(np.float32)
    others = tokens[random.permutation(len(tokens))]
    docs = np.sort(random.choice(data.n_docs, min(N_DOCS, data.n_docs), replace=False))
    rows = [data.values[offsets[d] : offsets[d + 1]].astype(np.float32) for d in docs]
    means = np.stack([doc.mean(axis=0) for doc in rows])
    within = np.mean(
        [(len(d) * m @ m - 1) / (len(d) - 1) for d, m in zip(rows, means, strict=True)]
    )
    starts = np.cumsum([0, *map(len, rows[:-1])])
    values, ranked = np.concatenate(rows), []
    for q in range(min(data.n_queries, 40)):
        query = data.query(q).astype(np.float32)
        scores = np.maximum.reduceat(values @ query.T, starts, axis=0).sum(axis=1) / len(query)
        ranked.append(np.sort(scores)[::-1][[0, 9, 99, min(999, len(scores) - 1)]])
    shares = " / ".join(f"{score:.2f}" for score in np.mean(ranked, axis=0))
    return (
        f"{np.linalg.norm(tokens.mean(axis=0)):.2f} | {(tokens * others).sum(axis=1).std():.3f} | "
        f"{within:.2f} | {means.var(axis=0).sum() / tokens.var(axis=0).sum():.2f} | {shares}"
    )


def difficulty(data: EmbeddingSet, folder: Path) -> str:
    """The cells of one line of the second table."""
    queries = (data.query_values, data.query_offsets)
    truth = exact(data, *queries)
    codec = train(data, folder)
    searcher, _ = build(data, folder, codec, "none")
    found = searcher.search_batch(*queries, 10, params(exhaustive=True))
    cells = [f"{overlap(truth, found, 10):.3f}"]
    searcher, _ = build(data, folder, codec, "f16")
    for share in (0.05, 0.1):
        n1 = max(int(share * data.n_docs), 100)
        for n2 in (n1, max(n1 // 10, 100)):
            budget = len(data.values) // 60
            how = params(
                nprobe=32, budget=budget, ncandidates=n1, nrefine=n2, nrerank=n2, pruned=True
            )
            found = searcher.search_batch(*queries, 100, how)
            cells.append(f"{overlap(truth, found, 10):.3f} / {overlap(truth, found, 100):.3f}")
    return " | ".join(cells)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", type=Path)
    parser.add_argument("--synthetic", nargs="*", type=int, default=[])
    parser.add_argument("--queries", type=int, default=100)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as work:
        made = [Path(work) / f"synthetic-{n}" for n in args.synthetic]
        for n_tokens, folder in zip(args.synthetic, made, strict=True):
            write_synthetic(Synthetic(n_tokens), folder, args.queries)
        for folder in [*args.sets, *made]:
            data = load_set(folder, args.queries)
            about = f"| `{data.name}` | {data.n_docs} | "
            rows.append(
                (about + likeness(data) + " |", about + difficulty(data, Path(work)) + " |")
            )
    print("| set | documents | mean | spread | within | between | scores |\n" + "|---" * 7 + "|")
    print("\n".join(first for first, _ in rows))
    print("\n| set | documents | codes | gather 5 % | interact .5 % | gather 10 % | interact 1 % |")
    print("|---" * 7 + "|")
    print("\n".join(second for _, second in rows))


if __name__ == "__main__":
    main()
