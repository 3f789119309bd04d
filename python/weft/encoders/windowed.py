# SPDX-License-Identifier: Apache-2.0
"""What every adapter over a torch model does: split, sort by length, run in batches, count."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from weft.encoders.windows import Piece, Splitter, batches
from weft.errors import DeviceError, InvalidArgumentError
from weft.types import TokenEmbeddings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from weft.types import EncoderInfo

logger = logging.getLogger("weft")

Result = TypeVar("Result")

_WORD = re.compile(r"[^\s\u1361]+")

OVERLAP = 32
"""Tokens that the windows of a long text share."""


@dataclass(frozen=True)
class Options:
    """How to run a model; see `weft.encoders.load`."""

    dim: int | None
    device: str
    dtype: str
    query_length: int | None
    document_length: int | None
    batch_tokens: int | None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def torch_device(self) -> torch.device:
        """Give the device, chosen now if it is "auto"."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.zeros(1, device=device)
        except (AssertionError, RuntimeError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise DeviceError(f"device={self.device!r}: {reason}") from error
        return device

    def lengths(self, info: EncoderInfo | None, usual: tuple[int, int]) -> tuple[int, int]:
        """Give the most tokens of a query and of a window: as asked for, as stored, or usual."""
        return (
            self.query_length or (info and info.query_length) or usual[0],
            self.document_length or (info and info.document_length) or usual[1],
        )

    def torch_dtype(self) -> torch.dtype:
        """Give the type that the model computes in."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32


@dataclass
class Counts:
    """What was encoded, and what it cost.

    Attributes
    ----------
    n_texts, n_words, n_tokens
        Documents, their words (runs without white space or Ethiopic word spaces) and their tokens,
        without special ones.
    n_split_texts
        Documents that became more than one window.
    n_cut_texts, n_cut_tokens
        Documents that lost their end, and how many tokens they lost together.
    n_cut_queries
        Queries that lost their end.
    n_read, n_padding
        Tokens that the model has read, and how many of these only fill up a batch.
    """

    n_texts: int = 0
    n_words: int = 0
    n_tokens: int = 0
    n_split_texts: int = 0
    n_cut_texts: int = 0
    n_cut_tokens: int = 0
    n_cut_queries: int = 0
    n_read: int = 0
    n_padding: int = 0


class WindowedEncoder:
    """Split, sort by length, run in batches, put back in order; what all adapters share.

    Parameters
    ----------
    tokenizer, prompts
        For queries and for documents, a text put before theirs.
    lengths
        Most tokens of a query and of a window, with special tokens and markers.
    options
        How to run the model.
    n_markers
        Tokens that the recipe adds to those of the tokenizer, in queries and in documents.
    on_long
        "split" makes windows of a document that is too long, "truncate" cuts its end off.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: tuple[str, str],
        lengths: tuple[int, int],
        options: Options,
        *,
        n_markers: tuple[int, int] = (0, 0),
        on_long: str = "split",
    ) -> None:
        self.counts = Counts()
        self.device = options.torch_device()
        on_cpu = self.device.type == "cpu"
        self._batch_tokens = options.batch_tokens or (4_096 if on_cpu else 65_536)
        self.lengths = lengths
        self._queries = Splitter(tokenizer, prompts[0], lengths[0] - n_markers[0], 0)
        self._documents = Splitter(tokenizer, prompts[1], lengths[1] - n_markers[1], OVERLAP)
        self._truncates = on_long == "truncate"

    def encode_queries(self, texts: Sequence[str]) -> list[TokenEmbeddings]:
        """Give the token embeddings of each query.

        A query of more tokens than the model is given loses the last of them; this is counted in
        `counts.n_cut_queries` and logged as a warning.
        """
        pieces = self._queries.first(texts)
        self._count_queries(pieces)
        return self._encode(pieces, "query")

    def encode_documents(self, texts: Sequence[str]) -> list[list[TokenEmbeddings]]:
        """Give, for each text, the token embeddings of its windows; most texts have one."""
        groups = self._pieces(texts)
        self._count_documents(texts, groups)
        encoded = iter(self._encode([piece for pieces in groups for piece in pieces], "document"))
        return [[next(encoded) for _ in pieces] for pieces in groups]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Give how many token embeddings each text has, without running the model."""
        return [sum(self.n_rows(piece) for piece in pieces) for pieces in self._pieces(texts)]

    def _pieces(self, texts: Sequence[str]) -> list[list[Piece]]:
        if self._truncates:
            return [[piece] for piece in self._documents.first(texts)]
        return self._documents.split(texts)

    def in_one_pass(
        self,
        texts: Sequence[str],
        task: str,
        run: Callable[[list[Piece], str], list[Result]],
        nothing: Result,
    ) -> list[Result]:
        """Give what `run` makes of each text; one that is too long loses its end, as counted."""
        if task == "query":
            pieces = self._queries.first(texts)
            self._count_queries(pieces)
        else:
            pieces = self._documents.first(texts)
            self._count_documents(texts, [[piece] for piece in pieces])
        return self._in_batches(pieces, task, run, nothing)

    def _count_queries(self, pieces: Sequence[Piece]) -> None:
        cut = [piece for piece in pieces if piece.n_cut]
        if cut:
            self.counts.n_cut_queries += len(cut)
            logger.warning(
                "%d of %d queries are longer than %d tokens; up to %d tokens at their end are "
                "not searched for",
                len(cut), len(pieces), self.lengths[0], max(piece.n_cut for piece in cut),
            )  # fmt: skip

    def _count_documents(self, texts: Sequence[str], groups: Sequence[Sequence[Piece]]) -> None:
        counts = self.counts
        counts.n_texts += len(texts)
        counts.n_words += sum(len(_WORD.findall(text)) for text in texts)
        counts.n_tokens += sum(int(p.of_text.sum()) + p.n_cut for group in groups for p in group)
        counts.n_split_texts += sum(len(pieces) > 1 for pieces in groups)
        cut = [piece.n_cut for pieces in groups for piece in pieces if piece.n_cut]
        if cut and not counts.n_cut_texts:  # once: the next batches would say the same
            logger.warning(
                "%d of %d texts are longer than %d tokens; up to %d tokens at their end are not "
                "stored; further ones are counted only",
                len(cut), len(texts), self.lengths[1], max(cut),
            )  # fmt: skip
        counts.n_cut_texts += len(cut)
        counts.n_cut_tokens += sum(cut)

    def _encode(self, pieces: list[Piece], task: str) -> list[TokenEmbeddings]:
        nothing = TokenEmbeddings(self.no_rows(), np.zeros((0, 2), np.uint32))
        return self._in_batches(pieces, task, self.run, nothing)

    def _in_batches(
        self,
        pieces: list[Piece],
        task: str,
        run: Callable[[list[Piece], str], list[Result]],
        nothing: Result,
    ) -> list[Result]:
        """Give what `run` makes of each piece, and `nothing` of those without a token of text."""
        result = [nothing] * len(pieces)
        full = [at for at, piece in enumerate(pieces) if piece.of_text.any()]
        lengths = [self.n_read(pieces[at], task) for at in full]
        for group in self.groups(lengths):
            rows = [full[at] for at in group]
            longest = max(lengths[at] for at in group)
            self.counts.n_read += len(group) * longest
            self.counts.n_padding += sum(longest - lengths[at] for at in group)
            with torch.inference_mode():
                made = run([pieces[row] for row in rows], task)
            for row, one in zip(rows, made, strict=True):
                result[row] = one
        return result

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Give which sequences are read together, by their numbers."""
        return batches(lengths, self._batch_tokens)

    def n_read(self, piece: Piece, task: str) -> int:
        """Give how many tokens the model reads for a piece, without padding."""
        del task
        return len(piece.ids)

    def n_rows(self, piece: Piece) -> int:
        """Give how many rows a piece of a document has."""
        return int(np.count_nonzero(piece.of_text))

    def no_rows(self) -> NDArray[np.float32]:
        """Give an array of no rows in the width of what `run` gives."""
        raise NotImplementedError

    def run(self, pieces: list[Piece], task: str) -> list[TokenEmbeddings]:
        """Encode one batch as "query" or "document", in inference mode."""
        raise NotImplementedError


def prompt_of(prompts: dict[str, str | None], *names: str) -> str:
    """Give the first of the named prompts that is not empty."""
    return next((str(prompts[name]) for name in names if prompts.get(name)), "")


def check_lengths(lengths: tuple[int, int], least: int, window: int) -> None:
    """Refuse a query_length or document_length that a model cannot be given."""
    for name, length in zip(("query_length", "document_length"), lengths, strict=True):
        if not least <= length <= window:
            raise InvalidArgumentError(
                f"{name}={length}: expected {least}..{window}, the model's window"
            )
