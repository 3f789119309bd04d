# SPDX-License-Identifier: Apache-2.0
"""The plain values that go in and come out, and every default, each stated once.

All of them are immutable: a frozen dataclass, or a sequence or dictionary that refuses changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from weft.checks import FrozenDict, check_fraction, check_int
from weft.errors import InvalidArgumentError
from weft.fields import FIELDS, DenseConfig, SparseConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

    Progress = Callable[[str, int, int], None]
    """Called with (stage, done, total) by everything that can take seconds."""

Scalar: TypeAlias = "str | int | float | bool"
"""What a metadata field may hold."""

Rerank: TypeAlias = Literal["plane", "f16"]
"""What a segment stores beside its codes: a second plane of them, or the rows as f16."""


@dataclass(frozen=True)
class Defaults:
    """Every default that is no field of a parameter type."""

    k: int = 10
    recall: float = 0.95
    """Target of a search that names none."""
    targets: tuple[float, ...] = (0.8, 0.9, 0.95, 0.99)
    """Recalls that operating points are sought for; 1.0 is the exhaustive search."""
    tuned_k: tuple[int, ...] = (10, 100)
    tuning_queries: int = 64
    codec_tokens: int = 100_000
    """Tokens from which an index has a codec; below, rows are stored and searched exhaustively."""
    segment_tokens: int = 1 << 24
    max_ram: int = 3 << 30
    """Bytes that a build plans with, unless half of what is available is less."""
    stale_growth: float = 1.2
    """Operating points are stale once the index has grown by this factor since they were found."""
    growth_ahead: int = 2
    """A codec that an index gets while it grows is made for so many times the tokens there are."""
    fine_growth: float = 0.1
    """A commit adds fine centroids once so large a share of those that are due is missing."""
    drift: float = 0.15
    """A commit adds fine centroids if more of its tokens lie beyond the error of the codec."""
    tune_growth: float = 2.0
    """A commit finds operating points anew once the index has grown by this factor since."""
    retrain_growth: float = 2.0
    """A commit trains the codec anew once the index has grown by this factor, or warns of it."""
    generations_kept: int = 2
    merged_deleted: float = 0.2
    """A commit writes a segment anew once more of it than this is deleted."""
    merged_segments: int = 16
    """A commit merges small segments from so many on."""
    id_bytes: int = 1_024
    """Longest document id, in bytes of UTF-8."""
    encoder_batch: int = 32
    filter_terms: int = 64
    """Conditions of a filter, how deep they may be nested, and values of one `$in`, at most."""
    filter_depth: int = 8
    filter_values: int = 1_000


defaults = Defaults()


@dataclass(frozen=True)
class IndexConfig:
    """What an index is made of; fixed when it is created.

    Parameters
    ----------
    dim
        Values in a token embedding, 1 to 4,097.
    nbits
        Bits a dimension of a code: 1, 2, 4 or 8. 4 loses little and is small.
    rerank
        What the best documents are scored from at the end: "plane", a second 4-bit code for what
        the first left over (nbits 4 only); "f16", the rows themselves; None, the codes alone.
        "auto" is "plane" with nbits 4, else None.
    n_coarse, n_fine
        Centroids of the two levels. None: the square root, and a hundredth, of the number of
        tokens.
    kmeans_iterations
        Rounds of clustering.
    seed
        Of everything random. The same data, configuration and seed give the same index.
    dense, sparse
        Fields beside the token embeddings; None: without.

    Examples
    --------
    >>> import weft
    >>> weft.IndexConfig(dim=96).rerank
    'plane'
    >>> weft.IndexConfig(nbits=3)
    Traceback (most recent call last):
    weft.errors.InvalidArgumentError: nbits=3: expected 1, 2, 4 or 8
    """

    dim: int = 128
    nbits: int = 4
    rerank: Rerank | Literal["auto"] | None = "auto"
    n_coarse: int | None = None
    n_fine: int | None = None
    kmeans_iterations: int = 8
    seed: int = 42
    dense: DenseConfig | None = None
    sparse: SparseConfig | None = None

    def __post_init__(self) -> None:
        """Check every field and settle "auto"."""
        checked: dict[str, object] = {
            "dim": check_int("dim", self.dim, 1, 4_097),
            "kmeans_iterations": check_int("kmeans_iterations", self.kmeans_iterations, 1, 1_000),
            "seed": check_int("seed", self.seed, 0, 2**63 - 1),
            "nbits": check_int("nbits", self.nbits, 1),
        }
        if self.nbits not in (1, 2, 4, 8):
            raise InvalidArgumentError(f"nbits={self.nbits!r}: expected 1, 2, 4 or 8")
        if self.rerank not in ("auto", "plane", "f16", None):
            raise InvalidArgumentError(
                f'rerank={self.rerank!r}: expected "auto", "plane", "f16" or None'
            )
        if self.rerank == "plane" and self.nbits != 4:
            raise InvalidArgumentError(
                f'rerank="plane" with nbits={self.nbits}: expected nbits=4; use "f16" or None'
            )
        if self.rerank == "auto":
            checked["rerank"] = "plane" if self.nbits == 4 else None
        if self.n_coarse is not None:
            checked["n_coarse"] = check_int("n_coarse", self.n_coarse, 1, 65_536)
        if self.n_fine is not None:
            checked["n_fine"] = check_int("n_fine", self.n_fine, 1, 2**24)
        for name, kind in (("dense", DenseConfig), ("sparse", SparseConfig)):
            given = getattr(self, name)
            if isinstance(given, Mapping):  # as it is written in a manifest
                given = checked[name] = kind(**given)
            if given is not None and not isinstance(given, kind):
                raise InvalidArgumentError(
                    f"{name}={given!r}: expected weft.{kind.__name__} or None"
                )
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.dense is not None:
            self.of_dense()

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields beside `multi`."""
        return tuple(name for name in FIELDS if getattr(self, name) is not None)

    def of_dense(self) -> IndexConfig:
        """Give the configuration of the index that the field `dense` is."""
        assert self.dense is not None
        dense = self.dense
        dim = dense.dim + (dense.max_norm is not None)
        return IndexConfig(dim=dim, nbits=dense.nbits, rerank=dense.rerank, seed=self.seed)

    def to_json(self) -> dict[str, Any]:
        """Give the fields as JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class SearchParams:
    """How much work a search does, stage by stage.

    Parameters
    ----------
    nprobe
        Coarse centroids opened for each query token.
    budget
        Postings read.
    ncandidates
        Documents kept after the gather stage.
    nskim
        Documents scored from the codes of their leading tokens alone, where these are more than
        nrefine; 0 leaves this stage out.
    nrefine
        Documents scored from all their codes; at least k.
    nrerank
        Documents scored once more from what `IndexConfig.rerank` stores; 0, or at least k.
    exhaustive
        Score every document instead of probing.
    floor
        Share of the score of the last list read that a query token is given in a document which
        none of its lists names.

    Examples
    --------
    >>> import weft
    >>> weft.SearchParams(budget=10_000, nskim=200).nrefine
    40
    """

    nprobe: int = 16
    budget: int = 50_000
    ncandidates: int = 2_000
    nskim: int = 400
    nrefine: int = 40
    nrerank: int = 20
    exhaustive: bool = False
    floor: float = 0.75

    def __post_init__(self) -> None:
        """Check every field."""
        limit = 2**32 - 1
        for name, low, high in (
            ("nprobe", 1, 65_536),
            ("budget", 1, limit),
            ("ncandidates", 1, limit),
            ("nskim", 0, limit),
            ("nrefine", 1, limit),
            ("nrerank", 0, limit),
        ):
            object.__setattr__(self, name, check_int(name, getattr(self, name), low, high))
        object.__setattr__(self, "floor", check_fraction("floor", self.floor, zero=True))
        if not isinstance(self.exhaustive, bool):
            raise InvalidArgumentError(f"exhaustive={self.exhaustive!r}: expected True or False")

    def check(self, k: int) -> None:
        """Refuse parameters that cannot give k documents."""
        if self.nrerank != 0 and self.nrerank < k:
            raise InvalidArgumentError(f"nrerank={self.nrerank}: expected 0 or at least k={k}")
        if self.exhaustive:
            return
        if self.nrefine < k:
            raise InvalidArgumentError(f"nrefine={self.nrefine}: expected at least k={k}")
        if self.ncandidates < self.nrefine:
            raise InvalidArgumentError(
                f"ncandidates={self.ncandidates}: expected at least nrefine={self.nrefine}"
            )

    def widened(self, k: int) -> SearchParams:
        """Give these parameters with as much more of each stage as k documents need."""
        nrefine = max(self.nrefine, k)
        return dataclasses.replace(
            self,
            nrefine=nrefine,
            ncandidates=max(self.ncandidates, nrefine),
            nrerank=max(self.nrerank, k) if self.nrerank else 0,
        )

    def to_json(self) -> dict[str, Any]:
        """Give the fields as JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class OperatingPoint:
    """Search parameters and the recall they were measured to reach.

    Attributes
    ----------
    k, target
        What was asked for; `target` is None where `params` were given.
    measured
        Mean recall@k over the tuning queries against exact MaxSim; None where it was not measured.
    reached
        Whether `measured` reaches `target`; None where either is None.
    params
        The parameters.
    path
        "exhaustive" or "pruned"; None before a search has been made.
    tuned_on
        "given queries" or "sampled documents"; None where nothing was measured.
    cost_ms
        What the cost model says such a query takes on one core: comparable, not a measurement.
    stale
        The index has grown by a fifth since it was measured.
    """

    k: int
    target: float | None
    measured: float | None
    reached: bool | None
    params: SearchParams
    path: str | None = None
    tuned_on: str | None = None
    cost_ms: float | None = None
    stale: bool = False

    def to_json(self) -> dict[str, Any]:
        """Give the fields as JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Match:
    """One query token and the document token that it matches best.

    `query_token` and `token` count from 0 in the query and in the passage. `start` and `end` are
    code points of the document's text, None where no places were stored. `text` is the query
    token's text, where a `Retriever` made the query.
    """

    query_token: int
    token: int
    similarity: float
    start: int | None = None
    end: int | None = None
    text: str | None = None


@dataclass(frozen=True)
class Alignment:
    """Why a document has its score: one match per query token; the similarities add up to it.

    Examples
    --------
    >>> import numpy as np, weft
    >>> index = weft.Index.create("explained.index", weft.IndexConfig(dim=4))
    >>> index.add(["a"], [np.eye(4)], texts=["four"], spans=[[[0, 1], [1, 2], [2, 3], [3, 4]]])
    2
    >>> index.explain(np.eye(4)[2:3], "a").matches
    (Match(query_token=0, token=2, similarity=1.0, start=2, end=3, text=None),)
    """

    id: str
    score: float
    passage: int | None
    matches: tuple[Match, ...]


@dataclass(frozen=True)
class Document:
    """A document as sources give it and as an index returns it; what is absent is None or empty.

    Examples
    --------
    >>> import weft
    >>> weft.Document("p1", "late interaction", {"year": 2024}).metadata["year"]
    2024
    """

    id: str
    text: str | None = None
    metadata: Mapping[str, Scalar] = field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        """Keep the metadata from being changed."""
        object.__setattr__(self, "metadata", FrozenDict(self.metadata))


@dataclass(frozen=True)
class Hit:
    """One result; what was not asked for is None.

    `passage` is the number of the window of a long document that gave the score. `scores` are those
    of the fields that a hybrid search has joined.
    """

    id: str
    score: float
    text: str | None = None
    metadata: Mapping[str, Scalar] | None = None
    passage: int | None = None
    matches: tuple[Match, ...] | None = None
    scores: Mapping[str, float] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Hits(Sequence[Hit]):
    """The results of one query, best first: an immutable sequence of `Hit`.

    Attributes
    ----------
    n_matching
        Documents that could have been returned.
    operating_point
        What was searched, and the recall it was measured at.
    timings_ms
        Milliseconds of each stage.
    device
        Where the search ran.
    generation
        Generation of the index that was searched.

    Examples
    --------
    >>> import numpy as np, weft
    >>> index = weft.Index.create("hits.index", weft.IndexConfig(dim=2))
    >>> index.add(["a", "b"], [np.eye(2)[:1], np.eye(2)])
    2
    >>> hits = index.search(np.eye(2)[1:], k=1)
    >>> len(hits), hits.ids, hits.scores, hits.n_matching, hits.operating_point.path
    (1, ('b',), (1.0,), 2, 'exhaustive')
    """

    hits: tuple[Hit, ...]
    n_matching: int
    operating_point: OperatingPoint
    timings_ms: Mapping[str, float]
    device: str
    generation: int

    def __post_init__(self) -> None:
        """Keep what was given from being changed."""
        object.__setattr__(self, "hits", tuple(self.hits))
        object.__setattr__(self, "timings_ms", FrozenDict(self.timings_ms))

    @overload
    def __getitem__(self, index: int) -> Hit: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...

    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        """Give one hit, or a tuple of them."""
        return self.hits[index]

    def __len__(self) -> int:
        """Count the hits."""
        return len(self.hits)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids, best first."""
        return tuple(hit.id for hit in self.hits)

    @property
    def scores(self) -> tuple[float, ...]:
        """The scores, best first."""
        return tuple(hit.score for hit in self.hits)

    def replace(self, hits: Iterable[Hit]) -> Hits:
        """Give the same answer with other hits, for example with texts added."""
        return dataclasses.replace(self, hits=tuple(hits))


@dataclass(frozen=True)
class EncoderInfo:
    """What made the embeddings of an index; stored in its manifest and compared at query time.

    Attributes
    ----------
    name
        The checkpoint, as a person would name it.
    recipe
        How its rows are made from a text.
    dim
        Values in a row.
    fingerprint
        Differs wherever the rows would.
    query_length, document_length
        Most tokens of a query and of a window; None where there is no limit.
    settings
        Everything else that the encoder needs to be made again, as JSON values.
    """

    name: str
    recipe: str
    dim: int
    fingerprint: str
    query_length: int | None = None
    document_length: int | None = None
    settings: Mapping[str, Any] = field(default_factory=FrozenDict, repr=False)

    @staticmethod
    def of(encoder: object) -> EncoderInfo | None:
        """Give what an encoder says of itself, or an `EncoderInfo` as it is; None of None."""
        info = getattr(encoder, "info", encoder)
        if info is not None and not isinstance(info, EncoderInfo):
            raise InvalidArgumentError(
                f"encoder={encoder!r}: expected an EncoderInfo, or an object with one as .info"
            )
        return info

    def __post_init__(self) -> None:
        """Keep the settings from being changed."""
        object.__setattr__(self, "settings", FrozenDict(self.settings))

    def to_json(self) -> dict[str, Any]:
        """Give the fields as JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, eq=False)
class TokenEmbeddings:
    """What an encoder makes of a text, or of one window of it.

    `values`: float32 `[n, dim]`, unit rows. `spans`: uint32 `[n, 2]`, start and end of each token
    in code points of the whole text; None where the encoder cannot tell.
    """

    values: NDArray[np.float32]
    spans: NDArray[np.uint32] | None = None
