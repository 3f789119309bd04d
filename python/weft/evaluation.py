# SPDX-License-Identifier: Apache-2.0
"""Judged collections: read queries and judgements, read and write runs, measure quality and recall.

Quality (nDCG and its like) is against judgements and comes from ir-measures; recall is against the
exact answer and needs nothing. A run is query -> document -> score, best document first.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from dataclasses import dataclass
from errno import ENOENT
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from weft.errors import InvalidArgumentError, MissingExtraError, NotFoundError, StorageError
from weft.lifecycle.storage import os_errors
from weft.sources import read
from weft.types import Hits, defaults

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from weft.arrays import Embeddings
    from weft.searcher import Searcher
    from weft.sources import Source
    from weft.types import Document, SearchParams

Run: TypeAlias = "dict[str, dict[str, float]]"
"""Query -> document -> score; the order of the documents is their ranking."""

Qrels: TypeAlias = "dict[str, dict[str, int]]"
"""Query -> document -> grade; above 0 is relevant."""

MEASURES = ("nDCG@10", "RR@10", "Success@1", "R@10", "R@100", "AP@100")
NO_CUTOFF = 1_000


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
    return {name: query.text or "" for name, query in _queries(path, limit).items()}


def query_fields(path: str | Path, field: str) -> dict[str, str]:
    """Give a metadata field of the queries of a file, such as "lang", where they have it."""
    found = {name: query.metadata.get(field) for name, query in _queries(path, None).items()}
    return {name: str(value) for name, value in found.items() if value is not None}


def _queries(path: str | Path, limit: int | None) -> dict[str, Document]:
    if Path(path).is_dir():
        raise InvalidArgumentError(f"{path}: a folder, expected a .jsonl or .tsv file of queries")
    queries: dict[str, Document] = {}
    for document in islice(read(path), limit):
        if document.id in queries:
            raise InvalidArgumentError(f"{path}: query {document.id!r} comes twice")
        if not (document.text or "").strip():
            raise InvalidArgumentError(f"{path}: query {document.id!r} is empty, expected a text")
        queries[document.id] = document
    return queries


def read_qrels(path: str | Path) -> Qrels:
    """Give judgements, query -> document -> grade.

    Parameters
    ----------
    path
        Tab-separated query, document and grade, with or without a line that names the columns, as
        BEIR has it; or the four columns of TREC, separated by blanks. .gz too.

    Raises
    ------
    InvalidArgumentError
        A line is neither, or gives a document another grade than before; names file and line.
    """
    qrels: Qrels = {}
    for number, line in enumerate(read_lines(path), 1):
        columns = line.split("\t") if "\t" in line else line.split()
        if len(columns) == 4:
            del columns[1]
        if len(columns) == 3 and columns[2].removeprefix("-").isdecimal():
            query, document, grade = columns[0], columns[1], int(columns[2])
            known = qrels.setdefault(query, {}).setdefault(document, grade)
            if known != grade:
                raise InvalidArgumentError(
                    f"{path}:{number}: document {document!r} has grade {grade} for {query!r}, and "
                    f"{known} before; expected one grade"
                )
        elif number > 1 or len(columns) != 3:
            raise InvalidArgumentError(
                f"{path}:{number}: expected a query id, a document id and an integer grade"
            )
    return qrels


def write_qrels(path: str | Path, qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Write judgements in the four columns of TREC: query, 0, document, grade.

    Raises
    ------
    InvalidArgumentError
        An id is empty or has blanks in it, which the format cannot hold.
    """
    lines = []
    for query, grades in qrels.items():
        for document, grade in grades.items():
            _require_unblank("qrels", query, document)
            lines.append(f"{query} 0 {document} {grade}\n")
    _write(path, lines)


def read_run(path: str | Path, *, ties: Literal["stable", "trec"] = "stable") -> Run:
    """Give a run: query -> document -> score, best document first.

    Parameters
    ----------
    path
        The six columns of TREC (query, Q0, document, rank, score, tag); the scores make the order,
        ranks are not read. Or .json: `{query: {document: score}}`. .gz too.
    ties
        The order of equal scores: "stable" keeps that of the file, as weft writes it; "trec" is
        that of trec_eval, descending document ids.

    Raises
    ------
    InvalidArgumentError
        A line or value is neither, a score is no number, or a document comes twice for a query;
        names the file and where.
    """
    if ties not in ("stable", "trec"):
        raise InvalidArgumentError(f"ties={ties!r}: expected 'stable' or 'trec'")
    found = _run_of_json(path) if ".json" in Path(path).suffixes else _run_of_trec(path)
    run: Run = {}
    for query, scores in found.items():
        names = sorted(scores, reverse=True) if ties == "trec" else list(scores)
        names.sort(key=lambda name: -scores[name])
        run[query] = {name: scores[name] for name in names}
    return run


def _run_of_trec(path: str | Path) -> Run:
    run: Run = {}
    for number, line in enumerate(read_lines(path), 1):
        columns = line.split()
        if len(columns) != 6:
            raise InvalidArgumentError(
                f"{path}:{number}: {len(columns)} columns, expected query, Q0, document, rank, "
                f"score and tag"
            )
        query, _, document, _, score, _ = columns
        _add(run, f"{path}:{number}", query, document, score)
    return run


def _run_of_json(path: str | Path) -> Run:
    run: Run = {}
    try:
        found = json.loads("\n".join(read_lines(path)))
        for query, scores in found.items():
            run[query] = {}
            for document, score in scores.items():
                _add(run, f"{path}: query {query!r}", query, document, score)
    except (ValueError, AttributeError) as error:
        if isinstance(error, InvalidArgumentError):
            raise
        raise InvalidArgumentError(
            f"{path}: expected a JSON object query -> document -> score ({error})"
        ) from error
    return run


def _add(run: Run, place: str, query: str, document: str, given: Any) -> None:  # noqa: ANN401
    try:
        score = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise InvalidArgumentError(f"{place}: score {given!r}, expected a finite number")
    if document in run.setdefault(query, {}):
        raise InvalidArgumentError(f"{place}: document {document!r} comes twice for {query!r}")
    run[query][document] = score


def write_run(
    path: str | Path, answers: Mapping[str, Hits | Mapping[str, float]], *, tag: str = "weft"
) -> None:
    """Write answers as a TREC run: query, Q0, document, rank from 1, score, tag.

    Parameters
    ----------
    path
        Replaced if it is there.
    answers
        Query -> hits, or a run as `read_run` gives it.
    tag
        Names who answered.

    Raises
    ------
    InvalidArgumentError
        An id is empty or has blanks in it, which the format cannot hold.
    """
    lines = []
    for query, scores in as_run(answers).items():
        for rank, (document, score) in enumerate(scores.items(), 1):
            _require_unblank("run", query, document, tag)
            lines.append(f"{query} Q0 {document} {rank} {score:.9g} {tag}\n")
    _write(path, lines)


def as_run(answers: Mapping[str, Hits | Mapping[str, float]]) -> Run:
    """Give answers, query -> hits, as a run."""
    return {
        query: {hit.id: hit.score for hit in found} if isinstance(found, Hits) else dict(found)
        for query, found in answers.items()
    }


def _require_unblank(kind: str, *names: str) -> None:
    for name in names:
        if name.split() != [name]:
            raise InvalidArgumentError(f"id {name!r}: a TREC {kind} holds no blanks in ids")


def _write(path: str | Path, lines: list[str]) -> None:
    with os_errors("write", Path(path)):
        Path(path).write_text("".join(lines), encoding="utf-8")


def read_lines(path: str | Path) -> list[str]:
    """Give the lines of a file of text, plain or .gz, without a byte order mark.

    Raises
    ------
    NotFoundError
        There is no such file.
    InvalidArgumentError
        It is not UTF-8, or its gzip data are damaged.
    """
    try:
        with os_errors("read", Path(path)):
            data = Path(path).read_bytes()
        if Path(path).suffix == ".gz":
            data = gzip.decompress(data)
        text = data.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
        return text.removesuffix("\n").split("\n") if text else []
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InvalidArgumentError(f"{path}: damaged gzip data ({error})") from error
    except StorageError as error:
        if error.errno == ENOENT:
            raise NotFoundError(f"{path}: no such file") from error
        raise
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{path}: not UTF-8 (byte {error.start})") from error


@dataclass(frozen=True)
class Rules:
    """What the measures leave open; every field changes numbers.

    Parameters
    ----------
    ap
        Average precision is divided by the relevant documents ("relevant"), or by at most the
        cutoff's number of them ("cutoff").
    gain
        Of a grade in nDCG: "linear" is the grade, "exponential" 2^grade - 1. The discount is
        log2(rank + 1), the ideal is over all judged documents.
    queries
        The mean is over the judged queries with a relevant document, and one without an answer
        counts 0 ("qrels"); or over those among them that have an answer ("run").
    """

    ap: Literal["relevant", "cutoff"] = "relevant"
    gain: Literal["linear", "exponential"] = "linear"
    queries: Literal["qrels", "run"] = "qrels"

    def __post_init__(self) -> None:
        """Check every field."""
        for name, allowed in (
            ("ap", ("relevant", "cutoff")),
            ("gain", ("linear", "exponential")),
            ("queries", ("qrels", "run")),
        ):
            if getattr(self, name) not in allowed:
                raise InvalidArgumentError(
                    f"{name}={getattr(self, name)!r}: expected {allowed[0]!r} or {allowed[1]!r}"
                )


def per_query(
    qrels: Mapping[str, Mapping[str, int]],
    answers: Mapping[str, Hits | Mapping[str, float]],
    measures: Sequence[str] = MEASURES,
    *,
    rules: Rules | None = None,
) -> dict[str, dict[str, float]]:
    """Measure each query on its own: measure -> query -> value, in the order of the judgements.

    Parameters
    ----------
    qrels
        As `read_qrels` gives them. Queries without a relevant document are left out.
    answers
        Query -> hits, or a run. The order of the documents counts, also among equal scores.
    measures
        Names that ir-measures knows: nDCG@10, RR@10 (or MRR@10), R@100, Success@5, AP@100 (or
        MAP@100), P@10. The result has them as they are given.
    rules
        None means the defaults of `Rules`.

    Raises
    ------
    MissingExtraError
        If ir-measures is not installed.
    InvalidArgumentError
        If a name is unknown, nothing is judged relevant, or with queries="run" nothing is answered.
    """
    ir_measures = _ir_measures()
    rules = rules or Rules()
    judged = {
        query: dict(grades)
        for query, grades in qrels.items()
        if any(grade > 0 for grade in grades.values())
    }
    if not judged:
        raise InvalidArgumentError("qrels: no relevant document in them; expected at least one")
    if rules.queries == "run":
        judged = {query: grades for query, grades in judged.items() if answers.get(query)}
        if not judged:
            raise InvalidArgumentError("run: no judged query in it; expected at least one")
    parsed = _parse(measures)
    run = {
        query: {name: float(-rank) for rank, name in enumerate(_ids(answers.get(query, {})))}
        for query in judged
    }
    graded = judged
    if rules.gain == "exponential":  # a gain of 2^grade - 1 is a linear gain of such grades
        graded = {
            query: {name: 2 ** max(grade, 0) - 1 for name, grade in grades.items()}
            for query, grades in judged.items()
        }
    values: dict[str, dict[str, float]] = {name: dict.fromkeys(judged, 0.0) for name in measures}
    for found in ir_measures.iter_calc(list(set(parsed.values())), graded, run):
        for name, one in parsed.items():
            if one == found.measure:
                values[name][found.query_id] = float(found.value)
    for name, one in parsed.items():
        cutoff = one.params.get("cutoff")
        if rules.ap == "cutoff" and one.NAME == "AP" and cutoff:
            for query, grades in judged.items():
                n_relevant = sum(grade > 0 for grade in grades.values())
                values[name][query] *= n_relevant / min(n_relevant, cutoff)
    return values


def measure(
    qrels: Mapping[str, Mapping[str, int]],
    answers: Mapping[str, Hits | Mapping[str, float]],
    measures: Sequence[str] = MEASURES,
    *,
    rules: Rules | None = None,
) -> dict[str, float]:
    """Measure answers against judgements: the means of what `per_query` gives.

    Parameters, errors and names are those of `per_query`.

    Examples
    --------
    >>> from weft import evaluation
    >>> run = {"q1": {"d2": 3.0, "d1": 2.0}}
    >>> evaluation.measure({"q1": {"d1": 1}, "q2": {"d3": 1}}, run, ["MRR@10"])
    {'MRR@10': 0.25}
    """
    found = per_query(qrels, answers, measures, rules=rules)
    return {name: sum(values.values()) / len(values) for name, values in found.items()}


def depth(measures: Sequence[str]) -> int:
    """Give how many documents of a query the measures look at; 1,000 where one has no cutoff."""
    return max(one.params.get("cutoff") or NO_CUTOFF for one in _parse(measures).values())


def _parse(measures: Sequence[str]) -> dict[str, Any]:
    ir_measures = _ir_measures()
    if not measures:
        raise InvalidArgumentError("measures: none of them, expected at least one")
    try:
        return {name: ir_measures.parse_measure(name) for name in measures}
    except (NameError, SyntaxError, ValueError) as error:
        raise InvalidArgumentError(f"measures={list(measures)}: {error}") from error


def _ir_measures() -> Any:  # noqa: ANN401
    try:
        import ir_measures
    except ImportError as error:
        raise MissingExtraError("ir-measures", "eval") from error
    return ir_measures


def _ids(found: Hits | Mapping[str, float]) -> Iterable[str]:
    return found.ids if isinstance(found, Hits) else found


@dataclass(frozen=True)
class Collection:
    """A judged collection in the BEIR layout: corpus, queries and judgements of one folder.

    Parameters
    ----------
    folder
        With corpus.jsonl, queries.jsonl and qrels/, each file plain or .gz.
    split
        Which judgements: qrels/<split>.tsv.
    """

    folder: Path
    split: str = "test"

    @property
    def corpus(self) -> Source:
        """The documents, read anew each time."""
        return read(self._file("corpus.jsonl"))

    @property
    def queries(self) -> Path:
        """The file of the queries."""
        return self._file("queries.jsonl")

    @property
    def qrels(self) -> Path:
        """The file of the judgements."""
        return self._file(f"qrels/{self.split}.tsv")

    def _file(self, name: str) -> Path:
        for path in (self.folder / name, self.folder / f"{name}.gz"):
            if path.is_file():
                return path
        raise NotFoundError(f"{self.folder / name}: no such file, plain or .gz")


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
