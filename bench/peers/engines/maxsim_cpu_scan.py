# SPDX-License-Identifier: Apache-2.0
"""maxsim-cpu: exact float brute force over a list of documents."""

from __future__ import annotations

from pathlib import Path

import maxsim_cpu
import numpy as np
from engines.base import Engine, Setting, top


class Adapter(Engine):
    package = "maxsim-cpu"
    has_index = False
    has_batch = False

    def settings(self, k: int) -> list[Setting]:
        return [{"call": "maxsim_scores_variable"}]

    def take(self, values: np.ndarray, offsets: np.ndarray, set_folder: Path) -> None:
        wide, bounds = values.astype(np.float32), offsets.astype(np.int64)
        self.filled = np.flatnonzero(np.diff(bounds))
        self.documents = [wide[bounds[i] : bounds[i + 1]] for i in self.filled]

    def search(self, query: np.ndarray, k: int, setting: Setting) -> np.ndarray:
        scores = maxsim_cpu.maxsim_scores_variable(query, self.documents)
        return self.filled[top(np.asarray(scores), k)]

    def numbers(self, found: np.ndarray) -> list[int]:
        return found.tolist()
