# SPDX-License-Identifier: Apache-2.0
"""How build, size, memory and search grow with a collection.

    python bench/data.py synthetic 10000000 --out SETS/synthetic-10000000      # one per size
    python bench/scaling.py SET [SET ...] --out scaling.jsonl [--figure docs/scaling.png]

Each set is built and searched through the public API in a process of its own, at the default
operating points, and measured against exact MaxSim. Prints a table and, for what is fitted as
tokens ** exponent, the exponents.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

import weft
from data import EmbeddingSet, load_set
from engine import exact

DOCS_AT_ONCE = 20_000
FITTED = {
    "build_cpu_s": "build, CPU s",
    "bytes": "bytes",
    "build_mb": "build, anonymous MB",
    "open_ms": "open, ms",
    "p50_10": "p50 ms, k = 10",
    "p50_100": "p50 ms, k = 100",
}


def anonymous_mb() -> float:
    """Memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1_000
    return 0.0


class Peak(threading.Thread):
    """The most anonymous memory while it runs, beyond what there was."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = self._before = anonymous_mb()
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.02):
            self.most = max(self.most, anonymous_mb())

    def stop(self) -> float:
        self._over.set()
        self.join()
        return self.most - self._before


def build(data: EmbeddingSet, folder: Path) -> dict[str, float]:
    """Build an index as a user does and say what it took."""
    seen: dict[str, float] = {}
    peak = Peak()
    peak.start()
    began, cpu = time.perf_counter(), time.process_time()
    index = weft.Index.create(folder, weft.IndexConfig(dim=data.values.shape[1]))
    note = lambda stage, *_: seen.setdefault(stage, time.perf_counter())  # noqa: E731
    with index.writer(progress=note) as writer:
        for first in range(0, data.n_docs, DOCS_AT_ONCE):
            offsets = data.offsets[first : first + DOCS_AT_ONCE + 1]
            ids = [str(first + i) for i in range(len(offsets) - 1)]
            writer.add(ids, (data.values[offsets[0] : offsets[-1]], offsets - offsets[0]))
    ended = time.perf_counter()
    taken = {"build_s": ended - began, "build_cpu_s": time.process_time() - cpu}
    taken["tuning_s"] = seen["commit"] - seen["truth"] if "truth" in seen else 0.0
    stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return taken | {"build_mb": peak.stop(), "bytes": stored}


def measure(data: EmbeddingSet, folder: Path) -> dict[str, float]:
    """Build, then search one by one and in batches."""
    row: dict[str, float] = {"set": data.name, "docs": data.n_docs, "tokens": len(data.values)}
    row |= build(data, folder)
    truth = exact(data, data.query_values, data.query_offsets)
    queries = [np.array(data.query(q)) for q in range(data.n_queries)]
    before, began = anonymous_mb(), time.perf_counter()
    searcher = weft.Index.open(folder).searcher(threads=1)
    row["open_ms"] = 1_000 * (time.perf_counter() - began)
    for k in (10, 100):
        times = np.empty((3, len(queries)))
        for number in range(3):
            found = []
            for i, query in enumerate(queries):
                began = time.perf_counter()
                found.append(searcher.search(query, k))
                times[number, i] = 1_000 * (time.perf_counter() - began)
        best = np.median(times, axis=0)
        row[f"p50_{k}"], row[f"p95_{k}"] = np.quantile(best, [0.5, 0.95])
        pairs = zip(truth[:, :k].tolist(), found, strict=True)
        row[f"recall_{k}"] = np.mean([len(set(t) & set(map(int, f.ids))) / k for t, f in pairs])
        row[f"path_{k}"] = found[0].operating_point.path
    row["open_mb"] = anonymous_mb() - before
    for threads in (1, 2):
        many = weft.Index.open(folder).searcher(threads=threads)
        rates = []
        for _ in range(3):
            began = time.perf_counter()
            list(many.search_batch(queries, 10))
            rates.append(len(queries) / (time.perf_counter() - began))
        row[f"qps_{threads}"] = np.median(rates)
    return row


def table(rows: list[dict]) -> str:
    """The rows as markdown, and the exponents below them."""
    lines = [
        "| set | tokens | build s (tuning) | tokens/s | build MB | bytes/token | open ms | MB "
        "| k = 10: recall, p50, p95 ms | k = 100 | queries/s, 1 / 2 threads |",
        "|---" * 11 + "|",
    ]
    for r in rows:
        searches = (f"{r[f'recall_{k}']:.3f}, {r[f'p50_{k}']:.2f}, {r[f'p95_{k}']:.2f}" for k in (10, 100))  # noqa: E501 # fmt: skip
        lines.append(
            f"| `{r['set']}` | {r['tokens']:,} | {r['build_s']:.1f} ({r['tuning_s']:.1f}) "
            f"| {r['tokens'] / (r['build_s'] - r['tuning_s']):,.0f} | {r['build_mb']:.0f} "
            f"| {r['bytes'] / r['tokens']:.1f} | {r['open_ms']:.0f} | {r['open_mb']:.0f} | "
            + " | ".join(searches)
            + f" | {r['qps_1']:.0f} / {r['qps_2']:.0f} |"
        )
    if len(rows) > 2:
        found = {name: exponent(rows, name)[0] for name in FITTED}
        lines += ["", ", ".join(f"{FITTED[name]}: {e:.2f}" for name, e in found.items())]
    return "\n".join(lines)


def exponent(rows: list[dict], name: str) -> tuple[float, float]:
    """Slope and intercept of log(name) over log(tokens), by least squares."""
    tokens, values = ([r[key] for r in rows] for key in ("tokens", name))
    slope, start = np.polyfit(np.log(tokens), np.log(np.maximum(values, 1e-3)), 1)
    return float(slope), float(start)


def draw(rows: list[dict], path: Path) -> None:
    """One panel per measure, with the fitted line."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(10, 5.6), layout="constrained")
    tokens = np.array([r["tokens"] for r in rows], float)
    for axis, (name, label) in zip(axes.flat, FITTED.items(), strict=True):
        slope, start = exponent(rows, name)
        axis.loglog(tokens, [r[name] for r in rows], "o", color="#c1121f")
        axis.loglog(tokens, np.exp(start) * tokens**slope, "--", color="#777777")
        axis.set_title(f"{label}: tokens^{slope:.2f}")
        axis.set_xlabel("tokens")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure what --out does not hold yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, added to")
    parser.add_argument("--work", type=Path, help="where indexes are built; default: temporary")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        with tempfile.TemporaryDirectory(dir=args.work) as work:
            row = measure(load_set(args.sets[0], args.queries), Path(work) / "index")
        with args.out.open("a") as out:
            out.write(json.dumps(row, default=float) + "\n")
        return
    for folder in args.sets:
        options = ["--out", str(args.out), "--queries", str(args.queries), "--one"]
        options += ["--work", str(args.work)] if args.work else []
        subprocess.run([sys.executable, __file__, str(folder), *options], check=True)
        print(args.out.read_text().splitlines()[-1], flush=True)
    rows = [json.loads(line) for line in args.out.read_text().splitlines()]
    rows = sorted({r["set"]: r for r in rows}.values(), key=lambda r: r["tokens"])
    print(table(rows))
    if args.figure:
        draw(rows, args.figure)


if __name__ == "__main__":
    main()
