# SPDX-License-Identifier: Apache-2.0
"""What every adapter over a torch model does: split, sort by length, run in batches, count."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from weft.encoders.windows import Piece, Splitter, batches
from weft.errors import DeviceError, InvalidArgumentError
from weft.types import TokenEmbeddings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("weft")

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

    def torch_dtype(self) -> torch.dtype:
        """Give the type that the model computes in."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32


class WindowedEncoder:
    """Split, sort by length, run in batches, put back in order; what both adapters share.

    Attributes
    ----------
    n_long_queries
        Queries that lost tokens because they were longer than `info.query_length`.
    n_split_texts
        Texts that became more than one window.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: tuple[str, str],
        lengths: tuple[int, int],
        options: Options,
    ) -> None:
        self.n_long_queries = 0
        self.n_split_texts = 0
        self.device = options.torch_device()
        on_cpu = self.device.type == "cpu"
        self._batch_tokens = options.batch_tokens or (4_096 if on_cpu else 65_536)
        self.lengths = lengths
        self._queries = Splitter(tokenizer, prompts[0], lengths[0], 0)
        self._documents = Splitter(tokenizer, prompts[1], lengths[1], OVERLAP)

    def encode_queries(self, texts: Sequence[str]) -> list[TokenEmbeddings]:
        """Give the token embeddings of each query.

        A query of more tokens than `info.query_length` loses the last of them; this is counted in
        `n_long_queries` and logged as a warning.
        """
        pieces = self._queries.first(texts)
        cut = [piece for piece in pieces if piece.n_cut]
        if cut:
            self.n_long_queries += len(cut)
            logger.warning(
                "%d of %d queries are longer than %d tokens; up to %d tokens at their end are "
                "not searched for",
                len(cut), len(pieces), self.lengths[0], max(piece.n_cut for piece in cut),
            )  # fmt: skip
        return self._encode(pieces, "query")

    def encode_documents(self, texts: Sequence[str]) -> list[list[TokenEmbeddings]]:
        """Give, for each text, the token embeddings of its windows; most texts have one."""
        groups = self._documents.split(texts)
        self.n_split_texts += sum(len(pieces) > 1 for pieces in groups)
        encoded = iter(self._encode([piece for pieces in groups for piece in pieces], "document"))
        return [[next(encoded) for _ in pieces] for pieces in groups]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Give how many token embeddings each text has, without running the model."""
        groups = self._documents.split(texts)
        return [sum(self.n_rows(piece) for piece in pieces) for pieces in groups]

    def _encode(self, pieces: list[Piece], task: str) -> list[TokenEmbeddings]:
        nothing = TokenEmbeddings(self.no_rows(), np.zeros((0, 2), np.uint32))
        result = [nothing] * len(pieces)
        full = [at for at, piece in enumerate(pieces) if piece.of_text.any()]
        for group in batches([len(pieces[at].ids) for at in full], self._batch_tokens):
            rows = [full[at] for at in group]
            with torch.inference_mode():
                encoded = self.run([pieces[row] for row in rows], task)
            for row, embeddings in zip(rows, encoded, strict=True):
                result[row] = embeddings
        return result

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


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Load without progress bars, and report what goes wrong as one clear error."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise InvalidArgumentError(f"model {name}: cannot be loaded: {first[0]}") from error
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
