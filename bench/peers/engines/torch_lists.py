# SPDX-License-Identifier: Apache-2.0
"""What the engines on torch have in common: lists of tensors, and torch's own thread count."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from engines.base import Engine

FEW_DOCUMENTS = 5_000


class TorchEngine(Engine):
    def __init__(self, threads: int, device: str = "cpu") -> None:
        super().__init__(threads, device)
        torch.set_num_threads(threads)

    def take(self, values: np.ndarray, offsets: np.ndarray, set_folder: Path) -> None:
        rows, bounds = torch.from_numpy(values), offsets.astype(np.int64).tolist()
        self.documents = [rows[a:b] for a, b in pairwise(bounds)]

    @property
    def sample(self) -> int | None:
        """Documents that k-means sees; larger sets would take hours with all that is sampled."""
        few = self.device != "cpu" or len(self.documents) <= FEW_DOCUMENTS
        return None if few else 2_000

    def prepare(self, query: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(query)
