# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of a run: report.md beside latency, throughput and build figures.

python bench/peers/report.py ROWS [--out FOLDER]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import figures
from points import Point, fastest, pairs, read, select

TARGETS = (0.8, 0.9, 0.95, 0.99)
SCANS = ("numpy", "maxsim-cpu", "weft.maxsim", "torch")
EXHAUSTIVE = {"recall": 1.0}


def report(rows: list[dict]) -> str:
    """The whole report as markdown."""
    parts = ["# weft and its peers\n", _about(rows)]
    for name in _distinct(rows, "set"):
        mine = [row for row in rows if row["set"] == name]
        head = next(row for row in mine if "tokens" in row)
        parts.append(f"## {name}: {head['docs']:,} documents, {head['tokens']:,} tokens\n")
        parts.append(_skipped(mine))
        parts.append(_builds(mine))
        for threads in _distinct(mine, "threads"):
            for k in _distinct(mine, "k"):
                points = select(rows, name, k, threads)
                if points:
                    where = f"k = {k}, {threads} thread{'s' * (threads > 1)}"
                    parts += _curves(points, where)
    return "\n".join(part for part in parts if part)


def _about(rows: list[dict]) -> str:
    machines = {str(row["machine"]): row["machine"] for row in rows}
    lines = [f"- {m['cpu']}, {m['cores']} cores, {m['memory_gb']} GB, {m['system']}"
             for m in machines.values()]  # fmt: skip
    runs = sorted({row["run"] for row in rows})
    lines.append(f"- commits {', '.join(_distinct(rows, 'commit'))}; runs {', '.join(runs)}")
    busiest = max((row.get("load", 0.0) for row in rows), default=0.0)
    lines.append(f"- load average of the machine at most {busiest:.1f}")
    lines.append(
        "- recall is the overlap with exact MaxSim over the same f16 rows; a query's time is the "
        "median of its rounds; p50 is over queries. Comparisons use the queries that both answered."
    )
    return "\n".join(lines) + "\n"


def _skipped(rows: list[dict]) -> str:
    lines = [
        f"- {row['engine']} {row.get('setting', '')}: {row.get('skipped') or row['failed']}"
        for row in rows
        if "skipped" in row or "failed" in row
    ]
    return "Not measured:\n\n" + "\n".join(dict.fromkeys(lines)) + "\n" if lines else ""


def _builds(rows: list[dict]) -> str:
    built = {row["engine"]: row for row in rows if "build_s" in row}
    ours = built.get("weft")
    lines = []
    for engine, row in built.items():
        seconds = row["build_s"] - row.get("tuning_s", 0.0)
        base = ours["build_s"] - ours["tuning_s"] if ours else None
        times = ""
        if ours and row is not ours:
            times = f"{seconds / base:.1f} ({seconds / ours['build_s']:.1f})"
        tuning = f" (+ {row['tuning_s']:.1f} tuning)" if row.get("tuning_s") else ""
        lines.append((
            engine, row["version"], f"{seconds:.1f}{tuning}", times, f"{row['build_cpu_s']:.1f}",
            f"{row['build_rss_mb']:,.0f}", f"{row['build_anonymous_mb']:,.0f}",
            f"{row['bytes_per_token']:.1f}", row.get("note", ""),
        ))  # fmt: skip
    head = (
        *(
            "engine",
            "version",
            "build s",
            "times weft (with its tuning)",
            "CPU s",
            "peak MB above input",
        ),
        *("of it anonymous", "bytes/token", "note"),
    )
    return _table(head, lines) if lines else ""


def _curves(points: list[Point], where: str) -> list[str]:
    """Three tables about one k and number of threads."""
    engines = list(dict.fromkeys(one.engine for one in points))
    by_engine = {name: [one for one in points if one.engine == name] for name in engines}
    lines = []
    for name, mine in by_engine.items():
        found = [fastest(mine, target) for target in TARGETS]
        best = max(one.recall() for one in mine)
        cells = ["-" if one is None else f"{one.ms():.2f}" for one in found]
        rates = [one.row["qps"] for one in mine if "qps" in one.row and one.recall() >= 0.9]
        rate = f"{max(rates):,.0f}" if rates else "-"
        lines.append((name, *cells, f"{best:.3f}", rate))
    head = ("engine", *(f"recall {t}" for t in TARGETS), "best recall", "QPS in batches at .9")
    parts = [f"### {where}: p50 ms of the fastest setting that reaches a recall\n"]
    parts += [_table(head, lines)]
    parts += _scans(points, where)
    compared = [pair for pair in pairs(points) if pair.peer.engine not in SCANS]
    if not compared:
        return parts
    lines, least = [], {}
    for pair in compared:
        peer, ours, n = pair.peer, pair.ours, pair.n
        cells = (peer.engine, peer.label, f"{peer.recall(n):.3f}", f"{peer.ms(50, n):.2f}")
        if ours is None:
            lines.append((*cells, "none reaches it", "", "", "", "", n))
            continue
        ratios = (f"{pair.ratio():.1f}", f"{pair.ratio(95):.1f}")
        lines.append(
            (*cells, ours.label, f"{ours.recall(n):.3f}", f"{ours.ms(50, n):.2f}", *ratios, n)
        )
        least[peer.engine] = min(least.get(peer.engine, 1e9), pair.ratio())
    head = (
        *("peer", "its setting", "recall", "p50 ms", "fastest weft setting", "recall", "p50 ms"),
        *("times slower p50", "p95", "queries"),
    )
    told = ", ".join(f"{name} {ratio:.1f}" for name, ratio in least.items())
    parts += [f"### {where}: ratios at equal or better recall\n", _table(head, lines)]
    parts += [f"Least ratio of p50 over a peer's settings: {told}.\n"]
    return parts


def _scans(points: list[Point], where: str) -> list[str]:
    """What scores every document: brute force in floats, and weft's exhaustive integer search."""
    ours = [one for one in points if one.row["setting"] == EXHAUSTIVE]
    found = [one for one in points if one.engine in SCANS] + ours
    lines = []
    for one in found:
        times = f"{one.ms() / ours[0].ms():.1f}" if ours else ""
        lines.append((one.engine, one.label, f"{one.recall():.4f}", f"{one.ms():.2f}", times))
    head = ("engine", "setting", "recall", "p50 ms", "times weft's integers")
    return [f"### {where}: every document scored\n", _table(head, lines)] if lines else []


def _table(head: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
    head = list(head)
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    rows += ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    return "\n".join(rows) + "\n"


def _distinct(rows: list[dict], name: str) -> list:
    return list(dict.fromkeys(row[name] for row in rows if row.get(name) is not None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--out", type=Path, help="default: beside the rows")
    args = parser.parse_args()
    rows, out = read(args.rows), args.out or args.rows.parent
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(report(rows), encoding="utf-8")
    figures.draw(rows, out)
    print(out / "report.md")


if __name__ == "__main__":
    main()
