# SPDX-License-Identifier: Apache-2.0
"""Token embeddings to test with, and what two rankings must agree in."""

import hashlib
import signal
from pathlib import Path

import numpy as np

import weft
from reference import maxsim


def unit_rows(random, n, dim):
    """float32 `[n, dim]`, unit length."""
    rows = random.normal(size=(n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def ragged_docs(random, n_docs, dim, shortest=1, longest=12):
    """Documents of different lengths around common centres, as real token embeddings are."""
    centres = unit_rows(random, 40, dim)
    docs = []
    for _ in range(n_docs):
        length = int(random.integers(shortest, longest + 1))
        rows = centres[random.integers(0, len(centres), length)]
        docs.append(rows + 0.3 * unit_rows(random, length, dim) if length else rows[:0])
    return [(d / np.linalg.norm(d, axis=1, keepdims=True)).astype(np.float32) for d in docs]


class FakeEncoder:
    """An encoder without a model: every word is a unit vector made from its hash."""

    def __init__(self, dim=16, window=None):
        self.dim = dim
        self.window = window
        self.info = weft.EncoderInfo("fake", "hash", dim, f"fake-{dim}")

    def _embed(self, words):
        values = np.zeros((len(words), self.dim), np.float32)
        for i, (word, _) in enumerate(words):
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
            values[i] = unit_rows(np.random.default_rng(seed), 1, self.dim)[0]
        spans = np.array([(at, at + len(word)) for word, at in words], np.uint32).reshape(-1, 2)
        return weft.TokenEmbeddings(values, spans)

    @staticmethod
    def _words(text):
        found, at = [], 0
        for word in text.split():
            at = text.index(word, at)
            found.append((word, at))
            at += len(word)
        return found

    def count_tokens(self, texts):
        return [len(text.split()) for text in texts]

    def encode_queries(self, texts):
        return [self._embed(self._words(text)) for text in texts]

    def encode_documents(self, texts):
        encoded = []
        for text in texts:
            words = self._words(text)
            size = self.window or max(len(words), 1)
            parts = [words[i : i + size] for i in range(0, len(words), size)] or [[]]
            encoded.append([self._embed(part) for part in parts])
        return encoded


def assert_ranking(found, scores, tolerance=2e-3):
    """Compare hits with {id: score} of the definition: they may differ among close scores only."""
    expected = sorted(scores.items(), key=lambda item: (-item[1], item[0].encode()))
    for hit, (_, score) in zip(found, expected, strict=False):
        assert abs(hit.score - scores[hit.id]) <= tolerance * max(1.0, abs(score))
        assert abs(hit.score - score) <= tolerance * max(1.0, abs(score))
    assert len({hit.id for hit in found}) == len(found)


def heed_interrupts():
    """In a child before it starts: a shell lets what runs in the background ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def names(folder, start=""):
    """Names in a folder that begin so, sorted."""
    return sorted(path.name for path in Path(folder).iterdir() if path.name.startswith(start))


def stored(docs):
    """Rows as a small index keeps them: float16 of unit length."""
    return [doc.astype(np.float16).astype(np.float64) for doc in docs]


def exact(query, docs, ids):
    """{id: score} by the definition, of documents that are not empty."""
    rows = np.asarray(query, np.float64)
    return {
        doc_id: float(maxsim(rows, doc))
        for doc_id, doc in zip(ids, stored(docs), strict=True)
        if len(doc)
    }


def run(*words, **more):
    """Run a command in this process: (exit status, standard output, standard error)."""
    from typer.testing import CliRunner

    from weft.cli import app

    done = CliRunner().invoke(app, [str(word) for word in words], **more)
    return done.exit_code, done.stdout, done.stderr
