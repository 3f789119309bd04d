# SPDX-License-Identifier: Apache-2.0
"""Stanford's PLAID, as PyLate carries it; searched without PyLate's file of document names."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from engines.base import Setting
from engines.torch_lists import TorchEngine
from pylate.indexes.stanford_plaid import StanfordPLAID

NAME = "plaid"
SWEEP = ((1, 256, 0.5), (2, 1_024, 0.45), (4, 4_096, 0.4), (8, 8_192, 0.35))


class Adapter(TorchEngine):
    package = "pylate"
    options: ClassVar[Setting] = {"nbits": 4}
    has_batch = False

    def settings(self, k: int) -> list[Setting]:
        names = ("ncells", "ndocs", "centroid_score_threshold")
        return [dict(zip(names, values, strict=True)) for values in SWEEP]

    def build(self, folder: Path) -> Setting:
        index = StanfordPLAID(
            str(folder), NAME, override=True, embedding_size=self.documents[0].shape[1],
            **self.options,
        )  # fmt: skip
        documents = [rows.float() for rows in self.documents]
        index.add_documents([str(number) for number in range(len(documents))], documents)
        return {}

    def open(self, folder: Path) -> None:
        self.searcher = StanfordPLAID(str(folder), NAME).searcher

    def search(self, query: torch.Tensor, k: int, setting: Setting) -> list:
        self.searcher.configure(**setting)
        return self.searcher.search(query, k=k)[0]

    def numbers(self, found: list) -> list[int]:
        return list(found)
