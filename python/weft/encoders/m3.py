# SPDX-License-Identifier: Apache-2.0
"""BGE-M3: token embeddings, a dense vector and weights of terms from one pass of the model.

The hidden state of the first token, scaled to unit length, is the dense vector; one linear layer
gives the other tokens their rows, another each token the weight of its term (Chen et al. 2024).
These heads lie beside the weights: `colbert_linear.pt` and `sparse_linear.pt`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import linear, normalize

from weft.encoders.fields import FieldEmbeddings
from weft.encoders.loading import check_cut, load_model, load_tokenizer, model_window, unpickled
from weft.encoders.settings import Setting, check_settings
from weft.encoders.windowed import OVERLAP, Options, WindowedEncoder, check_lengths
from weft.errors import InvalidArgumentError
from weft.types import EncoderInfo, TokenEmbeddings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from weft.encoders.checkpoint import Checkpoint
    from weft.encoders.windows import Piece

LENGTH = 512
"""Most tokens of a query and of a window unless told otherwise; the model takes 8,192."""
MCLS_INTERVAL = 256
"""Tokens of a document that one [CLS] stands for."""

SETTINGS = (
    Setting("on_long", choices=("split", "truncate")),
    Setting("mcls", bool),
    Setting("force_dim", bool),
)
"""What a user can change of the recipe.

on_long
    Whether the token embeddings of a long document are those of its windows, or it loses its end;
    its dense vector and its weights of terms are of one pass, so they always lose it.
mcls
    Whether a document has a [CLS] before every 256 tokens, and its dense vector is the mean of all
    their states: better for long documents without any training (Chen et al. 2024, appendix B.2).
force_dim
    Whether `dim` may be one that the checkpoint does not list.
"""


@dataclass(frozen=True)
class Head:
    """A linear layer: float32 `[n_out, n_hidden]` and `[n_out]`."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Give `[..., n_hidden]` as `[..., n_out]`."""
        return linear(states, self.weight, self.bias)

    def to(self, device: torch.device) -> Head:
        """Give the same layer on a device."""
        return Head(self.weight.to(device), self.bias.to(device))


class M3Encoder(WindowedEncoder):
    """The token embeddings of BGE-M3; `weft.encoders.fields_of` gives all three fields.

    The state of the first token is none of the rows, that of the last one is.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        heads: tuple[Head, Head],
        options: Options,
        info: EncoderInfo | None,
    ) -> None:
        check_settings("m3", options.settings, SETTINGS)
        changes = {**({} if info is None else info.settings), **options.settings}
        window = model_window(model)
        lengths = options.lengths(info, (min(LENGTH, window),) * 2)
        check_lengths(lengths, 3, window)
        self._mcls = bool(changes.get("mcls", False))
        on_long = str(changes.get("on_long", "split"))
        super().__init__(
            tokenizer,
            ("", ""),
            lengths,
            options,
            n_markers=(0, _most_inserts(lengths[1]) if self._mcls else 0),
            on_long=on_long,
        )
        self._model = model.eval().to(self.device)
        self._rows, self._weights = (head.to(self.device) for head in heads)
        self._cls, self._pad = int(tokenizer.cls_token_id), int(tokenizer.pad_token_id)
        special = (tokenizer.eos_token_id, tokenizer.unk_token_id)
        self._no_terms = {self._cls, self._pad, *(token for token in special if token is not None)}
        widths = (int(self._rows.weight.shape[0]), int(model.config.hidden_size))
        dim = options.dim or (info.dim if info else widths[0])
        if dim not in {widths[0], info.dim if info else widths[0]}:
            force = bool(options.settings.get("force_dim", False))
            check_cut(checkpoint, widths[0], dim, force=force)
        self._dim = dim
        # A width to cut to is meant for both, as in the original.
        self.dense_dim = widths[1] if dim == widths[0] else min(dim, widths[1])
        self._info = EncoderInfo(
            name=checkpoint.name,
            recipe="m3",
            dim=dim,
            fingerprint=checkpoint.fingerprint(),
            query_length=lengths[0],
            document_length=lengths[1],
            settings={
                "on_long": on_long,
                "overlap": OVERLAP,
                "mcls": self._mcls,
                "dense_dim": self.dense_dim,
                "similarity": "cosine",
                "scoring": "mean",
            },
        )

    @property
    def info(self) -> EncoderInfo:
        """What an index stores."""
        return self._info

    def sequence(self, piece: Piece, task: str) -> tuple[list[int], NDArray[np.bool_]]:
        """Give the token numbers that the model reads, and which of them are inserted [CLS]."""
        tokens, inserted = list(piece.ids), np.zeros(len(piece.ids), np.bool_)
        if self._mcls and task == "document":
            end = len(tokens) - piece.n_ends
            places = list(range(1 + MCLS_INTERVAL, end, MCLS_INTERVAL))
            for place in reversed(places):
                tokens.insert(place, self._cls)
            inserted = np.insert(inserted, places, values=True)
        return tokens, inserted

    def n_read(self, piece: Piece, task: str) -> int:
        """Give how many tokens the model reads for a piece, without padding."""
        return len(self.sequence(piece, task)[0])

    def n_rows(self, piece: Piece) -> int:
        """Give how many rows a piece of a document has."""
        return len(piece.ids) - 1 if piece.of_text.any() else 0

    def no_rows(self) -> NDArray[np.float32]:
        """Give an array of no rows."""
        return np.zeros((0, self._dim), np.float32)

    def run(self, pieces: list[Piece], task: str) -> list[TokenEmbeddings]:
        """Encode one batch as queries or documents."""
        read = [self.sequence(piece, task) for piece in pieces]
        return self._token_embeddings(self._states(read), read, pieces)

    def all_fields(self, texts: Sequence[str], task: str) -> list[FieldEmbeddings]:
        """Give all three kinds of vectors of each text, from one pass; what is too long is cut."""
        nothing = FieldEmbeddings([TokenEmbeddings(self.no_rows(), None)], None, {})
        return self.in_one_pass(texts, task, self._fields_of, nothing)

    def _fields_of(self, pieces: list[Piece], task: str) -> list[FieldEmbeddings]:
        read = [self.sequence(piece, task) for piece in pieces]
        states = self._states(read)
        multi = self._token_embeddings(states, read, pieces)
        weights = self._weights(states).relu()[..., 0].cpu().numpy()
        result = []
        for row, (tokens, inserted) in enumerate(read):
            firsts = [0, *np.flatnonzero(inserted).tolist()]
            dense = normalize(states[row, firsts].mean(0)[: self.dense_dim], dim=-1)
            sparse: dict[int, float] = {}
            for token, weight in zip(tokens, weights[row, : len(tokens)].tolist(), strict=True):
                if weight > 0 and token not in self._no_terms:
                    sparse[token] = max(weight, sparse.get(token, 0.0))
            result.append(FieldEmbeddings([multi[row]], dense.cpu().numpy(), sparse))
        return result

    def _states(self, read: Sequence[tuple[list[int], NDArray[np.bool_]]]) -> torch.Tensor:
        """Run the model: its last hidden states, float32 `[n_texts, n_longest, n_hidden]`."""
        shape = (len(read), max(len(tokens) for tokens, _ in read))
        ids, attended = np.full(shape, self._pad, np.int64), np.zeros(shape, np.int64)
        for row, (tokens, _) in enumerate(read):
            ids[row, : len(tokens)] = tokens
            attended[row, : len(tokens)] = 1
        states: torch.Tensor = self._model(
            input_ids=torch.from_numpy(ids).to(self.device),
            attention_mask=torch.from_numpy(attended).to(self.device),
        ).last_hidden_state
        return states.float()

    def _token_embeddings(
        self,
        states: torch.Tensor,
        read: Sequence[tuple[list[int], NDArray[np.bool_]]],
        pieces: Sequence[Piece],
    ) -> list[TokenEmbeddings]:
        rows = normalize(self._rows(states)[..., : self._dim], dim=-1).cpu().numpy()
        result = []
        for row, ((_, inserted), piece) in enumerate(zip(read, pieces, strict=True)):
            places = np.flatnonzero(~inserted)[1:]
            spans = None if piece.spans is None else piece.spans[1:]
            result.append(TokenEmbeddings(rows[row, places], spans))
        return result


def load(checkpoint: Checkpoint, options: Options, info: EncoderInfo | None) -> M3Encoder:
    """Load a BGE-M3 checkpoint.

    Raises
    ------
    InvalidArgumentError
        If one of its two heads is missing, where the original would take random ones, or does not
        fit the model.
    """
    model = load_model(checkpoint, checkpoint.folder, options)
    tokenizer = load_tokenizer(checkpoint, checkpoint.folder)
    heads = (
        _head(checkpoint, "colbert_linear.pt", model.config.hidden_size),
        _head(checkpoint, "sparse_linear.pt", model.config.hidden_size, 1),
    )
    return M3Encoder(checkpoint, model, tokenizer, heads, options, info)


def _head(checkpoint: Checkpoint, name: str, n_in: int, n_out: int | None = None) -> Head:
    path = checkpoint.folder / name
    if not path.is_file():
        raise InvalidArgumentError(
            f"model {checkpoint.name}: no {name}, its layer would be random; expected "
            f"colbert_linear.pt and sparse_linear.pt beside the weights"
        )
    held = unpickled(path)
    shapes = {key: tuple(held[key].shape) for key in ("weight", "bias") if key in held}
    n_out = n_out or (shapes["weight"][0] if shapes.get("weight") else 0)
    if shapes != {"weight": (n_out, n_in), "bias": (n_out,)}:
        raise InvalidArgumentError(
            f"model {checkpoint.name}: {name} holds {shapes or 'no weight and bias'}, expected a "
            f"layer from the model's {n_in} values"
        )
    return Head(held["weight"].float(), held["bias"].float())


def _most_inserts(length: int) -> int:
    """Give for how many [CLS] a document of `length` tokens needs room beside its own two."""
    return (length - 2) // (MCLS_INTERVAL + 1)
