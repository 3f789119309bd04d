# SPDX-License-Identifier: Apache-2.0
"""Examples as the files that trainers read; weft itself trains nothing.

What each reader expects was read in its source: `docs/evaluation.md` has the table. Positives come
first everywhere. Only passages that an example names are written.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.errors import IndexExistsError, InvalidArgumentError
from weft.lifecycle.storage import os_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from weft.training.mining import Example

BREAKS = re.compile(r"[\t\n\r]")
"""What parts the columns and lines of a .tsv file."""
BUCKET_EDGES = (0, 500, 1000, 2000, 3000, 4000, 5000, 6000, 7000)
TRIPLETS = 20
"""Most triplets of a query with several positives, in RAGatouille."""
PYLATE_DOCUMENTS = 32
ABOUT = "about.json"


@dataclass
class Written:
    """What was written.

    Attributes
    ----------
    n_rows
        Lines of training data.
    n_spaces
        Texts in which tabs and line breaks became spaces.
    nway
        Fewest passages of a row; trainers that want a fixed number can have so many.
    """

    files: list[str] = field(default_factory=list)
    n_rows: int = 0
    n_queries: int = 0
    n_passages: int = 0
    n_spaces: int = 0
    nway: int = 0


def write_examples(
    folder: str | Path,
    kind: str,
    examples: Sequence[Example],
    documents: Mapping[str, str],
    *,
    spaces: bool = False,
    count_tokens: Callable[[Sequence[str]], Sequence[int]] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Written:
    """Write examples as the files of a trainer, and `about.json` that says how they came to be.

    Parameters
    ----------
    folder
        Made if it is not there; must be empty.
    kind
        "stanford": collection.tsv, queries.tsv, triples.jsonl, qrels.tsv and, with scores,
        ranking.tsv; numbers for ids, with the ids in queries.ids and collection.ids.
        "ragatouille": queries.train.colbert.tsv, corpus.train.colbert.tsv and
        triples.train.colbert.jsonl; with several positives at most 20 triplets a query.
        "flagembedding": train.jsonl with query, pos, neg and the scores; corpus.jsonl with text.
        "pylate": train.jsonl, queries.jsonl and documents.jsonl, for `KDProcessing` and for
        `resolve_ids` of sentence-transformers; needs scores between 0 and 1.
        "sentence-transformers": train.jsonl with query, document_1, document_2, ... and label, a
        list of scores; without scores with anchor, positive, negative_1, negative_2, ...
    examples
        All with scores or all without.
    documents
        Id -> text.
    spaces
        Tabs and line breaks in texts become spaces. Without it, "stanford" refuses such a text;
        "ragatouille" always does so, as that library does; the others keep every character.
    count_tokens
        For "flagembedding": texts to their numbers of tokens. Its lines then go to files by length,
        train_len-0-500.jsonl and so on.
    about
        What else to note in about.json, such as teacher and normalisation.

    Raises
    ------
    InvalidArgumentError
        What the reader would choke on or take for something else: an example without a negative, a
        text with a tab, rows of different lengths, scores that only some have.
    IndexExistsError
        The folder is not empty.
    """
    folder = Path(folder)
    check_target(folder, kind)
    if count_tokens is not None and kind != "flagembedding":
        raise InvalidArgumentError(f"format {kind!r}: only flagembedding sorts lines by length")
    _check(examples, documents)
    with os_errors("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
    work = _Work(folder, list(examples), documents, spaces=spaces or kind == "ragatouille")
    try:
        if kind == "flagembedding":
            _flagembedding(work, count_tokens)
        else:
            KINDS[kind](work)
        done = work.written
        done.n_queries, done.n_passages = len(work.queries), len(work.passages)
        done.nway = min(1 + len(example.negatives) for example in examples)
        counts = {name: value for name, value in vars(done).items() if name != "files"}
        note = {"format": kind, **(about or {}), **counts}
        work.write(ABOUT, [json.dumps(note, ensure_ascii=False, indent=1)])
    except BaseException:
        for file in work.written.files:
            Path(file).unlink(missing_ok=True)
        raise
    return done


def check_target(folder: Path, kind: str) -> None:
    """Refuse what `write_examples` would refuse before it looks at an example.

    Raises
    ------
    InvalidArgumentError
        There is no such format.
    IndexExistsError
        The folder is not empty.
    """
    if kind not in KINDS:
        raise InvalidArgumentError(f"format {kind!r}: expected one of {', '.join(KINDS)}")
    with os_errors("read", folder):
        taken = folder.exists() and any(folder.iterdir())
    if taken:
        raise IndexExistsError(f"{folder}: not empty; expected a new or an empty folder")


def _check(examples: Sequence[Example], documents: Mapping[str, str]) -> None:
    if not examples:
        raise InvalidArgumentError("examples: none of them, expected at least one")
    scored = examples[0].scores is not None
    for example in examples:
        where = f"query {example.query!r}"
        if not example.negatives:
            raise InvalidArgumentError(f"{where}: no negatives, expected at least one")
        if not example.positives:
            raise InvalidArgumentError(f"{where}: no positive, expected at least one")
        if (example.scores is not None) != scored:
            raise InvalidArgumentError(f"{where}: scores, expected for all examples or for none")
        for name in example.ids:
            if not documents.get(name, "").strip():
                raise InvalidArgumentError(f"{where}: document {name!r} has no text")
            if example.scores is not None and name not in example.scores:
                raise InvalidArgumentError(f"{where}: document {name!r} has no score")


class _Work:
    """The examples, numbers for their queries and passages, and the folder to write to."""

    def __init__(
        self, folder: Path, examples: list[Example], documents: Mapping[str, str], *, spaces: bool
    ) -> None:  # fmt: skip
        self.examples = examples
        self.written = Written()
        self._folder = folder
        self._documents = documents
        self._spaces = spaces
        used = {name for example in examples for name in example.ids}
        self.passages = {name: at for at, name in enumerate(n for n in documents if n in used)}
        self.queries: dict[str, int] = {}
        self.query_texts: dict[str, str] = {}
        for example in examples:
            self.queries.setdefault(example.query, len(self.queries))
            if self.query_texts.setdefault(example.query, example.text) != example.text:
                raise InvalidArgumentError(f"query {example.query!r}: has two texts")

    def text(self, name: str) -> str:
        return self._documents[name]

    def rows(self) -> Iterator[tuple[Example, list[str]]]:
        """Give passages of one row after the other: a positive, then the negatives."""
        for example in self.examples:
            for positive in example.positives:
                yield example, [positive, *(negative.id for negative in example.negatives)]

    def write(self, name: str, lines: Iterable[str]) -> int:
        n_lines = 0
        path = self._folder / name
        self.written.files.append(str(path))
        with os_errors("write", path), path.open("w", encoding="utf-8", newline="\n") as file:
            for line in lines:
                file.write(f"{line}\n")
                n_lines += 1
        return n_lines

    def train(self, name: str, rows: Iterable[Any]) -> None:
        self.written.n_rows += self.write(name, map(_json, rows))

    def table(self, name: str, texts: Mapping[str, str]) -> None:
        """Write number and text, separated by a tab; the number is that of the line, from 0."""
        self.write(name, (f"{at}\t{self._plain(id_, t)}" for at, (id_, t) in
                          enumerate(texts.items())))  # fmt: skip

    def _plain(self, name: str, text: str) -> str:
        if not BREAKS.search(text):
            return text
        if not self._spaces:
            raise InvalidArgumentError(
                f"{name!r}: a tab or a line break in the text, which parts columns and lines of "
                f"this format; with spaces they become spaces"
            )
        self.written.n_spaces += 1
        return BREAKS.sub(" ", text)

    def passage_texts(self) -> dict[str, str]:
        return {name: self.text(name) for name in self.passages}


def _stanford(work: _Work) -> None:
    work.table("collection.tsv", work.passage_texts())
    work.table("queries.tsv", work.query_texts)
    for name, numbers in (("collection.ids", work.passages), ("queries.ids", work.queries)):
        work.write(name, (_json(one) for one in numbers))
    scored = work.examples[0].scores is not None
    work.train("triples.jsonl", (_triple(work, *row, scored=scored) for row in work.rows()))
    positives = dict.fromkeys((e.query, name) for e in work.examples for name in e.positives)
    work.write("qrels.tsv", (f"{work.queries[q]}\t0\t{work.passages[p]}\t1" for q, p in positives))
    if scored:
        work.write("ranking.tsv", _ranking(work))


def _triple(work: _Work, example: Example, names: list[str], *, scored: bool) -> list[Any]:
    pids: list[Any] = [work.passages[name] for name in names]
    if scored:
        assert example.scores is not None
        scores = [example.scores[name] for name in names]
        pids = [[pid, score] for pid, score in zip(pids, scores, strict=True)]
    return [work.queries[example.query], *pids]


def _ranking(work: _Work) -> Iterator[str]:
    """Give query, passage, rank from 1 and score; a score without a point would be an integer."""
    merged: dict[str, dict[str, float]] = {}
    for example in work.examples:
        merged.setdefault(example.query, {}).update(example.scores or {})
    for query, scores in merged.items():
        ranked = sorted(scores, key=lambda name: -scores[name])
        for rank, name in enumerate(ranked, 1):
            yield f"{work.queries[query]}\t{work.passages[name]}\t{rank}\t{scores[name]:.9f}"


def _ragatouille(work: _Work) -> None:
    work.table("corpus.train.colbert.tsv", work.passage_texts())
    work.table("queries.train.colbert.tsv", work.query_texts)

    def triplets() -> Iterator[list[Any]]:
        for example in work.examples:
            scored = example.scores is not None
            pairs = [
                [positive, negative.id]
                for negative in example.negatives
                for positive in example.positives
            ]
            several = len(example.positives) > 1
            for names in pairs[:TRIPLETS] if several else pairs:
                yield _triple(work, example, names, scored=scored)

    work.train("triples.train.colbert.jsonl", triplets())


def _flagembedding(
    work: _Work, count_tokens: Callable[[Sequence[str]], Sequence[int]] | None = None
) -> None:
    lines: dict[str, list[dict[str, Any]]] = {}
    for example in work.examples:
        negatives = [negative.id for negative in example.negatives]
        line: dict[str, Any] = {
            "query": example.text,
            "pos": [work.text(name) for name in example.positives],
            "neg": [work.text(name) for name in negatives],
        }
        if example.scores is not None:
            line["pos_scores"] = [example.scores[name] for name in example.positives]
            line["neg_scores"] = [example.scores[name] for name in negatives]
        name = "train.jsonl"
        if count_tokens is not None:
            longest = max(count_tokens([line["query"], *line["pos"], *line["neg"]]))
            at = bisect_right(BUCKET_EDGES, longest)
            end = BUCKET_EDGES[at] if at < len(BUCKET_EDGES) else "inf"
            name = f"train_len-{BUCKET_EDGES[at - 1]}-{end}.jsonl"
        lines.setdefault(name, []).append(line)
    for name, rows in sorted(lines.items()):
        work.train(name, rows)
    work.write("corpus.jsonl", (_json({"text": text}) for text in work.passage_texts().values()))


def _pylate(work: _Work) -> None:
    for example in work.examples:
        scores = example.scores
        if scores is None or not all(-1e-6 <= score <= 1 + 1e-6 for score in scores.values()):
            raise InvalidArgumentError(
                f"pylate: query {example.query!r} has {'no' if scores is None else 'other'} "
                f"scores; its loss scales the student only, so expected a teacher's, minmax"
            )
        if 1 + len(example.negatives) > PYLATE_DOCUMENTS:
            raise InvalidArgumentError(
                f"pylate: query {example.query!r} has {len(example.negatives)} negatives, expected "
                f"at most {PYLATE_DOCUMENTS - 1}; the rest would not be read"
            )
    work.train(
        "train.jsonl",
        (
            {
                "query_id": example.query,
                "document_ids": names,
                "scores": [(example.scores or {})[name] for name in names],
            }
            for example, names in work.rows()
        ),
    )
    queries, passages = work.query_texts, work.passage_texts()
    work.write("queries.jsonl", (_json({"query_id": q, "text": t}) for q, t in queries.items()))
    work.write(
        "documents.jsonl", (_json({"document_id": d, "text": t}) for d, t in passages.items())
    )


def _sentence_transformers(work: _Work) -> None:
    lengths = {len(example.negatives) for example in work.examples}
    if len(lengths) > 1:
        raise InvalidArgumentError(
            f"sentence-transformers: from {min(lengths)} to {max(lengths)} negatives, expected the "
            f"same number in every example: its columns are fixed"
        )

    def columns(example: Example, names: list[str]) -> dict[str, Any]:
        texts = [work.text(name) for name in names]
        if example.scores is not None:
            documents = {f"document_{at}": text for at, text in enumerate(texts, 1)}
            label = [example.scores[name] for name in names]
            return {"query": example.text, **documents, "label": label}
        if len(texts) == 2:
            return {"anchor": example.text, "positive": texts[0], "negative": texts[1]}
        negatives = {f"negative_{at}": text for at, text in enumerate(texts[1:], 1)}
        return {"anchor": example.text, "positive": texts[0], **negatives}

    work.train("train.jsonl", (columns(*row) for row in work.rows()))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


KINDS: dict[str, Callable[[_Work], None]] = {
    "stanford": _stanford,
    "ragatouille": _ragatouille,
    "flagembedding": _flagembedding,
    "pylate": _pylate,
    "sentence-transformers": _sentence_transformers,
}
"""The formats that `write_examples` knows."""
