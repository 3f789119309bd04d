# SPDX-License-Identifier: Apache-2.0
"""What an adapter does for its engine. It runs in the engine's own environment: NumPy at most."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

Setting = dict[str, Any]


class Engine:
    """One engine in one worker process.

    `take` and `prepare` bring documents and queries into the form the engine wants and are not
    timed; `build`, `search` and `search_batch` are. Documents are numbered from 0.
    """

    package = ""
    options: ClassVar[Setting] = {}  # of the build; another value asks for another build
    has_index = True  # False: searches what `take` was given
    has_batch = True

    def __init__(self, threads: int, device: str = "cpu") -> None:
        self.threads, self.device = threads, device

    def version(self) -> str:
        return version(self.package)

    def settings(self, k: int) -> list[Setting]:
        """The sweep along the engine's own parameters, from fast to thorough."""
        raise NotImplementedError

    def take(self, values: np.ndarray, offsets: np.ndarray, set_folder: Path) -> None:
        """Keep the documents, f16 rows in memory, in the form that `build` wants."""
        self.values, self.offsets = values, offsets

    def build(self, folder: Path) -> Setting:
        """Build an index in an empty folder; give what a row should say about it."""
        raise NotImplementedError

    def open(self, folder: Path) -> None:
        """Open a built index for searching."""

    def prepare(self, query: np.ndarray) -> Any:
        """A query, f32 rows, as `search` wants it."""
        return query

    def search(self, query: Any, k: int, setting: Setting) -> Any:
        raise NotImplementedError

    def search_batch(self, queries: list[Any], k: int, setting: Setting) -> list[Any]:
        raise NotImplementedError

    def numbers(self, found: Any) -> list[int]:
        """The documents of an answer, best first."""
        return [int(doc) for doc, _ in found]


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """The k best of all scores, best first."""
    k = min(k, len(scores))
    best = np.argpartition(-scores, k - 1)[:k]
    return best[np.argsort(-scores[best], kind="stable")]
