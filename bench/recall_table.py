# SPDX-License-Identifier: Apache-2.0
"""Proof 2 as a user meets it: recall of exhaustive search over the codes, and bytes per token.

Queries are int8 for codes and f32 for the rerank, as in the product; ground truth is exact MaxSim.

    python bench/recall_table.py SET [SET ...] [--queries 300]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from data import load_set
from engine import build, exact, overlap, params, train

CODES = ((1, "none"), (2, "none"), (4, "none"), (4, "plane"), (4, "f16"), (8, "none"))


def main() -> None:
    """Print one markdown table per set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--queries", type=int, default=300)
    args = parser.parse_args()
    for path in args.sets:
        data = load_set(path, args.queries)
        queries = (data.query_values, data.query_offsets)
        truth = exact(data, *queries)
        print(f"\n{path.name}: {data.n_docs} windows, {len(data.values)} tokens, ", end="")
        print(f"{data.n_queries} queries\n")
        print("| nbits | rerank | bytes/token | recall@10 | recall@100 |")
        print("|---|---|---|---|---|")
        with tempfile.TemporaryDirectory() as work:
            for nbits, rerank in CODES:
                searcher, n_bytes = build(
                    data, Path(work), train(data, Path(work), nbits=nbits), rerank
                )
                row = []
                for k, n_rerank in ((10, 20), (100, 150)):
                    precise = rerank != "none" or nbits == 8
                    how = params(exhaustive=True, nrerank=n_rerank if precise else 0)
                    row.append(overlap(truth, searcher.search_batch(*queries, k, how), k))
                form = "the codes" if nbits == 8 else rerank
                label = f"{form}, 20 / 150" if precise else "none"
                print(
                    f"| {nbits} | {label} | {n_bytes / len(data.values):.1f} "
                    f"| {row[0]:.4f} | {row[1]:.4f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
