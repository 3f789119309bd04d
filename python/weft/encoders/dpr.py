# SPDX-License-Identifier: Apache-2.0
"""A pair of towers as DPR trains them, CCP among them (Karpukhin et al. 2020, Wu et al. 2022).

One transformer reads questions, another one passages, a title and a text as a pair. The vector is a
state, of no particular length, and the score is the plain inner product. An index scales rows to
unit length, so passages get one value more that fills them up to a common length M, and questions
get a zero there: [d, sqrt(M^2 - |d|^2)] / M and [M q, 0]. The product is that of q and d.

M has to be known before the first passage is. States come out of a normalising layer with trained
gains and offsets, which bounds their length, and M is that bound unless it is given.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from weft.encoders.calibration import Calibration
from weft.encoders.loading import build_model, load_tokenizer, model_window, unpickled
from weft.encoders.settings import Setting, check_settings
from weft.encoders.vectors import VectorEncoder, padded
from weft.encoders.windowed import OVERLAP, check_lengths
from weft.encoders.windows import Piece, Splitter
from weft.errors import InvalidArgumentError
from weft.types import EncoderInfo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

    from weft.encoders.calibration import Side
    from weft.encoders.checkpoint import Checkpoint
    from weft.encoders.windowed import Options

LENGTH = 256
"""Most tokens of a question or passage, where the checkpoint does not say."""

POOLINGS = ("cls", "cls_pooler", "avg")
HEADROOM = 2.0
"""M of calibrated passages, over the longest vector that the calibration was fitted on."""

ROUNDING = 1e-6

SETTINGS = (
    Setting("pooling", choices=POOLINGS),
    Setting("similarity", choices=("dot", "cosine")),
    Setting("max_norm", float),
    Setting("title", choices=("line", "blank_line", "none")),
    Setting("rest", choices=("keep", "drop")),
    Setting("on_long", choices=("split", "truncate")),
    Setting("calibration"),
    Setting("language"),
)
"""What a user can change; all but the last are stored with the index.

pooling
    Which state is the vector: the first, what the pooler makes of it, or the mean.
similarity
    "dot", as the towers are trained, or "cosine".
max_norm
    M; a passage that is longer is refused.
title
    What of a document is its title: its first line, where there is another (which is how titles are
    read from BEIR folders and .tsv files); what stands before its first blank line, as in Mr.TyDi;
    or nothing.
rest
    With blank_line, whether what stands behind the second blank line is read; the original does
    not.
on_long
    Whether a long document becomes windows, each with the title, or loses its end.
calibration
    A file that `weft.encoders.calibration.Calibration.save` wrote.
language
    Of the texts, for the calibration.
"""

DEFAULTS: dict[str, Any] = {
    "similarity": "dot",
    "max_norm": None,
    "title": "line",
    "rest": "keep",
    "on_long": "split",
    "calibration": None,
}

_TOWERS = {"query": "question_model.backbone.", "document": "ctx_model.backbone."}


@dataclass(frozen=True)
class _Passage:
    """A title, a text, and the code points of the document where they start."""

    title: str
    text: str
    starts: tuple[int, int]


class _Passages(Splitter):
    """Documents as pairs of title and text; questions as texts alone."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_tokens: int, title: str, rest: str
    ) -> None:
        super().__init__(tokenizer, "", max_tokens, OVERLAP)
        self._title, self._rest = title, rest

    def first(self, texts: Sequence[str]) -> list[Piece]:
        return self._read([self._parts(text) for text in texts])

    def split(self, texts: Sequence[str]) -> list[list[Piece]]:
        passages = [self._parts(text) for text in texts]
        return [
            self._windows(passage) if whole.n_cut else [whole]
            for passage, whole in zip(passages, self._read(passages), strict=True)
        ]

    def _windows(self, passage: _Passage) -> list[Piece]:
        n_title = len(self._tokens(passage.title)) + 2 if passage.title else 0
        room = max(self._max_tokens - n_title, self._max_tokens // 2)
        parts = Splitter(self._tokenizer, "", room, OVERLAP).split([passage.text])[0]
        at, start = passage.starts
        return self._read(
            [_Passage(passage.title, part.text, (at, start + part.start)) for part in parts]
        )

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _parts(self, document: str) -> _Passage:
        title, found, text = "", "", document
        if self._title == "line":
            title, found, text = document.partition("\n")
        elif self._title == "blank_line":
            title, found, text = document.partition("\n\n")
        if not found:
            title, text = "", document
        start = len(document) - len(text)
        if self._title == "blank_line" and self._rest == "drop":
            text = text.partition("\n\n")[0]
        blank = len(text) - len(text.lstrip())
        return _Passage(title, text.strip(), (0, start + blank))

    def _read(self, passages: list[_Passage]) -> list[Piece]:
        pieces: dict[int, Piece] = {}
        for titled in (False, True):
            rows = [at for at, one in enumerate(passages) if bool(one.title) == titled]
            if not rows:
                continue
            texts = [passages[at].text for at in rows]
            encoded = self._tokenizer(
                *([[passages[at].title for at in rows]] if titled else []), texts,
                truncation="longest_first", max_length=self._max_tokens, verbose=False,
                return_offsets_mapping=True,
            )  # fmt: skip
            for row, at in enumerate(rows):
                pieces[at] = self._piece(passages[at], encoded, row)
        return [pieces[at] for at in range(len(passages))]

    def _piece(self, passage: _Passage, encoded: BatchEncoding, row: int) -> Piece:
        ids = encoded["input_ids"][row]
        sequence = np.array([-1 if part is None else part for part in encoded.sequence_ids(row)])
        spans = np.asarray(encoded["offset_mapping"][row], np.int64).reshape(-1, 2)
        of_text = (sequence >= 0) & (spans[:, 1] > spans[:, 0])
        starts = np.array(passage.starts if passage.title else passage.starts[1:])
        spans = np.where(of_text[:, None], spans + starts[sequence.clip(0)][:, None], 0)
        n_cut = 0
        if len(ids) == self._max_tokens:
            n_special = int(np.count_nonzero(sequence < 0))
            parts = (passage.title, passage.text)
            n_cut = sum(len(self._tokens(part)) for part in parts) + n_special - len(ids)
        return Piece(
            passage.text, passage.starts[1], ids, spans.astype(np.uint32), of_text, 1, n_cut
        )


class DprEncoder(VectorEncoder):
    """Two towers, run by the recipe of their authors."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        towers: Mapping[str, PreTrainedModel],
        tokenizer: PreTrainedTokenizerBase,
        options: Options,
        info: EncoderInfo | None,
        settings: Mapping[str, Any],
        usual_length: int,
    ) -> None:
        window = min(model_window(tower) for tower in towers.values())
        lengths = options.lengths(info, (min(usual_length, window),) * 2)
        check_lengths(lengths, 8, window)
        super().__init__(tokenizer, ("", ""), lengths, options, on_long=settings["on_long"])
        self._queries = _Passages(tokenizer, lengths[0], "none", "keep")
        self._documents = _Passages(tokenizer, lengths[1], settings["title"], settings["rest"])
        self._towers = {side: tower.eval().to(self.device) for side, tower in towers.items()}
        self._pad = int(tokenizer.pad_token_id)
        self._pooling, self._similarity = settings["pooling"], settings["similarity"]
        self._width = int(towers["document"].config.hidden_size)
        self._calibration = _calibration(settings["calibration"], self._width)
        self._language = options.settings.get("language")
        self._max_norm = float(settings["max_norm"] or self._bound())
        stored = {name: value for name, value in settings.items() if name != "language"}
        if self._calibration is not None:
            stored["calibration"] = self._calibration.to_json()
        stored["max_norm"] = self._max_norm if self._similarity == "dot" else None
        self._info = EncoderInfo(
            name=checkpoint.name,
            recipe="dpr",
            dim=self._width + (self._similarity == "dot"),
            fingerprint=checkpoint.fingerprint(),
            query_length=lengths[0],
            document_length=lengths[1],
            settings={**stored, "overlap": OVERLAP},
        )
        if options.dim not in {None, self._info.dim}:
            raise InvalidArgumentError(
                f"dim={options.dim}: the model gives {self._width}, its rows are {self._info.dim}"
            )

    @property
    def info(self) -> EncoderInfo:
        """What an index stores; the language is no part of it."""
        return self._info

    def in_language(self, language: str) -> DprEncoder:
        """Give the same encoder for texts of another language; the towers are shared."""
        other = copy.copy(self)
        other._language = language
        return other

    def plain_vectors(self, texts: Sequence[str], side: Side) -> NDArray[np.float32]:
        """Give what a tower makes of texts, `[n, width]`: not calibrated, of no unit length.

        A text that is too long loses its end.

        Raises
        ------
        InvalidArgumentError
            There is nothing in a text.
        """
        pieces = (self._queries if side == "query" else self._documents).first(texts)
        for text, piece in zip(texts, pieces, strict=True):
            if not piece.of_text.any():
                raise InvalidArgumentError(f"{side} {text!r}: no tokens in it, expected some text")
        rows = np.zeros((len(pieces), self._width), np.float32)
        for group in self.groups([len(piece.ids) for piece in pieces]):
            with torch.inference_mode():
                rows[group] = self._states([pieces[at] for at in group], side)
        return rows

    def no_rows(self) -> NDArray[np.float32]:
        """Give an array of no rows."""
        return np.zeros((0, self._info.dim), np.float32)

    def vectors(self, pieces: list[Piece], task: str) -> NDArray[np.float32]:
        """Give one row for each piece, `[n, dim]`."""
        side: Side = "query" if task == "query" else "document"
        rows: NDArray[np.float32] = self._states(pieces, side)
        if self._calibration is not None:
            rows = self._calibration.apply(rows, self._language, side)
        norms = np.linalg.norm(rows.astype(np.float64), axis=1)
        if self._similarity == "cosine":
            norms = np.maximum(norms, np.finfo(np.float32).tiny)
            return np.asarray(rows / norms[:, None], np.float32)
        if side == "query":
            return np.pad(rows * np.float32(self._max_norm), ((0, 0), (0, 1)))
        longest = float(norms.max())
        if longest > self._max_norm * (1 + ROUNDING):
            raise InvalidArgumentError(
                f"a passage has a vector of length {longest:.6g}, expected at most "
                f"max_norm={self._max_norm:.6g}; build the index anew with a larger one"
            )
        rest = np.sqrt(np.maximum(self._max_norm**2 - norms**2, 0.0))
        return (np.column_stack([rows, rest]) / self._max_norm).astype(np.float32)

    def _states(self, pieces: list[Piece], side: Side) -> NDArray[np.float32]:
        given = padded(pieces, self._pad)[0].to(self.device)
        mask = (given != self._pad).long()  # a padding token that is written in a text, too
        output = self._towers[side](input_ids=given, attention_mask=mask)
        if self._pooling == "cls_pooler":
            pooled = output.pooler_output
        elif self._pooling == "cls":
            pooled = output.last_hidden_state[:, 0]
        else:
            states = output.last_hidden_state * mask[..., None]
            pooled = states.sum(dim=1) / mask.sum(dim=1, keepdim=True)
        rows: NDArray[np.float32] = pooled.float().cpu().numpy()
        return rows

    def _bound(self) -> float:
        """Give a length that no vector of a passage exceeds."""
        if self._calibration is not None:
            return HEADROOM * self._calibration.longest
        if self._pooling == "cls_pooler":
            return float(np.sqrt(self._width))  # each value is a tanh
        norm = self._towers["document"].encoder.layer[-1].output.LayerNorm
        largest = float(norm.weight.detach().abs().max())
        return largest * float(np.sqrt(self._width)) + float(norm.bias.detach().norm())


def load(checkpoint: Checkpoint, options: Options, info: EncoderInfo | None) -> DprEncoder:
    """Load the pickle of both towers, with `config.json` and the tokenizer beside it.

    Raises
    ------
    InvalidArgumentError
        If it holds anything but tensors and plain values, or lacks a tower.
    """
    check_settings("dpr", options.settings, SETTINGS)
    held = _held(checkpoint)
    saved = held.get("encoder_params")
    saved = saved if isinstance(saved, dict) else {}
    settings = {**DEFAULTS, "pooling": saved.get("pooling", "cls")}
    settings |= {name: info.settings[name] for name in settings} if info else {}
    settings |= options.settings
    if settings["pooling"] not in POOLINGS:
        raise InvalidArgumentError(
            f"model {checkpoint.name}: pooling {settings['pooling']!r} in its encoder_params; "
            f"expected one of {', '.join(POOLINGS)}"
        )
    if settings["max_norm"] is not None and not settings["max_norm"] > 0:
        raise InvalidArgumentError(f"max_norm={settings['max_norm']}: expected a number above 0")
    state = held["model_dict"]
    towers = {}
    for side, prefix in _TOWERS.items():
        weights = {
            name.removeprefix(prefix): value
            for name, value in state.items()
            if name.startswith(prefix)
        }
        if not weights or (settings["pooling"] == "cls_pooler" and not _has_pooler(weights)):
            wanted = "a pooler" if weights else "a tower"
            raise InvalidArgumentError(
                f"model {checkpoint.name}: no {prefix}{'pooler' if weights else ''}* in its "
                f"model_dict; expected {wanted} for each side"
            )
        towers[side] = build_model(checkpoint, checkpoint.folder, weights, options)
    tokenizer = load_tokenizer(checkpoint, checkpoint.folder)
    length = int(saved.get("sequence_length") or LENGTH)
    return DprEncoder(checkpoint, towers, tokenizer, options, info, settings, length)


def _held(checkpoint: Checkpoint) -> dict[str, Any]:
    for path in checkpoint.weights():
        if path.suffix == ".pt":
            held = unpickled(path)
            if isinstance(held.get("model_dict"), dict):
                return held
    raise InvalidArgumentError(
        f"model {checkpoint.name}: no file of pickled weights with a model_dict in it; expected one"
    )


def _has_pooler(weights: Mapping[str, torch.Tensor]) -> bool:
    return {"pooler.dense.weight", "pooler.dense.bias"} <= weights.keys()


def _calibration(given: str | Mapping[str, Any] | None, width: int) -> Calibration | None:
    if given is None:
        return None
    found = Calibration.load(given) if isinstance(given, str) else Calibration.from_json(given)
    if found.dim != width:
        raise InvalidArgumentError(
            f"calibration: made for vectors of {found.dim} values, the model gives {width}"
        )
    return found
