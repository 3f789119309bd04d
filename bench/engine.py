# SPDX-License-Identifier: Apache-2.0
"""One segment, searched by the engine alone: what the tables of proofs 2 and 3 are made with."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from data import EmbeddingSet
from weft import _native


def overlap(truth: np.ndarray, found: list[_native.Found], k: int) -> float:
    """Mean share of each exact top k that was found."""
    pairs = zip(truth, found, strict=True)
    return float(np.mean([len(set(t[:k]) & set(f.docs[:k].tolist())) / k for t, f in pairs]))


def exact(data: EmbeddingSet, values: np.ndarray, offsets: np.ndarray, k: int = 100) -> np.ndarray:
    """The exact top k of every query, [n_queries, k]."""
    truth = _native.Truth(values, offsets, k, 0)
    truth.scan(data.values, data.offsets, 0)
    return truth.result()[0]


def train(data: EmbeddingSet, folder: Path, *, nbits: int = 4, n_fine: int = 0) -> _native.Codec:
    """A codec, written to `folder` and opened again."""
    codec = _native.Codec.train(
        data.values,
        nbits=nbits,
        n_coarse=0,
        n_fine=n_fine,
        iterations=8,
        seed=42,
        max_sample_bytes=1 << 30,
        threads=0,
        progress=None,
    )
    path = folder / "codec.weft"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    codec.write(fd, str(path))
    os.close(fd)
    return _native.Codec.open(str(path))


def build(
    data: EmbeddingSet, folder: Path, codec: _native.Codec, rerank: str
) -> tuple[_native.Searcher, int]:
    """A searcher over one segment of all documents, whose ids are their numbers; its bytes."""
    ids = [str(i).encode() for i in range(data.n_docs)]
    path = folder / "segment.weft"
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    stats = _native.write_segment(
        fd,
        str(path),
        codec,
        data.values,
        data.offsets,
        np.frombuffer(b"".join(ids), np.uint8),
        np.cumsum([0, *map(len, ids)]).astype(np.uint64),
        rerank,
        0,
        None,
    )
    os.close(fd)
    total = stats["bytes"] + (folder / "codec.weft").stat().st_size
    return _native.Searcher([_native.Segment.open(str(path), codec)], codec, 0), total


def params(**changes: object) -> _native.SearchParams:
    """The starting values with some of them changed."""
    values = {
        "nprobe": 16,
        "budget": 50_000,
        "ncandidates": 2_000,
        "nskim": 0,
        "nrefine": 400,
        "nrerank": 0,
    }
    return _native.SearchParams(**(values | changes))
