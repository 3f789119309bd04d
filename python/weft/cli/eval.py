# SPDX-License-Identifier: Apache-2.0
"""weft eval: how good a ranking is, with BM25 and exact search beside it."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from weft import evaluation, sources
from weft.cli.fields import EXACT, device_of, measure_fields, open_retriever
from weft.cli.info import TRUTHS
from weft.cli.options import (
    Device,
    EncoderDevice,
    Json,
    K,
    Language,
    Model,
    NoProgress,
    Quiet,
    Recall,
    Resources,
    Threads,
    Weights,
    examples,
)
from weft.cli.view import EXIT_CHECK_FAILED, View, as_json, count, pairs
from weft.comparison import CONFIDENCE, MACRO, RESAMPLES, SEED, Line, compare, plot
from weft.errors import InvalidArgumentError
from weft.evaluation import Collection, Rules
from weft.exporting import stored_documents
from weft.hybrid_retriever import HybridRetriever
from weft.lexical import BM25
from weft.types import defaults

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from weft.comparison import Difference
    from weft.evaluation import Qrels, Run
    from weft.retriever import Retriever
    from weft.types import Document, Progress

MOST_SAID = 60
"""Characters of a setting that is shown."""

LANGUAGE = "lang"

app = typer.Typer(rich_markup_mode="rich")


@app.command(
    "eval",
    epilog=examples(
        "weft eval notes.index --queries queries.jsonl -k 100 --recall 0.99",
        "weft eval scifact.index --data scifact --plot scifact.png",
        "weft eval --data xquad-mixed --split cross --by lang",
        "weft eval --run old.trec --run new.trec --qrels qrels/test.tsv",
    ),
)
def evaluate(
    index: Annotated[
        Path | None,
        typer.Argument(metavar="[INDEX]", help="Folder of an index that answers the queries."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A collection in the BEIR layout: corpus.jsonl, queries.jsonl and qrels/, .gz "
            "too. Stands for --corpus, --queries and --qrels.",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="With --data: qrels/<split>.tsv.")] = "test",
    queries: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Queries: .jsonl or .tsv with id and text.")
    ] = None,
    qrels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Judgements: .tsv with query, document and grade, or the four columns of TREC.",
        ),
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            metavar="SOURCE", help="Texts for BM25; those that the index keeps by default."
        ),
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A ranking to measure: a TREC run, or .json {query: {document: score}}. Again for "
            "more; each is compared with the first line of the table.",
        ),
    ] = None,
    measures: Annotated[
        str, typer.Option(help="What to measure, by the names of ir-measures.")
    ] = ",".join(evaluation.MEASURES),
    by: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            help="Break down by this metadata of the queries; by lang, where they have it, by "
            "default.",
        ),
    ] = None,
    ties: Annotated[
        str,
        typer.Option(help="Equal scores of a run: stable (order of the file) or trec (id, down)."),
    ] = "stable",
    over: Annotated[
        str,
        typer.Option(
            help="Mean over the judged queries, those without an answer as 0 (qrels), or over "
            "those with an answer (run)."
        ),
    ] = "qrels",
    gain: Annotated[
        str, typer.Option(help="Of a grade in nDCG: linear, or exponential (2^grade - 1).")
    ] = "linear",
    ap: Annotated[
        str,
        typer.Option(
            help="AP@k is divided by the relevant documents (relevant), or at most k (cutoff)."
        ),
    ] = "relevant",
    bm25: Annotated[
        bool, typer.Option("--bm25/--no-bm25", help="A line of BM25 beside the others.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of the resampling.")] = SEED,
    save_runs: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write each ranking there as a TREC run."),
    ] = None,
    draw: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw the table: .png, .svg or .pdf."),
    ] = None,
    k: K = defaults.k,
    recall: Recall = defaults.recall,
    fail_under: Annotated[
        float | None,
        typer.Option(help="Exit status 9 if recall against exact search is lower than this."),
    ] = None,
    weights: Weights = None,
    model: Model = None,
    language: Language = None,
    device: Device = "cpu",
    encoder_device: EncoderDevice = "auto",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """Measure an index, or rankings that others made: nDCG and its like, recall, significance.

    Without judgements: recall of an index against exact search. With them, a line for the index,
    for the exact search over the same vectors, for each --run, and for BM25 over the same texts;
    below, the differences to the first line with the middle 95 % of 1,000 resamplings of the
    queries. A difference marked "within chance" is no gain.
    """
    view = View(as_json=json, quiet=quiet, progress=not no_progress)
    with view.reporting():
        if data is not None:
            collection = Collection(data, split)
            corpus, queries = corpus or data, queries or collection.queries
            qrels = qrels or collection.qrels
        if index is None and not run and corpus is None:
            raise InvalidArgumentError(
                "nothing to measure: expected an INDEX, --run FILE, or --data FOLDER"
            )
        if fail_under is not None and index is None:
            raise InvalidArgumentError("--fail-under: expected an INDEX with it")
        if ties not in ("stable", "trec"):
            raise InvalidArgumentError(f"--ties {ties}: expected stable or trec")
        if draw is not None and qrels is None:
            raise InvalidArgumentError("--plot: expected --qrels FILE or --data FOLDER with it")
        if save_runs is not None:
            _tags([*([] if index is None else [str(index)]), *map(str, run or ())])
        groups = {} if queries is None else evaluation.query_fields(queries, by or LANGUAGE)
        if by is not None and not groups:
            where = "no --queries FILE or --data FOLDER" if queries is None else f"{queries}: none"
            raise InvalidArgumentError(f"--by {by}: expected queries with that field; {where}")
        names = [name.strip() for name in measures.split(",")]
        rules = Rules(ap=ap, gain=gain, queries=over)  # type: ignore[arg-type]
        judged = None if qrels is None else evaluation.read_qrels(qrels)
        texts = None if queries is None else _judged_texts(queries, qrels, judged)
        if judged is None and run:
            raise InvalidArgumentError("--run: expected --qrels FILE or --data FOLDER with it")
        if texts is None and (index is not None or not run):
            raise InvalidArgumentError("--queries FILE or --data FOLDER: expected one of them")
        depth = k if judged is None else max(k, evaluation.depth(names))
        shown = Report(rules=as_json(rules), ties=ties, seed=seed, queries=len(texts or ()))
        with view.progress() as progress:
            if index is not None:
                assert texts is not None
                use = Resources(device, threads, encoder_device)
                retriever = open_retriever(index, model, weights, use, language)
                if isinstance(retriever, HybridRetriever):
                    shown.facts, shown.runs = measure_fields(
                        retriever, texts, name=str(index), k=k, depth=depth, recall=recall,
                        device=device, progress=progress,
                    )  # fmt: skip
                else:
                    shown.facts, answers, exact = measure_index(
                        retriever, texts, k=k, depth=depth, recall=recall, use=use,
                        progress=progress,
                    )  # fmt: skip
                    shown.runs |= {str(index): answers, EXACT: exact}
            for path in run or ():
                if str(path) in shown.runs:
                    raise InvalidArgumentError(f"--run {path}: given twice")
                shown.runs[str(path)] = evaluation.read_run(path, ties=ties)  # type: ignore[arg-type]
            if judged is not None and bm25:
                documents = _documents(corpus, index)
                if documents is None or texts is None:
                    shown.notes.append("no BM25 line: its texts are missing; give --data FOLDER")
                else:
                    engine = BM25(documents, progress=progress)
                    shown.documents = len(engine)
                    shown.runs["bm25"] = bm25_run(engine, texts, depth, progress)
        if judged is not None:
            for name, ranking in shown.runs.items():
                values = evaluation.per_query(judged, ranking, names, rules=rules)
                shown.lines.append(Line(name, values))
            shown.judge(judged, texts)
            shown.groups = groups
            if over == "qrels":
                for line in shown.lines[1:]:
                    shown.differences += compare(line, shown.lines[0], seed=seed)
        if save_runs is not None:
            _save(shown.runs, save_runs)
        if draw is not None:
            plot(draw, shown.lines, shown.groups)
        view.result(shown.to_json(by or LANGUAGE))
        for part in shown.tables(by or LANGUAGE):
            view.print(part)
        for note in shown.notes:
            view.note(note)
        if fail_under is not None and shown.facts[f"recall@{k}"] < fail_under:
            raise typer.Exit(EXIT_CHECK_FAILED)


def _judged_texts(queries: Path, qrels: Path | None, judged: Qrels | None) -> dict[str, str]:
    """Give the queries of a file that are judged; all of them where nothing is."""
    texts = evaluation.read_queries(queries)
    if judged is not None:
        texts = {name: text for name, text in texts.items() if name in judged}
    if not texts:
        which = "" if qrels is None else f" that {qrels} judges"
        raise InvalidArgumentError(f"{queries}: no queries{which}, expected at least one")
    return texts


def _documents(corpus: Path | None, index: Path | None) -> Iterable[Document] | None:
    if corpus is not None:
        return sources.read(corpus)
    if index is None:
        return None
    from weft.index import Index

    documents = list(stored_documents(Index.open(index)))
    return documents if any(document.text for document in documents) else None


def bm25_run(
    engine: BM25, texts: dict[str, str], depth: int, progress: Progress | None = None
) -> Run:
    """Answer each query by BM25."""
    answers = {}
    for number, (name, text) in enumerate(texts.items(), start=1):
        answers[name] = engine.search(text, depth)
        if progress is not None:
            progress("bm25 search", number, len(texts))
    return answers


def measure_index(
    retriever: Retriever,
    texts: dict[str, str],
    *,
    k: int,
    depth: int,
    recall: float,
    use: Resources,
    progress: Progress | None,
) -> tuple[dict[str, Any], Run, Run]:
    """Answer queries, and compare with the exact search: facts, answers, exact answers.

    Exact is `Searcher.exact_search` on the CPU, over what the index keeps of the rows; "against"
    says what. Recall and the median are of searches for k on the device that was asked for, the
    answers those of a search for `depth`.
    """
    rows = [query.values for query in retriever.encode_queries(list(texts.values()))]
    exactly = retriever.index.searcher(threads=use.threads)
    searcher = exactly
    if use.device != "cpu":
        searcher = retriever.index.searcher(device=use.device, threads=use.threads)
    answers, exact, times = [], [], []
    for number, row in enumerate(rows, start=1):
        started = time.perf_counter()
        found = searcher.search(row, k, recall=recall)
        times.append(1_000 * (time.perf_counter() - started))
        answers.append(found)
        exact.append(exactly.exact_search(row, depth))
        if progress is not None:
            progress("search", number, len(rows))
    overlap = evaluation.mean_overlap(answers, [wanted.replace(wanted[:k]) for wanted in exact])
    deep = answers if depth == k else searcher.search_batch(rows, depth, recall=recall)
    point, info = answers[0].operating_point, retriever.index.info
    stored, config = info.encoder, info.config
    facts: dict[str, Any] = {
        "queries": len(rows),
        "documents": len(searcher),
        "encoder": None if stored is None else f"{stored.name} ({stored.recipe})",
        "settings": None if stored is None else _short(stored.settings),
        "index": f"dim {config.dim}, nbits {config.nbits}, rerank {config.rerank}, "
        f"seed {config.seed}",
        "path": point.path,
        "device": searcher.device,
        "encoder device": device_of(retriever.encoder),
        f"recall@{k}": overlap,
        "against": TRUTHS[searcher.truth],
        "recall promised": point.measured,
        "promised against": None
        if point.measured is None
        else TRUTHS[info.truth or searcher.truth],
        "median ms": statistics.median(times),
    }
    counts = getattr(retriever.encoder, "counts", None)
    if counts is not None:
        facts["queries cut"] = counts.n_cut_queries
    return (
        facts,
        evaluation.as_run(dict(zip(texts, deep, strict=True))),
        evaluation.as_run(dict(zip(texts, exact, strict=True))),
    )


def _short(settings: Mapping[str, Any]) -> str:
    """Name the settings that can be said in a line; a projection's values are not among them."""
    said = {name: str(value) for name, value in settings.items()}
    return ", ".join(f"{name} {value}" for name, value in said.items() if len(value) <= MOST_SAID)


@dataclass
class Report:
    """What was measured, and how it is shown."""

    rules: dict[str, Any]
    ties: str
    seed: int
    queries: int
    documents: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    groups: dict[str, str] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def judge(self, judged: Qrels, texts: dict[str, str] | None) -> None:
        """Count what was measured, and say what is missing."""
        relevant = [name for name, grades in judged.items() if any(g > 0 for g in grades.values())]
        self.queries = len(relevant)
        if texts is not None:
            absent = sum(name not in texts for name in relevant)
            if absent:
                self.notes.append(f"{count(absent)} judged queries have no text, and count 0")
        for name, ranking in self.runs.items():
            absent = sum(not ranking.get(query) for query in relevant)
            if absent:
                how = "are left out" if self.rules["queries"] == "run" else "count 0"
                self.notes.append(f"{name}: {count(absent)} judged queries unanswered; they {how}")

    def to_json(self, by: str) -> dict[str, Any]:
        """Give all of it as JSON values."""
        found: dict[str, Any] = {"queries": self.queries, "documents": self.documents}
        found |= self.facts
        if self.lines:
            found |= self.lines[0].means
            found |= {"ties": self.ties, "rules": self.rules, "by": by}
            found["lines"] = [
                {"name": line.name, "measures": line.means, "groups": line.means_by(self.groups)}
                for line in self.lines
            ]
            found["bootstrap"] = {
                "resamples": RESAMPLES, "seed": self.seed, "confidence": CONFIDENCE,
            }  # fmt: skip
            found["differences"] = [
                {**as_json(one), "beyond_chance": one.beyond_chance} for one in self.differences
            ]
        return {**found, "notes": self.notes}

    def tables(self, by: str) -> Iterable[Table | str]:
        """Give what to print."""
        facts = {"queries": self.queries, "documents": self.documents, **self.facts}
        if self.lines:
            chosen = [f"ties {self.ties}", *(f"{name} {rule}" for name, rule in self.rules.items())]
            facts["rules"] = ", ".join(chosen)
        yield pairs((name, shown(value)) for name, value in facts.items() if value is not None)
        if not self.lines:
            return
        means = {line.name: line.means for line in self.lines}
        yield _table(list(self.lines[0].values), means)
        if self.groups:
            first = next(iter(self.lines[0].values))
            grouped = {line.name: line.means_by(self.groups)[first] for line in self.lines}
            measured = set().union(*(line.values[first] for line in self.lines))
            sizes = Counter(self.groups[name] for name in measured if name in self.groups)
            said = ", ".join(f"{name} {n}" for name, n in sorted(sizes.items()))
            yield f"{first} by {by} ({said})"
            yield _table([*sorted(sizes), MACRO], grouped)
        if self.differences:
            yield f"difference to {self.lines[0].name}, and 95 % of {RESAMPLES:,} resamplings"
            yield self._differences()

    def _differences(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in ("", "measure", "difference", "interval", ""):
            table.add_column(name, header_style="dim", no_wrap=True)
        for one in self.differences:
            interval = f"[{one.low:+.4f}, {one.high:+.4f}]"
            said = "" if one.beyond_chance else "within chance"
            said = "no difference" if one.low == one.high == 0 else said
            table.add_row(one.name, one.measure, f"{one.difference:+.4f}", interval, said)
        return table


def _table(columns: Sequence[str], rows: dict[str, dict[str, float]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name, header_style="dim", justify="right", no_wrap=True)
    for name, values in rows.items():
        cells = (f"{values[column]:.4f}" if column in values else "-" for column in columns)
        table.add_row(name, *cells)
    return table


def _save(runs: dict[str, Run], folder: Path) -> None:
    tags = _tags(runs)
    folder.mkdir(parents=True, exist_ok=True)
    for name, ranking in runs.items():
        evaluation.write_run(folder / f"{tags[name]}.trec", ranking, tag=tags[name])


def _tags(names: Iterable[str]) -> dict[str, str]:
    """Name the files of rankings: old/x.trec is x, and x.index dense, a field, is x-dense."""
    named: dict[str, str] = {}
    for name in names:
        path = Path(name)
        tag = f"{path.stem} {path.suffix.partition(' ')[2]}".strip().replace(" ", "-")
        if tag in named:
            raise InvalidArgumentError(
                f"--save-runs: {named[tag]} and {name} would both be {tag}.trec, expected rankings "
                f"of different names"
            )
        named[tag] = name
    return {name: tag for tag, name in named.items()}


def shown(value: object) -> str:
    """Write a value of a result for people."""
    if isinstance(value, float):
        return f"{value:.4f}"
    return str(value)
