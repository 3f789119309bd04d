# SPDX-License-Identifier: Apache-2.0
"""Commands for an index that is there: verify, repair, delete, compact, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import weft
from weft.cli.build import parse_where, read_ids
from weft.cli.info import info_to_json, show_info
from weft.cli.options import (
    Device,
    IndexPath,
    Json,
    MaxRam,
    NoProgress,
    Quiet,
    Where,
    examples,
)
from weft.cli.view import EXIT_CHECK_FAILED, View, as_json, count
from weft.lifecycle.planning import size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weft.lifecycle.health import Problem

app = typer.Typer(rich_markup_mode="rich")


@app.command(epilog=examples("weft verify notes.index --deep && echo sound"))
def verify(
    index: IndexPath,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every byte and check every value.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check an index for damage. Exit status 9 if there is any, 6 if it cannot even be opened."""
    view = View(as_json=json, quiet=quiet)
    with view.reporting():
        problems = weft.Index.open(index).verify(deep=deep)
        view.result({"sound": not problems, "problems": [as_json(problem) for problem in problems]})
        _show_problems(view, problems)
        view.print(f"{len(problems)} problems found" if problems else "no damage found")
        if problems:
            view.note(f"weft repair {index} keeps the rest, and all that is damaged")
            raise typer.Exit(EXIT_CHECK_FAILED)


@app.command(epilog=examples("weft repair notes.index && weft verify notes.index --deep"))
def repair(
    index: IndexPath, json: Json = False, quiet: Quiet = False, no_progress: NoProgress = False
) -> None:
    """Go on with what is whole of a damaged index. Exit status 9 if documents are lost.

    What is damaged stays in a folder inside the index, with a list of the lost documents.
    """
    view = View(as_json=json, quiet=quiet, progress=not no_progress)
    with view.reporting():
        with view.progress() as progress:
            done = weft.Index.repair(index, progress=progress)
        view.result(as_json(done))
        _show_problems(view, done.problems)
        if done.folder is None:
            view.print("no damage found, nothing was changed")
        else:
            view.print(
                f"generation {done.generation} has {count(done.n_docs)} documents, "
                f"{count(done.n_lost)} are lost"
            )
            view.print(f"everything damaged is kept in {done.folder}")
        if done.n_lost:
            raise typer.Exit(EXIT_CHECK_FAILED)


def _show_problems(view: View, problems: Sequence[Problem]) -> None:
    for problem in problems:
        named = problem.file in problem.message
        view.print(problem.message if named else f"{problem.file}: {problem.message}")
        view.print(f"  lost: {problem.loss}")


@app.command(
    epilog=examples(
        "weft delete notes.index old/plan.md old/todo.md",
        "weft delete notes.index --ids gone.txt",
        """weft delete notes.index --where '{"expires": {"$lt": "2026-11-01"}}'""",
    )
)
def delete(
    index: IndexPath,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Documents to delete.")
    ] = None,
    ids: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Delete these, one id a line; - reads standard input."),
    ] = None,
    where: Where = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Delete documents by id, or by a filter. Ids that are not there are counted, and no error."""
    view = View(as_json=json, quiet=quiet)
    with view.reporting():
        found = parse_where(where)
        given = dict.fromkeys([*(names or []), *read_ids(ids)])
        if bool(given) == (found is not None):
            raise weft.errors.InvalidArgumentError(
                f"{'ids and a filter' if given else 'no ids'}: expected some ids, or --where JSON"
            )
        opened = weft.Index.open(index)
        if found is not None:
            n_deleted = opened.delete(where=found)
            view.result({"deleted": n_deleted, "generation": opened.generation})
            view.print(f"deleted {count(n_deleted)} documents")
            return
        n_deleted = opened.delete(list(given))
        n_unknown = len(given) - n_deleted
        view.result({"deleted": n_deleted, "unknown": n_unknown, "generation": opened.generation})
        unknown = f", {count(n_unknown)} were not there" if n_unknown else ""
        view.print(f"deleted {count(n_deleted)} of {count(len(given))} documents{unknown}")


@app.command(epilog=examples("weft compact notes.index && weft verify notes.index --deep"))
def compact(
    index: IndexPath,
    retrain: Annotated[
        bool,
        typer.Option(
            "--retrain", help="Train the codec anew and encode again, for an index that has grown."
        ),
    ] = False,
    max_ram: MaxRam = None,
    device: Device = "cpu",
    json: Json = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """Merge segments and drop deleted documents; ids, codes and scores stay as they are.

    With --retrain codes and scores change: all is encoded again from what is stored.
    """
    view = View(as_json=json, quiet=quiet, progress=not no_progress)
    with view.reporting():
        opened = weft.Index.open(index)
        before = opened.info
        with (
            view.progress() as progress,
            opened.writer(device=device, max_ram=max_ram, progress=progress) as writer,
        ):
            writer.compact(retrain=retrain)
        info = opened.info
        freed = before.n_bytes - info.n_bytes
        view.result({**info_to_json(info), "n_segments_before": before.n_segments, "freed": freed})
        view.print(show_info(info))
        if info.generation == before.generation:
            view.note("there was nothing to compact")
        else:
            merged = f"{count(before.n_segments)} segments are now {count(info.n_segments)}"
            view.note(f"{merged}, {size(max(freed, 0))} less in use")


@app.command(
    epilog=examples(
        "weft export notes.index notes.jsonl",
        "weft export notes.index rows.safetensors && weft build again.index rows.safetensors",
        "weft export notes.index notes.parquet",
    )
)
def export(
    index: IndexPath,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Texts and metadata: .jsonl. Token embeddings: .safetensors or .npy, with ids.txt "
            "(and offsets.npy) beside it. Both: .parquet.",
        ),
    ],
    json: Json = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """Write ids, texts and metadata, or token embeddings, to files that weft build reads.

    Parquet is for other programs: all of it in one file, with one row per document.
    """
    view = View(as_json=json, quiet=quiet, progress=not no_progress)
    with view.reporting():
        opened = weft.Index.open(index)
        with view.progress() as progress:
            done = weft.export(opened, file, progress=progress)
        view.result(as_json(done))
        view.print(f"wrote {count(done.n_docs)} documents to {', '.join(done.files)}")
        if done.exact is False:
            view.note("the rows are not kept: these are what the codes say of them")
