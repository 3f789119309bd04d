# SPDX-License-Identifier: Apache-2.0
"""TACHIOM: token-aware clustering, product quantisation, HNSW over the centroids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tachiom
from engines.base import Engine, Setting

NOTHING = 2**32 - 1  # fills answers that have fewer than k documents
WIDE = ((20, 1_000, 30), (40, 1_000, 60), (80, 2_000, 120), (160, 4_000, 240))
NARROW = {10: ((4, 50), (4, 100), (10, 200)), 100: ((4, 200), (10, 200), (10, 400))}


class Adapter(Engine):
    package = "tachiom"

    def settings(self, k: int) -> list[Setting]:
        narrow = [{"k_centroids": c, "k_docs_to_score": docs} for c, docs in NARROW[k]]
        wide = [
            {"k_centroids": c, "k_docs_to_score": docs, "ef_search": ef, "alpha": None}
            for c, docs, ef in WIDE
        ]
        return [*narrow, {"default": True}, *wide]

    def take(self, values: np.ndarray, offsets: np.ndarray, set_folder: Path) -> None:
        self.values, self.lengths = values, np.diff(offsets.astype(np.int64)).astype(np.int32)
        path = set_folder / "token_ids.npy"
        if not path.exists():
            raise FileNotFoundError(f"{path}: TACHIOM clusters by token; run token_ids.py first")
        self.token_ids = np.load(path).astype(np.uint32)

    def build(self, folder: Path) -> Setting:
        index = tachiom.Tachiom.build_from_arrays(
            self.values.view(np.uint16), self.token_ids, self.lengths
        )
        index.save(str(folder / "index.bin"))
        return {"note": "vocabulary numbers from token_ids.npy"}

    def open(self, folder: Path) -> None:
        self.index = tachiom.Tachiom.load(str(folder / "index.bin"))

    def search(self, query: np.ndarray, k: int, setting: Setting) -> np.ndarray:
        return self.index.search(query, k, **_how(setting))[1]

    def search_batch(self, queries: list, k: int, setting: Setting) -> list:
        bounds = np.cumsum([0, *map(len, queries)]).astype(np.uint64)
        return list(
            self.index.batch_search(
                np.concatenate(queries), len(queries), k,
                offsets=bounds, num_threads=self.threads, **_how(setting),
            )[1]
        )  # fmt: skip

    def numbers(self, found: np.ndarray) -> list[int]:
        return [doc for doc in found.tolist() if doc != NOTHING]


def _how(setting: Setting) -> Setting:
    return {} if "default" in setting else setting
