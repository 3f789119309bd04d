# SPDX-License-Identifier: Apache-2.0
"""An index of several fields with the encoder that makes them: texts in, hits with texts out."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.encoders import require_same_encoder
from weft.encoders.joined import JoinedEncoder, stored_fields
from weft.encoding import batches, text_of
from weft.errors import IncompatibleIndexError, InvalidArgumentError
from weft.fusion import NAMES, ReciprocalRank
from weft.hybrid import HybridSearcher
from weft.index import Index
from weft.types import TokenEmbeddings, defaults
from weft.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from weft.encoders.fields import FieldEmbeddings, FieldEncoder
    from weft.fusion import Fusion
    from weft.types import Document, Hits, IndexConfig, Progress, SearchParams


class HybridRetriever:
    """Searches texts in several fields at once, which one pass of an encoder makes.

    Parameters
    ----------
    index
        Made with the encoder: `Index.create(path, config, encoder=encoder)`.
    encoder
        Gives the fields of a text.
    fields
        Those that are stored and searched, of "multi", "dense" and "sparse". None: `multi`, and
        what the index has beside.
    fusion
        How their rankings become one; None: `weft.ReciprocalRank()`.
    device, threads
        For the index: where it is built and searched, see `Index.searcher`; None: as many threads
        as the process may use.

    Raises
    ------
    IncompatibleIndexError
        The index was made with another encoder.
    InvalidArgumentError
        A field that the index does not have, or none; or something that is no rule of fusion.

    Examples
    --------
    >>> import numpy as np, weft
    >>> from weft.encoders.fields import FieldEmbeddings
    >>> class Letters:
    ...     info = weft.EncoderInfo("letters", "count", 1, "letters-1")
    ...
    ...     def encode_queries(self, texts):
    ...         counts = [{c: text.count(chr(c)) for c in range(97, 123)} for text in texts]
    ...         dense = [np.array(list(count.values()), np.float32) for count in counts]
    ...         return [FieldEmbeddings(None, *both) for both in zip(dense, counts)]
    ...
    ...     encode_documents = encode_queries
    >>> config = weft.IndexConfig(dim=1, dense=weft.DenseConfig(26), sparse=weft.SparseConfig())
    >>> index = weft.Index.create("letters.index", config, encoder=Letters())
    >>> letters = weft.HybridRetriever(index, Letters(), fields=["dense", "sparse"])
    >>> letters.add([weft.Document("a", "banana"), weft.Document("b", "cherry")])
    2
    >>> hits = letters.search("cheer", k=1)
    >>> hits[0].text, sorted(hits[0].scores)
    ('cherry', ['dense', 'sparse'])
    """

    def __init__(
        self,
        index: Index,
        encoder: FieldEncoder,
        *,
        fields: Sequence[str] | None = None,
        fusion: Fusion | None = None,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        stored = index.info.encoder
        if stored is None:
            raise IncompatibleIndexError(
                f"{index.path}: the index knows no encoder, expected {encoder.info.name}",
                None,
                encoder.info,
            )
        require_same_encoder(stored, encoder.info)
        self._index = index
        self._encoder = encoder
        self._fields = _checked(fields, ("multi", *index.config.fields))
        self._fusion = ReciprocalRank() if fusion is None else fusion
        self._device, self._threads = device, threads
        self._searcher = self._current_searcher()

    @staticmethod
    def create(
        path: str | Path,
        encoder: JoinedEncoder,
        *,
        fields: Sequence[str] | None = None,
        config: IndexConfig | None = None,
        fusion: Fusion | None = None,
        device: str = "cpu",
        threads: int | None = None,
    ) -> HybridRetriever:
        """Make a new index for what an encoder of `weft.encoders.fields_of` gives.

        Parameters
        ----------
        path
            Folder that does not exist yet.
        encoder
            Of one model or several.
        fields
            Those that are stored. None: all that the encoder makes.
        config
            None means the defaults, with the dimensions of the encoder.
        fusion, device, threads
            As for `HybridRetriever`.

        Raises
        ------
        IndexExistsError
            There is something at the path.
        InvalidArgumentError
            A field that the encoder does not make.
        """
        fields = _checked(fields, encoder.makes)
        config = config or encoder.config(fields)
        index = Index.create(path, config, encoder=encoder)
        return HybridRetriever(
            index, encoder, fields=fields, fusion=fusion, device=device, threads=threads
        )

    @staticmethod
    def open(
        path: str | Path,
        *,
        encoder: FieldEncoder | None = None,
        fields: Sequence[str] | None = None,
        fusion: Fusion | None = None,
        device: str = "cpu",
        encoder_device: str = "auto",
        dtype: str = "float32",
        threads: int | None = None,
    ) -> HybridRetriever:
        """Open an index of several fields.

        Parameters
        ----------
        path
            Folder of the index.
        encoder
            The one it was made with. None: the models that the index names, loaded now from this
            machine only.
        fields
            Those that are stored and searched. None: those of the documents there are; where there
            are none, all that the encoder makes and the index has.
        fusion, device, threads
            As for `HybridRetriever`.
        encoder_device, dtype
            Where and in which type models run that are loaded now.

        Raises
        ------
        NotFoundError
            There is no index, or a model is not on this machine.
        IncompatibleIndexError
            The index was made with another encoder, or with none.
        """
        index = Index.open(path)
        stored = index.info.encoder
        if encoder is None:
            if stored is None:
                raise IncompatibleIndexError(
                    f"{path}: made from embeddings, so it names no encoder; expected encoder="
                )
            encoder = stored_fields(stored, device=encoder_device, dtype=dtype)
        if fields is None:
            fields = _held(index, encoder)
        return HybridRetriever(
            index, encoder, fields=fields, fusion=fusion, device=device, threads=threads
        )

    @property
    def encoder(self) -> FieldEncoder:
        """The encoder."""
        return self._encoder

    @property
    def index(self) -> Index:
        """The index."""
        return self._index

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that are stored and searched."""
        return self._fields

    def __len__(self) -> int:
        """Count the documents."""
        return len(self._index)

    def add(
        self,
        documents: Iterable[Document],
        *,
        max_ram: int | str | None = None,
        progress: Progress | None = None,
        resume: bool = False,
    ) -> int:
        """Encode documents and add them: batch by batch, with one commit at the end.

        Parameters
        ----------
        documents
            Every document needs a text.
        max_ram, progress, resume
            As for `Index.writer`.

        Returns
        -------
        The number of documents added.

        Raises
        ------
        InvalidArgumentError
            A document has no text, or an id that cannot be or is there already.
        """
        return self._write(Writer.add, documents, max_ram, progress, resume=resume)

    def upsert(
        self,
        documents: Iterable[Document],
        *,
        max_ram: int | str | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Encode documents and put them in place of those with their ids, if there are any."""
        return self._write(Writer.upsert, documents, max_ram, progress)

    def delete(
        self, ids: Sequence[str] | None = None, *, where: Mapping[str, Any] | None = None
    ) -> int:
        """Delete documents in one commit; count those that were there. See `Writer.delete`."""
        return self._index.delete(ids, where=where)

    def _write(
        self,
        write: Callable[..., None],
        documents: Iterable[Document],
        max_ram: int | str | None,
        progress: Progress | None,
        *,
        resume: bool = False,
    ) -> int:
        n_documents = 0

        def counted() -> Iterable[Document]:
            nonlocal n_documents
            for document in documents:
                n_documents += 1
                yield document

        with self._index.writer(
            device=self._device, threads=self._threads, max_ram=max_ram, progress=progress,
            resume=resume,
        ) as writer:  # fmt: skip
            for batch in batches(writer.unspooled(counted(), self._fields)):
                texts = [text_of(document) for document in batch]
                found = self._encoder.encode_documents(texts)
                write(
                    writer,
                    [document.id for document in batch],
                    texts=texts,
                    metadata=[document.metadata for document in batch],
                    **self._as_given(found),
                )
                if progress is not None:
                    progress("encode", n_documents, 0)
        return n_documents

    def search(
        self,
        text: str,
        k: int = defaults.k,
        *,
        recall: float | None = None,
        params: SearchParams | None = None,
        where: Mapping[str, Any] | None = None,
        allow: Iterable[str] | None = None,
    ) -> Hits:
        """Give the k best documents for a text, with texts, metadata and the scores of each field.

        Parameters
        ----------
        text
            The question.
        k, recall, params, where, allow
            As for `HybridSearcher.search`.

        Raises
        ------
        InvalidArgumentError
            The encoder gives a field nothing of the text; or what `HybridSearcher.search` raises.
        """
        if not isinstance(text, str):
            raise InvalidArgumentError(f"query {text!r}: expected a text")
        searcher = self._current_searcher()
        started = time.perf_counter()
        (query,) = self.encode_queries([text])
        encode_ms = 1_000 * (time.perf_counter() - started)
        hits = searcher.search(query, k, recall=recall, params=params, where=where, allow=allow)
        completed = [
            dataclasses.replace(hit, text=document.text, metadata=document.metadata)
            for hit, document in zip(hits, searcher.documents(hits.ids), strict=True)
        ]
        timings = {"encode": encode_ms, **hits.timings_ms}
        return dataclasses.replace(hits, hits=tuple(completed), timings_ms=timings)

    def ask(
        self,
        query: Mapping[str, Any],
        k: int = defaults.k,
        *,
        recall: float | None = None,
        params: SearchParams | None = None,
        where: Mapping[str, Any] | None = None,
        allow: Iterable[str] | None = None,
    ) -> Hits:
        """Answer what `encode_queries` gave, without texts and metadata."""
        searcher = self._current_searcher()
        return searcher.search(query, k, recall=recall, params=params, where=where, allow=allow)

    @property
    def fusion(self) -> Fusion:
        """How the rankings of the fields become one."""
        return self._fusion

    def encode_queries(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Encode queries, as `HybridSearcher.search` takes them."""
        encoded = self._encoder.encode_queries(texts)
        return [
            {name: _asked(found, name, text) for name in self._fields}
            for text, found in zip(texts, encoded, strict=True)
        ]

    def _as_given(self, found: Sequence[FieldEmbeddings]) -> dict[str, Any]:
        """Give the fields of a batch as `Writer.add` takes them."""
        given: dict[str, Any] = {}
        if "multi" in self._fields:
            nothing = [TokenEmbeddings(np.empty((0, self._index.config.dim), np.float32))]
            windows = [one.multi or nothing for one in found]
            flat = [window for some in windows for window in some]
            given["embeddings"] = [window.values for window in flat]
            given["spans"] = [window.spans for window in flat]
            given["parents"] = [at for at, some in enumerate(windows) for _ in some]
        if "dense" in self._fields:
            given["dense"] = [one.dense for one in found]
        if "sparse" in self._fields:
            given["sparse"] = [one.sparse or {} for one in found]
        return given

    def _current_searcher(self) -> HybridSearcher:
        current = getattr(self, "_searcher", None)
        if current is None or current.generation != self._index.generation:
            searcher = self._index.searcher(device=self._device, threads=self._threads)
            current = self._searcher = HybridSearcher(searcher, self._fusion)
        return current


def _held(index: Index, encoder: FieldEncoder) -> list[str]:
    """Give the fields of the documents of an index, or those that its first are to have."""
    beside = index.config.fields
    if len(index) > 0:
        holds_multi = index.info.n_tokens > 0
    else:
        holds_multi = not isinstance(encoder, JoinedEncoder) or "multi" in encoder.makes
    return [*["multi"] * (holds_multi or not beside), *beside]


def _checked(fields: Sequence[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    if fields is None:
        return known
    if isinstance(fields, str) or not fields or not set(fields) <= set(known):
        raise InvalidArgumentError(f"fields={fields!r}: expected some of {', '.join(known)}")
    return tuple(name for name in NAMES if name in fields)


def _asked(found: FieldEmbeddings, name: str, text: str) -> object:
    value = getattr(found, name)
    if name == "multi" and value:
        value = value[0].values
    if value is None or (len(value) == 0 and name != "sparse"):
        raise InvalidArgumentError(f"query {text!r}: nothing of it for the field {name!r}")
    return value
