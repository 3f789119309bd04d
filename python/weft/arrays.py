# SPDX-License-Identifier: Apache-2.0
"""Matrices of token embeddings -> contiguous numpy arrays that the engine takes.

A ragged set of documents comes as a sequence of matrices, as packed `(values, offsets)`, or padded
with `lengths`; it is walked in blocks, so that nothing is copied whole.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from weft import _native
from weft.checks import check_int
from weft.errors import InvalidArgumentError
from weft.host_arrays import BFLOAT16, host_array

Embeddings: TypeAlias = Any
"""A sequence of (n_tokens, dim) arrays; or a tuple of values (n_tokens, dim) and offsets (n + 1,);
or a padded (n, longest, dim) array with `lengths`."""

BLOCK_ROWS = 65_536
_FLOATS = ("float16", "bfloat16", "float32", "float64")


class Rows(NamedTuple):
    """A C-contiguous matrix of float32 or float16, or of bfloat16 seen as uint16."""

    values: NDArray[Any]
    bfloat16: bool

    def float32(self) -> NDArray[np.float32]:
        """Give the rows as float32; no copy where they are."""
        if self.bfloat16:
            return (self.values.astype(np.uint32) << 16).view(np.float32)
        return np.ascontiguousarray(self.values, np.float32)


def _shape(array: NDArray[Any]) -> str:
    return " x ".join(map(str, array.shape)) or "a single number"


def matrix(value: object, dim: int | None, what: str) -> NDArray[Any]:
    """Give `value` as a 2-D array of floats, still borrowed, with `dim` columns (None: any)."""
    array = host_array(value, what)
    if array.ndim != 2:
        hint = "; for one token embedding use x[None, :]" if array.ndim == 1 else ""
        raise InvalidArgumentError(
            f"{what}: found {array.ndim} dimensions ({_shape(array)}), "
            f"expected a 2-D array (n_tokens, dim){hint}"
        )
    _check_floats(array, what)
    found = array.shape[1]
    if found == 0 or (dim is not None and found != dim):
        raise InvalidArgumentError(f"{what}: dim {found}, expected {dim or 'at least 1'}")
    return array


def _check_floats(array: NDArray[Any], what: str) -> None:
    dtype = array.dtype
    if dtype.kind == "f" and dtype.itemsize <= 8:
        return
    if dtype == BFLOAT16 or dtype.name == "bfloat16":
        return
    raise InvalidArgumentError(f"{what}: dtype {dtype}, expected one of {', '.join(_FLOATS)}")


def contiguous(array: NDArray[Any]) -> Rows:
    """Give a matrix of floats as what the engine takes; a copy only where it must be."""
    if array.dtype == BFLOAT16 or array.dtype.name == "bfloat16":
        return Rows(np.ascontiguousarray(array).view(np.uint16), bfloat16=True)
    if array.dtype.name == "float16":
        return Rows(np.ascontiguousarray(array, np.float16), bfloat16=False)
    with np.errstate(over="ignore"):  # what overflows is refused as not finite
        return Rows(np.ascontiguousarray(array, np.float32), bfloat16=False)


@dataclass(frozen=True)
class Ragged:
    """Matrices of several rows each, borrowed from the caller.

    Matrix i has the rows [offsets[i], offsets[i + 1]) of the whole.
    """

    parts: Sequence[NDArray[Any]]
    offsets: NDArray[np.uint64]

    def __len__(self) -> int:
        """Count the matrices."""
        return len(self.offsets) - 1

    def blocks(self, max_rows: int = BLOCK_ROWS) -> Iterator[Rows]:
        """Walk over all rows in contiguous blocks of at most `max_rows`."""
        waiting: list[NDArray[Any]] = []
        n_waiting = 0
        for part in self.parts:
            for first in range(0, len(part), max_rows):
                piece = part[first : first + max_rows]
                if waiting and (
                    n_waiting + len(piece) > max_rows or piece.dtype != waiting[0].dtype
                ):
                    yield contiguous(_joined(waiting))
                    waiting, n_waiting = [], 0
                waiting.append(piece)
                n_waiting += len(piece)
        if waiting:
            yield contiguous(_joined(waiting))

    def packed(self, dim: int) -> NDArray[Any]:
        """Give all rows as one float32 or float16 matrix; borrowed where it can be."""
        blocks = [
            rows.float32() if rows.bfloat16 else rows.values
            for rows in self.blocks(max_rows=sys.maxsize)
        ]
        if len(blocks) == 1:
            return blocks[0]
        return (
            np.concatenate(blocks, dtype=np.float32) if blocks else np.empty((0, dim), np.float32)
        )


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def ragged(
    embeddings: Embeddings,
    dim: int | None,
    *,
    name: Callable[[int], str],
    lengths: object = None,
) -> Ragged:
    """Check the form of a ragged set of matrices and give it, still borrowed.

    Parameters
    ----------
    embeddings
        See `Embeddings`.
    dim
        Columns that every matrix must have; None: those of the first.
    name
        Names matrix i in messages.
    lengths
        Rows that count in each matrix of a padded array.
    """
    if isinstance(embeddings, (str, bytes, dict)):
        raise InvalidArgumentError(
            f"embeddings: found {type(embeddings).__name__}, expected a sequence of 2-D arrays"
        )
    if isinstance(embeddings, tuple) and len(embeddings) == 2:
        values, offsets = (host_array(value, "embeddings") for value in embeddings)
        if values.ndim == 2 and offsets.ndim == 1:
            if lengths is not None:
                raise InvalidArgumentError("lengths: not with (values, offsets), which tell them")
            return _from_packed(values, offsets, dim)
    if hasattr(embeddings, "shape"):
        array = host_array(embeddings, "embeddings")
        return _from_padded(array, lengths, dim)
    if lengths is not None:
        raise InvalidArgumentError("lengths: expected only with a padded 3-D array")
    try:
        items = list(embeddings)
    except TypeError:
        raise InvalidArgumentError(
            f"embeddings: found {type(embeddings).__name__}, expected a sequence of 2-D arrays"
        ) from None
    parts: list[NDArray[Any]] = []
    for i, item in enumerate(items):
        parts.append(matrix(item, dim, name(i)))
        dim = parts[0].shape[1]
    offsets = np.zeros(len(parts) + 1, np.uint64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return Ragged(parts, offsets)


def _from_packed(values: NDArray[Any], given: NDArray[Any], dim: int | None) -> Ragged:
    values = matrix(values, dim, "values")
    offsets = _integers(given, "offsets")
    if len(offsets) == 0 or offsets[0] != 0:
        raise InvalidArgumentError("offsets: expected n + 1 entries beginning with 0")
    falls = np.flatnonzero(np.diff(offsets) < 0)
    if len(falls):
        at = int(falls[0]) + 1
        raise InvalidArgumentError(
            f"offsets: entry {at} is {offsets[at]}, smaller than the one before it "
            f"({offsets[at - 1]})"
        )
    if offsets[-1] != len(values):
        raise InvalidArgumentError(
            f"offsets: the last is {offsets[-1]}, expected the number of rows, {len(values)}"
        )
    return Ragged([values], offsets.astype(np.uint64))


def _from_padded(array: NDArray[Any], given: object, dim: int | None) -> Ragged:
    if array.ndim == 2:
        raise InvalidArgumentError(
            f"embeddings: found one 2-D array ({_shape(array)}), expected a sequence of them; "
            f"for a single one use [array]"
        )
    if array.ndim != 3:
        raise InvalidArgumentError(
            f"embeddings: found {array.ndim} dimensions, expected a sequence of 2-D arrays"
        )
    if given is None:
        raise InvalidArgumentError(
            "embeddings: a 3-D array may be padded, expected lengths= beside it; "
            "where every row counts, pass list(array)"
        )
    _check_floats(array, "embeddings")
    lengths = _integers(host_array(given, "lengths"), "lengths")
    if len(lengths) != len(array):
        raise InvalidArgumentError(
            f"lengths: found {len(lengths)} of them, expected one for each of {len(array)} matrices"
        )
    wrong = np.flatnonzero((lengths < 0) | (lengths > array.shape[1]))
    if len(wrong):
        at = int(wrong[0])
        raise InvalidArgumentError(
            f"lengths: entry {at} is {lengths[at]}, expected 0..{array.shape[1]}"
        )
    parts = [matrix(array[i, : int(n)], dim, "embeddings") for i, n in enumerate(lengths)]
    offsets = np.zeros(len(parts) + 1, np.uint64)
    np.cumsum(lengths, out=offsets[1:])
    return Ragged(parts, offsets)


def _integers(array: NDArray[Any], what: str) -> NDArray[np.int64]:
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidArgumentError(
            f"{what}: found {array.ndim}-D {array.dtype}, expected a 1-D array of integers"
        )
    return array.astype(np.int64)


def normalized(rows: Rows) -> tuple[NDArray[np.float16], int, str]:
    """Give the rows as float16 of unit length, the number of the first bad one (or -1), and why."""
    values, bad, reason = _native.normalize_rows(rows.values, rows.bfloat16)
    return values, bad, "NaN or infinite" if reason == 1 else "all zero"


def query_rows(query: object, dim: int | None, what: str = "query") -> NDArray[np.float32]:
    """Give one query as a contiguous float32 matrix, checked: not empty, finite, no zero row."""
    array = matrix(query, dim, what)
    if len(array) == 0:
        raise InvalidArgumentError(f"{what}: empty, expected at least one token embedding")
    rows = contiguous(array).float32()
    check_rows(rows, lambda row: f"{what}, row {row}")
    return rows


def check_rows(rows: NDArray[Any], name: Callable[[int], str]) -> None:
    """Refuse a row that is not finite or all zero."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(rows.sum()) and rows.any(axis=1).all():
            return  # nearly always, and a tenth of the time
        sums = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    wrong = np.flatnonzero(~(np.isfinite(sums) & (sums > 0)))
    if len(wrong):
        row = int(wrong[0])
        found = "all zero" if sums[row] == 0 else "NaN or infinite"
        raise InvalidArgumentError(f"{name(row)}: {found}, expected finite values, not all zero")


def crc32c(data: bytes, start: int = 0) -> int:
    """Give the CRC-32C (Castagnoli) of some bytes, continuing from `start`."""
    return _native.crc32c(data, start)


def maxsim(
    query: object,
    docs: Embeddings,
    *,
    lengths: object = None,
    clip_negative: bool = False,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Score documents against a query exactly: sum over query rows of the best dot product.

    Parameters
    ----------
    query
        `(n_tokens, dim)`; used as given, as are the documents: nothing is scaled.
    docs
        One `(n_tokens, dim)` array per document; or packed `(values, offsets)`; or padded 3-D with
        `lengths`. float64 is rounded to float32.
    lengths
        Rows that count in each document of a padded array.
    clip_negative
        Whether the best dot product of a query row is at least 0, as in the CPU search of Stanford
        ColBERT; its GPU search, and weft by default, add negative ones.
    threads
        None: as many as the process may use.

    Returns
    -------
    float32 `[n_docs]`; minus infinity for a document without rows.

    Examples
    --------
    >>> import numpy as np, weft
    >>> weft.maxsim(np.eye(2, 4), [np.eye(4), -np.eye(4)])
    array([2., 0.], dtype=float32)
    """
    rows = query_rows(query, None)
    found = ragged(docs, rows.shape[1], name=lambda i: f"document {i}", lengths=lengths)
    values, offsets = found.packed(rows.shape[1]), found.offsets
    if clip_negative:
        rows, values, offsets = _clipped(rows, values, offsets)
    return _native.maxsim(rows, values, offsets, check_threads(threads))


def _clipped(
    query: NDArray[np.float32], values: NDArray[np.float32], offsets: NDArray[np.uint64]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint64]]:
    """Give each document with rows one more, whose dot product with every query row is 0.

    Rows cannot be zero, so it stands in a dimension of its own.
    """
    full = offsets[1:] > offsets[:-1]
    values = np.insert(np.pad(values, ((0, 0), (0, 1))), offsets[1:][full].astype(np.int64), 0, 0)
    offsets = offsets + np.concatenate([[0], np.cumsum(full)]).astype(np.uint64)
    values[offsets[1:][full].astype(np.int64) - 1, -1] = 1
    return np.pad(query, ((0, 0), (0, 1))), values, offsets


def check_threads(threads: int | None) -> int:
    """Give the number of threads as the engine takes it: 0 chooses."""
    return 0 if threads is None else check_int("threads", threads, 1, 1_024)
