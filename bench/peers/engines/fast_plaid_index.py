# SPDX-License-Identifier: Apache-2.0
"""fast-plaid; on a GPU with all of its index in the GPU's memory."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from engines.base import Setting
from engines.torch_lists import TorchEngine
from fast_plaid import search

SWEEP = ((1, 256), (2, 1_024), (4, 1_024), (8, 4_096), (16, 4_096), (32, 8_192))


class Adapter(TorchEngine):
    package = "fast-plaid"
    options: ClassVar[Setting] = {"nbits": 4}

    def settings(self, k: int) -> list[Setting]:
        return [{"n_ivf_probe": probe, "n_full_scores": full} for probe, full in SWEEP]

    def _index(self, folder: Path) -> search.FastPlaid:
        placed = {} if self.device == "cpu" else {"index_gpu_memory": "high"}
        return search.FastPlaid(index=str(folder), device=self.device, **placed)

    def build(self, folder: Path) -> Setting:
        self._index(folder).create(
            documents_embeddings=self.documents, n_samples_kmeans=self.sample, **self.options
        )
        return {"note": f"n_samples_kmeans={self.sample}"}

    def open(self, folder: Path) -> None:
        self.index = self._index(folder)

    def search(self, query: torch.Tensor, k: int, setting: Setting) -> list:
        return self.index.search(query[None], top_k=k, show_progress=False, **setting)[0]

    def search_batch(self, queries: list, k: int, setting: Setting) -> list:
        return self.index.search(
            queries, top_k=k, show_progress=False,
            n_processes=self.threads if self.device == "cpu" else None, **setting,
        )  # fmt: skip
