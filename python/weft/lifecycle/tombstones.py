# SPDX-License-Identifier: Apache-2.0
"""What a writer has deleted and not committed yet: the tombstones of the next generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from weft.lifecycle.bitmaps import n_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from weft.lifecycle.snapshot import OpenSegment, Place


@dataclass
class _Changed:
    """The tombstones of one segment with what is newly deleted, and how much that is in all."""

    words: NDArray[np.uint64]
    lengths: NDArray[np.uint32]
    n_docs: int
    n_windows: int
    n_empty: int
    n_tokens: int

    @classmethod
    def of(cls, segment: OpenSegment) -> _Changed:
        lengths, old = segment.native.lengths(), segment.entry.tombstones
        if old is None or segment.deleted is None:
            return cls(np.zeros(n_words(len(lengths)), np.uint64), lengths, 0, 0, 0, 0)
        words = segment.deleted.copy()
        return cls(words, lengths, old.n_docs, old.n_windows, old.n_empty, old.n_tokens)

    def add(self, first: int, n_windows: int) -> None:
        for window in range(first, first + n_windows):
            self.words[window >> 6] |= np.uint64(1 << (window & 63))
        n_tokens = int(self.lengths[first : first + n_windows].sum())
        self.n_docs += 1
        self.n_windows += n_windows
        self.n_empty += n_tokens == 0
        self.n_tokens += n_tokens


class Deletions:
    """What a writer has deleted from the segments of a snapshot since its last commit."""

    def __init__(self, segments: Sequence[OpenSegment]) -> None:
        self._segments = segments
        self.changed: dict[int, _Changed] = {}
        self.words = [segment.deleted for segment in segments]
        """Of each segment: its tombstones, with what is newly deleted."""

    def add(self, place: Place) -> None:
        """Delete all windows of a document that is there."""
        if place.segment not in self.changed:
            changed = _Changed.of(self._segments[place.segment])
            self.changed[place.segment] = changed
            self.words[place.segment] = changed.words
        self.changed[place.segment].add(place.first, place.n_windows)
