# SPDX-License-Identifier: Apache-2.0
"""xtr-warp-rs. It ranks by XTR's score with estimates, not by MaxSim."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
import xtr_warp
from engines.base import Setting
from engines.torch_lists import TorchEngine

NARROW = ({"auto": True}, {"nprobe": 4}, {"nprobe": 8}, {"nprobe": 16}, {"nprobe": 32})
WIDE = ((32, 2_048), (64, 4_096), (128, 8_192))


class Adapter(TorchEngine):
    package = "xtr-warp-rs"
    options: ClassVar[Setting] = {"nbits": 4}

    def settings(self, k: int) -> list[Setting]:
        everything = {"centroid_score_threshold": 0.0, "max_candidates": 2**31 - 1}
        wide = [{"nprobe": probe, "bound": bound, **everything} for probe, bound in WIDE]
        return [*NARROW, *wide]

    def build(self, folder: Path) -> Setting:
        xtr_warp.search.XTRWarp(index=str(folder), device=self.device).create(
            self.documents, device=self.device, n_samples_kmeans=self.sample, show_progress=False,
            **self.options,
        )  # fmt: skip
        return {"note": f"n_samples_kmeans={self.sample}"}

    def open(self, folder: Path) -> None:
        self.index = xtr_warp.search.XTRWarp(index=str(folder), device=self.device)
        self.index.load(device=self.device, dtype=torch.float32, mmap=self.device == "cpu")

    def search(self, query: torch.Tensor, k: int, setting: Setting) -> list:
        return self._search([query], k, setting)[0]

    def search_batch(self, queries: list, k: int, setting: Setting) -> list:
        return self._search(queries, k, setting)

    def _search(self, queries: list, k: int, setting: Setting) -> list:
        how = {} if "auto" in setting else setting
        return self.index.search(
            queries, top_k=k, num_threads=self.threads, show_progress=False, **how
        )
