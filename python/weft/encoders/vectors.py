# SPDX-License-Identifier: Apache-2.0
"""What adapters over models of one vector per text share: a text, or a window of it, is one row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

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
        values = self.vectors(pieces, task)
        return [
            TokenEmbeddings(values[row : row + 1], _span(piece)) for row, piece in enumerate(pieces)
        ]

    def vectors(self, pieces: list[Piece], task: str) -> NDArray[np.float32]:
        """Give one row for each piece, `[n, dim]`, in inference mode."""
        raise NotImplementedError


def padded(pieces: list[Piece], pad: int, step: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the token numbers and the mask of pieces, int64 `[n, length]`, padded on the right."""
    length = -(-max(len(piece.ids) for piece in pieces) // step) * step
    tokens = np.full((len(pieces), length), pad, np.int64)
    mask = np.zeros_like(tokens)
    for row, piece in enumerate(pieces):
        tokens[row, : len(piece.ids)] = piece.ids
        mask[row, : len(piece.ids)] = 1
    return torch.from_numpy(tokens), torch.from_numpy(mask)


def _span(piece: Piece) -> NDArray[np.uint32]:
    """Give the places of the text that a row stands for."""
    if piece.spans is None:
        return np.array([[piece.start, piece.start + len(piece.text)]], np.uint32)
    inside = piece.spans[piece.of_text]
    return np.array([[inside[:, 0].min(), inside[:, 1].max()]], np.uint32)
