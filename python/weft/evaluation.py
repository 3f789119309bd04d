# SPDX-License-Identifier: Apache-2.0
"""Judged collections: read queries and judgements, write runs, measure quality and recall.

Quality (nDCG and its like) is against judgements and comes from ir-measures; recall is against the
exact answer and needs nothing.
"""

from __future__ import annotations

from errno import ENOENT
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from weft.errors import InvalidArgumentError, MissingExtraError, NotFoundError, StorageError
from weft.sources import read
from weft.storage import os_errors
from weft.types import defaults

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from weft.arrays import Embeddings
    from weft.searcher import Searcher
    from weft.types import Hits, SearchParams

MEASURES = ("nDCG@10", "R@10", "R@100")


def read_queries(path: str | Path, *, limit: int | None = None) -> dict[str, str]:
    """Give the queries of a file, id -> text, in the order of the file.

    Parameters
    ----------
    path
        .jsonl with `_id` (or `id`) and `text`, as BEIR has it, or .tsv with id and text; .gz too.
    limit
        Only so many, from the start.

    Raises
    ------
    InvalidArgumentError
        A line is neither, an id comes twice, or a query has no text; names the file and which.
    """
    if Path(path).is_dir():
        raise InvalidArgumentError(f"{path}: a folder, expected a .jsonl or .tsv file of queries")
    queries: dict[str, str] = {}
    for document in islice(read(path), limit):
        if document.id in queries:
            raise InvalidArgumentError(f"{path}: query {document.id!r} comes twice")
        text = document.text or ""
        if not text.strip():
            raise InvalidArgumentError(f"{path}: query {document.id!r} is empty, expected a text")
        queries[document.id] = text
    return queries


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Give judgements, query -> document -> grade.

    Parameters
    ----------
    path
        Tab-separated query, document and grade, with or without a line that names the columns, as
        BEIR has it; or the four columns of TREC, separated by blanks.

    Raises
    ------
    InvalidArgumentError
        A line is neither; names file and line.
    """
    try:
        with os_errors("read", Path(path)):
            lines = Path(path).read_text(encoding="utf-8").splitlines()
    except StorageError as error:
        if error.errno == ENOENT:
            raise NotFoundError(f"{path}: no such file") from error
        raise
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{path}: not UTF-8 (byte {error.start})") from error
    qrels: dict[str, dict[str, int]] = {}
    for number, line in enumerate(lines, 1):
        columns = line.split("\t") if "\t" in line else line.split()
        if len(columns) == 4:
            del columns[1]
        if len(columns) == 3 and columns[2].removeprefix("-").isdecimal():
            qrels.setdefault(columns[0], {})[columns[1]] = int(columns[2])
        elif number > 1 or len(columns) != 3:
            raise InvalidArgumentError(
                f"{path}:{number}: expected a query id, a document id and an integer grade"
            )
    return qrels


def write_run(path: str | Path, answers: Mapping[str, Hits], *, tag: str = "weft") -> None:
    """Write answers as a TREC run: query, Q0, document, rank from 1, score, tag.

    Raises
    ------
    InvalidArgumentError
        An id is empty or has blanks in it, which the format cannot hold.
    """
    lines = []
    for query, hits in answers.items():
        for rank, hit in enumerate(hits, 1):
            for name in (query, hit.id, tag):
                if name.split() != [name]:
                    raise InvalidArgumentError(f"id {name!r}: a TREC run holds no blanks in ids")
            lines.append(f"{query} Q0 {hit.id} {rank} {hit.score:.9g} {tag}\n")
    Path(path).write_text("".join(lines), encoding="utf-8")


def measure(
    qrels: Mapping[str, Mapping[str, int]],
    answers: Mapping[str, Hits],
    measures: Sequence[str] = MEASURES,
) -> dict[str, float]:
    """Measure answers against judgements.

    Parameters
    ----------
    qrels
        As `read_qrels` gives them.
    answers
        Query -> hits. The order of the hits counts, also among equal scores. A judged query without
        an answer counts 0.
    measures
        Names that ir-measures knows.

    Raises
    ------
    MissingExtraError
        If ir-measures is not installed.
    InvalidArgumentError
        If a name is unknown, or nothing is judged relevant.
    """
    try:
        import ir_measures
    except ImportError as error:
        raise MissingExtraError("ir-measures", "eval") from error
    judged = {
        query: dict(grades)
        for query, grades in qrels.items()
        if any(grade > 0 for grade in grades.values())
    }
    if not judged:
        raise InvalidArgumentError("qrels: no relevant document in them; expected at least one")
    try:
        parsed = [ir_measures.parse_measure(name) for name in measures]
    except (NameError, SyntaxError, ValueError) as error:
        raise InvalidArgumentError(f"measures={list(measures)}: {error}") from error
    run = {
        query: {hit.id: float(-rank) for rank, hit in enumerate(answers.get(query, ()))}
        for query in judged
    }
    found = ir_measures.calc_aggregate(parsed, judged, run)
    return {str(one): float(found[one]) for one in parsed}


def recall_against_exact(
    searcher: Searcher,
    queries: Embeddings,
    k: int = defaults.k,
    *,
    recall: float | None = None,
    params: SearchParams | None = None,
) -> float:
    """Give the mean share of the exact top k that `search_batch` finds.

    Exact is `Searcher.exact_search`: every document, scored from the best form that is stored.
    """
    answers = searcher.search_batch(queries, k, recall=recall, params=params)
    if not answers:
        raise InvalidArgumentError("queries: none of them; expected at least one")
    return mean_overlap(answers, [searcher.exact_search(query, k) for query in queries])


def mean_overlap(answers: Iterable[Hits], exact: Iterable[Hits]) -> float:
    """Give the mean share of the exact answers that were found; an empty one counts as found."""
    shares = [
        len(set(found.ids) & set(wanted.ids)) / len(wanted) if len(wanted) else 1.0
        for found, wanted in zip(answers, exact, strict=True)
    ]
    return sum(shares) / len(shares)
