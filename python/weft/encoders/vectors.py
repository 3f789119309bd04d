# SPDX-License-Identifier: Apache-2.0
"""What adapters over models of one vector per text share: a text, or a window of it, is one row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from weft.encoders.windowed import WindowedEncoder
from weft.types import TokenEmbeddings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weft.encoders.windows import Piece


class VectorEncoder(WindowedEncoder):
    """Gives one row for a piece of a text; its span is all of the text that was read.

    A text without tokens of its own has no row: it is stored, but never found.
    """

    def n_rows(self, piece: Piece) -> int:
        """Give how many rows a piece of a document has."""
        return int(piece.of_text.any())

    def run(self, pieces: list[Piece], task: str) -> list[TokenEmbeddings]:
        """Encode one batch as queries or documents."""
        values = self.vectors([piece.ids for piece in pieces], task)
        return [
            TokenEmbeddings(values[row : row + 1], _span(piece)) for row, piece in enumerate(pieces)
        ]

    def vectors(self, ids: list[list[int]], task: str) -> NDArray[np.float32]:
        """Give the rows of token sequences, `[n, dim]`, in inference mode."""
        raise NotImplementedError


def _span(piece: Piece) -> NDArray[np.uint32] | None:
    if piece.spans is None:
        return None
    spans = piece.spans[piece.of_text]
    return np.array([[spans[:, 0].min(), spans[:, 1].max()]], np.uint32)
