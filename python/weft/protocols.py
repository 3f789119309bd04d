# SPDX-License-Identifier: Apache-2.0
"""How published multilingual numbers were measured, where that is not what `weft.evaluation` does.

Tatoeba (sentences and their translations, as in XTREME), Mr.TyDi (runs in the order of their file)
and XOR-Retrieve (answers within the first so many tokens of what was retrieved).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import numpy as np

from weft.errors import InvalidArgumentError
from weft.evaluation import query_fields, read_lines, read_qrels, read_queries

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from weft.evaluation import Collection

_WORD = re.compile(r"\w+|[^\w\s]")
_NEIGHBOURS = 4
_DEPTH = 100


def translations(
    collection: Collection, *, field: str = "lang"
) -> dict[str, list[tuple[str, str]]]:
    """Give the pairs of a collection of translations, language -> (query, document) texts.

    One pair for each judgement, in their order; the language is that field of the query's metadata,
    "" where it has none. In XTREME's Tatoeba the *English* sentences ask and the others are
    searched; `tatoeba` takes the sides either way round.

    Raises
    ------
    InvalidArgumentError
        What is judged is not among the queries or documents.
    """
    queries, languages = read_queries(collection.queries), query_fields(collection.queries, field)
    documents = {document.id: document.text or "" for document in collection.corpus}
    pairs: dict[str, list[tuple[str, str]]] = {}
    for query, grades in read_qrels(collection.qrels).items():
        for document in (name for name, grade in grades.items() if grade > 0):
            try:
                pair = queries[query], documents[document]
            except KeyError as error:
                raise InvalidArgumentError(
                    f"{collection.qrels}: {error} is judged, expected it among the queries and "
                    f"documents of {collection.folder}"
                ) from None
            pairs.setdefault(languages.get(query, ""), []).append(pair)
    return pairs


def tatoeba(
    queries: ArrayLike,
    documents: ArrayLike,
    texts: Sequence[str],
    *,
    scoring: Literal["cosine", "margin"] = "cosine",
    shift: bool = False,
) -> dict[str, float]:
    """Give how often the nearest document of a query is its translation.

    Parameters
    ----------
    queries, documents
        Vectors `[n, dim]`; row i of one is the translation of row i of the other. They are scaled
        to unit length here. Of equally near documents the first counts.
    texts
        Of the documents.
    scoring
        "cosine", or "margin": its ratio to the mean over the four nearest of either side
        (Artetxe & Schwenk 2019).
    shift
        Move both sides to mean 0 before.

    Returns
    -------
    `acc_index`, the published number: the nearest is row i. `acc_text`: it has the same text as row
    i, so that a sentence which is there twice is no error.

    Examples
    --------
    >>> import numpy as np
    >>> from weft.protocols import tatoeba
    >>> tatoeba(np.eye(3), np.eye(3)[[0, 1, 1]], ["a", "b", "b"])
    {'acc_index': 0.6666666666666666, 'acc_text': 0.6666666666666666}
    """
    if scoring not in ("cosine", "margin"):
        raise InvalidArgumentError(f"scoring={scoring!r}: expected 'cosine' or 'margin'")
    sides = [_unit(name, given, shift=shift) for name, given in _named(queries, documents)]
    n = len(sides[0])
    if sides[0].shape != sides[1].shape or len(texts) != n or n == 0:
        raise InvalidArgumentError(
            f"queries {sides[0].shape}, documents {sides[1].shape}, {len(texts)} texts: expected "
            f"as many of each, and at least one"
        )
    scores = sides[0] @ sides[1].T
    if scoring == "margin":
        k = min(_NEIGHBOURS, n)
        of_queries = np.partition(scores, -k, axis=1)[:, -k:].mean(axis=1)
        of_documents = np.partition(scores, -k, axis=0)[-k:].mean(axis=0)
        scores = scores / ((of_queries[:, None] + of_documents) / 2.0)
    best = scores.argmax(axis=1)
    return {
        "acc_index": float((best == np.arange(n)).mean()),
        "acc_text": sum(texts[at] == texts[i] for i, at in enumerate(best)) / n,
    }


def _named(queries: ArrayLike, documents: ArrayLike) -> tuple[tuple[str, ArrayLike], ...]:
    return ("queries", queries), ("documents", documents)


def _unit(name: str, given: ArrayLike, *, shift: bool) -> NDArray[np.float64]:
    rows = np.asarray(given, np.float64)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise InvalidArgumentError(
            f"{name}: an array of shape {rows.shape}, expected finite vectors (n, dim)"
        )
    if shift:
        rows = rows - rows.mean(axis=0)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float64] = rows / np.maximum(norms, np.finfo(np.float64).tiny)
    return unit


def read_file_order(path: str | Path) -> dict[str, list[str]]:
    """Give the documents of each query of a TREC run as they stand in the file; no score is read.

    Raises
    ------
    NotFoundError
        There is no such file.
    InvalidArgumentError
        A line has fewer than three columns, or the file is not UTF-8; names file and line.
    """
    ranked: dict[str, list[str]] = {}
    for number, line in enumerate(read_lines(path), 1):
        columns = line.split()
        if len(columns) < 3:
            raise InvalidArgumentError(
                f"{path}:{number}: {len(columns)} columns, expected query, Q0 and document"
            )
        ranked.setdefault(columns[0], []).append(columns[2])
    return ranked


def mrtydi(
    qrels: Mapping[str, Mapping[str, int]], ranked: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Give MRR@100 and Recall@100 of one language as the authors of CCP measure Mr.TyDi.

    The mean is over the queries of `qrels`; every document listed there counts, whatever its grade.
    The published average is that over the languages.

    Examples
    --------
    >>> from weft.protocols import mrtydi
    >>> mrtydi({"q": {"a": 1, "b": 1}}, {"q": ["c", "b"]})
    {'MRR@100': 0.5, 'Recall@100': 0.5}
    """
    if not qrels:
        raise InvalidArgumentError("qrels: no query in them; expected at least one")
    reciprocal = recall = 0.0
    for query, grades in qrels.items():
        first = list(ranked.get(query, ()))
        ranks = [first.index(name) for name in grades if name in first]
        ranks = [rank for rank in ranks if rank < _DEPTH]
        reciprocal += 1.0 / (min(ranks) + 1) if ranks else 0.0
        recall += len(ranks) / len(grades)
    return {"MRR@100": reciprocal / len(qrels), "Recall@100": recall / len(qrels)}


def words(text: str) -> list[str]:
    """Cut a text into words and marks; what `answer_recall` does unless told otherwise."""
    return _WORD.findall(text)


def answer_recall(
    passages: Mapping[str, Sequence[str]],
    answers: Mapping[str, Sequence[str]],
    languages: Mapping[str, str],
    *,
    n_tokens: int = 2_000,
    tokenize: Callable[[str], list[str]] = words,
) -> dict[str, float]:
    """Give R@2kt of XOR-Retrieve and its like, language -> share of queries; "mean" over these.

    Parameters
    ----------
    passages
        Query -> texts, best first. A query that is not here is left out, as in the original.
    answers
        Query -> answers. "yes" and "no" are no answers; a query without others is left out.
    languages
        Query -> language.
    n_tokens
        So many tokens of the passages count: 2,000 for R@2kt, 5,000 for R@5kt.
    tokenize
        The published numbers use `word_tokenize` of nltk. State which was used.

    Notes
    -----
    The tokens are joined by single blanks, and an answer is found where it is a part of that, upper
    and lower case told apart; one with marks in it may be missed for its blanks.
    """
    hits: dict[str, list[bool]] = {}
    for query, texts in passages.items():
        wanted = [answer for answer in answers.get(query, ()) if answer not in ("yes", "no")]
        if not wanted:
            continue
        if query not in languages:
            raise InvalidArgumentError(f"languages: none of query {query!r}; expected one")
        tokens: list[str] = []
        for text in texts:
            if len(tokens) >= n_tokens:
                break
            tokens += tokenize(text)
        joined = " ".join(tokens[:n_tokens])
        hits.setdefault(languages[query], []).append(any(answer in joined for answer in wanted))
    if not hits:
        raise InvalidArgumentError("passages: none of a query with answers; expected at least one")
    found = {language: sum(each) / len(each) for language, each in sorted(hits.items())}
    return {**found, "mean": sum(found.values()) / len(found)}
