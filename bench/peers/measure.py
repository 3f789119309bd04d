# SPDX-License-Identifier: Apache-2.0
"""Measuring in turn: every engine answers one round of queries for one of its settings, then the
next engine does, and so on round after round. A query's time is the median of its rounds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any

import numpy as np
from client import Worker, WorkerError


@dataclass(frozen=True)
class Effort:
    """How long to measure; `seconds` is for one round of one setting, `least` queries aside."""

    rounds: int = 3
    seconds: float = 10.0
    least: int = 20


@dataclass
class Trial:
    """One engine at one setting and k."""

    engine: str
    worker: Worker
    setting: dict[str, Any]
    k: int
    batch: bool
    times: list[list[float]] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    sizes: tuple[int, ...] = ()
    batches: list[float] = field(default_factory=list)
    sized: dict[int, list[float]] = field(default_factory=dict)
    found: list[list[int]] = field(default_factory=list)
    batch_found: list[list[int]] = field(default_factory=list)
    failed: str | None = None

    def round(self, n: int, effort: Effort) -> None:
        """Ask one round; the first decides how many queries there is time for."""
        if self.failed:
            return
        first = not self.times
        try:
            told = self.worker.ask(
                "search", k=self.k, setting=self.setting, n=n if first else len(self.found),
                seconds=effort.seconds if first else 1e9, least=effort.least, answers=first,
            )  # fmt: skip
            self.found = told["found"] if first else self.found
            self.times.append(told["ms"])
            self.cores.append(told["cores"])
            self.cpu.append(told["cores"] * float(np.mean(told["ms"])))
            self.loads.append(os.getloadavg()[0])
            if self.batch:
                self._batch(n, effort, answers=first)
        except WorkerError as error:
            self.failed = str(error)

    def _batch(self, n: int, effort: Effort, *, answers: bool) -> None:
        fits = int(1_000 * effort.seconds / np.median(self.times[0]))
        told = self.worker.ask(
            "search_batch", k=self.k, setting=self.setting, answers=answers,
            n=min(n, max(fits, effort.least)),
        )  # fmt: skip
        self.batch_found = told["found"] if answers else self.batch_found
        self.batches.append(told["seconds"])
        n = len(self.batch_found)
        for size in (one for one in self.sizes if one <= n):
            told = self.worker.ask(
                "search_batch", k=self.k, setting=self.setting, answers=False, n=n, at_once=size
            )
            self.sized.setdefault(size, []).append(told["seconds"])

    def row(self, truth: np.ndarray) -> dict[str, Any]:
        """What was measured; `truth` is [n_queries, at least k], -1 where there is none."""
        row: dict[str, Any] = {"engine": self.engine, "setting": self.setting, "k": self.k}
        if self.failed:
            return row | {"failed": self.failed}
        times = np.median(np.array(self.times), axis=0)
        p50, p95, p99 = np.percentile(times, (50, 95, 99))
        row |= {"n_queries": len(times), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}
        row["cores_used"] = float(np.median(self.cores))
        row["cpu_ms"] = float(np.median(self.cpu))  # a query's mean: what other work hardly moves
        row["load"] = max(self.loads)
        for k in (10, 100):
            if k <= self.k:
                row[f"recall@{k}"] = float(np.mean(shares(self.found, truth, k)))
        if self.batches:
            row["qps"] = len(self.batch_found) / float(np.median(self.batches))
            row["qps_queries"] = len(self.batch_found)
            row |= {f"qps_of_{size}": row["qps_queries"] / float(np.median(seconds))
                    for size, seconds in self.sized.items()}  # fmt: skip
            row["qps_recall"] = float(np.mean(shares(self.batch_found, truth, self.k)))
        row["shares"] = [round(x, 4) for x in shares(self.found, truth, self.k)]
        row["ms"] = [round(x, 5) for x in times.tolist()]
        return row


def shares(found: list[list[int]], truth: np.ndarray, k: int) -> list[float]:
    """For each query, how much of the exact top k is in the k documents found."""
    wanted = [{doc for doc in row[:k].tolist() if doc >= 0} for row in truth[: len(found)]]
    pairs = zip(found, wanted, strict=True)
    return [len(want.intersection(docs[:k])) / max(len(want), 1) for docs, want in pairs]


def in_turn(trials: dict[str, list[Trial]]) -> list[Trial]:
    """First settings of all engines, then the second ones, and so on."""
    return [one for one in chain.from_iterable(zip_longest(*trials.values())) if one is not None]
