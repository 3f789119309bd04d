# SPDX-License-Identifier: Apache-2.0
"""What the drop-in classes share: arguments in their peers' shapes, and the index under them."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

from weft.arrays import contiguous, matrix
from weft.errors import DeviceError, InvalidArgumentError
from weft.index import Index
from weft.types import IndexConfig, SearchParams

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from weft.searcher import Searcher


class CompatibilityWarning(UserWarning):
    """Something is done otherwise than by the engine whose class is stood in for."""


def warn(message: str) -> None:
    """Warn at the line that called the drop-in class."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals["__name__"].startswith("weft."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, CompatibilityWarning, stacklevel=level + 1)


def require(name: str, value: object, allowed: Collection[object]) -> None:
    """Refuse a value of an argument that would be ignored."""
    if value not in allowed:
        raise InvalidArgumentError(
            f"{name}={value!r}: means nothing in weft; leave it out, or give "
            f"{' or '.join(map(repr, allowed))}"
        )


def require_cpu(device: str | list[str] | None) -> None:
    """Refuse a device that the drop-in classes do not run on."""
    if device not in (None, "cpu", ["cpu"]):
        raise DeviceError(
            f'device={device!r}: expected "cpu", where this class builds and searches'
        )


def documents(embeddings: Any) -> list[Any]:  # noqa: ANN401
    """Give a matrix for each document, from a list of them, one alone, or a 3-D array."""
    items = list(embeddings) if getattr(embeddings, "ndim", 3) == 3 else [embeddings]
    return [item[0] if getattr(item, "ndim", 2) == 3 else item for item in items]


def queries(embeddings: Any) -> list[NDArray[np.float32]]:  # noqa: ANN401
    """Give the rows of each query without the all-zero ones: padding, which scores nothing."""
    found = []
    for i, item in enumerate(documents(embeddings)):
        rows = contiguous(matrix(item, None, f"query {i}")).float32()
        found.append(rows[rows.any(axis=1)])
    return found


def subsets(given: Sequence[Any] | None, n_queries: int) -> list[Any]:
    """Give what each query may return, from one list for all of them, or one for each."""
    if given is None or not given or not isinstance(given[0], list | tuple):
        return [given] * n_queries
    if len(given) != n_queries:
        raise InvalidArgumentError(f"subset: {len(given)} lists, expected one for each of "
                                   f"{n_queries} queries")  # fmt: skip
    return list(given)


def search_params(
    k: int, n_ivf_probe: int, n_full_scores: int, defaults: tuple[int, int]
) -> SearchParams | None:
    """Give None, which means weft's operating point, for the peer's defaults."""
    if (n_ivf_probe, n_full_scores) == defaults:
        return None
    warn(
        f"n_ivf_probe={n_ivf_probe} and n_full_scores={n_full_scores} set nprobe and ncandidates, "
        f"which are not the same work; without them weft searches at a measured recall"
    )
    return SearchParams(nprobe=n_ivf_probe, ncandidates=max(n_full_scores, 40)).widened(k)


class Store:
    """A weft index in a folder, which is made when its first documents tell the dim."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._searchers: dict[int | None, Searcher] = {}
        self.index: Index | None = None
        if path.is_dir() and any(path.iterdir()):
            if not any(path.glob("manifest-*.json")):
                raise InvalidArgumentError(
                    f"{path}: not a weft index; take it over with: weft import NEW.index {path}"
                )
            self.index = Index.open(path)

    def make(self, dim: int, nbits: int, kmeans_niters: int, seed: int) -> Index:
        """Give the index, made if there is none."""
        if self.index is None:
            rounds = IndexConfig.kmeans_iterations if kmeans_niters == 4 else kmeans_niters
            config = IndexConfig(dim=dim, nbits=nbits, kmeans_iterations=rounds, seed=seed)
            self.index = Index.create(self.path, config)
        return self.index

    def searcher(self, threads: int | None = None) -> Searcher | None:
        """Give the newest generation, open; None where there is no index."""
        if self.index is None:
            return None
        self.index.refresh()
        found = self._searchers.get(threads)
        if found is None or found.generation != self.index.generation:
            found = self._searchers[threads] = self.index.searcher(threads=threads)
        return found
