# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that was trained for one vector per text, used token by token.

Special tokens are left out on both sides, since that ranks better: nDCG@10 on 2,000 questions of
squad-dev (all-MiniLM-L6-v2, 128 dimensions) is 0.9147 without and 0.9091 with them, a difference of
four standard errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import normalize
from transformers import AutoTokenizer

from weft.encoders.loading import load_model, loading, model_window
from weft.encoders.projection import fit_projection, projection_from_text, projection_to_text
from weft.encoders.settings import check_settings
from weft.encoders.windowed import OVERLAP, Options, WindowedEncoder, prompt_of
from weft.errors import InvalidArgumentError
from weft.types import EncoderInfo, IndexConfig, TokenEmbeddings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from weft.encoders.checkpoint import Checkpoint
    from weft.encoders.windows import Piece

FIT_TOKENS = 200_000


class TokenEncoder(WindowedEncoder):
    """A checkpoint without token vectors of its own, used token by token.

    The rows are the last hidden states of the text's tokens, scaled to unit length, projected to
    `dim` dimensions by a principal component analysis of the collection, and scaled again. Where
    the model is no wider than `dim` there is no projection.
    """

    def __init__(
        self, checkpoint: Checkpoint, options: Options, info: EncoderInfo | None = None
    ) -> None:
        folder = _transformer_folder(checkpoint)
        with loading(checkpoint.name):
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        self._model = load_model(checkpoint, folder, options)
        window = _window(checkpoint, tokenizer, self._model)
        stored = checkpoint.json("config_sentence_transformers.json").get("prompts") or {}
        prompts = (prompt_of(stored, "query"), prompt_of(stored, "document", "passage", "corpus"))
        lengths = (
            _length(
                "query_length", options.query_length, info.query_length if info else None, window
            ),
            _length(
                "document_length",
                options.document_length,
                info.document_length if info else None,
                window,
            ),
        )
        super().__init__(tokenizer, prompts, lengths, options)
        self._model.eval().to(self.device)
        self._pad = tokenizer.pad_token_id or 0
        self._n_hidden = int(self._model.config.hidden_size)
        if (options.dim or 0) > self._n_hidden:
            raise InvalidArgumentError(
                f"dim={options.dim}: the model {checkpoint.name} has {self._n_hidden}; "
                f"expected at most that"
            )
        self._dim = min(options.dim or (info.dim if info else IndexConfig.dim), self._n_hidden)
        self._projection: NDArray[np.float32] | None = None
        text = info.settings.get("projection") if info else None
        if isinstance(text, str):
            self._projection = projection_from_text(text, self._n_hidden, self._dim)
        self._name, self._fingerprint = checkpoint.name, checkpoint.fingerprint()
        self._prompts = prompts

    @property
    def info(self) -> EncoderInfo:
        """What an index stores: the projection is in `settings["projection"]` once it is fitted."""
        matrix = self._projection
        return EncoderInfo(
            name=self._name,
            recipe="tokens",
            dim=self._dim,
            fingerprint=self._fingerprint,
            query_length=self.lengths[0],
            document_length=self.lengths[1],
            settings={
                "n_hidden": self._n_hidden,
                "overlap": OVERLAP,
                "projection": None if matrix is None else projection_to_text(matrix),
                "query_prompt": self._prompts[0],
                "document_prompt": self._prompts[1],
            },
        )

    @property
    def fitted(self) -> bool:
        """Whether rows can be projected: not until `fit`, where a projection is needed."""
        return self._projection is not None or self._n_hidden == self._dim

    @property
    def fit_tokens(self) -> int:
        """How many tokens the projection is fitted on."""
        return FIT_TOKENS

    def encode_queries(self, texts: Sequence[str]) -> list[TokenEmbeddings]:
        """Give the token embeddings of each query."""
        self._require_fitted()
        return [self._project(hidden) for hidden in super().encode_queries(texts)]

    def encode_documents(self, texts: Sequence[str]) -> list[list[TokenEmbeddings]]:
        """Give, for each text, the token embeddings of its windows; most texts have one."""
        self._require_fitted()
        return [[self._project(one) for one in windows] for windows in self.encode_hidden(texts)]

    def encode_hidden(self, texts: Sequence[str]) -> list[list[TokenEmbeddings]]:
        """Give, for each text, its windows in the width of the model, rows of unit length."""
        return super().encode_documents(texts)

    def fit(self, hidden: Sequence[list[TokenEmbeddings]]) -> list[list[TokenEmbeddings]]:
        """Fit the projection on the first `fit_tokens` rows and give all of them projected."""
        if not self.fitted:
            rows = [one.values for windows in hidden for one in windows]
            ends = np.cumsum([len(values) for values in rows])
            enough = int(np.searchsorted(ends, FIT_TOKENS)) + 1
            sample = np.concatenate([self.no_rows(), *rows[:enough]])[:FIT_TOKENS]
            self._projection = fit_projection(sample, self._dim)
        return [[self._project(one) for one in windows] for windows in hidden]

    def _require_fitted(self) -> None:
        if not self.fitted:
            raise InvalidArgumentError(
                f"model {self._name}: its projection from {self._n_hidden} to {self._dim} "
                f"dimensions is not fitted; add documents first, or open the index made with it"
            )

    def _project(self, hidden: TokenEmbeddings) -> TokenEmbeddings:
        if self._projection is None:
            return hidden
        values = hidden.values @ self._projection
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        return TokenEmbeddings(values / np.maximum(norms, np.finfo(np.float32).tiny), hidden.spans)

    def no_rows(self) -> NDArray[np.float32]:
        """Give an array of no rows, as wide as the model."""
        return np.zeros((0, self._n_hidden), np.float32)

    def run(self, pieces: list[Piece], task: str) -> list[TokenEmbeddings]:
        """Encode one batch; queries and documents alike."""
        del task
        shape = (len(pieces), max(len(piece.ids) for piece in pieces))
        ids, mask = np.full(shape, self._pad, np.int64), np.zeros(shape, np.int64)
        for row, piece in enumerate(pieces):
            ids[row, : len(piece.ids)] = piece.ids
            mask[row, : len(piece.ids)] = 1
        states = self._model(
            input_ids=torch.from_numpy(ids).to(self.device),
            attention_mask=torch.from_numpy(mask).to(self.device),
        ).last_hidden_state
        values = normalize(states.float(), dim=-1).cpu().numpy()
        return [
            TokenEmbeddings(
                values[row, : len(piece.ids)][piece.of_text],
                None if piece.spans is None else piece.spans[piece.of_text],
            )
            for row, piece in enumerate(pieces)
        ]


def load(checkpoint: Checkpoint, options: Options, info: EncoderInfo | None) -> TokenEncoder:
    """Load a checkpoint to be used token by token."""
    check_settings("tokens", options.settings, ())
    return TokenEncoder(checkpoint, options, info)


def _transformer_folder(checkpoint: Checkpoint) -> Path:
    for module in checkpoint.modules():
        if str(module.get("type", "")).endswith("Transformer"):
            return checkpoint.folder / str(module.get("path", ""))
    return checkpoint.folder


def _window(
    checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> int:
    """Give the most tokens that the model takes, special tokens included."""
    saved = checkpoint.json("sentence_bert_config.json").get("max_seq_length")
    limits = [saved, tokenizer.model_max_length, model_window(model)]
    return min(int(limit) for limit in limits if limit)


def _length(name: str, asked: int | None, stored: int | None, window: int) -> int:
    length = asked or stored or window
    if not 4 <= length <= window:
        raise InvalidArgumentError(f"{name}={length}: expected 4..{window}, the model's window")
    return length
