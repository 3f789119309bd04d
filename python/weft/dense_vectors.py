# SPDX-License-Identifier: Apache-2.0
"""Dense vectors as they are given, and as the engine stores them: rows of one-token documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from weft.arrays import contiguous, matrix, normalized, query_rows
from weft.errors import InvalidArgumentError
from weft.host_arrays import host_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weft.fields import DenseConfig

DenseVectors: TypeAlias = Any
"""An array (n, dim), as for token embeddings; or a sequence of vectors, None where none is."""

NORM_ROUNDING = 1e-6
"""By so much a vector may be longer than max_norm, which is taken from rounded numbers."""


def dense_rows(given: DenseVectors, ids: Sequence[str], config: DenseConfig) -> list[bytes | None]:
    """Give the row that is stored for each document: float16 of unit length, as bytes.

    Raises
    ------
    InvalidArgumentError
        Another number or dim of them; one that is not finite, all zero where scores are cosines, or
        longer than `max_norm`: names the document.
    """
    if hasattr(given, "shape"):
        rows = matrix(given, config.dim, "dense")
        _require_each(len(rows), ids)
        present = list(range(len(rows)))
    else:
        if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
            raise InvalidArgumentError(
                f"dense: found {type(given).__name__}, expected an array (n, {config.dim}) or a "
                f"sequence of vectors"
            )
        _require_each(len(given), ids)
        vectors = list(given)
        present = [i for i, vector in enumerate(vectors) if vector is not None]
        rows = _stacked({ids[i]: vectors[i] for i in present}, config.dim)
    if config.max_norm is not None:
        rows = _with_the_rest(rows, [ids[i] for i in present], config.max_norm)
    unit, bad, reason = normalized(contiguous(rows))
    if bad >= 0:
        raise InvalidArgumentError(
            f"document {ids[present[bad]]!r}: dense vector {reason}, "
            f"expected finite values, not all zero"
        )
    stored: list[bytes | None] = [None] * len(ids)
    for place, row in zip(present, unit, strict=True):
        stored[place] = row.tobytes()
    return stored


def _require_each(n_vectors: int, ids: Sequence[str]) -> None:
    if n_vectors != len(ids):
        raise InvalidArgumentError(f"dense: found {n_vectors} vectors, expected {len(ids)}")


def _stacked(vectors: dict[str, Any], dim: int) -> NDArray[Any]:
    arrays = []
    for doc_id, vector in vectors.items():
        array = host_array(vector, f"document {doc_id!r}: dense vector")
        if array.shape != (dim,):
            raise InvalidArgumentError(
                f"document {doc_id!r}: dense vector of shape {array.shape}, expected ({dim},)"
            )
        arrays.append(array)
    return matrix(np.stack(arrays), dim, "dense") if arrays else np.empty((0, dim), np.float32)


def _with_the_rest(rows: NDArray[Any], ids: Sequence[str], max_norm: float) -> NDArray[np.float32]:
    """Add to each row what it lacks of `max_norm`, in a dimension of its own."""
    values = contiguous(rows).float32().astype(np.float64)
    squares = np.einsum("ij,ij->i", values, values)
    wrong = np.flatnonzero(~(squares <= (max_norm * (1 + NORM_ROUNDING)) ** 2))
    if len(wrong):
        at = int(wrong[0])
        raise InvalidArgumentError(
            f"document {ids[at]!r}: dense vector of length {np.sqrt(squares[at]):.6g}, "
            f"expected at most max_norm={max_norm:.6g}"
        )
    rest = np.sqrt(np.maximum(max_norm**2 - squares, 0.0))
    return np.concatenate([values, rest[:, None]], axis=1).astype(np.float32)


def dense_query(given: object, config: DenseConfig) -> tuple[NDArray[np.float32], float]:
    """Give the one row that is searched for, and what its scores are to be multiplied with.

    Raises
    ------
    InvalidArgumentError
        Not one vector of the field's dim, or one that is not finite or all zero.
    """
    array = host_array(given, "dense query")
    if array.ndim == 2 and len(array) == 1:
        array = array[0]
    if array.ndim != 1:
        raise InvalidArgumentError(
            f"dense query: found {array.ndim} dimensions, expected one vector ({config.dim},)"
        )
    row = query_rows(array[None, :], config.dim, "dense query")
    if config.max_norm is not None:
        return np.pad(row, ((0, 0), (0, 1))), config.max_norm
    unit = row.astype(np.float64)
    return (unit / np.linalg.norm(unit)).astype(np.float32), 1.0
