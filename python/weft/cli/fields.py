# SPDX-License-Identifier: Apache-2.0
"""Indexes of several fields on the command line: how they are opened, asked and measured."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from weft import evaluation
from weft.encoders import load
from weft.encoders.joined import JoinedEncoder, calibrated, stored_fields
from weft.errors import InvalidArgumentError
from weft.fusion import ReciprocalRank, Weighted
from weft.hybrid import HybridSearcher
from weft.hybrid_retriever import HybridRetriever
from weft.index import Index
from weft.retriever import Retriever

if TYPE_CHECKING:
    from pathlib import Path

    from weft.cli.options import Resources
    from weft.evaluation import Run
    from weft.fusion import Fusion
    from weft.types import Hits, Progress

EXACT = "exact"
"""Name of the line of exhaustive search."""


def open_retriever(
    path: Path,
    model: str | None,
    weights: str | None,
    use: Resources,
    language: str | None = None,
) -> Retriever | HybridRetriever:
    """Open an index with its encoder, by what it holds; `language` is that of the queries."""
    index = Index.open(path)
    stored = index.info.encoder
    settings = {} if language is None else {"language": language}
    if language is not None and not calibrated(stored):
        raise InvalidArgumentError(
            f"--language {language}: the encoder of {path} has no calibration, which is what "
            f"languages are for; expected none"
        )
    if not index.config.fields:
        if weights is not None:
            raise InvalidArgumentError(
                f"--weights {weights}: {path} holds token embeddings alone, expected several fields"
            )
        if stored is None or language is None:
            chosen: Any = model
        else:
            chosen = load(
                model or stored.name, info=stored, options=settings, device=use.encoder_device,
                download=model is not None,
            )  # fmt: skip
        return Retriever.open(
            path, model=chosen,
            device=use.device, encoder_device=use.encoder_device, threads=use.threads,
        )  # fmt: skip
    fusion = None if weights is None else Weighted(_weights(weights))
    encoder = None
    if model is not None:
        one = load(model, info=stored, options=settings, device=use.encoder_device)
        encoder = JoinedEncoder([one])
    elif stored is not None and language is not None:
        encoder = stored_fields(stored, language=language, device=use.encoder_device)
    return HybridRetriever.open(
        path, encoder=encoder, fusion=fusion,
        device=use.device, encoder_device=use.encoder_device, threads=use.threads,
    )  # fmt: skip


def device_of(encoder: object) -> str | None:
    """Tell where the model of an encoder runs; None where it does not say."""
    device = getattr(encoder, "device", None)
    return None if device is None else str(device)


def _weights(text: str) -> dict[str, float]:
    """Read NAME=W,NAME=W."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        try:
            found[name.strip()] = float(weight)
        except ValueError:
            raise InvalidArgumentError(
                f"--weights {text}: expected names and numbers, like dense=0.4,multi=0.6"
            ) from None
    return found


def measure_fields(
    retriever: HybridRetriever,
    texts: dict[str, str],
    *,
    name: str,
    k: int,
    depth: int,
    recall: float,
    device: str,
    progress: Progress | None,
) -> tuple[dict[str, Any], dict[str, Run]]:
    """Answer queries from all fields together and from each alone: facts, and runs by name.

    The line "exact" joins the exact lists of the fields. Recall and the median are of searches for
    k, the runs of searches for `depth`.
    """
    queries = retriever.encode_queries(list(texts.values()))
    searcher = retriever.index.searcher(device=device)
    whole = searcher if searcher.device == "cpu" else retriever.index.searcher()
    ways: list[tuple[str, tuple[str, ...], Fusion]]
    ways = [(name, retriever.fields, retriever.fusion)]
    ways += [(f"{name} {field}", (field,), ReciprocalRank()) for field in retriever.fields]
    answers: dict[str, list[Hits]] = defaultdict(list)
    overlaps: dict[str, list[float]] = defaultdict(list)
    times = []
    for number, query in enumerate(queries, start=1):
        for line, fields, fusion in ways:
            asked, by = {field: query[field] for field in fields}, HybridSearcher(searcher, fusion)
            started = time.perf_counter()
            found = by.search(asked, k, recall=recall)
            if line == name:
                times.append(1_000 * (time.perf_counter() - started))
            answers[line].append(by.search(asked, depth, recall=recall))
            exact = HybridSearcher(whole, fusion).exact_search(asked, depth)
            overlaps[line].append(evaluation.mean_overlap([found], [exact.replace(exact[:k])]))
            if line == name:
                answers[EXACT].append(exact)
        if progress is not None:
            progress("search", number, len(queries))
    stored = retriever.index.info.encoder
    recalls = {line.removeprefix(name): statistics.fmean(each) for line, each in overlaps.items()}
    facts = {
        "queries": len(queries),
        "documents": len(retriever),
        "encoder": None if stored is None else f"{stored.name} ({stored.recipe})",
        "fields": ", ".join(retriever.fields),
        "fusion": repr(retriever.fusion),
        "device": searcher.device,
        "encoder device": device_of(retriever.encoder),
        **{f"recall@{k}{field}": value for field, value in recalls.items()},
        "against": "exact search of each field, over the best that is stored of its vectors",
        "median ms": statistics.median(times),
    }
    runs = {
        one: evaluation.as_run(dict(zip(texts, found, strict=True)))
        for one, found in answers.items()
    }
    return facts, runs
