# SPDX-License-Identifier: Apache-2.0
"""What a plan foretells beside what a build then takes: disk, spool and memory, of every field."""

import contextlib
import dataclasses
import sqlite3

import pytest

import weft
from helpers import ragged_docs
from weft.types import defaults

N, DENSE_DIM, N_TERMS = 1_500, 200, 60
FIELDS = {
    "dense": {"dense": weft.DenseConfig(DENSE_DIM)},
    "inner": {"dense": weft.DenseConfig(DENSE_DIM, max_norm=100.0)},
    "sparse": {"sparse": weft.SparseConfig()},
    "both": {"dense": weft.DenseConfig(DENSE_DIM), "sparse": weft.SparseConfig()},
}


@pytest.fixture
def early(monkeypatch):
    """A codec from 600 rows on, in what builds and in what plans."""
    small = dataclasses.replace(defaults, codec_tokens=600, tuning_queries=8)
    for module in ("builder", "dense_build", "planning", "compaction"):
        monkeypatch.setattr(f"weft.lifecycle.{module}.defaults", small)
    monkeypatch.setattr("weft.tuner.defaults", small)


def vectors(rng, n, config):
    """Fields of n documents."""
    found = {}
    if config.dense is not None:
        found["dense"] = rng.normal(size=(n, DENSE_DIM))
    if config.sparse is not None:
        found["sparse"] = [
            dict.fromkeys(rng.choice(8_000, N_TERMS, replace=False).tolist(), 1.0) for _ in range(n)
        ]
    return found


def n_bytes(index, pattern):
    return sum(path.stat().st_size for path in index.path.glob(pattern))


def close(planned):
    return pytest.approx(planned, rel=0.2)


@pytest.mark.parametrize("fields", FIELDS)
@pytest.mark.parametrize("codec", [False, True])
def test_disk_and_spool(make_index, rng, request, fields, codec):
    if codec:
        request.getfixturevalue("early")
    config = weft.IndexConfig(dim=32, **FIELDS[fields])
    index = make_index(config=config)
    docs = ragged_docs(rng, N, 32, longest=3)
    n_terms = N * N_TERMS if config.sparse is not None else None
    planned = weft.plan(config, n_docs=N, n_tokens=sum(map(len, docs)), n_terms=n_terms)
    with index.writer() as writer:
        writer.add([f"{i:06}" for i in range(N)], docs, **vectors(rng, N, config))
        (database,) = index.path.glob("build-*/documents.sqlite")
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        spooled = n_bytes(index, "build-*/*")
    assert n_bytes(index, "*.weft") == close(planned.disk_bytes)
    laid_out = 0 if config.dense is None else 2 * config.of_dense().dim * N
    assert spooled + laid_out == close(planned.spool_bytes)
    assert index.verify() == ()


@pytest.mark.usefixtures("early", "unmerged")
@pytest.mark.parametrize("fields", ["dense", "both"])
def test_an_addition_that_trains_counts_what_is_there(make_index, rng, fields):
    """Token embeddings of both commits are encoded, dense vectors too."""
    config = weft.IndexConfig(dim=32, **FIELDS[fields])
    index = make_index(config=config)
    docs = ragged_docs(rng, N, 32, longest=1)
    first, rest = slice(0, 500), slice(500, N)
    index.add([f"{i:06}" for i in range(500)], docs[first], **vectors(rng, 500, config))
    assert index.info.n_fine is None
    planned = index.plan(n_docs=N - 500, n_tokens=N - 500, n_terms=(N - 500) * N_TERMS)
    assert (planned.n_docs, planned.n_tokens) == (N, N)
    index.add([f"{i:06}" for i in range(500, N)], docs[rest], **vectors(rng, N - 500, config))
    info = index.info
    assert (info.n_coarse, info.n_fine) == (planned.n_coarse, planned.n_fine)
    named = weft.lifecycle.manifest.load(index._directory).files
    written = sum(entry.size for name, entry in named.items() if name.endswith(".weft"))
    assert written == close(planned.disk_bytes)


@pytest.mark.usefixtures("early", "unmerged")
def test_an_addition_that_grows_the_codec(make_index, rng):
    index = make_index(config=weft.IndexConfig(dim=32))
    docs = ragged_docs(rng, 1_800, 32, longest=1)
    index.add([f"{i}" for i in range(1_000)], docs[:1_000])
    planned = index.plan(n_docs=800, n_tokens=800)
    assert (planned.n_docs, planned.n_tokens) == (800, 800)
    before = {path.name for path in index.path.glob("*.weft")}
    index.add([f"{i}" for i in range(1_000, 1_800)], docs[1_000:])
    assert (
        index.info.n_fine == planned.n_fine > weft.Index.open(index.path, generation=2).info.n_fine
    )
    new = [path for path in index.path.glob("*.weft") if path.name not in before]
    assert sum(path.stat().st_size for path in new) == close(planned.disk_bytes)
