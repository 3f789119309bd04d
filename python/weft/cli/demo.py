# SPDX-License-Identifier: Apache-2.0
"""What `weft demo` shows."""

from __future__ import annotations

import os
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.text import Text

import weft
from weft import demo
from weft.checks import check_int
from weft.cli import build as cli_build
from weft.cli.hits import hits_to_json, show_hits
from weft.cli.view import count, duration
from weft.lifecycle.planning import size
from weft.lifecycle.storage import os_errors

if TYPE_CHECKING:
    from pathlib import Path

    from weft.cli.options import Resources
    from weft.cli.view import View

NOTICE = (
    "MiniLM was trained for sentence vectors, not for late interaction: this shows the machinery, "
    "not the quality that a ColBERT-class model reaches."
)


def run(
    view: View,
    question: str | None,
    *,
    k: int,
    explain: bool,
    folder: Path | None,
    limit: int | None,
    use: Resources,
) -> None:
    """Build the demo's index or find it, ask the questions and show the answers."""
    k = check_int("k", k, 1)
    os.environ["HF_HUB_OFFLINE"] = "1"  # this process only: nothing may be downloaded
    started = time.monotonic()
    name = demo.index_name(weft.__version__, limit)
    path = (folder or demo.cache_folder()) / name
    reused = path.exists()
    if reused:
        view.note(f"using the index of an earlier run: {path}")
    else:
        view.note(Text("The documentation of Python's standard library, searched", "bold"))
        build(view, path, limit, use)
    built = time.monotonic() - started
    with view.status("loading MiniLM"):
        retriever = weft.Retriever.open(
            path, model=demo.MODEL,
            device=use.device, encoder_device=use.encoder_device, threads=use.threads,
        )  # fmt: skip
    info = retriever.index.info
    n_docs, n_tokens = count(info.n_docs), count(info.n_tokens)
    view.note(f"{n_docs} passages, {n_tokens} tokens, {size(info.n_bytes)} on disk")
    view.note(Text(f"{NOTICE}\n", "dim"))
    answers: list[dict[str, Any]] = []
    for text in [question] if question is not None else demo.QUESTIONS:
        hits = retriever.search(text, k, explain=True)
        answers.append({"query": text, **hits_to_json(hits, explain=explain)})
        milliseconds = sum(v for stage, v in hits.timings_ms.items() if stage != "encode")
        title = Text.assemble((f"? {text}", "bold cyan"), (f"  {milliseconds:.1f} ms", "dim"))
        view.print(title)
        for part in show_hits(hits, explain=explain):
            view.print(part)
    seconds = time.monotonic() - started
    view.result(
        {
            "index": str(path),
            "reused": reused,
            "n_docs": info.n_docs,
            "n_tokens": info.n_tokens,
            "build_seconds": None if reused else built,
            "seconds": seconds,
            "answers": answers,
        }
    )
    view.note(Text(f"all of it took {duration(seconds)}", "dim"))
    if question is None:
        view.note('ask your own: weft demo "parse a date from a string" --explain')


def build(view: View, path: Path, limit: int | None, use: Resources) -> None:
    """Build the demo's index."""
    with os_errors("create folder", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with view.status("reading the sources of the standard library"):
        documents = list(islice(demo.passages(), limit))
    view.note(f"1. found {count(len(documents))} documented modules, classes and functions")
    with view.status("loading MiniLM"):
        encoder = weft.encoders.load(demo.MODEL, device=use.encoder_device)
    view.note("2. MiniLM turns each word piece into 128 numbers; weft compresses and indexes them")
    with (
        cli_build.built_beside(path, replace=False, note=view.note) as beside,
        view.progress() as progress,
    ):
        cli_build.build_texts(
            beside, documents, encoder, weft.IndexConfig(), use=use, progress=progress
        )
    view.note(f"3. the index is in {path}")
