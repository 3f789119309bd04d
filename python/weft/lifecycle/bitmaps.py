# SPDX-License-Identifier: Apache-2.0
"""Sets of windows of a segment: bit i % 64 of word i // 64 stands for window i."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def n_words(n_windows: int) -> int:
    """Count the words that a bit per window takes."""
    return (n_windows + 63) // 64


def is_set(words: NDArray[np.uint64], window: int) -> bool:
    """Tell whether the bit of a window is set."""
    return bool(int(words[window >> 6]) >> (window & 63) & 1)


def as_mask(words: NDArray[np.uint64] | None, n_windows: int) -> NDArray[np.bool_]:
    """Give a bool per window; all False where there is no bitmap."""
    if words is None:
        return np.zeros(n_windows, np.bool_)
    return np.unpackbits(words.view(np.uint8), count=n_windows, bitorder="little").view(np.bool_)


def from_mask(mask: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Give the bitmap of a bool per window."""
    words = np.zeros(n_words(len(mask)), np.uint64)
    packed = np.packbits(mask, bitorder="little")
    words.view(np.uint8)[: len(packed)] = packed
    return words
