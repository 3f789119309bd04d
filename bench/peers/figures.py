# SPDX-License-Identifier: Apache-2.0
"""Figures of a run as PNG: recall against latency and throughput, builds."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from points import Point, frontier, select

COLOURS = {
    "weft": "#c1121f", "weft.maxsim": "#f4978e", "tachiom": "#1d3557", "fast-plaid": "#2a9d8f",
    "xtr-warp-rs": "#e9a03b", "stanford-plaid": "#7b5ea7", "numpy": "#777777",
    "maxsim-cpu": "#aaaaaa", "torch": "#6d4c41",
}  # fmt: skip
OTHER = "black"
BARS = {
    "build_s": "build with tuning, seconds (log)",
    "build_anonymous_mb": "peak anonymous MB above input",
    "bytes_per_token": "bytes per token",
}


def draw(rows: list[dict], out: Path) -> None:
    """Write every figure that the rows have something for."""
    plt.rcParams.update({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3})
    for name in sorted({row["set"] for row in rows}):
        mine = [row for row in rows if row["set"] == name]
        ks = sorted({row["k"] for row in mine if "ms" in row})
        threads = sorted({row["threads"] for row in mine if "ms" in row})
        if ks:
            lines = [[select(mine, name, k, n) for k in ks] for n in threads]
            _curves(lines, ks, threads, name, out / f"latency-{name}.png", qps=False)
            _curves(lines[-1:], ks, threads[-1:], name, out / f"throughput-{name}.png", qps=True)
        _bars(mine, name, out / f"build-{name}.png")


def _curves(
    lines: list[list[list[Point]]], ks: list[int], threads: list[int], name: str, path: Path,
    *, qps: bool,
) -> None:  # fmt: skip
    shape = (len(lines), len(ks))
    size = (5.2 * shape[1], 3.8 * shape[0])
    figure, axes = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained")
    for row, found in enumerate(lines):
        for column, points in enumerate(found):
            axis = axes[row, column]
            (_rates if qps else _latencies)(axis, points)
            axis.set_yscale("log")
            axis.set_xlabel(f"recall@{ks[column]}")
            many = "s" * (threads[row] > 1)
            axis.set_title(f"{name}, k = {ks[column]}, {threads[row]} thread{many}")
            axis.set_ylabel("queries a second, in batches" if qps else "p50, ms")
    shown = {}
    for axis in axes.flat:
        handles, labels = axis.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=len(shown), fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _latencies(axis: Axes, points: list[Point]) -> None:
    for engine in dict.fromkeys(one.engine for one in points):
        mine = [one for one in points if one.engine == engine]
        edge, colour = frontier(mine), COLOURS.get(engine, OTHER)
        axis.scatter([p.recall() for p in mine], [p.ms() for p in mine], 9, colour, alpha=0.5)
        axis.plot([p.recall() for p in edge], [p.ms() for p in edge], "o-", ms=4, c=colour,
                  lw=2 if engine == "weft" else 1.2, label=engine)  # fmt: skip


def _rates(axis: Axes, points: list[Point]) -> None:
    for engine in dict.fromkeys(one.engine for one in points if "qps" in one.row):
        mine = [one.row for one in points if one.engine == engine and "qps" in one.row]
        mine.sort(key=lambda row: row["qps_recall"])
        axis.plot([row["qps_recall"] for row in mine], [row["qps"] for row in mine], "o",
                  ms=4, c=COLOURS.get(engine, OTHER), label=engine)  # fmt: skip


def _bars(rows: list[dict], name: str, path: Path) -> None:
    built = {row["engine"]: row for row in rows if "build_s" in row}
    if not built:
        return
    figure, axes = plt.subplots(1, len(BARS), figsize=(10, 2.8), layout="constrained")
    for axis, (field, title) in zip(axes, BARS.items(), strict=True):
        heights = [row[field] for row in built.values()]
        bars = axis.bar(
            list(built), heights, color=[COLOURS.get(engine, OTHER) for engine in built]
        )
        axis.bar_label(bars, [f"{height:,.0f}" for height in heights], fontsize=7)
        axis.set_title(f"{name}: {title}", fontsize=8)
        axis.tick_params(axis="x", rotation=20, labelsize=7)
        if field == "build_s":
            axis.set_yscale("log")
    figure.savefig(path, dpi=150)
    plt.close(figure)
