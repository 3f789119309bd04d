# SPDX-License-Identifier: Apache-2.0
"""A small index of two segments, with all that the definitions of a search need to know of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weft import _native

DIM = 40


@dataclass
class Built:
    """An index of a few segments and everything the definitions need to know of it."""

    searcher: _native.Searcher
    segments: list[_native.Segment]
    codec: _native.Codec
    codec_arrays: dict[str, np.ndarray]
    arrays: list[dict[str, np.ndarray]]
    docs: list[list[np.ndarray]]
    queries: list[np.ndarray]

    def tokens(self, s: int, d: int) -> slice:
        offsets = self.arrays[s]["doc_offsets"]
        return slice(int(offsets[d]), int(offsets[d + 1]))

    def id(self, s: int, d: int) -> str:
        return self.segments[s].ids(np.array([d], np.uint32))[0]

    @property
    def coded(self) -> list[list[list[tuple[int, int]]]]:
        return [
            [
                [
                    (int(p), int(c))
                    for p, c in zip(a["parents"][span], a["children"][span], strict=True)
                ]
                for span in (self.tokens(s, d) for d in range(len(self.docs[s])))
            ]
            for s, a in enumerate(self.arrays)
        ]

    @property
    def lengths(self) -> list[int]:
        return [
            int(sum(np.diff(a["list_offsets"].astype(np.int64))[f] for a in self.arrays))
            for f in range(self.codec.n_fine)
        ]


def write(path: Path, how: object) -> None:
    """Create `path` and let `how(fd)` fill it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        how(fd)
    finally:
        os.close(fd)


def build(
    folder: Path,
    rerank: str,
    n_docs: int = 220,
    seed: int = 3,
    *,
    longest: int = 13,
    nbits: int = 4,
    n_different: int | None = None,
) -> Built:
    """Documents of up to `longest` tokens, of which so many are different."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, DIM))

    def rows(n: int) -> np.ndarray:
        values = centres[rng.integers(0, 40, n)] + 0.6 * rng.normal(size=(n, DIM))
        return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)

    docs = [rows(int(n)) for n in rng.integers(0, longest + 1, n_docs)]
    docs = [d.astype(np.float16) for d in docs]
    if n_different is not None:
        docs = [docs[number] for number in rng.integers(0, n_different, n_docs)]
    everything = np.concatenate(docs)
    codec = _native.Codec.train(
        everything,
        nbits=nbits,
        n_coarse=16,
        n_fine=64,
        iterations=4,
        seed=1,
        max_sample_bytes=1 << 24,
        threads=1,
        progress=None,
    )
    path = folder / f"codec-{rerank}.weft"
    write(path, lambda fd: codec.write(fd, str(path)))
    codec = _native.Codec.open(str(path))
    split = [docs[: n_docs // 3], docs[n_docs // 3 :]]
    segments, arrays = [], []
    for s, part in enumerate(split):
        ids = [f"s{s}-{d * 7 % len(part)}".encode() for d in range(len(part))]
        ids = [f"{i.decode()}.{d}".encode() for d, i in enumerate(ids)]
        name = folder / f"seg-{rerank}-{s}.weft"
        write(
            name,
            lambda fd, part=part, ids=ids, name=name: _native.write_segment(
                fd,
                str(name),
                codec,
                np.concatenate(part),
                np.cumsum([0, *map(len, part)]).astype(np.uint64),
                np.frombuffer(b"".join(ids), np.uint8),
                np.cumsum([0, *map(len, ids)]).astype(np.uint64),
                rerank,
                2,
                None,
            ),
        )
        segments.append(_native.Segment.open(str(name), codec))
        arrays.append(_native.read_arrays(str(name)))
    queries = [rows(int(n)) for n in (1, 5, 20)]
    twin = queries[1].copy()
    queries.append(np.concatenate([twin, twin[:3] * np.float32(0.99)]))  # near-duplicates merge
    return Built(
        _native.Searcher(segments, codec, 2),
        segments,
        codec,
        _native.read_arrays(str(path)),
        arrays,
        split,
        queries,
    )


def params(**changes: object) -> _native.SearchParams:
    values = {"nprobe": 4, "budget": 120, "ncandidates": 60, "nskim": 0, "nrefine": 20}
    values |= {"nrerank": 0}
    return _native.SearchParams(**({"pruned": "exhaustive" not in changes} | values | changes))
