# SPDX-License-Identifier: Apache-2.0
"""Sparse vectors as they are given: checked, pruned, and packed for the spool."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from weft.errors import InvalidArgumentError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from numpy.typing import NDArray

    from weft.fields import SparseConfig

SparseVectors: TypeAlias = Any
"""A scipy.sparse matrix (n, any); or a sequence of mappings, term -> weight, where a term is an
integer or its decimal digits. Weights are at least 0."""

MAX_TERM = 2**31 - 2
_DIGITS = re.compile(r"[0-9]{1,10}")
IMPACT_UNIT = 100


class Terms(NamedTuple):
    """A sparse vector: terms, int32, ascending, and their weights, float32, or int32 as impacts."""

    terms: NDArray[np.int32]
    weights: NDArray[Any]


def require_scipy() -> ModuleType:
    """Give scipy.sparse."""
    try:
        import scipy.sparse
    except ImportError as error:
        raise MissingExtraError("scipy", "hybrid") from error
    return scipy.sparse  # type: ignore[no-any-return]


def sparse_vectors(given: SparseVectors, name: Callable[[int], str]) -> list[Terms]:
    """Give sparse vectors in one form, weights of 0 left out; `name` names number i in messages.

    Raises
    ------
    InvalidArgumentError
        Something else, a term that cannot be, or a weight that is not finite or below 0; names it.
    """
    if hasattr(given, "tocsr"):
        return _of_matrix(given, name)
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Sequence):
        raise InvalidArgumentError(
            f"sparse: found {type(given).__name__}, expected a scipy.sparse matrix or a sequence "
            f"of mappings, term -> weight"
        )
    return [_of_mapping(one, name(number)) for number, one in enumerate(given)]


def _of_matrix(matrix: Any, name: Callable[[int], str]) -> list[Terms]:  # noqa: ANN401
    if len(matrix.shape) != 2:
        raise InvalidArgumentError(
            f"sparse: a matrix of shape {matrix.shape}, expected two dimensions, a row each"
        )
    if matrix.shape[1] > MAX_TERM + 1:
        raise InvalidArgumentError(f"sparse: {matrix.shape[1]} columns, expected {MAX_TERM + 1}")
    matrix = matrix.tocsr(copy=True)
    matrix.sum_duplicates()
    terms, bounds = matrix.indices.astype(np.int32), matrix.indptr.tolist()
    weights = _checked(matrix.data, terms, lambda at: name(_row_of(matrix.indptr, at)))
    return [
        _without_zeros(terms[first:last], weights[first:last]) for first, last in pairwise(bounds)
    ]


def _row_of(indptr: NDArray[Any], at: int) -> int:
    return int(np.searchsorted(indptr, at, side="right")) - 1


def _of_mapping(given: object, what: str) -> Terms:
    if not isinstance(given, Mapping):
        raise InvalidArgumentError(
            f"{what}: found {type(given).__name__}, expected a mapping, term -> weight"
        )
    numbers = [_term(term, what) for term in given]
    terms = np.array(numbers, np.int64)
    order = np.argsort(terms)
    ascending = terms[order].astype(np.int32)
    if len(terms) and (np.diff(ascending) == 0).any():
        raise InvalidArgumentError(f"{what}: a term comes twice, as an integer and as digits")
    try:
        values = np.array(list(given.values()), np.float64)[order]
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{what}: weights: {error}, expected numbers") from error
    return _without_zeros(ascending, _checked(values, ascending, lambda _: what))


def _term(term: object, what: str) -> int:
    number: Any = term
    if isinstance(term, np.integer) or (isinstance(term, str) and _DIGITS.fullmatch(term)):
        number = int(term)
    if type(number) is not int or not 0 <= number <= MAX_TERM:
        raise InvalidArgumentError(f"{what}: term {term!r}, expected an integer in 0..{MAX_TERM}")
    return number


def _checked(
    values: NDArray[Any], terms: NDArray[np.int32], name: Callable[[int], str]
) -> NDArray[np.float32]:
    if values.dtype.kind not in "iuf" or values.ndim != 1:
        raise InvalidArgumentError(f"{name(0)}: weights of type {values.dtype}, expected numbers")
    with np.errstate(over="ignore"):
        weights = values.astype(np.float32)
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(wrong):
        at = int(wrong[0])
        raise InvalidArgumentError(
            f"{name(at)}: term {terms[at]} has weight {values[at]}, "
            f"expected a finite number of at least 0"
        )
    return weights


def _without_zeros(terms: NDArray[np.int32], weights: NDArray[np.float32]) -> Terms:
    kept = weights > 0
    return Terms(terms[kept], weights[kept])


def pruned(vector: Terms, most: int | None) -> Terms:
    """Keep the largest weights; of equal ones those of the smaller terms."""
    if most is None or len(vector.terms) <= most:
        return vector
    kept = np.sort(np.argsort(-vector.weights, kind="stable")[:most])
    return Terms(vector.terms[kept], vector.weights[kept])


def as_impacts(vector: Terms, what: str) -> Terms:
    """Make every weight w the integer ceil(100 w), w being a float32; `what` names the vector."""
    impacts = np.ceil(IMPACT_UNIT * vector.weights.astype(np.float64))
    if len(impacts) and impacts.max() > 2**31 - 1:
        raise InvalidArgumentError(
            f"{what}: weight {vector.weights.max()} is too large for an impact, expected at most "
            f"{(2**31 - 1) // IMPACT_UNIT}"
        )
    return Terms(vector.terms, impacts.astype(np.int32))


def stored_form(vector: Terms, config: SparseConfig, what: str, *, query: bool) -> Terms:
    """Give a vector, named `what`, pruned, and as impacts where the field has them."""
    vector = pruned(vector, config.query_terms if query else config.document_terms)
    return as_impacts(vector, what) if config.impacts else vector


def pack(vector: Terms) -> bytes:
    """Give a vector as bytes: terms, then weights, 4 bytes each."""
    return vector.terms.tobytes() + vector.weights.tobytes()


def unpack(blob: bytes, dtype: np.dtype[Any]) -> Terms:
    """Give the vector that `pack` made bytes of."""
    half = len(blob) // 2
    return Terms(np.frombuffer(blob[:half], np.int32), np.frombuffer(blob[half:], dtype))
