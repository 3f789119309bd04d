# SPDX-License-Identifier: Apache-2.0
"""What a writer is given, checked and brought into one form: ids, token embeddings, texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.arrays import Embeddings, Ragged, normalized, ragged
from weft.checks import check_int
from weft.dense_vectors import DenseVectors, dense_rows
from weft.errors import InvalidArgumentError
from weft.lifecycle.documents import check_metadata, check_spans, check_text, encode_spans
from weft.lifecycle.windows import WINDOW_MARK, Batch
from weft.sparse_vectors import SparseVectors, pack, sparse_vectors, stored_form
from weft.types import Scalar, defaults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from weft.types import IndexConfig


def check_id(doc_id: object) -> str:
    """Give a document id, or refuse what cannot be one."""
    if not isinstance(doc_id, str):
        raise InvalidArgumentError(
            f"id {doc_id!r}: {type(doc_id).__name__}, expected a string; use str(id)"
        )
    check_text(doc_id, f"id {doc_id!r}")
    size = len(doc_id.encode())
    if not 1 <= size <= defaults.id_bytes:
        raise InvalidArgumentError(
            f"id {doc_id[:40]!r}: {size} bytes of UTF-8, expected 1..{defaults.id_bytes}"
        )
    if "\0" in doc_id or WINDOW_MARK in doc_id:
        raise InvalidArgumentError(f"id {doc_id!r}: expected no U+0000 and no U+001F in it")
    return doc_id


def check_each_id(ids: Sequence[str]) -> list[str]:
    """Give ids as a list, each of them an id."""
    if isinstance(ids, (str, bytes)):
        raise InvalidArgumentError(f"ids={ids!r}: expected a sequence of ids; use [id]")
    return [check_id(doc_id) for doc_id in ids]


def check_ids(ids: Sequence[str]) -> list[str]:
    """Give ids as a list, each of them an id and none of them twice."""
    checked = check_each_id(ids)
    seen: set[str] = set()
    for doc_id in checked:
        if doc_id in seen:
            raise InvalidArgumentError(f"id {doc_id!r}: twice in one call, expected it once")
        seen.add(doc_id)
    return checked


def check_batch(
    ids: list[str],
    embeddings: Embeddings | None,
    config: IndexConfig,
    texts: Sequence[str | None] | None,
    metadata: Sequence[Mapping[str, Scalar] | None] | None,
    spans: Sequence[Any] | None,
    lengths: object,
    parents: Sequence[int] | None,
    dense: DenseVectors | None,
    sparse: SparseVectors | None,
) -> tuple[Batch, Iterator[NDArray[np.float16]]]:
    """Give documents with what belongs to them, and their rows; the parameters are `Writer.add`'s.

    Rows are looked at while they are walked over: that may raise `InvalidArgumentError` too.
    """
    n_windows = _windows_per_document(parents, len(ids))
    owners = np.repeat(np.arange(len(ids)), n_windows)
    first_windows = np.cumsum([0, *n_windows])

    def name(window: int) -> str:
        if window >= len(owners):
            return f"embedding {window}"
        doc = int(owners[window])
        if n_windows[doc] == 1:
            return f"document {ids[doc]!r}"
        return f"document {ids[doc]!r}, window {window - int(first_windows[doc])}"

    if embeddings is None:
        if dense is None and sparse is None:
            raise InvalidArgumentError(
                "embeddings: found NoneType, expected some, or dense= or sparse="
            )
        found = Ragged((), np.zeros(len(owners) + 1, np.uint64))
    else:
        found = ragged(embeddings, config.dim, name=name, lengths=lengths)
    if len(found) != len(owners):
        raise InvalidArgumentError(
            f"embeddings: found {len(found)} of them, expected {len(owners)}, "
            f"one for each {'id' if parents is None else 'entry of parents'}"
        )
    _check_sizes(found, owners, ids)
    checked_texts = _per_document("texts", texts, len(ids))
    for doc_id, text in zip(ids, checked_texts, strict=True):
        if text is not None:
            check_text(text, f"document {doc_id!r}: text")
    checked_metadata = [
        {} if given is None else check_metadata(given, f"document {doc_id!r}")
        for doc_id, given in zip(ids, _per_document("metadata", metadata, len(ids)), strict=True)
    ]
    bounds = found.offsets.astype(np.int64)
    token_counts = bounds[1:] - bounds[:-1]
    places = [
        None
        if given is None
        else encode_spans(check_spans(given, int(n), checked_texts[owner], name(window)))
        for window, (given, n, owner) in enumerate(
            zip(
                _per_document("spans", spans, len(owners)),
                token_counts,
                owners.tolist(),
                strict=True,
            )
        )
    ]
    batch = Batch(
        ids,
        n_windows,
        token_counts,
        checked_texts,
        checked_metadata,
        places,
        _dense(dense, ids, config),
        _sparse(sparse, ids, config),
    )
    return batch, _unit_rows(found, name)


def _dense(given: DenseVectors | None, ids: list[str], config: IndexConfig) -> list[bytes | None]:
    if given is None:
        return [None] * len(ids)
    if config.dense is None:
        raise InvalidArgumentError(
            "dense: the index has no such field; make it with IndexConfig(dense=DenseConfig(dim))"
        )
    return dense_rows(given, ids, config.dense)


def _sparse(given: SparseVectors | None, ids: list[str], config: IndexConfig) -> list[bytes | None]:
    if given is None:
        return [None] * len(ids)
    if config.sparse is None:
        raise InvalidArgumentError(
            "sparse: the index has no such field; make it with IndexConfig(sparse=SparseConfig())"
        )
    vectors = sparse_vectors(given, lambda i: f"document {ids[i]!r}" if i < len(ids) else f"{i}")
    if len(vectors) != len(ids):
        raise InvalidArgumentError(f"sparse: found {len(vectors)} vectors, expected {len(ids)}")
    stored = [
        stored_form(vector, config.sparse, f"document {doc_id!r}", query=False)
        for doc_id, vector in zip(ids, vectors, strict=True)
    ]
    return [pack(vector) if len(vector.terms) else None for vector in stored]


def _check_sizes(found: Ragged, owners: NDArray[np.int64], ids: list[str]) -> None:
    ends = np.flatnonzero(np.diff(owners, append=-1)) + 1
    sizes = np.diff(found.offsets[ends].astype(np.int64), prepend=0)
    if len(sizes) and sizes.max() > defaults.segment_tokens:
        doc = int(sizes.argmax())
        raise InvalidArgumentError(
            f"document {ids[doc]!r}: {sizes[doc]} token embeddings, "
            f"expected at most {defaults.segment_tokens}"
        )


def _windows_per_document(parents: Sequence[int] | None, n_docs: int) -> list[int]:
    if parents is None:
        return [1] * n_docs
    numbers = [check_int(f"parents[{i}]", parent, 0) for i, parent in enumerate(parents)]
    counts = np.bincount(numbers, minlength=n_docs).tolist() if numbers else [0] * n_docs
    if numbers != sorted(numbers) or len(counts) != n_docs or 0 in counts:
        raise InvalidArgumentError(
            f"parents: expected positions in ids, 0..{n_docs - 1}, ascending, each at least once"
        )
    return counts


def _per_document(name: str, given: Sequence[Any] | None, n: int) -> list[Any]:
    if given is None:
        return [None] * n
    if isinstance(given, (str, bytes, Mapping)):
        raise InvalidArgumentError(
            f"{name}: found {type(given).__name__}, expected a sequence of {n}"
        )
    found = list(given)
    if len(found) != n:
        raise InvalidArgumentError(f"{name}: found {len(found)} of them, expected {n}")
    return found


def _unit_rows(found: Ragged, name: Callable[[int], str]) -> Iterator[NDArray[np.float16]]:
    """Walk over the rows as float16 of unit length; refuse the first that has none."""
    first = 0
    for block in found.blocks():
        rows, bad, reason = normalized(block)
        if bad >= 0:
            window = int(np.searchsorted(found.offsets, first + bad, side="right")) - 1
            row = first + bad - int(found.offsets[window])
            raise InvalidArgumentError(
                f"{name(window)}, row {row}: {reason}, "
                f"expected finite values, not all zero; drop the row"
            )
        yield rows
        first += len(rows)
