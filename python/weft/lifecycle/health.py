# SPDX-License-Identifier: Apache-2.0
"""What an index says of itself: what it holds, what is wrong with it, what a repair has kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weft.types import EncoderInfo, IndexConfig, OperatingPoint


@dataclass(frozen=True)
class DenseInfo:
    """What an index says of the codec of its dense vectors, as `IndexInfo` of that of tokens.

    What training anew would make is told for as many vectors as there are documents.
    """

    n_coarse: int | None
    n_fine: int | None
    n_coarse_retrained: int | None
    n_fine_retrained: int | None
    drift: float | None
    operating_points: tuple[OperatingPoint, ...]
    truth: str | None


@dataclass(frozen=True)
class IndexInfo:
    """What an index holds at one generation.

    `truth` is what the recall of the operating points was measured against: "rows", exact MaxSim
    over the rows as they were added, or "stored", over the best that is kept of them; None where
    nothing was measured. `n_deleted` documents are counted nowhere else; they are still stored, in
    about `n_deleted_bytes` of `n_bytes`, until the index is compacted; that would leave
    `n_segments_compacted` of its `n_segments`.

    `drift` is the share of tokens that lay farther from the centroids, when they were added, than
    95 % of those that the codec was trained on: about 0.05 where documents are like the first ones;
    None where it is not known. `n_coarse_retrained` and `n_fine_retrained` centroids would there be
    if the codec were trained anew for the tokens of now; None where there is no codec. `dense` says
    the same of the dense vectors; None where the index has no such field.
    """

    path: str
    generation: int
    config: IndexConfig
    encoder: EncoderInfo | None
    n_docs: int
    n_windows: int
    n_empty: int
    n_tokens: int
    n_deleted: int
    n_segments: int
    n_segments_compacted: int
    n_bytes: int
    n_deleted_bytes: int
    n_coarse: int | None
    n_fine: int | None
    n_coarse_retrained: int | None
    n_fine_retrained: int | None
    drift: float | None
    operating_points: tuple[OperatingPoint, ...]
    truth: str | None
    dense: DenseInfo | None


@dataclass(frozen=True)
class Problem:
    """One thing that `Index.verify` found wrong: the file, what it is, and what is lost by it."""

    file: str
    message: str
    loss: str


@dataclass(frozen=True)
class Repair:
    """What `Index.repair` did.

    Attributes
    ----------
    generation
        Of the index as it is now; where nothing was wrong, it is the old one.
    problems
        What was wrong.
    n_docs, n_lost
        Documents that are kept, and those that are not.
    folder
        Where everything damaged is kept under a second name, with `lost.jsonl`: id, text and
        metadata of the lost documents, as far as they are known. None where nothing was wrong.
    """

    generation: int
    problems: tuple[Problem, ...]
    n_docs: int
    n_lost: int
    folder: str | None
