# SPDX-License-Identifier: Apache-2.0
"""What an encoder is that makes several fields of a text in one pass of its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from weft.types import EncoderInfo, TokenEmbeddings


@dataclass(frozen=True, eq=False)
class FieldEmbeddings:
    """The fields of one text; None where the encoder does not make one.

    `multi`: the token embeddings of each of its windows, one for a query. `dense`: float32 `[dim]`.
    `sparse`: term -> weight above 0, a term being an integer.
    """

    multi: Sequence[TokenEmbeddings] | None = None
    dense: NDArray[np.float32] | None = None
    sparse: Mapping[int, float] | None = None


class FieldEncoder(Protocol):
    """Texts to fields."""

    @property
    def info(self) -> EncoderInfo:
        """What an index stores to know its encoder again; its dim is that of token embeddings."""

    def encode_queries(self, texts: Sequence[str]) -> list[FieldEmbeddings]:
        """Give the fields of each query."""

    def encode_documents(self, texts: Sequence[str]) -> list[FieldEmbeddings]:
        """Give the fields of each document."""
