# SPDX-License-Identifier: Apache-2.0
"""What an index may hold of a document beside its token embeddings: a dense and a sparse vector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from weft.checks import check_int
from weft.errors import InvalidArgumentError

FIELDS = ("dense", "sparse")
"""Fields beside `multi`, which every index has; each is a file of a segment."""


@dataclass(frozen=True)
class DenseConfig:
    """The field `dense`: one vector per document, stored as a document of one token is.

    Parameters
    ----------
    dim
        Values in a vector, 1 to 4,096.
    max_norm
        None: vectors are scaled to unit length and scores are cosines. A number: scores are plain
        inner products, and no document's vector may be longer than that.
    nbits, rerank
        As for `IndexConfig`; they count from as many vectors on as an index has a codec from.

    Notes
    -----
    The inner product takes one dimension more: a document d is stored as the unit vector
    [d, sqrt(max_norm^2 - |d|^2)] / max_norm, and a query as [q, 0], so that scores are those of
    the inner product divided by max_norm.

    Examples
    --------
    >>> import weft
    >>> weft.IndexConfig(dense=weft.DenseConfig(dim=384)).dense.dim
    384
    """

    dim: int
    max_norm: float | None = None
    nbits: int = 4
    rerank: Literal["plane", "f16", "auto"] | None = "auto"

    def __post_init__(self) -> None:
        """Check what `IndexConfig` does not."""
        object.__setattr__(self, "dim", check_int("dense.dim", self.dim, 1, 4_096))
        norm = self.max_norm
        if norm is not None:
            number = isinstance(norm, (int, float)) and not isinstance(norm, bool)
            if not number or not 0 < norm < math.inf:
                raise InvalidArgumentError(
                    f"dense.max_norm={norm!r}: expected a finite number above 0, or None"
                )
            object.__setattr__(self, "max_norm", float(norm))


@dataclass(frozen=True)
class SparseConfig:
    """The field `sparse`: weights of terms, which are numbers; the score is the dot product.

    Parameters
    ----------
    document_terms, query_terms
        Keep only so many of the largest weights of a document and of a query; of equal ones those
        of the smaller terms. None keeps all.
    impacts
        Make every weight w the integer ceil(100 w), on both sides. Scores are the integer dot
        products divided by 10,000.

    Examples
    --------
    >>> import weft
    >>> weft.IndexConfig(sparse=weft.SparseConfig(document_terms=192, query_terms=50)).fields
    ('sparse',)
    """

    document_terms: int | None = None
    query_terms: int | None = None
    impacts: bool = False

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("document_terms", "query_terms"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, check_int(f"sparse.{name}", value, 1))
        if not isinstance(self.impacts, bool):
            raise InvalidArgumentError(f"sparse.impacts={self.impacts!r}: expected True or False")
