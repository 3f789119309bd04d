# SPDX-License-Identifier: Apache-2.0
"""weft as a user has it: tuned operating points, and settings by hand."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
from engines.base import Engine, Setting

import weft

NAMES = ("budget", "ncandidates", "nskim", "nrefine", "nrerank")
BY_HAND = {
    10: ((1_000, 100, 0, 30, 20), (3_000, 200, 0, 50, 20), (10_000, 500, 0, 100, 20),
         (20_000, 1_000, 0, 200, 20), (50_000, 2_000, 0, 400, 30), (5_000, 500, 100, 20, 20),
         (20_000, 1_000, 200, 40, 20), (50_000, 2_000, 400, 40, 20)),
    100: ((5_000, 300, 0, 120, 100), (10_000, 500, 0, 200, 150), (20_000, 1_000, 0, 300, 150),
          (50_000, 2_000, 0, 500, 200), (100_000, 4_000, 0, 1_000, 300),
          (20_000, 1_000, 400, 150, 150), (50_000, 2_000, 600, 200, 150),
          (100_000, 4_000, 1_200, 300, 200)),
}  # fmt: skip
EVERY = {"exhaustive": True, "nrerank": 0}  # by codes alone, all of it on the device
KNOWN = {field.name for field in dataclasses.fields(weft.SearchParams)}


class Adapter(Engine):
    package = "weft"

    def settings(self, k: int) -> list[Setting]:
        tuned = [{"recall": target} for target in (0.8, 0.9, 0.95, 0.99, 1.0)]
        by_hand = [dict(zip(NAMES, point, strict=True)) for point in BY_HAND[k]]
        if self.device != "cpu":
            by_hand.append(EVERY)
        if "nskim" not in KNOWN:  # a release from before that stage
            by_hand = [point for point in by_hand if not point.pop("nskim", 0)]
        return by_hand + tuned

    def build(self, folder: Path) -> Setting:
        seen: dict[str, float] = {}

        def progress(stage: str, _done: int, _total: int) -> None:
            seen.setdefault(stage, time.perf_counter())

        index = weft.Index.create(folder, weft.IndexConfig(dim=self.values.shape[1]))
        with index.writer(device=self.device, threads=self.threads, progress=progress) as writer:
            ids = [str(number) for number in range(len(self.offsets) - 1)]
            writer.add(ids, (self.values, self.offsets))
        tuning = seen["commit"] - seen["truth"] if "truth" in seen else 0.0
        return {"tuning_s": round(tuning, 2)}

    def open(self, folder: Path) -> None:
        index = weft.Index.open(folder)
        self.searcher = index.searcher(device=self.device, threads=self.threads)

    def search(self, query: np.ndarray, k: int, setting: Setting) -> weft.Hits:
        return self.searcher.search(query, k, **_how(setting))

    def search_batch(self, queries: list, k: int, setting: Setting) -> list:
        return list(self.searcher.search_batch(queries, k, **_how(setting)))

    def numbers(self, found: weft.Hits) -> list[int]:
        return [int(name) for name in found.ids]


def _how(setting: Setting) -> Setting:
    return setting if "recall" in setting else {"params": weft.SearchParams(**setting)}
