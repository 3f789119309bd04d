# SPDX-License-Identifier: Apache-2.0
"""One engine in a process of its own: requests in, answers out, one JSON line each.

    python bench/peers/worker.py MODULE THREADS DEVICE

The standard output carries answers alone; whatever the engine prints goes to the standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
import numpy as np
from engines.base import Engine

from data import load_set

WARM_UP = 3


class Session:
    """Requests are methods; all of a request's fields are arguments."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def about(self) -> dict[str, Any]:
        names = ("options", "has_index", "has_batch")
        return {"version": self.engine.version()} | {n: getattr(self.engine, n) for n in names}

    def settings(self, k: int) -> list[dict]:
        return self.engine.settings(k)

    def take(self, folder: str) -> None:
        data = load_set(Path(folder))
        self.engine.take(np.array(data.values), np.array(data.offsets), Path(folder))

    def build(self, folder: str) -> dict[str, Any]:
        begin, cpu = time.perf_counter(), sum(os.times()[:4])
        notes = self.engine.build(Path(folder))
        times = {"build_s": time.perf_counter() - begin, "build_cpu_s": sum(os.times()[:4]) - cpu}
        return {name: round(value, 2) for name, value in times.items()} | notes

    def open(self, folder: str) -> None:
        self.engine.open(Path(folder))

    def queries(self, folder: str, order: list[int]) -> None:
        data = load_set(Path(folder))
        self.prepared = [self.engine.prepare(np.array(data.query(number))) for number in order]

    def search(
        self, k: int, setting: dict, n: int, seconds: float, least: int, answers: bool
    ) -> dict[str, Any]:
        """The first n queries one by one, fewer (but `least`) once the seconds are over."""
        for query in self.prepared[:WARM_UP]:
            self.engine.search(query, k, setting)
        times, found = [], []
        begin, cpu = time.perf_counter(), time.process_time()
        for query in self.prepared[:n]:
            start = time.perf_counter()
            one = self.engine.search(query, k, setting)
            end = time.perf_counter()
            times.append(1_000 * (end - start))
            found.append(one)
            if end - begin > seconds and len(times) >= least:
                break
        cores = (time.process_time() - cpu) / (time.perf_counter() - begin)
        numbers = [self.engine.numbers(one) for one in found] if answers else None
        return {"ms": times, "cores": cores, "found": numbers}

    def search_batch(
        self, k: int, setting: dict, n: int, answers: bool, at_once: int | None = None
    ) -> dict[str, Any]:
        """The first n queries in one call, or in calls of so many."""
        size = at_once or n
        begin, cpu = time.perf_counter(), time.process_time()
        found = []
        for first in range(0, n, size):
            queries = self.prepared[first : min(first + size, n)]
            found += self.engine.search_batch(queries, k, setting)
        seconds = time.perf_counter() - begin
        cores = (time.process_time() - cpu) / seconds
        numbers = [self.engine.numbers(one) for one in found] if answers else None
        return {"seconds": seconds, "cores": cores, "found": numbers}


def main() -> None:
    module, threads, device = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    session = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if session is None:
                adapter = importlib.import_module(f"engines.{module}").Adapter
                session = Session(adapter(threads, device))
            answer = {"ok": getattr(session, request.pop("do"))(**request)}
        except BaseException as error:  # engines panic: say so, and let the other engines go on
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
