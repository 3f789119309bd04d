# SPDX-License-Identifier: Apache-2.0
"""Token pooling: fewer token embeddings for a document, by putting like ones together.

The rows of a window are clustered by Ward's method and each cluster becomes its mean, scaled to
unit length. Queries keep all their rows [POOL24].
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from weft.checks import check_int
from weft.encoders.base import FittedEncoder
from weft.encoders.recipes import RECIPES
from weft.errors import InvalidArgumentError, MissingExtraError
from weft.types import EncoderInfo, TokenEmbeddings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from weft.encoders.base import Encoder
    from weft.encoders.fields import FieldEmbeddings

SETTING = "token_pooling"
OPTIONS = {"pool_factor": "factor", "pool_mode": "mode", "pool_protected": "protected"}
"""What `weft.encoders.load` takes among its options, and the field of `Pooling` it stands for."""


@dataclass(frozen=True)
class Pooling:
    """How the rows of a window become fewer.

    Parameters
    ----------
    factor
        About so many rows become one.
    mode
        "condensed" clusters m - protected rows by their distances 1 - cosine into
        max((m - protected) // factor, 1), as sentence-transformers and PyLate after 1.3.4 do.
        "stanford" takes each row's distances to all rows for its place, and makes max(m // factor,
        1) clusters, as ColBERT and PyLate up to 1.3.4 do; its protected rows come last. Both
        runtimes leave means shorter than one; weft scales all rows to unit length.
    protected
        Rows at the start that stay as they are: [CLS] or a marker.
    """

    factor: int = 2
    mode: Literal["condensed", "stanford"] = "condensed"
    protected: int = 1

    def __post_init__(self) -> None:
        """Check every field."""
        check_int("pool_factor", self.factor, 2, 64)
        check_int("pool_protected", self.protected, 0, 64)
        if self.mode not in ("condensed", "stanford"):
            raise InvalidArgumentError(
                f"pool_mode={self.mode!r}: expected 'condensed' or 'stanford'"
            )

    def n_clusters(self, n_rows: int) -> int:
        """Give how many clusters the rows of a window are put into, without the protected ones."""
        counted = n_rows - (self.protected if self.mode == "condensed" else 0)
        return max(counted // self.factor, 1)

    def n_rows(self, n_rows: int) -> int:
        """Give how many rows are left of those of a window, where no distances are equal."""
        free = n_rows - self.protected
        return n_rows if free <= 1 else self.protected + min(self.n_clusters(n_rows), free)


def pool(window: TokenEmbeddings, pooling: Pooling) -> TokenEmbeddings:
    """Give the window with fewer rows.

    Parameters
    ----------
    window
        Rows of unit length.
    pooling
        How.

    Returns
    -------
    TokenEmbeddings
        Rows of unit length. A pooled row has the span of that of its tokens which is most like it.

    Raises
    ------
    MissingExtraError
        If scipy is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from weft import TokenEmbeddings
    >>> from weft.encoders.pooling import Pooling, pool
    >>> rows = np.float32([[1, 0], [0, 1], [1, 0], [0, 1], [1, 0]])
    >>> pool(TokenEmbeddings(rows), Pooling(2)).values.tolist()
    [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    """
    protected = min(pooling.protected, len(window.values))
    free = np.arange(protected, len(window.values))
    n_clusters = pooling.n_clusters(len(window.values))
    if n_clusters >= len(free):
        return window
    clusters = _clusters(window.values[free].astype(np.float64), n_clusters, pooling.mode)
    members = [free[one] for one in clusters]
    means = np.stack([window.values[one].mean(axis=0, dtype=np.float64) for one in members])
    nearest = np.array(
        [_most_like(window.values, one, mean) for one, mean in zip(members, means, strict=True)]
    )
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    # Rows that cancel out have no direction; one of them stands for all.
    pooled = np.where(lengths > 1e-6, means / np.maximum(lengths, 1e-6), window.values[nearest])
    rows = np.concatenate([window.values[:protected], pooled]).astype(np.float32)
    sources = np.concatenate([np.arange(protected), nearest])
    if pooling.mode == "stanford":
        rows, sources = np.roll(rows, -protected, axis=0), np.roll(sources, -protected)
    return TokenEmbeddings(rows, None if window.spans is None else window.spans[sources])


def _most_like(
    rows: NDArray[np.float32], members: NDArray[np.int64], mean: NDArray[np.float64]
) -> int:
    """Name the row that is most like the mean; of two, equally like it but for rounding, one."""
    return int(members[np.argmax((rows[members] @ mean).round(5))])


def _clusters(rows: NDArray[np.float64], n: int, mode: str) -> list[NDArray[np.int64]]:
    """Put rows into at most n clusters; each is the numbers of its rows, in their order."""
    try:
        from scipy.cluster.hierarchy import fcluster, ward
        from scipy.spatial.distance import pdist, squareform
    except ImportError as error:
        raise MissingExtraError("scipy", "hybrid") from error
    distances = np.clip(1 - rows @ rows.T, 0, 2)
    np.fill_diagonal(distances, 0)
    places = squareform(distances, checks=False) if mode == "condensed" else pdist(distances)
    labels = fcluster(ward(places), t=n, criterion="maxclust")
    found = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return sorted(found, key=lambda one: int(one[0]))


class PooledEncoder:
    """An encoder whose documents have fewer rows.

    Attributes
    ----------
    n_rows, n_pooled
        Rows that the encoder gave for documents, and what was left of them.
    """

    def __init__(self, inner: Encoder, pooling: Pooling) -> None:
        self.n_rows = self.n_pooled = 0
        self._inner: Any = inner
        self._pooling = pooling

    @property
    def info(self) -> EncoderInfo:
        """That of the encoder, with how it is pooled among the settings."""
        info: EncoderInfo = self._inner.info
        return replace(info, settings={**info.settings, SETTING: asdict(self._pooling)})

    @property
    def inner(self) -> Any:  # noqa: ANN401
        """The encoder that gives all rows."""
        return self._inner

    @property
    def counts(self) -> Any:  # noqa: ANN401
        """What the encoder counts, if it does."""
        return self._inner.counts

    @property
    def device(self) -> Any:  # noqa: ANN401
        """Where its model runs, if it has one."""
        return getattr(self._inner, "device", None)

    def encode_queries(self, texts: Sequence[str]) -> list[TokenEmbeddings]:
        """Give the token embeddings of each query, all of them."""
        found: list[TokenEmbeddings] = self._inner.encode_queries(texts)
        return found

    def encode_documents(self, texts: Sequence[str]) -> list[list[TokenEmbeddings]]:
        """Give, for each text, the pooled token embeddings of its windows."""
        return self._pooled(self._inner.encode_documents(texts))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Give how many token embeddings each text has; about so many where it has windows."""
        return [self._pooling.n_rows(n) for n in self._inner.count_tokens(texts)]

    @property
    def dense_dim(self) -> int:
        """Values in a dense vector, of an encoder of all fields."""
        return int(self._inner.dense_dim)

    def all_fields(self, texts: Sequence[str], task: str) -> list[FieldEmbeddings]:
        """Give all fields that the encoder makes in one pass; documents with fewer rows."""
        found: list[FieldEmbeddings] = self._inner.all_fields(texts, task)
        if task == "query":
            return found
        windows = self._pooled([list(one.multi or ()) for one in found])
        return [replace(one, multi=few) for one, few in zip(found, windows, strict=True)]

    def _pooled(self, documents: list[list[TokenEmbeddings]]) -> list[list[TokenEmbeddings]]:
        pooled = [[pool(window, self._pooling) for window in windows] for windows in documents]
        self.n_rows += sum(len(window.values) for windows in documents for window in windows)
        self.n_pooled += sum(len(window.values) for windows in pooled for window in windows)
        return pooled


class PooledFittedEncoder(PooledEncoder):
    """The same for an encoder with a projection that is fitted; rows are pooled after it."""

    @property
    def fitted(self) -> bool:
        """Whether the projection exists."""
        return bool(self._inner.fitted)

    @property
    def fit_tokens(self) -> int:
        """How many tokens the projection is fitted on."""
        return int(self._inner.fit_tokens)

    def encode_hidden(self, texts: Sequence[str]) -> list[list[TokenEmbeddings]]:
        """Give, for each text, its windows in the width of the model, all rows."""
        found: list[list[TokenEmbeddings]] = self._inner.encode_hidden(texts)
        return found

    def fit(self, hidden: Sequence[list[TokenEmbeddings]]) -> list[list[TokenEmbeddings]]:
        """Fit the projection, and give all rows projected and pooled."""
        return self._pooled(self._inner.fit(hidden))


def pooled(encoder: Encoder, pooling: Pooling | None) -> Encoder:
    """Wrap an encoder, if its rows are to be pooled.

    Raises
    ------
    InvalidArgumentError
        It makes one vector of a text.
    """
    if pooling is None:
        return encoder
    gives = next((one.gives for one in RECIPES if one.name == encoder.info.recipe), "multi")
    if gives in {"dense", "sparse"}:
        raise InvalidArgumentError(
            f"pool_factor={pooling.factor}: the recipe {encoder.info.recipe!r} makes one vector of "
            f"a text, expected token embeddings"
        )
    fitted = isinstance(encoder, FittedEncoder)
    return PooledFittedEncoder(encoder, pooling) if fitted else PooledEncoder(encoder, pooling)


def split_options(
    options: Mapping[str, Any], info: EncoderInfo | None
) -> tuple[Pooling | None, dict[str, Any], EncoderInfo | None]:
    """Take the pooling out of the options of an encoder, and out of what an index stores of it.

    Raises
    ------
    InvalidArgumentError
        A value cannot be, or there is a mode without a factor.
    """
    asked = {field: options[name] for name, field in OPTIONS.items() if name in options}
    rest = {name: value for name, value in options.items() if name not in OPTIONS}
    stored = None
    if info is not None and SETTING in info.settings:
        settings = dict(info.settings)
        stored = dict(settings.pop(SETTING))
        info = replace(info, settings=settings)
    if not asked:
        return (None if stored is None else Pooling(**stored)), rest, info
    if asked.get("factor") == 1:
        return None, rest, info
    if "factor" not in asked:
        raise InvalidArgumentError(f"{', '.join(options.keys() & OPTIONS)}: expected pool_factor")
    return Pooling(**asked), rest, info
