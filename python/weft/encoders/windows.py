# SPDX-License-Identifier: Apache-2.0
"""Texts to pieces that a model can take, and pieces to batches.

A text that is longer than the model's window becomes several overlapping pieces. They are cut
between words where the tokenizer tells words apart, are about equally long, and share no more
tokens than the overlap asks for. Every token keeps its place in the whole text.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from transformers import BatchEncoding, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Piece:
    """A text, or the part of it that one run of the model reads.

    Attributes
    ----------
    text, start
        The part, and the code point of the whole text where it starts.
    ids
        Its token numbers, with the prompt and the special tokens.
    spans
        uint32 `[n_tokens, 2]`, the code points of the whole text that each token covers; empty
        (start = end) for the prompt and the special tokens. None where the tokenizer does not tell.
    of_text
        Which tokens come from the text itself.
    n_ends
        How many special tokens stand at the end.
    n_cut
        Tokens left out at the end because the piece had too many.
    """

    text: str
    start: int
    ids: list[int]
    spans: NDArray[np.uint32] | None
    of_text: NDArray[np.bool_]
    n_ends: int
    n_cut: int = 0

    def cut(self, max_tokens: int) -> Piece:
        """Leave out the last tokens of the text where there are more than `max_tokens` in all."""
        n_cut = len(self.ids) - max_tokens
        if n_cut <= 0:
            return self
        end = len(self.ids) - self.n_ends
        kept = np.ones(len(self.ids), np.bool_)
        kept[end - n_cut : end] = False
        ids = [token for token, keep in zip(self.ids, kept, strict=True) if keep]
        spans = None if self.spans is None else self.spans[kept]
        return Piece(self.text, self.start, ids, spans, self.of_text[kept], self.n_ends, n_cut)


class Splitter:
    """Tokenises texts and cuts those that are too long.

    Parameters
    ----------
    tokenizer
        A tokenizer of transformers. A fast one tells where each token lies; for any other, spans
        are None and long texts are halved at white space, without overlap.
    prompt
        Put before every text.
    max_tokens
        The model's window, with room for the prompt and the special tokens.
    overlap
        Tokens that neighbouring pieces share; never more than a quarter of a window.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: str, max_tokens: int, overlap: int
    ) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._max_tokens = max_tokens
        self._overlap = overlap

    def split(self, texts: Sequence[str]) -> list[list[Piece]]:
        """Give the pieces of each text; a text without tokens gives one piece without any."""
        if not texts:
            return []
        split = self._split_fast if self._tokenizer.is_fast else self._split_slow
        return split([(text, 0) for text in texts])

    def first(self, texts: Sequence[str]) -> list[Piece]:
        """Give one piece for each text, with what lies beyond the window left out."""
        endless = Splitter(self._tokenizer, self._prompt, sys.maxsize, 0)
        return [pieces[0].cut(self._max_tokens) for pieces in endless.split(texts)]

    def _tokenize(self, parts: list[tuple[str, int]], **options: bool) -> BatchEncoding:
        texts = [self._prompt + text for text, _ in parts]
        return self._tokenizer(
            texts, truncation=False, verbose=False, return_special_tokens_mask=True, **options
        )

    def _split_fast(self, parts: list[tuple[str, int]]) -> list[list[Piece]]:
        encoded = self._tokenize(parts, return_offsets_mapping=True)
        result = []
        for row, (text, start) in enumerate(parts):
            ids = encoded["input_ids"][row]
            spans = np.asarray(encoded["offset_mapping"][row], np.int64).reshape(-1, 2)
            spans = spans - len(self._prompt)
            of_text = (spans[:, 1] > 0) & (spans[:, 1] > spans[:, 0])
            spans = np.where(of_text[:, None], spans.clip(0), 0)
            if len(ids) <= self._max_tokens or np.count_nonzero(of_text) < 2:
                _trim(spans, of_text, text)
                places = (spans + start).astype(np.uint32)
                n_ends = _n_ends(encoded["special_tokens_mask"][row])
                result.append([Piece(text, start, ids, places, of_text, n_ends)])
                continue
            words = np.array([-1 if word is None else word for word in encoded.word_ids(row)])
            room = self._max_tokens - np.count_nonzero(~of_text)
            cuts = _cuts(spans[of_text], words[of_text], room, self._overlap)
            cut_parts = self._split_fast([(text[a:b], start + a) for a, b in cuts])
            result.append([piece for pieces in cut_parts for piece in pieces])
        return result

    def _split_slow(self, parts: list[tuple[str, int]]) -> list[list[Piece]]:
        encoded = self._tokenize(parts)
        n_prompt = len(self._tokenizer(self._prompt, add_special_tokens=False)["input_ids"])
        result = []
        for row, (text, start) in enumerate(parts):
            ids = encoded["input_ids"][row]
            if len(ids) > self._max_tokens and len(text) > 1:
                middle = len(text) // 2
                blank = text.find(" ", middle, middle + len(text) // 4)
                cut = blank if blank > 0 else middle
                halves = self._split_slow([(text[:cut], start), (text[cut:], start + cut)])
                result.append([piece for pieces in halves for piece in pieces])
                continue
            of_text = np.asarray(encoded["special_tokens_mask"][row]) == 0
            of_text[np.flatnonzero(of_text)[:n_prompt]] = False
            n_ends = _n_ends(encoded["special_tokens_mask"][row])
            result.append([Piece(text, start, ids, None, of_text, n_ends)])
        return result


def _n_ends(special: Sequence[int]) -> int:
    """Count the special tokens at the end of a sequence."""
    return next((i for i, mark in enumerate(reversed(special)) if not mark), len(special))


def _trim(spans: NDArray[np.int64], of_text: NDArray[np.bool_], text: str) -> None:
    """Take off the blank that some tokenizers count as part of the word behind it."""
    for at in np.flatnonzero(of_text):
        if text[spans[at, 0]].isspace():
            token = text[spans[at, 0] : spans[at, 1]]
            spans[at, 0] += len(token) - len(token.lstrip())


def _cuts(
    spans: NDArray[np.int64], words: NDArray[np.int64], room: int, overlap: int
) -> list[tuple[int, int]]:
    """Give the code points of pieces of at most `room` tokens, about equally long."""
    n, room = len(spans), max(room, 2)
    overlap = min(overlap, room // 4)
    reach = overlap // 2
    starts_word = np.r_[True, words[1:] != words[:-1]]
    count = max(2, -(-(n - overlap) // (room - overlap - reach)))
    edges = [overlap + (i * (n - overlap)) // count for i in range(count + 1)]
    cuts = []
    for begin, end in pairwise(edges):
        first = _word_start(starts_word, begin - overlap, reach)
        last = n if end == n else _word_start(starts_word, end, reach)
        cuts.append((0 if begin == overlap else int(spans[first, 0]), int(spans[last - 1, 1])))
    return cuts


def _word_start(starts_word: NDArray[np.bool_], at: int, reach: int) -> int:
    """Go back from `at` to where a word starts, by at most `reach` tokens."""
    for candidate in range(at, max(at - reach, 1) - 1, -1):
        if starts_word[candidate]:
            return candidate
    return at


def batches(lengths: Iterable[int], max_tokens: int) -> list[list[int]]:
    """Group pieces of like length, longest first.

    A batch has at most `max_tokens` tokens with its padding (or one piece), and no piece is padded
    to more than 4/3 of its length.
    """
    sizes = list(lengths)
    result: list[list[int]] = []
    for at in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        longest = sizes[result[-1][0]] if result else 0
        fits = bool(result) and (len(result[-1]) + 1) * longest <= max_tokens
        if fits and 4 * sizes[at] >= 3 * longest:
            result[-1].append(at)
        else:
            result.append([at])
    return result
