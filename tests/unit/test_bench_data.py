# SPDX-License-Identifier: Apache-2.0
"""The data of the benches: the same each time, and as described."""

import importlib
from pathlib import Path

import numpy as np
import pytest

import tiny_models


@pytest.fixture
def data(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "bench"))
    return importlib.import_module("data")


def test_synthetic(data, tmp_path):
    made = data.Synthetic(30_000, dim=32, docs_per_block=64)
    data.write_synthetic(made, tmp_path / "set", 20)
    found = data.load_set(tmp_path / "set", 15)
    again = list(data.Synthetic(30_000, dim=32, docs_per_block=64).blocks())
    np.testing.assert_array_equal(found.values, np.concatenate([rows for rows, _ in again]))
    assert found.values.shape == (30_000, 32)
    assert found.offsets[-1] == 30_000
    assert found.n_queries == 15
    assert len(found.query(14)) == found.query_offsets[15] - found.query_offsets[14]
    np.testing.assert_allclose(np.linalg.norm(found.values.astype("f4"), axis=1), 1, atol=2e-3)
    lengths = np.diff(found.offsets.astype(int))
    assert lengths.min() > 0
    assert lengths.max() > 2 * np.median(lengths)
    planted = [line.split("\t")[:2] for line in (tmp_path / "set" / "qrels.tsv").open()]
    starts = found.offsets[:-1].astype(int)
    for query, doc in planted[:10]:
        rows = found.query(int(query[1:])) @ found.values.astype("f4").T
        scores = np.maximum.reduceat(rows, starts, axis=1).sum(axis=0)
        best = np.sort(scores)[::-1]
        assert scores[int(doc[1:])] >= best[2]  # an answer,
        assert best[9] > 0.7 * best[0]  # one of several
    assert not list(tmp_path.glob(".*"))


def test_encoding_a_corpus(data, tmp_path, monkeypatch):
    monkeypatch.setattr("weft.encoders.tokens.FIT_TOKENS", 100)
    monkeypatch.setattr(data, "BATCH_DOCUMENTS", 4)
    model = tiny_models.write_bert(tmp_path / "model")
    lines = [f"t{i}\tThe key {i} of a lock is turned once.\tTitle {i}" for i in range(20)]
    lines[2] = "t2\t" + "rotate the lock " * 20
    (tmp_path / "corpus.tsv").write_text("\n".join(lines))
    data.encode_dataset(tmp_path / "corpus.tsv", tmp_path / "set", model=str(model), limit=12)
    found = data.load_set(tmp_path / "set")
    parents = data.load_ids(tmp_path / "set", "parents.txt")
    ids = data.load_ids(tmp_path / "set")
    assert list(dict.fromkeys(parents)) == [f"t{i}" for i in range(12)]
    assert len(ids) == found.n_docs == len(parents) > 12
    assert found.values.shape == (found.offsets[-1], 32)
    assert 0 < found.n_queries <= 8  # of the eight texts that are not in the set
