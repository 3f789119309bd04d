# SPDX-License-Identifier: Apache-2.0
"""The codec table: recall of exhaustive search over decoded tokens against exact MaxSim.

    python bench/codec_table.py FOLDER [FOLDER ...] [--queries 200] [--out table.jsonl]

A folder holds values.f16.npy [n, dim], offsets.npy, query_values.npy f32 and query_offsets.npy.
Every row of the table is one code; all of them score the same documents for the same queries, in
f32, from what `Codec._decode` gives. Rows marked "simulated" do in NumPy what weft does not offer.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from weft import _native

BLOCK_TOKENS = 16_384
RATIOS = (16, 12, 8, 6)  # of the first plane's step to the second's, its own optimum kept
SEED = 42
WIDE, FINE = (0.75, 512), (0.984375, 8192)  # u of a multiplier: least + u / parts


class Embeddings(NamedTuple):
    name: str
    values: np.ndarray  # f16 [n, dim]
    offsets: np.ndarray
    query_values: np.ndarray  # f32
    query_offsets: np.ndarray


def load(folder: Path, n_queries: int) -> Embeddings:
    """A set with at most n_queries of its queries, spread evenly."""
    offsets = np.load(folder / "query_offsets.npy").astype(np.int64)
    values = np.load(folder / "query_values.npy")
    n = len(offsets) - 1
    chosen = np.unique(np.linspace(0, n - 1, min(n, n_queries)).astype(int))
    parts = [values[offsets[i] : offsets[i + 1]] for i in chosen]
    return Embeddings(
        folder.name,
        np.load(folder / "values.f16.npy", mmap_mode="r"),
        np.load(folder / "offsets.npy").astype(np.int64),
        np.concatenate(parts),
        np.cumsum([0] + [len(part) for part in parts]),
    )


def doc_blocks(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs of whole documents of about BLOCK_TOKENS tokens."""
    first = 0
    while first < len(offsets) - 1:
        last = int(np.searchsorted(offsets, offsets[first] + BLOCK_TOKENS))
        last = min(max(last, first + 1), len(offsets) - 1)
        yield first, last
        first = last


def maxsim(rows: np.ndarray, starts: np.ndarray, data: Embeddings) -> np.ndarray:
    """Scores f32 [n_queries, n_docs] of non-empty documents that begin at `starts`."""
    best = np.empty((len(starts), len(data.query_values)), np.float32)
    bounds = np.append(starts, len(rows))
    for i in range(len(starts)):
        np.max(rows[bounds[i] : bounds[i + 1]] @ data.query_values.T, axis=0, out=best[i])
    return np.add.reduceat(best, data.query_offsets[:-1], axis=1).T


def unit(rows: np.ndarray, *, stored: bool) -> np.ndarray:
    """Rows times the multiplier that makes them unit length: u8 as of a plane, or unrounded."""
    wanted = 1 / np.linalg.norm(rows, axis=1, keepdims=True)
    if stored:
        least, parts = FINE
        wanted = least + np.clip(np.rint((wanted - least) * parts), 0, 255) / parts
    return rows * wanted.astype(np.float32)


def variants(
    codecs: dict[int, _native.Codec], rows: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, decoded rows) for every line of the table."""
    dim = rows.shape[1]
    for nbits, codec in codecs.items():
        encoded = codec._encode(rows)
        decoded = codec._decode(encoded)
        yield f"{nbits}", decoded
        least, parts = FINE if nbits == 8 else WIDE
        plain = decoded / (least + encoded["multipliers"][:, None].astype(np.float32) / parts)
        yield f"{nbits}, multiplier f16 (simulated)", unit(plain, stored=False)
        yield f"{nbits}, no multiplier (simulated)", plain
        if nbits == 4:
            both = codec._encode(rows, plane=True)
            yield "4 + plane", codec._decode(both)
            upper = {name: array for name, array in both.items() if "plane" not in name}
            yield "4 + plane, first plane alone", codec._decode(upper)
            rotated = _native._quantizer.rotate(plain, codec.seed)
            left = _native._quantizer.rotate(rows.astype(np.float32), codec.seed) - rotated
            step = np.maximum(encoded["steps"].astype(np.float32)[:, None], np.float32(1e-9))
            for ratio in RATIOS:
                levels = np.clip(np.floor(left / step * ratio + 8), 0, 15)
                closer = rotated + step / ratio * (levels - np.float32(7.5))
                turned = _native._quantizer.unrotate(closer.astype(np.float32), dim, codec.seed)
                yield (
                    f"4 + plane of 1/{ratio}, step not widened (simulated)",
                    unit(turned, stored=True),
                )


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """The k best documents of every query, best first; the smaller ordinal of equals."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Mean share of the exact documents that were found."""
    k = exact.shape[1]
    hits = [len(set(f[:k]) & set(e)) for f, e in zip(found, exact, strict=True)]
    return float(np.mean(hits)) / k


def reranked(scores: np.ndarray, better: np.ndarray, depth: int) -> np.ndarray:
    """The best `depth` documents in the order of better scores."""
    head = top(scores, depth)
    order = np.argsort(-np.take_along_axis(better, head, 1), axis=1, kind="stable")
    return np.take_along_axis(head, order, 1)


def token_bytes(name: str, dim: int) -> int:
    """Stored bytes of a token without its inverted lists."""
    padded = -(-dim // 32) * 32
    extra = padded // 2 + 1 if "plane" in name else 2 * dim if name.endswith("by f16") else 0
    return padded * int(name[0]) // 8 + 6 + extra


def measure(data: Embeddings, threads: int) -> list[dict[str, object]]:
    """Every line of one set's table."""
    print(f"\n{data.name}: {len(data.values)} tokens, {len(data.offsets) - 1} documents, "
          f"{len(data.query_offsets) - 1} queries", flush=True)  # fmt: skip
    codecs = {}
    values = np.ascontiguousarray(data.values) if data.values.base is None else data.values
    for nbits in (1, 2, 4, 8):
        begin = time.perf_counter()
        codecs[nbits] = _native.Codec.train(
            values, nbits=nbits, n_coarse=0, n_fine=0, iterations=8, seed=SEED,
            max_sample_bytes=1 << 30, threads=threads, progress=None,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
    codec = codecs[4]
    print(
        f"n_coarse {codec.n_coarse}, n_fine {codec.n_fine}, trained in {seconds:.1f} s", flush=True
    )

    filled = np.flatnonzero(np.diff(data.offsets))  # an empty document is never returned
    offsets = np.append(data.offsets[filled], data.offsets[-1])
    n_docs = len(filled)
    scores: dict[str, np.ndarray] = {}
    squares: dict[str, float] = {}
    for first, last in doc_blocks(offsets):
        rows = np.ascontiguousarray(data.values[offsets[first] : offsets[last]])
        starts = offsets[first:last] - offsets[first]
        wide = rows.astype(np.float32)
        for name, decoded in [("exact", wide), *variants(codecs, rows)]:
            into = scores.setdefault(
                name, np.empty((len(data.query_offsets) - 1, n_docs), np.float32)
            )
            into[:, first:last] = maxsim(decoded, starts, data)
            gap = float(((decoded - wide) ** 2).sum(dtype=np.float64))
            squares[name] = squares.get(name, 0.0) + gap

    exact = scores.pop("exact")
    goal = {k: top(exact, min(k, n_docs)) for k in (10, 100)}
    lengths = np.diff(data.query_offsets)[:, None]
    lines = []

    def line(name: str, found: dict[int, np.ndarray], **more: float) -> None:
        recalls = {f"recall@{k}": recall(found[k], goal[k]) for k in goal}
        size = token_bytes(name, data.values.shape[1])
        lines.append({"set": data.name, "code": name, "bytes": size, **recalls, **more})

    for name, approximate in scores.items():
        gap = (approximate - exact) / lengths
        line(
            name,
            {k: top(approximate, k) for k in goal},
            residual=squares[name] / len(data.values),
            score_error=float(np.sqrt((gap**2).mean())),
        )
    first = scores["4 + plane, first plane alone"]
    for name, rough, better in (("plane", first, scores["4 + plane"]), ("f16", scores["4"], exact)):
        found = {10: reranked(rough, better, 20), 100: reranked(rough, better, 150)}
        line(f"4, rerank 20 / 150 by {name}", found)
    return lines


def markdown(lines: list[dict[str, object]]) -> str:
    """The table as text."""
    names = ["code", "bytes", "recall@10", "recall@100", "residual", "score_error"]
    rows = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for line in lines:
        cells = [line.get(name, "") for name in names]
        texts = [f"{c:.4f}" if isinstance(c, float) and c >= 0.01 else
                 f"{c:.2e}" if isinstance(c, float) else str(c) for c in cells]  # fmt: skip
        rows.append("| " + " | ".join(texts) + " |")
    return "\n".join(rows)


def main() -> None:
    """Read the arguments, print a table per set, append every line to a file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON lines, appended")
    args = parser.parse_args()
    for data in (load(folder, args.queries) for folder in args.folders):
        lines = measure(data, args.threads)
        print(markdown(lines), flush=True)
        if args.out:
            with args.out.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    main()
