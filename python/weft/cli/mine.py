# SPDX-License-Identifier: Apache-2.0
"""weft mine and weft distill: from a judged collection to the files that trainers read."""

from __future__ import annotations

import json as json_lines
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft import encoders, evaluation, sources
from weft.cli.fields import open_retriever
from weft.cli.options import (
    Device,
    EncoderDevice,
    Json,
    Language,
    NoProgress,
    Quiet,
    Resources,
    Threads,
    Weights,
    examples,
)
from weft.cli.view import View, as_json, count, pairs
from weft.errors import IndexExistsError, InvalidArgumentError, NotFoundError
from weft.evaluation import Collection
from weft.hybrid_retriever import HybridRetriever
from weft.lexical import BM25
from weft.lifecycle.storage import os_errors
from weft.retriever import Retriever
from weft.training.distillation import EPSILON, NORMALISE, distill
from weft.training.files import KINDS, check_target, write_examples
from weft.training.mining import PRESETS, Example, MiningRule, mine, preset
from weft.training.scorers import BM25Scorer, HybridScorer, IndexScorer, RunScorer, index_similarity
from weft.types import Document

if TYPE_CHECKING:
    from collections.abc import Iterable

    from weft.training.scorers import Ranker
    from weft.types import Progress

app = typer.Typer(rich_markup_mode="rich")

Data = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER",
        help="A collection in the BEIR layout: corpus.jsonl, queries.jsonl and qrels/, .gz too.",
    ),
]
WHO = "bm25, the folder of an index, or a run (TREC or .json)"


@app.command(
    "mine",
    epilog=examples(
        "weft mine negatives.jsonl --data amqa --preset amharic-bm25 --exclude-split test",
        "weft mine negatives.jsonl --data scifact --with bm25 --with scifact.index -n 4 "
        "--relative-margin 0.05",
        "weft distill negatives.jsonl train/ --data scifact --format stanford --spaces",
    ),
)
def mine_negatives(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A .jsonl file for the examples.")],
    data: Data,
    split: Annotated[
        str, typer.Option(help="Mine for the queries of qrels/<split>.tsv.")
    ] = "train",
    rankers: Annotated[
        list[str] | None,
        typer.Option(
            "--with", metavar="WHO", help=f"Who finds candidates: {WHO}. Again for more; bm25."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--preset", help=f"Start from a published rule: {', '.join(PRESETS)}."),
    ] = None,
    n: Annotated[int | None, typer.Option("-n", help="Negatives of a query.")] = None,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="FROM:TO", help="Ranks from which they come, from 0, TO not included."
        ),
    ] = None,
    ranks: Annotated[
        str | None,
        typer.Option(help="The window is on the list (raw) or on what filters leave (filtered)."),
    ] = None,
    choose: Annotated[
        str | None, typer.Option(help="From the window: top, random, or ends (first and last).")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="A negative scores at least so much less than the worst positive."),
    ] = None,
    relative_margin: Annotated[
        float | None, typer.Option(help="The same, as a share of the positive's score.")
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Least score of a negative.")] = None,
    max_score: Annotated[float | None, typer.Option(help="Greatest score of a negative.")] = None,
    max_similarity: Annotated[
        float | None,
        typer.Option(
            help="Drop passages more like a positive than this: mean MaxSim, by the first index "
            "among --with."
        ),
    ] = None,
    fill: Annotated[
        bool | None, typer.Option("--fill/--no-fill", help="Random documents in free places.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of what is random.")] = None,
    exclude_split: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPLIT",
            help="Never take what qrels/<split>.tsv finds relevant; again for more.",
        ),
    ] = None,
    weights: Weights = None,
    language: Language = None,
    device: Device = "cpu",
    encoder_device: EncoderDevice = "auto",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """Find hard negatives: documents that rank high for a query and do not answer it.

    Each line of OUT has a query, its positives and its negatives with ranker, rank and score; the
    rule and what was dropped are in a file beside it that ends in .about.json.
    A document is never a negative if it is judged relevant, or has the text of a positive, of the
    query or of another negative. weft distill makes training files of the lines.
    """
    view = View(as_json=json, quiet=quiet, progress=not no_progress)
    with view.reporting():
        if out.exists():
            raise IndexExistsError(f"{out}: exists already; remove it, or choose another name")
        if not out.parent.is_dir():
            raise NotFoundError(f"{out.parent}: no such folder")
        for option, value in (("--weights", weights), ("--language", language)):
            if value is not None and not any(Path(who).is_dir() for who in rankers or ()):
                raise InvalidArgumentError(f"{option} {value}: expected an index among --with")
        collection = Collection(data, split)
        qrels = evaluation.read_qrels(collection.qrels)
        queries = evaluation.read_queries(collection.queries)
        documents = _texts(collection)
        rule = _rule(recipe, len(documents), max_similarity)
        changes = {
            "n": n, "window": _window(window), "ranks": ranks, "choose": choose, "margin": margin,
            "relative_margin": relative_margin, "min_score": min_score, "max_score": max_score,
            "fill": fill, "seed": seed,
        }  # fmt: skip
        rule = replace(rule, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]
        excluded = {
            name
            for other in exclude_split or ()
            for grades in evaluation.read_qrels(Collection(data, other).qrels).values()
            for name, grade in grades.items()
            if grade > 0
        }
        use = Resources(device, threads, encoder_device)
        with view.progress() as progress:
            asked = [
                _scorer(who, documents, weights, use, language, progress)
                for who in rankers or ["bm25"]
            ]
            indexes = [who for who in rankers or () if Path(who).is_dir()]
            like = None
            if max_similarity is not None and indexes:
                like = index_similarity(
                    Retriever.open(indexes[0], encoder_device=encoder_device, threads=threads)
                )
            done = mine(
                queries, documents, qrels, asked, rule,
                exclude=excluded, similarity=like, progress=progress,
            )  # fmt: skip
        found: dict[str, Any] = {
            "queries": done.n_queries,
            "examples": len(done.examples),
            "negatives": sum(len(example.negatives) for example in done.examples),
            "queries with fewer than asked for": done.short,
            "dropped": dict(done.dropped),
            "with": [one.name for one in asked],
            "weights": weights,
            "language": language,
            "excluded": len(excluded),
            "rule": as_json(rule),
        }
        _write_lines(out, (example.to_json() for example in done.examples))
        _write_lines(out.with_suffix(".about.json"), [found])
        view.result(found)
        view.print(pairs(_shown(found)))


@app.command(
    "distill",
    epilog=examples(
        "weft distill negatives.jsonl train/ --data scifact --format flagembedding",
        "weft distill negatives.jsonl train/ --data scifact --format pylate "
        "--teacher scifact.index --normalise minmax",
    ),
)
def distill_scores(
    mined: Annotated[Path, typer.Argument(metavar="MINED", help="What weft mine has written.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new or an empty folder.")],
    data: Data,
    kind: Annotated[
        str, typer.Option("--format", help=f"Who reads the files: {', '.join(KINDS)}.")
    ],
    teacher: Annotated[
        str | None, typer.Option(metavar="WHO", help=f"Who gives scores: {WHO}; none by default.")
    ] = None,
    normalise: Annotated[
        str, typer.Option(help=f"Scores of an example: {', '.join(NORMALISE)}.")
    ] = "none",
    spaces: Annotated[
        bool,
        typer.Option("--spaces", help="stanford: tabs and line breaks in texts become spaces."),
    ] = False,
    buckets: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="flagembedding: a file for each length in tokens of this encoder."
        ),
    ] = None,
    weights: Weights = None,
    language: Language = None,
    device: Device = "cpu",
    encoder_device: EncoderDevice = "auto",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """Score mined examples by a teacher, and write the files that a trainer reads.

    Positives come first. about.json in OUT says who the teacher was and how scores were normalised;
    pylate wants minmax. Without --teacher the files have no scores.
    """
    view = View(as_json=json, quiet=quiet, progress=not no_progress)
    with view.reporting():
        check_target(out, kind)
        documents = _texts(Collection(data))
        examples_ = read_examples(mined)
        about: dict[str, Any] = {"mined": mined.name, "teacher": teacher}
        if teacher is None and normalise != "none":
            raise InvalidArgumentError(f"--normalise {normalise}: expected --teacher with it")
        for option, value in (("--weights", weights), ("--language", language)):
            if value is not None and (teacher is None or not Path(teacher).is_dir()):
                raise InvalidArgumentError(f"{option} {value}: expected an index as --teacher")
        use = Resources(device, threads, encoder_device)
        with view.progress() as progress:
            if teacher is not None:
                scorer = _scorer(teacher, documents, weights, use, language, progress)
                scored = []
                for one in distill(examples_, scorer, normalise=normalise):  # type: ignore[arg-type]
                    scored.append(one)
                    if progress is not None:
                        progress("score", len(scored), len(examples_))
                examples_ = scored
                about |= {"weights": weights, "language": language}
                about |= {"normalise": normalise, "epsilon": EPSILON}
        counter = None if buckets is None else encoders.load(buckets).count_tokens
        done = write_examples(
            out, kind, examples_, documents, spaces=spaces, count_tokens=counter, about=about
        )
        found = {**about, **as_json(done)}
        view.result(found)
        view.print(pairs(_shown(found | {"files": f"{len(done.files)} in {out}"})))


def read_examples(path: Path) -> list[Example]:
    """Read what `weft mine` has written."""
    found = []
    for place, line in sources.jsonl(path).lines(path):
        try:
            found.append(Example.from_json(json_lines.loads(line)))
        except ValueError as error:
            raise InvalidArgumentError(f"{place}: {error}") from error
    return found


def _write_lines(path: Path, found: Iterable[dict[str, Any]]) -> None:
    with os_errors("write", path), path.open("w", encoding="utf-8") as file:
        for one in found:
            file.write(json_lines.dumps(one, ensure_ascii=False) + "\n")


def _texts(collection: Collection) -> dict[str, str]:
    return {document.id: document.text or "" for document in collection.corpus}


def _rule(recipe: str | None, n_documents: int, max_similarity: float | None) -> MiningRule:
    if recipe is None:
        return MiningRule(max_similarity=max_similarity)
    return preset(recipe, n_documents, max_similarity=max_similarity)


def _window(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    start, colon, end = text.partition(":")
    if not (colon and start.isdecimal() and end.isdecimal()):
        raise InvalidArgumentError(f"--window {text}: expected two ranks, as 10:110")
    return int(start), int(end)


def _scorer(
    who: str,
    documents: dict[str, str],
    weights: str | None,
    use: Resources,
    language: str | None,
    progress: Progress | None,
) -> Ranker:
    path = Path(who)
    if path.is_dir():
        found = open_retriever(path, None, weights, use, language)
        if isinstance(found, HybridRetriever):
            return HybridScorer(found, who)
        return IndexScorer(found, who)
    if who == "bm25":
        texts = (Document(name, text) for name, text in documents.items())
        return BM25Scorer(BM25(texts, progress=progress))
    if path.is_file():
        return RunScorer(evaluation.read_run(path), who)
    raise InvalidArgumentError(f"{who}: expected {WHO}")


def _shown(found: dict[str, Any]) -> list[tuple[str, str]]:
    def text(value: object) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{name} {one}" for name, one in value.items() if one is not None)
        if isinstance(value, list):
            return ", ".join(map(str, value))
        return count(value) if isinstance(value, int) else str(value)

    return [(name, text(value)) for name, value in found.items() if value not in (None, {}, [])]
