# SPDX-License-Identifier: Apache-2.0
"""weft's exact float scan, without an index."""

from __future__ import annotations

import numpy as np
from engines.base import Engine, Setting, top

import weft


class Adapter(Engine):
    package = "weft"
    has_index = False
    has_batch = False

    def settings(self, k: int) -> list[Setting]:
        return [{"rows": "f16"}]

    def search(self, query: np.ndarray, k: int, setting: Setting) -> np.ndarray:
        scores = weft.maxsim(query, (self.values, self.offsets), threads=self.threads)
        return top(scores, k)

    def numbers(self, found: np.ndarray) -> list[int]:
        return found.tolist()
