# SPDX-License-Identifier: Apache-2.0
"""Models that give weights of terms, as sentence-transformers runs them; Granite sparse is one.

The weight of a term is the largest log(1 + relu(logit)) that any token of the text gives it
(SPLADE, Formal et al. 2021); special tokens count like any other. How many of the weights are
kept, of documents and of queries, is a setting of the index: `SparseConfig`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from sentence_transformers import SparseEncoder

from weft.encoders.fields import FieldEmbeddings
from weft.encoders.loading import loading
from weft.encoders.settings import check_settings
from weft.encoders.windowed import Options, WindowedEncoder, check_lengths, prompt_of
from weft.errors import InvalidArgumentError
from weft.types import EncoderInfo, TokenEmbeddings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from weft.encoders.checkpoint import Checkpoint
    from weft.encoders.windows import Piece


class SpladeEncoder(WindowedEncoder):
    """A `SparseEncoder`: weights of terms for a query or a document, each from one pass."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: SparseEncoder,
        options: Options,
        info: EncoderInfo | None,
    ) -> None:
        window = int(model.max_seq_length)
        lengths = options.lengths(info, (window, window))
        check_lengths(lengths, 3, window)
        prompts = (
            prompt_of(model.prompts, "query"),
            prompt_of(model.prompts, "document", "passage", "corpus"),
        )
        super().__init__(model.tokenizer, prompts, lengths, options)
        self._model = model.eval()
        self._pad = int(model.tokenizer.pad_token_id or 0)
        self._info = EncoderInfo(
            name=checkpoint.name,
            recipe="splade",
            dim=1,  # of token embeddings, which there are none of
            fingerprint=checkpoint.fingerprint(),
            query_length=lengths[0],
            document_length=lengths[1],
            settings={"query_prompt": prompts[0], "document_prompt": prompts[1]},
        )

    @property
    def info(self) -> EncoderInfo:
        """What an index stores."""
        return self._info

    def all_fields(self, texts: Sequence[str], task: str) -> list[FieldEmbeddings]:
        """Give the weights of terms of each text; one that is too long loses its end."""
        return self.in_one_pass(texts, task, self._weights, FieldEmbeddings(sparse={}))

    def no_rows(self) -> NDArray[np.float32]:
        """Give an array of no rows."""
        return np.zeros((0, 1), np.float32)

    def run(self, pieces: list[Piece], task: str) -> list[TokenEmbeddings]:
        """Refuse: there are no token embeddings."""
        raise InvalidArgumentError(
            f"model {self._info.name}: it gives weights of terms and no token embeddings; expected "
            f"to be used through weft.encoders.fields_of"
        )

    def _weights(self, pieces: list[Piece], task: str) -> list[FieldEmbeddings]:
        del task
        shape = (len(pieces), max(len(piece.ids) for piece in pieces))
        ids, attended = np.full(shape, self._pad, np.int64), np.zeros(shape, np.int64)
        for row, piece in enumerate(pieces):
            ids[row, : len(piece.ids)] = piece.ids
            attended[row, : len(piece.ids)] = 1
        output = self._model(
            {"input_ids": self._tensor(ids), "attention_mask": self._tensor(attended)}
        )
        result = []
        for row in output["sentence_embedding"].float().cpu().numpy():
            terms = np.flatnonzero(row > 0)
            weights = dict(zip(terms.tolist(), row[terms].tolist(), strict=True))
            result.append(FieldEmbeddings(sparse=weights))
        return result

    def _tensor(self, values: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(values).to(self.device)


def load(checkpoint: Checkpoint, options: Options, info: EncoderInfo | None) -> SpladeEncoder:
    """Load a folder of sentence-transformers, or a masked language model without any.

    Raises
    ------
    InvalidArgumentError
        If it is neither, or has weights that would be random.
    """
    check_settings("splade", options.settings, ())
    if options.dim not in {None, 1}:
        raise InvalidArgumentError(
            f"dim={options.dim}: the recipe splade has weights of terms and no dimensions"
        )
    architectures = checkpoint.json("config.json").get("architectures") or [""]
    if not checkpoint.modules() and not str(architectures[0]).endswith("ForMaskedLM"):
        raise InvalidArgumentError(
            f"model {checkpoint.name}: {architectures[0] or 'nothing'} in config.json, so its "
            f"weights of terms would be random; expected a masked language model"
        )
    with loading(checkpoint.name):
        model = SparseEncoder(
            str(checkpoint.folder), device=str(options.torch_device()), local_files_only=True
        )
    model.to(dtype=options.torch_dtype())
    return SpladeEncoder(checkpoint, model, options, info)
