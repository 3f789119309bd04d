# SPDX-License-Identifier: Apache-2.0
"""What is exported is what is stored, readable by others and by weft itself."""

import json
import sys
import tracemalloc

import numpy as np
import pyarrow.parquet
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

import weft
from helpers import names, ragged_docs, stored
from weft import errors, sources
from weft.cli import app

PARENTS = [*range(20), 20, 20, 20]


@pytest.fixture
def docs(rng):
    return ragged_docs(rng, 30, 8, shortest=0)


@pytest.fixture
def index(make_index, docs):
    """d0..d19 with d3 deleted, the long d20, and d21 without a text, in another segment."""
    ids = [f"d{i}" for i in range(21)]
    made = make_index(docs[:23], ids=ids, parents=PARENTS, texts=[f"Text «{i}»\n" for i in ids],
                      metadata=[{"n": i, "ok": i % 2 == 0} for i in range(21)])  # fmt: skip
    made.add(["d21"], [docs[23]])
    made.delete(["d3"])
    return made


@pytest.fixture
def expected(docs):
    """{id: rows} as a small index keeps them."""
    rows = stored(docs)
    found = {f"d{i}": rows[i] for i in range(20) if i != 3}
    return {**found, "d20": np.concatenate(rows[20:23]), "d21": rows[23]}


def test_texts(index, tmp_path):
    path = tmp_path / "out.jsonl"
    done = weft.export(index, path)
    assert (done.files, done.n_docs, done.exact) == ((str(path),), 21, None)
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert lines[0] == {"id": "d0", "text": "Text «d0»\n", "metadata": {"n": 0, "ok": True}}
    assert lines[-1] == {"id": "d21", "text": None, "metadata": {}}
    assert [line["id"] for line in lines] == [f"d{i}" for i in range(22) if i != 3]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines[:-1]))
    again = list(sources.read(path))
    assert again == list(index.documents([d.id for d in again]))


@pytest.mark.parametrize("suffix", ["safetensors", "npy"])
def test_embeddings(index, expected, tmp_path, suffix):
    path = tmp_path / f"out.{suffix}"
    stages = []
    done = weft.export(index, path, progress=lambda *step: stages.append(step))
    assert done.n_tokens == sum(map(len, expected.values()))
    assert done.exact
    assert stages[-1] == ("export", 21, 21)
    assert sorted(done.files) == [str(p) for p in sorted(tmp_path.iterdir()) if p.is_file()]
    if suffix == "safetensors":
        tensors = load_file(path)
        values, offsets = tensors["values"], tensors["offsets"]
    else:
        values, offsets = np.load(path), np.load(tmp_path / "offsets.npy")
    assert (values.dtype, offsets.dtype) == (np.float16, np.int64)
    ids = (tmp_path / "ids.txt").read_text().split()
    assert ids == list(expected)
    for number, rows in enumerate(expected.values()):
        found = values[offsets[number] : offsets[number + 1]]
        assert np.abs(found - rows).max(initial=0) < 1e-3
    # and back again
    again = weft.Index.create(tmp_path / "again.index", weft.IndexConfig(dim=8))
    with again.writer() as writer:
        for names_of, embeddings in sources.embeddings(path):
            writer.add(names_of, embeddings)
    query = np.eye(8)
    for doc_id in ("d0", "d19", "d21"):
        scores = [i.score(query, [doc_id])[0] for i in (index, again)]
        assert scores[0] == pytest.approx(scores[1], rel=2e-3)


@pytest.mark.parametrize("most", [3, 4_096])
def test_parquet(index, expected, tmp_path, monkeypatch, most):
    monkeypatch.setattr("weft.exporting.GROUP_DOCUMENTS", most)
    path = tmp_path / "out.parquet"
    done = weft.export(index, path)
    assert (done.files, done.n_docs, done.exact) == ((str(path),), 21, True)
    assert pyarrow.parquet.ParquetFile(path).num_row_groups == -(-21 // most)
    table = pyarrow.parquet.read_table(path).to_pylist()
    assert [row["id"] for row in table] == list(expected)
    assert table[0]["text"] == "Text «d0»\n"
    assert json.loads(table[0]["metadata"]) == {"n": 0, "ok": True}
    assert (table[-1]["text"], table[-1]["metadata"]) == (None, "{}")
    for row, rows in zip(table, expected.values(), strict=True):
        found = np.array(row["embeddings"], np.float64).reshape(-1, 8)
        assert np.abs(found - rows).max(initial=0) < 1e-3


def test_parquet_asks_for_its_package(index, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(errors.MissingExtraError, match=r"weft\[parquet\]"):
        weft.export(index, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_codes_are_exported_as_what_they_say(make_index, rng, tmp_path, small_codec):
    docs = ragged_docs(rng, 100, 8)
    index = make_index(docs)
    done = weft.export(index, tmp_path / "out.safetensors")
    assert not done.exact
    values = load_file(tmp_path / "out.safetensors")["values"].astype(np.float32)
    cosines = (values * np.concatenate(docs)).sum(axis=1)
    assert cosines.mean() > 0.99


def test_an_empty_index(make_index, tmp_path):
    index = make_index()
    assert weft.export(index, tmp_path / "out.safetensors").n_docs == 0
    assert load_file(tmp_path / "out.safetensors")["values"].shape == (0, 8)
    assert weft.export(index, tmp_path / "out.parquet").n_docs == 0
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").num_rows == 0
    assert weft.export(index, tmp_path / "out.jsonl").n_docs == 0
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_refusals_leave_nothing(index, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(errors.InvalidArgumentError, match=r"\.npy or \.parquet"):
        weft.export(index, folder / "out.arrow")
    (folder / "ids.txt").write_text("mine")
    with pytest.raises(errors.IndexExistsError, match=r"ids\.txt: exists already"):
        weft.export(index, folder / "out.npy")
    with pytest.raises(errors.StorageError):
        weft.export(index, folder / "none" / "out.jsonl")
    (folder / "ids.txt").unlink()
    index.add(["two\nlines"], [np.eye(8)])
    with pytest.raises(errors.InvalidArgumentError, match="line break"):
        weft.export(index, folder / "out.npy")
    assert names(folder) == []


def test_memory_does_not_grow_with_the_index(make_index, rng, tmp_path):
    index = make_index(dim=64)
    values = rng.normal(size=(90_000, 64)).astype(np.float32)
    index.add([f"d{i}" for i in range(900)], (values, np.arange(0, 90_001, 100)))
    tracemalloc.start()
    try:
        weft.export(index, tmp_path / "out.safetensors")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (tmp_path / "out.safetensors").stat().st_size / 5


def test_command(index, tmp_path):
    done = CliRunner().invoke(app, ["export", str(index.path), str(tmp_path / "a.jsonl")])
    assert (done.exit_code, done.stdout) == (0, f"wrote 21 documents to {tmp_path / 'a.jsonl'}\n")
    words = ["export", str(index.path), str(tmp_path / "a.npy"), "--json", "--no-progress"]
    found = json.loads(CliRunner().invoke(app, words).stdout)
    assert (found["n_docs"], found["exact"], len(found["files"])) == (21, True, 3)
    assert CliRunner().invoke(app, words).exit_code == 5
