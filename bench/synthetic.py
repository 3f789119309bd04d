# SPDX-License-Identifier: Apache-2.0
"""Made token embeddings that are as hard to search as those of texts.

What makes a collection hard is that many documents are nearly as good as the best: subjects and
words are shared, and a token says more about its word than about its document. Beside real sets,
`bench/difficulty.py` shows how alike they are; the weights below were chosen by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

SEED = 42
SPECTRUM = 0.6  # the i-th of the squared axes of a cloud of tokens is about i ** -0.6
COMMON, SUBJECT, SENTENCE, WORD, NOISE = 0.06, 0.22, 0.07, 0.53, 0.12  # of a token; they add to 1
FIELD, TOPIC, OWN = 0.45, 0.35, 0.2  # of a subject
QUERIED_BLOCKS = 20  # the first ones, so that not all are made again for queries
N_WORDS, N_FIELDS, TOPIC_WORDS = 30_000, 12, 150
TOPICAL = 0.45  # share of a document's words that its topic chooses
KEPT = 0.6  # share of a query's words that its document has
SENTENCE_TOKENS, MEAN_TOKENS, DOCS_PER_TOPIC, DOCS_PER_BLOCK = 20, 160, 60, 1024
TOKENS_AT_ONCE = 2048  # they stay in cache


class Block(NamedTuple):
    """Documents one after the other."""

    values: np.ndarray  # f16 [n, dim]
    lengths: np.ndarray
    words: np.ndarray  # [n]
    subjects: np.ndarray  # f32 [docs, dim]
    topics: np.ndarray  # [docs]


@dataclass(frozen=True)
class Synthetic:
    """A deterministic collection, made block by block.

    A token is the sum of what all tokens share, its document's subject, its sentence, its word and
    noise. Subjects are a tree: field, topic, the document itself; a topic has words of its own
    beside those of the language, all by Zipf's law. A query is a sentence made anew on a document's
    subject with some of its words: that document is planted as an answer, one of several good ones.
    """

    n_tokens: int
    dim: int = 128
    seed: int = SEED
    docs_per_block: int = DOCS_PER_BLOCK

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Give (values f16 [n, dim], lengths) of about 160,000 tokens, `n_tokens` in all."""
        for block in self._blocks():
            yield block.values, block.lengths

    def queries(self, n_queries: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give (values f32, offsets, number of the planted document) of at most n_queries."""
        random = self._random(-2)
        values, planted, first_doc = [], [], 0
        n_blocks = max(1, self.n_tokens // (MEAN_TOKENS * self.docs_per_block))
        per_block = -(-n_queries // min(n_blocks, QUERIED_BLOCKS))
        for block in self._blocks():
            count = min(per_block, len(block.lengths), n_queries - len(planted))
            ends = np.cumsum(block.lengths)
            for doc in random.choice(len(ends), count, replace=False):
                size = int(random.integers(8, 33))
                own = block.words[ends[doc] - block.lengths[doc] : ends[doc]]
                others = self._words(random, np.full(size, block.topics[doc]))
                words = np.where(random.random(size) < KEPT, random.choice(own, size), others)
                sentence = np.repeat(self._directions(random, 1), size, axis=0)
                subject = np.repeat(block.subjects[doc : doc + 1], size, axis=0)
                values.append(self._tokens(random, subject, sentence, words))
                planted.append(first_doc + int(doc))
            first_doc += len(ends)
            if len(planted) >= n_queries:
                break
        offsets = np.cumsum([0, *map(len, values)]).astype(np.uint64)
        return np.concatenate(values), offsets, np.array(planted)

    def _blocks(self) -> Iterator[Block]:
        left, number = self.n_tokens, 0
        while left > 0:
            number += 1
            random = self._random(number)
            lengths = np.exp(random.normal(np.log(150), 0.35, self.docs_per_block)).astype(int)
            lengths = np.clip(lengths, 8, 512)
            lengths = np.minimum(lengths, left - np.cumsum(lengths) + lengths)
            lengths = lengths[lengths > 0]
            topics = (len(self._topics) * random.random(len(lengths)) ** 1.5).astype(int)
            subjects = _mix(
                (FIELD, self._fields[topics % N_FIELDS]),
                (TOPIC, self._topics[topics]),
                (OWN, self._directions(random, len(lengths))),
            )
            owner = np.repeat(np.arange(len(lengths)), lengths)
            words = self._words(random, topics[owner])
            sentence = np.arange(len(owner)) // SENTENCE_TOKENS
            sentences = self._directions(random, sentence[-1] + 1)[sentence]
            values = self._tokens(random, subjects[owner], sentences, words).astype(np.float16)
            yield Block(values, lengths, words, subjects, topics)
            left -= int(lengths.sum())

    def _tokens(self, random, subjects, sentences, words) -> np.ndarray:
        made = np.empty((len(words), self.dim), np.float32)
        for first in range(0, len(words), TOKENS_AT_ONCE):
            part = slice(first, first + TOKENS_AT_ONCE)
            made[part] = _mix(
                (COMMON, self._common),
                (SUBJECT, subjects[part]),
                (SENTENCE, sentences[part]),
                (WORD, self._word_vectors[words[part]]),
                (NOISE, self._directions(random, len(words[part]))),
            )
        return made

    def _words(self, random: np.random.Generator, topics: np.ndarray) -> np.ndarray:
        """Give a word for every token of these topics."""
        of_language = _zipf(random, N_WORDS, len(topics))
        of_topic = self._topic_words[topics, _zipf(random, TOPIC_WORDS, len(topics))]
        return np.where(random.random(len(topics)) < TOPICAL, of_topic, of_language)

    @cached_property
    def _word_vectors(self) -> np.ndarray:
        return self._directions(self._random(0), N_WORDS)

    @cached_property
    def _common(self) -> np.ndarray:
        return self._directions(np.random.default_rng([self.seed, 1]), 1)

    @cached_property
    def _fields(self) -> np.ndarray:
        return self._directions(np.random.default_rng([self.seed, 2]), N_FIELDS)

    @cached_property
    def _topics(self) -> np.ndarray:
        n_topics = max(N_FIELDS, self.n_tokens // (MEAN_TOKENS * DOCS_PER_TOPIC))
        return self._directions(np.random.default_rng([self.seed, 3]), n_topics)

    @cached_property
    def _topic_words(self) -> np.ndarray:
        random = np.random.default_rng([self.seed, 4])
        return random.integers(0, N_WORDS, (len(self._topics), TOPIC_WORDS))

    def _directions(self, random: np.random.Generator, n: int) -> np.ndarray:
        axes = np.arange(1, self.dim + 1, dtype=np.float32) ** np.float32(-SPECTRUM / 2)
        return _unit(random.standard_normal((n, self.dim), np.float32) * axes)

    def _random(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.dim, stream + 2])


def _mix(*parts: tuple[float, np.ndarray]) -> np.ndarray:
    """Sum directions by their squared weights."""
    return _unit(sum(np.float32(weight**0.5) * rows for weight, rows in parts))


def _zipf(random: np.random.Generator, n: int, size: int) -> np.ndarray:
    """Draw ranks 0..n - 1 with p about 1 / (rank + 2.7), by its integral."""
    low, high = np.log(2.7), np.log(n + 2.7)
    return np.minimum(np.exp(low + (high - low) * random.random(size)) - 2.7, n - 1).astype(int)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
