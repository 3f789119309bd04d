# SPDX-License-Identifier: Apache-2.0
"""Brute force in torch: bfloat16 products of blocks of documents, a maximum a document, a sum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from engines.base import Setting
from engines.torch_lists import TorchEngine

BLOCK_TOKENS = 1 << 20
QUERIES_AT_ONCE = 16


class Adapter(TorchEngine):
    package = "torch"
    has_index = False

    def settings(self, k: int) -> list[Setting]:
        return [{"dtype": "bfloat16"}]

    def take(self, values: np.ndarray, offsets: np.ndarray, set_folder: Path) -> None:
        self.rows = torch.from_numpy(values).to(self.device, torch.bfloat16)
        bounds = offsets.astype(np.int64)
        self.filled = np.flatnonzero(np.diff(bounds))  # an empty document is never found
        bounds = np.append(bounds[self.filled], bounds[-1])
        starts = np.searchsorted(bounds, np.arange(0, bounds[-1], BLOCK_TOKENS))
        cuts = np.unique([*starts.clip(0, len(self.filled)), len(self.filled)])
        lengths = torch.from_numpy(np.diff(bounds)).to(self.device)
        self.blocks = [
            (int(bounds[a]), int(bounds[b]), lengths[a:b])
            for a, b in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)
        ]

    def search(self, query: torch.Tensor, k: int, setting: Setting) -> list[int]:
        return self.search_batch([query], k, setting)[0]

    def search_batch(self, queries: list, k: int, setting: Setting) -> list[list[int]]:
        found = []
        for first in range(0, len(queries), QUERIES_AT_ONCE):
            found += self._search(queries[first : first + QUERIES_AT_ONCE], k)
        return found

    def _search(self, queries: list[torch.Tensor], k: int) -> list[list[int]]:
        asked = torch.cat(queries).to(self.device, torch.bfloat16)
        owner = torch.tensor([i for i, one in enumerate(queries) for _ in one], device=self.device)
        scores = []
        for begin, end, lengths in self.blocks:
            dots = (self.rows[begin:end] @ asked.T).float()
            best = torch.segment_reduce(dots, "max", lengths=lengths, axis=0, unsafe=True)
            sums = torch.zeros(len(lengths), len(queries), device=self.device)
            scores.append(sums.index_add_(1, owner, best))
        all_scores = torch.cat(scores)
        best = all_scores.topk(min(k, len(all_scores)), dim=0).indices.T.cpu().numpy()
        return self.filled[best].tolist()

    def numbers(self, found: list[int]) -> list[int]:
        return found
