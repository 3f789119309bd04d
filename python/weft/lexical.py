# SPDX-License-Identifier: Apache-2.0
"""BM25, the line that stands beside every result, and the analyser it reads texts with.

One formula and one analyser for all languages, without stemming and stop words, so that the line
means the same everywhere. The sums come from bm25s.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

import numpy as np

from weft.checks import check_int
from weft.errors import InvalidArgumentError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from weft.types import Document, Progress

K1, B = 0.9, 0.4
REPORTED_DOCUMENTS = 1_000
UNSPACED = re.compile(
    "["
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # kana, and what repeats or stands for kanji
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"  # Hangul
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "]"
)


def terms(text: str) -> list[str]:
    """Give the terms of a text, in order.

    NFKC and lower case; split at white space, control characters and whatever Unicode calls
    punctuation, the Ethiopic marks U+1361 to U+1368 among it; a word with a character of a script
    that is written without spaces becomes its overlapping pairs of characters.

    Examples
    --------
    >>> from weft.lexical import terms
    >>> terms("Don't panic: ሰላም፣ዓለም።")
    ['don', 't', 'panic', 'ሰላም', 'ዓለም']
    >>> terms("東京都")
    ['東京', '京都']
    """
    folded = unicodedata.normalize("NFKC", text).lower()
    parted = "".join(" " if unicodedata.category(c)[0] in "PZC" else c for c in folded)
    found: list[str] = []
    for word in parted.split():
        if len(word) > 2 and UNSPACED.search(word):
            found += (word[at : at + 2] for at in range(len(word) - 1))
        else:
            found.append(word)
    return found


class BM25:
    """Documents by their words: sum over the query's terms of idf · tf / (tf + norm).

    idf = ln(1 + (N - df + .5) / (df + .5)), norm = k1 · (1 - b + b · length / mean length), with
    k1 = .9 and b = .4. A term that the query has twice counts twice. Scores are float64.

    Parameters
    ----------
    documents
        Read once. A document without a text is one without terms, and never found.
    progress
        Called with ("bm25", documents done, documents done).

    Raises
    ------
    MissingExtraError
        If bm25s is not installed.
    InvalidArgumentError
        An id comes twice, or no document has a word.

    Examples
    --------
    >>> import weft
    >>> from weft.lexical import BM25
    >>> bm25 = BM25([weft.Document("keys", "Rotate the signing key"), weft.Document("tea", "Tea")])
    >>> list(bm25.search("a key", k=10))
    ['keys']
    """

    def __init__(self, documents: Iterable[Document], *, progress: Progress | None = None) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise MissingExtraError("bm25s", "eval") from error
        self._terms: dict[str, int] = {}
        rows: dict[str, list[int]] = {}
        for document in documents:
            if document.id in rows:
                raise InvalidArgumentError(f"document {document.id!r}: comes twice")
            rows[document.id] = [
                self._terms.setdefault(term, len(self._terms))
                for term in terms(document.text or "")
            ]
            if progress is not None and len(rows) % REPORTED_DOCUMENTS == 0:
                progress("bm25", len(rows), len(rows))
        if not self._terms:
            raise InvalidArgumentError(
                f"documents: {len(rows)} of them and no word in any, expected at least one"
            )
        # Equal scores are in the order of the ids' bytes: so are the rows, and sorting is stable.
        self._ids = sorted(rows, key=str.encode)
        self._rows = {name: row for row, name in enumerate(self._ids)}
        self._engine = bm25s.BM25(k1=K1, b=B, method="lucene", dtype="float64")
        self._engine.index(
            ([rows[name] for name in self._ids], self._terms),
            create_empty_token=False,
            show_progress=False,
        )

    def __len__(self) -> int:
        """Count the documents."""
        return len(self._ids)

    def search(self, text: str, k: int) -> dict[str, float]:
        """Give the best k documents that share a term with the text: id -> score, best first.

        Equal scores are in the order of the ids, as bytes of UTF-8.
        """
        k = check_int("k", k, 1)
        scores = self._scores(text)
        found = np.flatnonzero(scores > 0)
        if len(found) > k:
            least = np.partition(scores[found], -k)[-k]
            found = found[scores[found] >= least]
        best = found[np.argsort(-scores[found], kind="stable")][:k]
        return {self._ids[row]: float(scores[row]) for row in best}

    def score(self, text: str, ids: Sequence[str]) -> dict[str, float]:
        """Give the scores of these documents, zero where they share no term with the text."""
        scores = self._scores(text)
        try:
            return {name: float(scores[self._rows[name]]) for name in ids}
        except KeyError as error:
            raise InvalidArgumentError(f"document {error}: not among the documents") from error

    def _scores(self, text: str) -> np.ndarray:
        known = [self._terms[term] for term in terms(text) if term in self._terms]
        if not known:
            return np.zeros(len(self._ids))
        scores: np.ndarray = self._engine.get_scores_from_ids(known)
        return scores
