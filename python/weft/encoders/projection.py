# SPDX-License-Identifier: Apache-2.0
"""A linear map from a model's hidden states to the token embeddings of an index.

It is an uncentred principal component analysis: of all maps to `dim` dimensions, the one that keeps
most of the sum of squares of the rows it was fitted on, hence most of their dot products. It is not
centred, since MaxSim compares directions from the origin. The matrix travels as base64 of its
little-endian float32 values in the settings of `EncoderInfo`: it is small (196 kB at 384 x 128),
belongs to the encoder's identity, and is covered by the checksum of whatever stores it.
"""

from __future__ import annotations

import base64
import logging
from typing import TYPE_CHECKING

import numpy as np

from weft.errors import InvalidArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger("weft")


def fit_projection(rows: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """Give the first `dim` principal axes of `rows`, uncentred.

    Parameters
    ----------
    rows
        float32 `[n, n_hidden]`, unit length. From few rows the axes beyond their span are
        arbitrary; fewer than ten a dimension are warned about.
    dim
        How many axes.

    Returns
    -------
    float32 `[n_hidden, dim]`, orthonormal columns; each points to where its largest component is
    positive, so that the same rows give the same matrix.
    """
    if len(rows) < 10 * dim:
        logger.warning(
            "the projection to %d dimensions is fitted on %d tokens only: it suits these texts, "
            "but perhaps not what is added later; expected at least %d", dim, len(rows), 10 * dim,
        )  # fmt: skip
    gram = np.zeros((rows.shape[1], rows.shape[1]))
    for block in np.array_split(rows, max(1, len(rows) // 16_384)):
        gram += (block.T @ block).astype(np.float64)
    axes = np.linalg.eigh(gram)[1][:, ::-1][:, :dim]
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(dim)])
    return np.ascontiguousarray(axes, np.float32)


def projection_to_text(matrix: NDArray[np.float32]) -> str:
    """Write a matrix as ASCII text."""
    return base64.b64encode(matrix.astype("<f4").tobytes()).decode("ascii")


def projection_from_text(text: str, n_hidden: int, dim: int) -> NDArray[np.float32]:
    """Read back what `projection_to_text` wrote."""
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InvalidArgumentError(f"projection: not base64 ({error})") from error
    if len(raw) != 4 * n_hidden * dim:
        raise InvalidArgumentError(
            f"projection: {len(raw)} bytes, expected {4 * n_hidden * dim} for {n_hidden} x {dim}"
        )
    return np.frombuffer(raw, "<f4").reshape(n_hidden, dim).astype(np.float32)
