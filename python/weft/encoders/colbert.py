# SPDX-License-Identifier: Apache-2.0
"""What the ColBERT runtimes of Stanford and PyLate share: markers, masks, skiplists, projection.

A text becomes [CLS] marker tokens [SEP]. A query is made longer with mask tokens, which the other
tokens do not attend to unless `attend` is set, but which are scored like any other. A document
loses the rows of its skiplist. The rest is projected and scaled to unit length (Khattab & Zaharia
2020).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import linear, normalize

from weft.encoders.lengths import POLICIES, expanded_length, longest_query
from weft.encoders.loading import check_cut, model_window
from weft.encoders.settings import Setting, check_settings
from weft.encoders.skiplists import RULES, skipped_ids
from weft.encoders.windowed import OVERLAP, Options, WindowedEncoder, check_lengths
from weft.errors import InvalidArgumentError
from weft.types import EncoderInfo, TokenEmbeddings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from weft.encoders.checkpoint import Checkpoint
    from weft.encoders.windows import Piece

SETTINGS = (
    Setting("query_policy", choices=POLICIES),
    Setting("attend", bool),
    Setting("skiplist", choices=RULES),
    Setting("skiplist_extra"),
    Setting("on_long", choices=("split", "truncate")),
    Setting("amp", bool),
    Setting("force_dim", bool),
)
"""What a user can change of a recipe; all but the last are stored with the index.

query_policy, attend
    How queries are made longer, and whether the other tokens attend to the mask tokens.
skiplist, skiplist_extra
    See `weft.encoders.skiplists.skipped_ids`.
on_long
    Whether a long document becomes windows or loses its end, as it does in the original runtimes.
amp
    Whether the model computes in half precision where that is safe, and documents are rounded so.
force_dim
    Whether `dim` may be one that the checkpoint does not list.
"""


@dataclass(frozen=True)
class Layout:
    """What a checkpoint says of how texts are read.

    Attributes
    ----------
    recipe
        Name of the recipe.
    markers
        Token put behind the first one, in queries and in documents; "" for none.
    lengths
        Most tokens of a query and of a document, all counted.
    query_policy, attend, skiplist
        See `SETTINGS`.
    words
        What the skiplist is made from.
    similarity
        What the model was trained to score with; rows are of unit length with either.
    prompt
        Put before every text.
    pads_are_masks
        Whether a padding token that is written in a query becomes a mask, and is dropped in a
        document; only the Stanford runtime does that.
    """

    recipe: str
    markers: tuple[str, str]
    lengths: tuple[int, int]
    query_policy: str
    attend: bool
    skiplist: str
    words: tuple[str, ...]
    similarity: str = "cosine"
    prompt: str = ""
    pads_are_masks: bool = False


@dataclass(frozen=True)
class Layer:
    """A linear layer on every state, its activation, and what is added to that from before.

    `weight` and `residual`: float32 `[n_out, n_in]`; `bias`: `[n_out]`.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    activation: torch.nn.Module | None = None
    residual: torch.Tensor | None = None
    adds_input: bool = False

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Give `[..., n_in]` as `[..., n_out]`."""
        rows = linear(states, self.weight, self.bias)
        if self.activation is not None:
            rows = self.activation(rows)
        if self.residual is not None:
            rows = rows + linear(states, self.residual)
        return rows + states if self.adds_input else rows

    def to(self, device: torch.device) -> Layer:
        """Give the same layer on a device."""
        tensors = {"weight": self.weight, "bias": self.bias, "residual": self.residual}
        moved = {name: value.to(device) for name, value in tensors.items() if value is not None}
        return replace(self, **moved)


class ColbertEncoder(WindowedEncoder):
    """A late-interaction model run by a recipe of weft's own.

    Parameters
    ----------
    checkpoint
        Where the model came from.
    model, tokenizer
        Of transformers; the model gives `last_hidden_state`.
    head
        Layers from hidden states to rows, not yet scaled.
    layout
        How texts are read.
    options, info
        What the user asked for, and what the index stores.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        head: Sequence[Layer],
        layout: Layout,
        options: Options,
        info: EncoderInfo | None,
    ) -> None:
        check_settings(layout.recipe, options.settings, SETTINGS)
        stored = {} if info is None else info.settings
        changes = {**stored, **options.settings}
        known = ("query_policy", "attend", "skiplist")
        layout = replace(layout, **{name: changes[name] for name in known if name in changes})
        self._layout = layout
        window = model_window(model)
        lengths = options.lengths(info, layout.lengths)
        check_lengths(lengths, 4, window)
        on_long = str(changes.get("on_long", "split"))
        super().__init__(
            tokenizer,
            (layout.prompt, layout.prompt),
            (longest_query(layout.query_policy, lengths[0], window), lengths[1]),
            options,
            n_markers=(int(layout.markers[0] != ""), int(layout.markers[1] != "")),
            on_long=on_long,
        )
        self._markers = {
            task: _marker(tokenizer, checkpoint, marker)
            for task, marker in zip(("query", "document"), layout.markers, strict=True)
        }
        self._mask, self._pad = _mask(tokenizer, checkpoint), tokenizer.pad_token_id
        extra = str(changes.get("skiplist_extra", ""))
        self._skipped = skipped_ids(tokenizer, layout.skiplist, layout.words, extra)
        if layout.pads_are_masks:
            self._skipped = self._skipped | {self._pad}
        self._amp = bool(changes.get("amp", False))
        self._window, self._query_length = window, lengths[0]
        self._model = model.eval().to(self.device)
        self._head = [layer.to(self.device) for layer in head]
        self._dim = _dim(checkpoint, int(head[-1].weight.shape[0]), options, info)
        self._info = EncoderInfo(
            name=checkpoint.name,
            recipe=layout.recipe,
            dim=self._dim,
            fingerprint=checkpoint.fingerprint(),
            query_length=lengths[0],
            document_length=lengths[1],
            settings={
                "query_policy": layout.query_policy,
                "attend": layout.attend,
                "skiplist": layout.skiplist,
                "skiplist_extra": extra,
                "on_long": on_long,
                "overlap": OVERLAP,
                "amp": self._amp,
                "markers": list(layout.markers),
                "similarity": layout.similarity,
                "scoring": "sum",
            },
        )

    @property
    def info(self) -> EncoderInfo:
        """What an index stores."""
        return self._info

    def sequence(self, piece: Piece, task: str) -> tuple[list[int], list[int]]:
        """Give the token numbers that the model reads, and 1 for each that others attend to."""
        ids = list(piece.ids)
        if self._layout.pads_are_masks and task == "query":
            ids = [self._mask if token == self._pad else token for token in ids]
        marker = self._markers[task]
        if marker is not None:
            ids.insert(1, marker)
        attended = [1] * len(ids)
        if task == "query":
            n_masks = self._expanded(len(ids)) - len(ids)
            ids += [self._mask] * n_masks
            attended += [int(self._layout.attend)] * n_masks
        return ids, attended

    def n_read(self, piece: Piece, task: str) -> int:
        """Give how many tokens the model reads for a piece, without padding."""
        n = len(piece.ids) + (self._markers[task] is not None)
        return self._expanded(n) if task == "query" else n

    def n_rows(self, piece: Piece) -> int:
        """Give how many rows a piece of a document has."""
        if not piece.of_text.any():
            return 0
        return sum(token not in self._skipped for token in self.sequence(piece, "document")[0])

    def no_rows(self) -> NDArray[np.float32]:
        """Give an array of no rows."""
        return np.zeros((0, self._dim), np.float32)

    def run(self, pieces: list[Piece], task: str) -> list[TokenEmbeddings]:
        """Encode one batch as queries or documents."""
        read = [self.sequence(piece, task) for piece in pieces]
        shape = (len(read), max(len(ids) for ids, _ in read))
        padding = self._pad if self._layout.pads_are_masks else self._mask
        ids, attended = np.full(shape, padding, np.int64), np.zeros(shape, np.int64)
        for row, (tokens, marks) in enumerate(read):
            ids[row, : len(tokens)] = tokens
            attended[row, : len(tokens)] = marks
        with torch.autocast(self.device.type, torch.float16, enabled=self._amp):
            states = self._model(
                input_ids=torch.from_numpy(ids).to(self.device),
                attention_mask=torch.from_numpy(attended).to(self.device),
            ).last_hidden_state
            rows = states if self._amp else states.float()
            for layer in self._head:
                rows = layer(rows)
        rows = normalize(rows.float()[..., : self._dim], dim=-1)
        if self._amp and task == "document":
            rows = rows.half().float()
        values = rows.cpu().numpy()
        result = []
        for row, (piece, (tokens, _)) in enumerate(zip(pieces, read, strict=True)):
            kept = np.ones(len(tokens), np.bool_)
            if task == "document":
                kept = np.array([token not in self._skipped for token in tokens])
            spans = self._spans(piece, task, len(tokens))
            result.append(
                TokenEmbeddings(
                    values[row, : len(tokens)][kept], None if spans is None else spans[kept]
                )
            )
        return result

    def _expanded(self, n: int) -> int:
        return expanded_length(self._layout.query_policy, n, self._query_length, self._window)

    def _spans(self, piece: Piece, task: str, n: int) -> NDArray[np.uint32] | None:
        """Give the spans of a sequence; those of marker and masks are empty."""
        if piece.spans is None:
            return None
        spans = np.full((n, 2), piece.start, np.uint32)
        shift = int(self._markers[task] is not None)
        spans[:1] = piece.spans[:1]
        spans[1 + shift : len(piece.ids) + shift] = piece.spans[1:]
        return spans


def _marker(tokenizer: PreTrainedTokenizerBase, checkpoint: Checkpoint, marker: str) -> int | None:
    if not marker:
        return None
    token = tokenizer.get_vocab().get(marker)
    if token is None:
        raise InvalidArgumentError(
            f"model {checkpoint.name}: its marker {marker!r} is not in its vocabulary, so its "
            f"embedding would be random; expected a vocabulary with it"
        )
    return int(token)


def _mask(tokenizer: PreTrainedTokenizerBase, checkpoint: Checkpoint) -> int:
    for token in (tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        if token is not None:
            return int(token)
    raise InvalidArgumentError(
        f"model {checkpoint.name}: its tokenizer has no mask, end or padding token; expected one"
    )


def _dim(checkpoint: Checkpoint, width: int, options: Options, info: EncoderInfo | None) -> int:
    if options.dim is None:
        return info.dim if info else width
    if info is None or options.dim != info.dim:
        force = bool(options.settings.get("force_dim", False))
        check_cut(checkpoint, width, options.dim, force=force)
    return options.dim
