# SPDX-License-Identifier: Apache-2.0
"""What a manifest says of each file, codec and segment."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.types import OperatingPoint, defaults

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class FileEntry:
    """Size and checksum of a file.

    The checksum of a segment is that of its header and table, which hold those of its arrays; of a
    codec, that of all it says; of any other file, that of all its bytes.
    """

    size: int
    checksum: str


@dataclass(frozen=True)
class CodecEntry:
    """The codec file and the size of its tree.

    `n_tokens` is what it is made for, `n_trained` how many there were when it was trained.
    """

    file: str
    n_coarse: int
    n_fine: int
    n_tokens: int
    n_trained: int


@dataclass(frozen=True)
class TombstonesEntry:
    """The deleted documents of a segment: the file that says which, and how much of it they are."""

    file: str
    n_docs: int
    n_windows: int
    n_empty: int
    n_tokens: int


@dataclass(frozen=True)
class SegmentEntry:
    """One segment: its name, what it holds, its fields, and whether it has a file of documents.

    `n_docs` counts documents, `n_windows` what they are stored as, `n_empty` documents without
    tokens; deleted ones are counted too, since they are still stored. `drift` is the share of its
    tokens that lay beyond the error of the codec when they were encoded, `dense_drift` that of its
    dense vectors; None without codes.
    """

    name: str
    n_docs: int
    n_windows: int
    n_empty: int
    n_tokens: int
    documents: bool
    tombstones: TombstonesEntry | None = None
    fields: tuple[str, ...] = ()
    drift: float | None = None
    dense_drift: float | None = None

    @classmethod
    def new(
        cls,
        lengths: NDArray[np.uint32],
        starts: NDArray[np.int64],
        *,
        documents: bool,
        fields: tuple[str, ...],
        drift: float | None,
        dense_drift: float | None,
    ) -> SegmentEntry:
        """Name a segment to come: the tokens of its windows, the first windows of its documents."""
        per_document = np.add.reduceat(lengths.astype(np.int64), starts)
        return cls(
            name=f"seg-{uuid.uuid4().hex}",
            n_docs=len(starts),
            n_windows=len(lengths),
            n_empty=int(np.count_nonzero(per_document == 0)),
            n_tokens=int(per_document.sum()),
            documents=documents,
            fields=fields,
            drift=drift,
            dense_drift=dense_drift,
        )

    @property
    def file(self) -> str:
        """Codes, lists and ids."""
        return self.field_file("multi")

    def field_file(self, field: str) -> str:
        """Give the file of a field."""
        return f"{self.name}.{field}.weft"

    @property
    def documents_file(self) -> str:
        """Texts, metadata and places of tokens."""
        return f"{self.name}.docs.sqlite"

    @property
    def files(self) -> tuple[str, ...]:
        """Every file of the segment."""
        documents = (self.documents_file,) if self.documents else ()
        tombstones = () if self.tombstones is None else (self.tombstones.file,)
        return (self.file, *map(self.field_file, self.fields), *documents, *tombstones)

    def live(self, count: str) -> int:
        """Give one of the counts without what is deleted."""
        deleted = 0 if self.tombstones is None else getattr(self.tombstones, count)
        return int(getattr(self, count)) - int(deleted)

    @property
    def deleted_share(self) -> float:
        """How much of it is deleted, by tokens and windows, which is what it stores."""
        left = self.live("n_tokens") + self.live("n_windows")
        return 1.0 - left / max(self.n_tokens + self.n_windows, 1)


@dataclass(frozen=True)
class Tuning:
    """How the operating points were found.

    `queries` is "given queries" or "sampled documents", `truth` is "rows" where recall was measured
    against the original rows and "stored" where against the best that segments keep of them.
    """

    queries: str
    n_queries: int
    n_tokens: int
    truth: str

    @property
    def is_sampled(self) -> bool:
        """Whether nobody has given queries to tune with."""
        return self.queries == "sampled documents"

    def is_outgrown(self, n_tokens: int) -> bool:
        """Whether so many tokens are to be tuned for; what somebody's own queries gave is kept."""
        return self.is_sampled and n_tokens >= defaults.tune_growth * self.n_tokens


@dataclass(frozen=True)
class DenseEntry:
    """What the dense vectors of all segments have in common."""

    codec: CodecEntry | None = None
    operating_points: tuple[OperatingPoint, ...] = ()
    tuning: Tuning | None = None

    def to_json(self) -> dict[str, Any]:
        """Give the fields as JSON values."""
        return asdict(self)
