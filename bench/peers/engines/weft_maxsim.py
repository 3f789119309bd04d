# SPDX-License-Identifier: Apache-2.0
"""weft's exact float scan, without an index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from engines.base import Engine, Setting, top

import weft


class Adapter(Engine):
    package = "weft"
    has_index = False
    has_batch = False

    def settings(self, k: int) -> list[Setting]:
        return [{"rows": "f16"}, {"rows": "f32"}]

    def take(self, values: np.ndarray, offsets: np.ndarray, set_folder: Path) -> None:
        self.rows = {"f16": values, "f32": values.astype(np.float32)}
        self.offsets = offsets

    def search(self, query: np.ndarray, k: int, setting: Setting) -> np.ndarray:
        documents = (self.rows[setting["rows"]], self.offsets)
        scores = weft.maxsim(query, documents, threads=self.threads)
        return top(scores, k)

    def numbers(self, found: np.ndarray) -> list[int]:
        return found.tolist()
