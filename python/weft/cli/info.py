# SPDX-License-Identifier: Apache-2.0
"""How a plan and an index look on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weft.cli.view import as_json, count, pairs
from weft.lifecycle.planning import size
from weft.types import defaults

if TYPE_CHECKING:
    from weft.cli.build import Job
    from weft.lifecycle.health import DenseInfo, IndexInfo
    from weft.lifecycle.planning import Plan

TRUTHS = {
    "rows": "exact MaxSim over the rows",
    "stored": "exhaustive MaxSim over the stored codes; the rows are not kept",
}


MOST_PER_WORD = 20
"""Beyond this a language puts no blanks between words, so that nothing is said of them."""


def show_encoded(counts: dict[str, int] | None, encoded_on: str | None) -> list[str]:
    """Say what encoding took, and every text that did not go in as a whole."""
    if counts is None or not counts["n_texts"]:
        return []
    per_word = counts["n_tokens"] / max(counts["n_words"], 1)
    words = f", {per_word:.2f} tokens a word" if per_word <= MOST_PER_WORD else ""
    padding = 100 * counts["n_padding"] / max(counts["n_read"], 1)
    lines = [
        f"encoded {count(counts['n_texts'])} texts on {encoded_on}{words}; "
        f"{padding:.1f} % of what the model read was padding"
    ]
    if "n_pooled" in counts:
        lines.append(
            f"pooled {count(counts['n_rows'])} token embeddings to {count(counts['n_pooled'])}"
        )
    if counts["n_split_texts"]:
        lines.append(f"{count(counts['n_split_texts'])} long texts were split into windows")
    if counts["n_cut_texts"]:
        share = 100 * counts["n_cut_texts"] / counts["n_texts"]
        lines.append(
            f"{count(counts['n_cut_texts'])} long texts ({share:.1f} %) lost their end, "
            f"{count(counts['n_cut_tokens'])} tokens in all"
        )
    return lines


def show_plan(foretold: Plan, job: Job) -> Any:  # noqa: ANN401
    """Lay out a plan."""
    about = "about " if job.extent.estimated else ""
    beside = "" if job.is_embeddings else ", without the encoder"
    memory = f"{about}{size(foretold.memory_bytes)} of at most {size(foretold.max_ram)}{beside}"
    rows = [
        ("documents", f"{about}{count(foretold.n_docs)}"),
        ("tokens", f"{about}{count(foretold.n_tokens)}"),
        *([("sparse terms", f"about {count(foretold.n_terms)}")] if foretold.n_terms else []),
        ("index", f"{about}{size(foretold.disk_bytes)} on disk, without texts"),
        ("while building", f"{about}{size(foretold.spool_bytes)} more on disk"),
        ("peak memory", memory),
    ]
    if foretold.n_fine:
        rows.append(
            ("centroids", f"{count(foretold.n_coarse)} coarse, {count(foretold.n_fine)} fine")
        )
    else:
        rows.append(("centroids", "none: few enough tokens to score every document"))
    return pairs(rows, title="plan")


def show_info(info: IndexInfo) -> Any:  # noqa: ANN401
    """Lay out what an index holds."""
    config, per_token = info.config, info.n_bytes / max(info.n_tokens, 1)
    rows = [
        ("index", f"{info.path}, generation {info.generation}"),
        ("documents", f"{count(info.n_docs)} in {count(info.n_windows)} windows"),
        ("tokens", f"{count(info.n_tokens)} of {config.dim} dimensions"),
        ("disk", f"{size(info.n_bytes)}, {per_token:.1f} bytes a token, texts included"),
        ("segments", _segments(info)),
    ]
    if config.fields:
        held = [*["multi"] * (info.n_tokens > 0), *config.fields]
        rows.insert(2, ("fields", ", ".join(held)))
    if info.n_empty and info.n_tokens:
        rows.insert(2, ("empty", f"{count(info.n_empty)} documents without tokens are never found"))
    if info.n_fine:
        codes = f"{config.nbits} bits, rerank {config.rerank or 'none'}"
        tree = f"{count(info.n_coarse or 0)} coarse and {count(info.n_fine)} fine centroids"
        rows.append(("codes", f"{codes}, {tree}"))
        if info.drift is not None:
            rows.append(("drift", _drift(info, "tokens")))
    else:
        rows.append(("codes", "none yet: the rows are stored, every document is scored"))
    if info.dense is not None and config.dense is not None and info.dense.n_fine:
        dense, of_dense = info.dense, config.of_dense()
        codes = f"{of_dense.nbits} bits, rerank {of_dense.rerank or 'none'}"
        tree = f"{count(dense.n_coarse or 0)} coarse and {count(dense.n_fine or 0)} fine centroids"
        rows.append(("dense codes", f"{codes}, {tree}"))
        if dense.drift is not None:
            rows.append(("dense drift", _drift(dense, "vectors")))
    if info.encoder is not None:
        rows.append(("encoder", f"{info.encoder.name} ({info.encoder.recipe})"))
    rows += _recalls(info, "recall")
    if info.dense is not None:
        rows += _recalls(info.dense, "dense recall")
    return pairs(rows)


def _recalls(info: IndexInfo | DenseInfo, name: str) -> list[tuple[str, str]]:
    """Say what searches find that do not ask for anything else."""
    rows = []
    for point in info.operating_points:
        if point.target == defaults.recall:
            measured = "not measured" if point.measured is None else f"{point.measured:.3f}"
            against = TRUTHS[info.truth] if info.truth else "nothing"
            said = f"{measured} on {point.tuned_on}, against {against}"
            rows.append((f"{name}@{point.k}", said))
    return rows


def _drift(info: IndexInfo | DenseInfo, rows: str) -> str:
    """Say how well the centroids fit, and what training them anew would make."""
    said = f"{info.drift:.1%} of the {rows} lie beyond the error of training, where 5% did"
    now = (info.n_coarse or 0, info.n_fine or 0)
    anew = (info.n_coarse_retrained or 0, info.n_fine_retrained or 0)
    if anew[0] > now[0] or anew[1] > 1.1 * now[1]:
        said += f"; compact --retrain would make {count(anew[0])} coarse, {count(anew[1])} fine"
    return said


def _segments(info: IndexInfo) -> str:
    """Say how many there are, what of them is deleted, and what compacting would gain."""
    said, gain = count(info.n_segments), []
    if info.n_deleted:
        share = info.n_deleted_bytes / info.n_bytes
        said += f", {count(info.n_deleted)} deleted documents still stored, {share:.1%} of the disk"
        gain.append(f"free about {size(info.n_deleted_bytes)}")
    if info.n_segments_compacted < info.n_segments:
        gain.append(f"leave {count(info.n_segments_compacted)}")
    return said + (f"; compact would {' and '.join(gain)}" if gain else "")


def cuda_lines(build: dict[str, Any]) -> list[str]:
    """Say what GPUs there are, or why there is none."""
    if not build["devices"]:
        return [f"no device: {build['message']}"]
    lines = []
    for gpu in build["devices"]:
        memory = f"{size(gpu['free_bytes'])} of {size(gpu['total_bytes'])} free"
        lines.append(f"{gpu['device']} {gpu['name']}, {memory}")
    return lines


def info_to_json(info: IndexInfo) -> dict[str, Any]:
    """Give what an index holds as JSON values."""
    document = as_json(info)
    if info.encoder is not None:
        settings = info.encoder.settings
        # Without the projection: a matrix says nothing to a reader.
        kept = {name: value for name, value in settings.items() if name != "projection"}
        document["encoder"] = {**document["encoder"], "settings": kept}
    return document
