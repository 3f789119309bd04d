# SPDX-License-Identifier: Apache-2.0
"""Documents as they are stored: in one window, or in several for long ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from weft.fields import FIELDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from weft.types import Scalar

WINDOW_MARK = "\x1f"
"""Between the id of a long document and the number of one of its windows."""


def window_ids(doc_id: str, n_windows: int) -> list[str]:
    """Give the ids that the windows of a document are stored under."""
    if n_windows == 1:
        return [doc_id]
    return [f"{doc_id}{WINDOW_MARK}{number}" for number in range(n_windows)]


def document_id(stored_id: str) -> str:
    """Give the id of the document that a window belongs to."""
    return stored_id.partition(WINDOW_MARK)[0]


def starts_document(stored_id: str) -> bool:
    """Tell whether a window with such an id is the first of its document."""
    _, mark, number = stored_id.partition(WINDOW_MARK)
    return not mark or number == "0"


@dataclass(frozen=True)
class Batch:
    """Documents whose form has been checked.

    `lengths` and `spans` have one entry per window, the rest one per document. `dense` is rows of
    float16 as bytes, `sparse` packed vectors.
    """

    ids: Sequence[str]
    n_windows: Sequence[int]
    lengths: NDArray[np.int64]
    texts: Sequence[str | None]
    metadata: Sequence[dict[str, tuple[str, Scalar]]]
    spans: Sequence[bytes | None]
    dense: Sequence[bytes | None]
    sparse: Sequence[bytes | None]

    @property
    def fields(self) -> set[str]:
        """The fields of which some document has something."""
        held = {name for name in FIELDS if any(v is not None for v in getattr(self, name))}
        return held | ({"multi"} if np.any(self.lengths) else set())

    def is_same(self, other: Batch) -> bool:
        """Tell whether the other holds the same documents."""
        return np.array_equal(self.lengths, other.lengths) and all(
            list(getattr(self, name)) == list(getattr(other, name))
            for name in ("ids", "n_windows", "texts", "metadata", "spans", *FIELDS)
        )
