# SPDX-License-Identifier: Apache-2.0
"""A class in the shape of `fast_plaid.search.FastPlaid`."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.checks import check_int
from weft.errors import InvalidArgumentError, MissingExtraError, NotFoundError
from weft.exporting import stored_documents, stored_rows
from weft.integrations.shapes import (
    Store,
    documents,
    queries,
    require,
    require_cpu,
    search_params,
    subsets,
    warn,
)
from weft.lifecycle.storage import os_errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from weft.index import Index
    from weft.searcher import Searcher
    from weft.types import Hits, Scalar

PROBE, FULL = 8, 4_096
COUNTER = "next number"
"""Id of an empty document, which is never found: its metadata hold the number that comes next."""


class FastPlaid:
    """A weft index where a `FastPlaid` is expected.

    A document is named by its number, from 0 in the order of insertion. A number stays with its
    document and never returns, where fast-plaid moves all of them up after a deletion.

    Parameters
    ----------
    index
        The folder of the index; it is opened if it is there.
    device
        None or "cpu".
    low_memory, index_gpu_memory, index_memory_fraction, search_memory_fraction
        There is only host memory: accepted at their defaults.

    Raises
    ------
    InvalidArgumentError
        Another value of those; or the folder holds an index of fast-plaid: names the command that
        takes it over.
    DeviceError
        Another device.

    Examples
    --------
    >>> import numpy as np
    >>> from weft.integrations.fast_plaid import FastPlaid  # was: from fast_plaid.search
    >>> index = FastPlaid(index="plaid-shaped.index")
    >>> _ = index.create([np.eye(8)[:3], np.eye(8)[3:]])
    >>> index.search(np.eye(8)[None, 4:6], top_k=1)
    [[(1, 2.0)]]
    """

    def __init__(
        self,
        index: str,
        device: str | list[str] | None = None,
        low_memory: bool | str | None = None,
        index_gpu_memory: str = "auto",
        index_memory_fraction: float = 0.7,
        search_memory_fraction: float = 0.5,
    ) -> None:
        require("low_memory", low_memory, (None, True, False, "auto"))
        require("index_gpu_memory", index_gpu_memory, ("auto",))
        require("index_memory_fraction", index_memory_fraction, (0.7,))
        require("search_memory_fraction", search_memory_fraction, (0.5,))
        require_cpu(device)
        self.index = index
        self._store = Store(Path(index))

    def create(
        self,
        documents_embeddings: Any,  # noqa: ANN401
        kmeans_niters: int = 4,
        max_points_per_centroid: int = 256,
        nbits: int = 4,
        n_samples_kmeans: int | None = None,
        batch_size: int = 25_000,
        seed: int = 42,
        use_triton_kmeans: bool | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        start_from_scratch: int = 1_000,
        compress_only: bool = False,
    ) -> FastPlaid:
        """Make an index of these documents; one that is there gives way when it is finished.

        `documents_embeddings`: a list of `(n_tokens, dim)` arrays or tensors, or one 3-D tensor.
        `metadata`: one dictionary per document; None is left out, a date becomes its ISO text.
        """
        require("max_points_per_centroid", max_points_per_centroid, (256,))
        require("n_samples_kmeans", n_samples_kmeans, (None,))
        require("batch_size", batch_size, (25_000,))
        require("use_triton_kmeans", use_triton_kmeans, (None, False))
        require("start_from_scratch", start_from_scratch, (1_000,))
        require("compress_only", compress_only, (False,))
        path = self._store.path
        beside = path.with_name(f"{path.name}.creating")
        rows = documents(documents_embeddings)
        if not rows:
            raise InvalidArgumentError("documents_embeddings: none, expected at least one")
        shutil.rmtree(beside, ignore_errors=True)
        made = Store(beside).make(int(rows[0].shape[-1]), nbits, kmeans_niters, seed)
        _add(made, rows, metadata)
        if self._store.index is not None:
            self._store.index.writer().rollback()  # refused while another writes
        with os_errors("replace", path):
            if path.is_dir():
                replaced = path.with_name(f"{path.name}.replaced")
                shutil.rmtree(replaced, ignore_errors=True)  # of a call that was interrupted here
                path.rename(replaced)
                beside.rename(path)
                shutil.rmtree(replaced)
            else:
                beside.rename(path)
        self._store = Store(path)
        return self

    def update(
        self,
        documents_embeddings: Any,  # noqa: ANN401
        metadata: Sequence[Mapping[str, Any]] | None = None,
        batch_size: int = 25_000,
        kmeans_niters: int = 4,
        max_points_per_centroid: int = 256,
        n_samples_kmeans: int | None = None,
        seed: int = 42,
        start_from_scratch: int = 999,
        buffer_size: int = 100,
        use_triton_kmeans: bool | None = False,
    ) -> FastPlaid:
        """Add documents in one commit; they are found as soon as it returns."""
        require("max_points_per_centroid", max_points_per_centroid, (256,))
        require("n_samples_kmeans", n_samples_kmeans, (None,))
        require("batch_size", batch_size, (25_000,))
        require("use_triton_kmeans", use_triton_kmeans, (None, False))
        require("start_from_scratch", start_from_scratch, (999,))
        require("buffer_size", buffer_size, (100,))
        rows = documents(documents_embeddings)
        if rows:
            dim = int(rows[0].shape[-1])
            _add(self._store.make(dim, 4, kmeans_niters, seed), rows, metadata)
        return self

    def delete(self, subset: Sequence[int]) -> FastPlaid:
        """Delete documents by their numbers, in one commit; unknown ones are no error."""
        warn("numbers stay with their documents: none moves up after a deletion, as in fast-plaid")
        ids = [str(check_int("subset", number, 0)) for number in subset]
        self._searcher()
        assert self._store.index is not None
        self._store.index.delete(ids)
        return self

    def search(
        self,
        queries_embeddings: Any,  # noqa: ANN401
        top_k: int = 10,
        batch_size: int | str = "auto",
        n_full_scores: int = FULL,
        n_ivf_probe: int = PROBE,
        show_progress: bool = True,
        subset: Sequence[Sequence[int]] | Sequence[int] | None = None,
        n_processes: int | None = None,
    ) -> list[list[tuple[int, float]]]:
        """Give (number, score) of the best documents of each query, best first.

        Parameters
        ----------
        queries_embeddings
            `(n_queries, n_tokens, dim)`, or a list of matrices; zero rows are padding.
        subset
            Numbers that may be returned, one list for all queries or one for each; an empty list
            gives nothing.
        n_processes
            Threads of the search.
        n_full_scores, n_ivf_probe
            At their defaults the search has a measured recall; other numbers set `ncandidates` and
            `nprobe` of `SearchParams`, with a `CompatibilityWarning`.
        """
        _, _, answers = self._search(
            queries_embeddings, top_k, batch_size, n_full_scores, n_ivf_probe, subset, n_processes
        )
        return [[(_number(hit.id), hit.score) for hit in hits] for hits in answers]

    def search_token_scores(
        self,
        queries_embeddings: Any,  # noqa: ANN401
        top_k: int = 10,
        batch_size: int | str = "auto",
        n_full_scores: int = FULL,
        n_ivf_probe: int = PROBE,
        show_progress: bool = True,
        subset: Sequence[Sequence[int]] | Sequence[int] | None = None,
        n_processes: int | None = None,
    ) -> list[list[tuple[int, float, Any]]]:
        """Give (number, score, similarities) as `search` does.

        Similarities are a torch tensor `[query tokens, document tokens]` over the stored rows.
        """
        searcher, rows, answers = self._search(
            queries_embeddings, top_k, batch_size, n_full_scores, n_ivf_probe, subset, n_processes
        )
        found = []
        for query, hits in zip(rows, answers, strict=True):
            tokens = stored_rows(searcher, hits.ids)
            found.append(
                [
                    (_number(hit.id), hit.score, _tensor(query @ stored.T))
                    for hit, stored in zip(hits, tokens, strict=True)
                ]
            )
        return found

    def get_embeddings(self, subset: Sequence[int]) -> list[Any]:
        """Give the stored rows of documents as torch tensors, float32 `[n_tokens, dim]`.

        Raises
        ------
        NotFoundError
            There is no such number.
        """
        ids = [str(check_int("subset", number, 0)) for number in subset]
        return [_tensor(rows) for rows in stored_rows(self._searcher(), ids)]

    def close(self) -> None:
        """Let the open files go."""
        self._store = Store(self._store.path)

    def __enter__(self) -> FastPlaid:
        """Give itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let the open files go."""
        self.close()

    def _search(
        self,
        queries_embeddings: Any,  # noqa: ANN401
        top_k: int,
        batch_size: int | str,
        n_full_scores: int,
        n_ivf_probe: int,
        subset: Sequence[Any] | None,
        n_processes: int | None,
    ) -> tuple[Searcher, list[Any], list[Hits]]:
        require("batch_size", batch_size, ("auto", 2_000))
        searcher = self._searcher(n_processes)
        rows = queries(queries_embeddings)
        params = search_params(top_k, n_ivf_probe, n_full_scores, (PROBE, FULL))
        if subset is None:
            return searcher, rows, list(searcher.search_batch(rows, top_k, params=params))
        answers = [
            searcher.search(query, top_k, params=params, allow=[str(number) for number in allow])
            for query, allow in zip(rows, subsets(subset, len(rows)), strict=True)
        ]
        return searcher, rows, answers

    def _searcher(self, threads: int | None = None) -> Searcher:
        searcher = self._store.searcher(threads)
        if searcher is None:
            raise NotFoundError(f"{self._store.path}: no index there yet; create() makes one")
        return searcher


def _add(index: Index, rows: list[Any], metadata: Sequence[Mapping[str, Any]] | None) -> None:
    """Add documents under the next numbers, and note the one after them, in one commit."""
    fields = None if metadata is None else [_plain(document) for document in metadata]
    with index.writer() as writer:
        first = _next_number(index)
        writer.add([str(first + i) for i in range(len(rows))], rows, metadata=fields)
        empty = np.empty((0, index.config.dim), np.float32)
        writer.upsert([COUNTER], [empty], metadata=[{"next": first + len(rows)}])


def _next_number(index: Index) -> int:
    """Give the number noted at the last change; after an import, that behind the largest."""
    try:
        return int(index.documents([COUNTER])[0].metadata["next"])
    except NotFoundError:
        return max((_number(document.id) for document in stored_documents(index)), default=-1) + 1


def _number(doc_id: str) -> int:
    if not doc_id.isdecimal():
        raise InvalidArgumentError(
            f"id {doc_id!r}: expected a number, which is how this class names documents"
        )
    return int(doc_id)


def _plain(fields: Mapping[str, Any]) -> dict[str, Scalar]:
    """Give metadata as fast-plaid's SQLite would keep them."""
    return {
        name: value.isoformat() if isinstance(value, date) else value
        for name, value in fields.items()
        if value is not None
    }


def _tensor(array: Any) -> Any:  # noqa: ANN401
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "encode") from error
    return torch.from_numpy(np.ascontiguousarray(array))
