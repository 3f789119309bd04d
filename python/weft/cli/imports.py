# SPDX-License-Identifier: Apache-2.0
"""The command that takes over an index of another engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import weft
from weft.cli.build import built_beside, is_unfinished
from weft.cli.info import info_to_json, show_info
from weft.cli.options import (
    Device,
    IndexPath,
    Json,
    MaxRam,
    Model,
    Nbits,
    NoProgress,
    Quiet,
    Rerank,
    Threads,
    examples,
)
from weft.cli.view import View, as_json, count
from weft.encoders import load
from weft.foreign import ForeignIndex
from weft.types import IndexConfig

app = typer.Typer(rich_markup_mode="rich")


@app.command(
    "import",
    epilog=examples(
        "weft import notes.index old/fast-plaid/",
        "weft import notes.index indexes/colbert/ --model lightonai/GTE-ModernColBERT-v1",
        "weft import notes.index .ragatouille/colbert/indexes/notes/ --ids ids.txt",
    ),
)
def import_(
    index: IndexPath,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Index folder of fast-plaid, next-plaid, PyLate (PLAID) or ColBERT; which of them "
            "is seen from its files.",
        ),
    ],
    ids: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Ids for all documents of the source in their order, one a line; without it those "
            "that PyLate keeps, else the numbers of the documents.",
        ),
    ] = None,
    model: Model = None,
    nbits: Nbits = IndexConfig.nbits,
    rerank: Rerank = "auto",
    max_ram: MaxRam = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of an existing index when done.")
    ] = False,
    device: Device = "cpu",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """Make an index of the documents in an index of another engine, and say what is lost.

    The vectors are decoded, no model runs. With --model the index can be searched with texts; name
    the model that made the vectors. What was interrupted goes on with the same command.
    """
    view = View(as_json=json, quiet=quiet, progress=not no_progress)
    with view.reporting():
        dim = ForeignIndex(folder, ids).dim
        settings: dict[str, Any] = {"nbits": nbits, "rerank": None if rerank == "none" else rerank}
        config = IndexConfig(dim=dim, **settings)
        encoder = None
        if model is not None:
            view.note(f"loading {model}")
            encoder = load(model, dim=dim)
        with (
            built_beside(index, replace=replace, note=view.note) as beside,
            view.progress() as progress,
        ):
            is_unfinished(beside, config)  # what cannot go on is cleared away
            done = weft.import_index(
                beside,
                folder,
                ids=ids,
                config=config,
                encoder=encoder,
                device=device,
                threads=threads,
                max_ram=max_ram,
                progress=progress,
            )
        info = weft.Index.open(index).info
        view.result({**info_to_json(info), "imported": as_json(done)})
        view.print(show_info(info))
        view.print(
            f"took over {count(done.n_docs)} documents of {done.source}; stored rows have a cosine "
            f"of {done.cosine:.4f} to its own"
        )
        for what in done.lost:
            view.print(f"  lost: {what}")
