# SPDX-License-Identifier: Apache-2.0
"""Documents on their way through an encoder: in batches, and how far they are."""

from __future__ import annotations

from collections.abc import Sized
from typing import TYPE_CHECKING

from weft.errors import InvalidArgumentError
from weft.sources import Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from weft.types import Document, Progress, TokenEmbeddings

BATCH_DOCUMENTS = 256
BATCH_CHARACTERS = 1_000_000


class Encoding:
    """The stage "encode": counts what is done and estimates how much there is."""

    def __init__(self, documents: Iterable[Document], progress: Progress | None) -> None:
        self._documents = documents
        self._progress = progress
        self._n_documents = self._n_tokens = 0
        self.n_read = 0

    def read(self) -> Iterator[Document]:
        """Give the documents and count them."""
        for document in self._documents:
            self.n_read += 1
            yield document

    def report(self, n_documents: int, windows: list[list[TokenEmbeddings]]) -> int:
        """Note documents that are done, and give how many rows they have."""
        n_tokens = sum(len(one.values) for pieces in windows for one in pieces)
        self._n_documents += n_documents
        self._n_tokens += n_tokens
        if self._progress is not None:
            share = self._share()
            total = max(round(self._n_tokens / share), self._n_tokens) if share else 0
            self._progress("encode", self._n_tokens, total)
        return n_tokens

    def _share(self) -> float:
        if isinstance(self._documents, Source):
            return self._documents.n_bytes_read / max(self._documents.n_bytes, 1)
        if isinstance(self._documents, Sized):
            return self._n_documents / max(len(self._documents), 1)
        return 0.0


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Cut documents into batches; none has an id twice."""
    batch: list[Document] = []
    n_characters = 0
    for document in documents:
        if any(document.id == other.id for other in batch):
            yield batch
            batch, n_characters = [], 0
        batch.append(document)
        n_characters += len(document.text or "")
        if len(batch) == BATCH_DOCUMENTS or n_characters >= BATCH_CHARACTERS:
            yield batch
            batch, n_characters = [], 0
    if batch:
        yield batch


def text_of(document: Document) -> str:
    """Give the text of a document, which must have one."""
    if not isinstance(document.text, str):
        raise InvalidArgumentError(f"document {document.id!r}: no text, expected a string")
    return document.text
