# SPDX-License-Identifier: Apache-2.0
"""A class in the shape of `pylate.indexes.PLAID`, which `pylate.retrieve.ColBERT` takes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from weft.errors import InvalidArgumentError
from weft.exporting import stored_rows
from weft.integrations.shapes import (
    Store,
    documents,
    queries,
    require,
    require_cpu,
    search_params,
    subsets,
)
from weft.lifecycle.storage import os_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

PROBE, FULL = 8, 8_192


class RerankResult(TypedDict):
    """A document and its score, as PyLate gives it."""

    id: str
    score: float


class PLAID:
    """A weft index where PyLate's `PLAID` is expected.

    Ids are strings; a document whose id is there already is replaced; `subset=[]` gives nothing.

    Parameters
    ----------
    index_folder, index_name
        The index is the folder `index_folder/index_name`; it is opened if it is there.
    override
        Remove that index first.
    nbits, kmeans_niters, seed
        Of the codec, where the index is made now; 4 rounds of k-means mean weft's own number.
    n_ivf_probe, n_full_scores
        At their defaults searches have a measured recall; other numbers set `nprobe` and
        `ncandidates` of `SearchParams`, with a `CompatibilityWarning`.
    num_threads
        Of a search.
    show_progress, low_memory
        Nothing is shown, and there is only host memory.
    use_fast, max_points_per_centroid, n_samples_kmeans, use_triton, batch_size, device
        Accepted at their defaults; `device` may be "cpu".

    Raises
    ------
    InvalidArgumentError
        Another value of those; or the folder holds an index of PyLate: names the command that takes
        it over.
    DeviceError
        Another device.

    Examples
    --------
    >>> import numpy as np
    >>> from weft.integrations.pylate import PLAID  # was: from pylate.indexes import PLAID
    >>> index = PLAID(index_folder="indexes", index_name="notes")
    >>> _ = index.add_documents(["a", "b"], [np.eye(8)[:3], np.eye(8)[3:]])
    >>> index([np.eye(8)[4:6]], k=1)
    [[{'id': 'b', 'score': 2.0}]]
    """

    is_end_to_end_index = True

    def __init__(
        self,
        index_folder: str = "indexes",
        index_name: str = "colbert",
        override: bool = False,
        use_fast: bool = True,
        nbits: int = 4,
        kmeans_niters: int = 4,
        max_points_per_centroid: int = 256,
        n_samples_kmeans: int | None = None,
        seed: int = 42,
        use_triton: bool | None = None,
        n_ivf_probe: int = PROBE,
        n_full_scores: int = FULL,
        batch_size: int = 1 << 18,
        num_threads: int | None = None,
        show_progress: bool = True,
        device: str | list[str] | None = None,
        low_memory: bool = False,
    ) -> None:
        require("use_fast", use_fast, (True,))
        require("max_points_per_centroid", max_points_per_centroid, (256,))
        require("n_samples_kmeans", n_samples_kmeans, (None,))
        require("use_triton", use_triton, (None, False))
        require("batch_size", batch_size, (1 << 18,))
        require("show_progress", show_progress, (True, False))
        require("low_memory", low_memory, (True, False))
        require_cpu(device)
        self.index_folder, self.index_name = index_folder, index_name
        self.nbits, self.kmeans_niters, self.seed = nbits, kmeans_niters, seed
        self.n_ivf_probe, self.n_full_scores = n_ivf_probe, n_full_scores
        self.num_threads = num_threads
        path = Path(index_folder) / index_name
        self._store = Store(path)
        if override and self._store.index is not None:
            self._store.index.writer().rollback()  # refused while another writes
            with os_errors("remove", path):
                shutil.rmtree(path)
            self._store = Store(path)

    def add_documents(
        self,
        documents_ids: str | Sequence[str],
        documents_embeddings: Any,  # noqa: ANN401
        batch_size: int = 2_000,
    ) -> PLAID:
        """Add documents, or replace those that have their ids, in one commit; give the index back.

        `documents_embeddings`: a list of `(n_tokens, dim)` arrays or tensors, or one 3-D array.
        """
        require("batch_size", batch_size, (2_000,))
        ids = [documents_ids] if isinstance(documents_ids, str) else list(documents_ids)
        rows = documents(documents_embeddings)
        if rows:
            index = self._store.make(
                int(rows[0].shape[-1]), self.nbits, self.kmeans_niters, self.seed
            )
            index.upsert(ids, rows)
        return self

    def update_documents(
        self,
        documents_ids: Sequence[str],
        documents_embeddings: Any,  # noqa: ANN401
    ) -> PLAID:
        """Replace documents, or add them where they are not there: what `add_documents` does."""
        return self.add_documents(documents_ids, documents_embeddings)

    def remove_documents(self, documents_ids: Sequence[str]) -> PLAID:
        """Delete documents in one commit; ids that are not there are no error."""
        if self._store.index is not None:
            self._store.index.delete(list(documents_ids))
        return self

    def __call__(
        self,
        queries_embeddings: Any,  # noqa: ANN401
        k: int = 10,
        subset: Sequence[Sequence[str]] | Sequence[str] | None = None,
    ) -> list[list[RerankResult]]:
        """Give the k best documents of each query, best first.

        `subset`: ids that may be returned, one list for all queries or one for each.
        """
        searcher = self._store.searcher(self.num_threads)
        if searcher is None:
            raise InvalidArgumentError(f"{self._store.path}: no documents there yet; add some")
        rows = queries(queries_embeddings)
        params = search_params(k, self.n_ivf_probe, self.n_full_scores, (PROBE, FULL))
        allowed = subsets(subset, len(rows))
        if subset is None:
            answers = searcher.search_batch(rows, k, params=params)
        else:
            answers = tuple(
                searcher.search(query, k, params=params, allow=allow)
                for query, allow in zip(rows, allowed, strict=True)
            )
        return [[{"id": hit.id, "score": hit.score} for hit in hits] for hits in answers]

    def get_documents_embeddings(
        self, document_ids: Sequence[Sequence[str]]
    ) -> list[list[NDArray[np.float32]]]:
        """Give the token embeddings of documents, list by list: what is stored of them.

        Raises
        ------
        NotFoundError
            An id is unknown.
        """
        searcher = self._store.searcher(self.num_threads)
        if searcher is None:
            raise InvalidArgumentError(f"{self._store.path}: no documents there yet; add some")
        return [stored_rows(searcher, ids) for ids in document_ids]
