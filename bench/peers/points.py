# SPDX-License-Identifier: Apache-2.0
"""Rows of a run as points of recall and time, and which of them may be compared with which."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TIE = 1e-9


@dataclass(frozen=True)
class Point:
    """One engine at one setting, k and number of threads."""

    row: dict[str, Any]

    @property
    def engine(self) -> str:
        return self.row["engine"]

    @property
    def n(self) -> int:
        return len(self.row["ms"])

    @property
    def label(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.row["setting"].items())

    def recall(self, n: int | None = None) -> float:
        """Mean recall@k of the first n queries."""
        return float(np.mean(self.row["shares"][:n]))

    def ms(self, percent: float = 50, n: int | None = None) -> float:
        """A percentile of the times of the first n queries."""
        return float(np.percentile(self.row["ms"][:n], percent))


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; of rows about the same thing, the last one."""
    latest: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        names = ("set", "engine", "threads", "k", "setting")
        latest[json.dumps([row.get(name) for name in names])] = row
    return list(latest.values())


def select(rows: list[dict], set_name: str, k: int, threads: int) -> list[Point]:
    """The points of a set for one k and number of threads."""
    wanted = (set_name, k, threads)
    found = [row for row in rows if (row["set"], row.get("k"), row.get("threads")) == wanted]
    return [Point(row) for row in found if "ms" in row]


def fastest(points: list[Point], recall: float, n: int | None = None) -> Point | None:
    """The fastest point that reaches a recall, over the first n queries."""
    enough = [one for one in points if one.recall(n) >= recall - TIE]
    return min(enough, key=lambda one: one.ms(n=n), default=None)


def frontier(points: list[Point]) -> list[Point]:
    """The points that no other one beats in both, by rising recall."""
    kept: list[Point] = []
    for one in sorted(points, key=lambda one: (-one.recall(), one.ms())):
        if not kept or one.ms() < kept[-1].ms():
            kept.append(one)
    return kept[::-1]


@dataclass(frozen=True)
class Pair:
    """A peer's point and the fastest of ours with at least its recall, on the queries of both."""

    peer: Point
    ours: Point | None
    n: int

    def ratio(self, percent: float = 50) -> float:
        assert self.ours is not None
        return self.peer.ms(percent, self.n) / self.ours.ms(percent, self.n)


def pairs(points: list[Point], ours: str = "weft") -> list[Pair]:
    """Every peer's point with the one of ours at equal or better recall; None if there is none."""
    mine = [one for one in points if one.engine == ours]
    if not mine:
        return []
    return [best(peer, mine) for peer in points if not peer.engine.startswith(ours)]


def best(peer: Point, mine: list[Point]) -> Pair:
    """The one of ours that beats a peer's point by most with at least its recall."""
    compared = [Pair(peer, one, min(peer.n, one.n)) for one in mine]
    enough = [one for one in compared if one.ours.recall(one.n) >= peer.recall(one.n) - TIE]
    return max(enough, key=Pair.ratio, default=Pair(peer, None, peer.n))
