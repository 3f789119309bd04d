# SPDX-License-Identifier: Apache-2.0
"""Exact float brute force in NumPy: one product, one maximum a document; whole or in blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from engines.base import Engine, Setting, top


class Adapter(Engine):
    package = "numpy"
    has_index = False
    has_batch = False

    def settings(self, k: int) -> list[Setting]:
        return [{"block_tokens": 0}, {"block_tokens": 16_384}]

    def take(self, values: np.ndarray, offsets: np.ndarray, set_folder: Path) -> None:
        self.values = values.astype(np.float32)
        filled = np.flatnonzero(np.diff(offsets.astype(np.int64)))  # reduceat needs no empty ones
        self.filled, self.n_docs = filled, len(offsets) - 1
        self.offsets = np.append(offsets[filled], offsets[-1]).astype(np.int64)

    def search(self, query: np.ndarray, k: int, setting: Setting) -> np.ndarray:
        size = setting["block_tokens"] or len(self.values)
        scores = np.full(self.n_docs, -np.inf, np.float32)
        first, n = 0, len(self.filled)
        while first < n:
            last = int(np.searchsorted(self.offsets, self.offsets[first] + size, "right")) - 1
            last = min(max(last, first + 1), n)
            begin, end = self.offsets[first], self.offsets[last]
            dots = query @ self.values[begin:end].T
            best = np.maximum.reduceat(dots, self.offsets[first:last] - begin, axis=1)
            scores[self.filled[first:last]] = best.sum(axis=0)
            first = last
        return top(scores, k)

    def numbers(self, found: np.ndarray) -> list[int]:
        return found.tolist()
