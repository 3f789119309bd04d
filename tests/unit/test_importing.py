# SPDX-License-Identifier: Apache-2.0
"""What is taken over from other engines is what their folders say, and the rest is named."""

import json
import pickle
import random
import re

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import weft
from foreign_folders import (
    Quantised,
    write_colbert,
    write_id_maps,
    write_json,
    write_metadata,
    write_next_plaid,
    write_npy_folder,
)
from helpers import ragged_docs
from weft import errors, sources
from weft.cli import app
from weft.exporting import stored_rows
from weft.foreign import ForeignIndex

DIM = 16


@pytest.fixture
def docs(rng):
    return ragged_docs(rng, 20, DIM)


def run(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.stdout, done.stderr


def assert_rows(index, ids, expected):
    assert len(index) == len(ids)
    for found, rows in zip(stored_rows(index.searcher(), ids), expected, strict=True):
        assert np.abs(found - rows).max() < 1e-3  # float16 of unit rows


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
@pytest.mark.parametrize("layout", ["chunks", "merged", "colbert", "next-plaid"])
def test_rows(docs, tmp_path, layout, nbits):
    found = Quantised(docs, nbits)
    if layout == "colbert":
        folder = write_colbert(tmp_path / "old", found)
    elif layout == "next-plaid":
        folder = write_next_plaid(tmp_path / "old", found)
    else:
        folder = write_npy_folder(tmp_path / "old", found, merged=layout == "merged")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    stages = []
    done = weft.import_index(
        tmp_path / "new.index", folder, progress=lambda *step: stages.append(step)
    )
    kinds = {"colbert": "colbert-ai", "next-plaid": "next-plaid"}
    assert done.source == kinds.get(layout, "fast-plaid")
    assert (done.n_docs, done.n_tokens, done.nbits) == (20, sum(map(len, docs)), nbits)
    assert done.cosine > 0.99999
    assert [step for step in stages if step[0] == "read"][-1] == ("read", 20, 20)
    index = weft.Index.open(tmp_path / "new.index")
    assert_rows(index, [str(i) for i in range(20)], found.decoded)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    said = "\n".join(done.lost)
    assert f"{nbits}-bit residuals" in said
    assert "documents are named by their number" in said
    assert ("colbert-ir/colbertv2.0" in said) == (layout == "colbert")


def test_blocks_end_between_documents(docs, tmp_path, monkeypatch):
    monkeypatch.setattr("weft.foreign.BLOCK_TOKENS", 9)
    found = Quantised(docs, 2)
    weft.import_index(tmp_path / "new.index", write_npy_folder(tmp_path / "old", found))
    index = weft.Index.open(tmp_path / "new.index")
    assert_rows(index, [str(i) for i in range(20)], found.decoded)


def test_a_chunk_of_its_own_is_newer_than_the_merged_file(docs, tmp_path):
    found = Quantised(docs, 4)
    folder = write_npy_folder(tmp_path / "old", found, merged=True)
    codes, residuals = np.concatenate(found.codes[7:13]), np.concatenate(found.residuals[7:13])
    np.save(folder / "1.codes.npy", codes)  # chunk 1 has lost its last document
    np.save(folder / "1.residuals.npy", residuals)
    write_json(folder / "doclens.1.json", found.lengths[7:13])
    weft.import_index(tmp_path / "new.index", folder)
    index = weft.Index.open(tmp_path / "new.index")
    expected = [rows for i, rows in enumerate(found.decoded) if i != 13]
    assert_rows(index, [str(i) for i in range(19)], expected)


def test_a_frozen_index_has_no_list_of_what_is_merged(docs, tmp_path):
    found = Quantised(docs, 4)
    folder = write_npy_folder(tmp_path / "old", found, merged=True, frozen=True)
    for name in ("codes", "residuals"):
        (folder / f"merged_{name}.manifest.json").unlink()
    weft.import_index(tmp_path / "new.index", folder)
    index = weft.Index.open(tmp_path / "new.index")
    assert_rows(index, [str(i) for i in range(20)], found.decoded)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", ["fast", "stanford"])
def test_pylate(docs, tmp_path, kind, protocol):
    found = Quantised(docs, 4)
    if kind == "fast":
        write_npy_folder(tmp_path / "old" / "fast_plaid_index", found)
    else:
        found.lengths[6:7] = [0]  # a removed document keeps its number, its rows go
        for kept in (found.codes, found.residuals):
            kept[6] = kept[6][:0]
        write_colbert(tmp_path / "old", found)
    ids = {i: f"paper «{i}»" if i % 2 else 1_000 + i for i in range(20) if i not in (3, 6)}
    write_id_maps(tmp_path / "old", ids, protocol=protocol)
    done = weft.import_index(tmp_path / "new.index", tmp_path / "old")
    assert (done.source, done.n_docs) == ("pylate", 18)
    assert "2 documents without an id" in "\n".join(done.lost)
    index = weft.Index.open(tmp_path / "new.index")
    assert_rows(index, [str(name) for name in ids.values()], [found.decoded[i] for i in ids])


def test_deleted_documents_of_colbert(docs, tmp_path):
    docs[4] = docs[4][:0]
    folder = write_colbert(tmp_path / "old", Quantised(docs, 2))
    done = weft.import_index(tmp_path / "new.index", folder)
    assert done.n_docs == 19
    assert "1 documents without tokens" in "\n".join(done.lost)
    with pytest.raises(errors.NotFoundError):
        weft.Index.open(tmp_path / "new.index").documents(["4"])


def test_next_plaid_keeps_the_rows_while_it_is_small(docs, tmp_path):
    found = Quantised(docs, 1)
    folder = write_next_plaid(tmp_path / "old", found, rows=True)
    done = weft.import_index(tmp_path / "exact.index", folder)
    assert not any("residuals" in what for what in done.lost)
    index = weft.Index.open(tmp_path / "exact.index")
    assert_rows(index, [str(i) for i in range(20)], docs)
    write_json(folder / "embeddings_lengths.json", found.lengths[::-1])  # not those of the index
    done = weft.import_index(tmp_path / "decoded.index", folder)
    assert any("residuals" in what for what in done.lost)
    index = weft.Index.open(tmp_path / "decoded.index")
    assert_rows(index, [str(i) for i in range(20)], found.decoded)


def test_metadata(docs, tmp_path):
    folder = write_npy_folder(tmp_path / "old", Quantised(docs, 4))
    rows = [{"year": 2000 + i, "lang": "en" if i % 2 else None} for i in range(20)]
    rows[5]["tags"] = b"[1, 2]"
    rows[6]["year"] = 0.5
    write_metadata(folder, {"year": "INTEGER", "lang": "TEXT", "tags": "BLOB"}, rows)
    done = weft.import_index(tmp_path / "new.index", folder)
    assert "metadata that is no text or number: tags (1 values)" in done.lost
    index = weft.Index.open(tmp_path / "new.index")
    for i, document in enumerate(index.documents([str(i) for i in range(20)])):
        known = {name: value for name, value in rows[i].items() if value is not None}
        known.pop("tags", None)
        assert dict(document.metadata) == known
    assert index.search(docs[0], k=20, where={"lang": "en"}).n_matching == 10


def test_ids_from_a_file(docs, tmp_path):
    found = Quantised(docs, 4)
    folder = write_npy_folder(tmp_path / "old", found)
    names = tmp_path / "ids.txt"
    names.write_text("\n".join(f"n{i}" for i in range(20)))
    status, out, _ = run("import", tmp_path / "new.index", folder, "--ids", names, "--json")
    assert status == 0
    assert json.loads(out)["imported"]["n_docs"] == 20
    index = weft.Index.open(tmp_path / "new.index")
    assert_rows(index, [f"n{i}" for i in range(20)], found.decoded)
    names.write_text("only\n")
    with pytest.raises(errors.InvalidArgumentError, match="1 ids, expected 20"):
        weft.import_index(tmp_path / "other.index", folder, ids=names)


def test_command(docs, tmp_path):
    folder = write_npy_folder(tmp_path / "old", Quantised(docs, 4))
    path = tmp_path / "new.index"
    status, out, _ = run("import", path, folder)
    assert status == 0
    assert "took over 20 documents of fast-plaid" in out
    assert "lost: texts: the source keeps none" in out
    status, out, err = run("import", path, folder)
    assert (status, out) == (5, "")
    assert "exists already" in err
    status, out, _ = run("import", path, folder, "--replace", "--nbits", "8", "--json")
    assert (status, json.loads(out)["config"]["nbits"]) == (0, 8)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.index", "old"]


def test_an_interrupted_import_goes_on(docs, tmp_path, monkeypatch):
    monkeypatch.setattr("weft.foreign.BLOCK_TOKENS", 9)
    found = Quantised(docs, 4)
    folder = write_npy_folder(tmp_path / "old", found)

    def stop(stage, done, _):
        if stage == "read" and done >= 10:
            raise KeyboardInterrupt

    path = tmp_path / "new.index"
    with pytest.raises(KeyboardInterrupt):
        weft.import_index(path, folder, progress=stop)
    assert len(weft.Index.open(path)) == 0
    assert weft.import_index(path, folder).n_docs == 20
    index = weft.Index.open(path)
    assert_rows(index, [str(i) for i in range(20)], found.decoded)
    with pytest.raises(errors.IndexExistsError):
        weft.import_index(path, folder)


def damaged_header(folder):
    (folder / "metadata.json").write_text("{")


def damaged_chunk_count(folder):
    write_json(folder / "metadata.json", {"num_chunks": 10**12})


def damaged_lengths(folder):
    write_json(folder / "doclens.0.json", [-1])


def damaged_codes(folder):
    codes = np.load(folder / "1.codes.npy")
    codes[3] = 12
    np.save(folder / "1.codes.npy", codes)


def damaged_residuals(folder):
    np.save(folder / "2.residuals.npy", np.zeros((3, 8), np.uint8))


def damaged_array(folder):
    data = (folder / "0.residuals.npy").read_bytes()
    (folder / "0.residuals.npy").write_bytes(data[:-7])


def damaged_pickle(folder):
    np.save(folder / "centroids.npy", np.array([{}], object), allow_pickle=True)


def damaged_weights(folder):
    np.save(folder / "bucket_weights.npy", np.zeros(5, np.float32))


def damaged_metadata(folder):
    (folder / "metadata.db").write_bytes(b"no database")


def missing_chunk(folder):
    (folder / "2.codes.npy").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damaged_header, "metadata.json: not JSON"),
        (damaged_chunk_count, r"doclens.3.json"),
        (damaged_lengths, "doclens.0.json: expected numbers of tokens"),
        (damaged_codes, "chunk 1: codes from 0 to 12, expected numbers of 12 centroids"),
        (damaged_residuals, r"chunk 2: residuals are uint8 \(3, 8\), expected uint8"),
        (damaged_array, "0.residuals.npy: not a .npy array of numbers"),
        (damaged_pickle, "centroids.npy: not a .npy array of numbers"),
        (damaged_weights, r"bucket weights are float32 \(5,\)"),
        (damaged_metadata, "metadata.db: "),
        (missing_chunk, "merged_codes.npy: no such file"),
    ],
)
def test_damage_is_one_error_that_names_the_file(docs, tmp_path, damage, message):
    folder = write_npy_folder(tmp_path / "old", Quantised(docs, 4))
    damage(folder)
    with pytest.raises(errors.CorruptIndexError, match=message):
        weft.import_index(tmp_path / "new.index", folder)
    status, out, err = run("import", tmp_path / "other.index", folder)
    assert (status, out) == (6, "")
    assert re.search(message, err.splitlines()[-1])
    assert not (tmp_path / "other.index").exists()


def test_damaged_files_of_torch(docs, tmp_path):
    folder = write_colbert(tmp_path / "old", Quantised(docs, 4))
    whole = (folder / "1.codes.pt").read_bytes()
    (folder / "1.codes.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(errors.CorruptIndexError, match=r"1\.codes\.pt: .*weights-only"):
        weft.import_index(tmp_path / "a.index", folder)
    (folder / "1.codes.pt").write_bytes(pickle.dumps(print, 2))
    with pytest.raises(errors.CorruptIndexError, match=r"1\.codes\.pt: .*weights-only"):
        weft.import_index(tmp_path / "b.index", folder)
    (folder / "1.codes.pt").unlink()
    with pytest.raises(errors.CorruptIndexError, match=r"1\.codes\.pt: missing"):
        weft.import_index(tmp_path / "c.index", folder)


def test_files_of_old_versions_of_torch(docs, tmp_path):
    found = Quantised(docs, 2)
    folder = write_colbert(tmp_path / "old", found)
    codes = torch.load(folder / "1.codes.pt")
    torch.save(codes, folder / "1.codes.pt", _use_new_zipfile_serialization=False)
    centroids = torch.from_numpy(found.centroids)
    torch.save(centroids.to(torch.bfloat16), folder / "centroids.pt")
    weft.import_index(tmp_path / "new.index", folder)
    index = weft.Index.open(tmp_path / "new.index")
    for number, doc in enumerate(stored_rows(index.searcher(), [str(i) for i in range(20)])):
        assert (doc * found.decoded[number]).sum(axis=1).min() > 0.999


def test_torch_is_asked_for_where_it_is_needed(docs, tmp_path, monkeypatch):
    found = Quantised(docs, 4)
    write_colbert(tmp_path / "pt", found)
    write_npy_folder(tmp_path / "npy", found)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(errors.MissingExtraError, match=r"weft\[encode\]"):
        weft.import_index(tmp_path / "a.index", tmp_path / "pt")
    assert weft.import_index(tmp_path / "b.index", tmp_path / "npy").n_docs == 20


class Runs:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize(
    "found",
    [
        Runs(),
        {Runs(): 0},
        {"a": np.int64(0)},
        {"a": (0,)},
        {"a": 20},
        {"a": 0, "b": 0},
        ["a"],
        {"a": -1},
    ],
)
def test_id_maps_run_nothing(docs, tmp_path, capsys, found):
    folder = write_npy_folder(tmp_path / "old", Quantised(docs, 4))
    (folder / "documents_ids_to_plaid_ids.pkl").write_bytes(pickle.dumps(found))
    with pytest.raises(errors.CorruptIndexError, match=r"documents_ids_to_plaid_ids\.pkl: "):
        weft.import_index(tmp_path / "new.index", folder)
    assert capsys.readouterr().out == ""


def test_damaged_id_maps(docs, tmp_path):
    folder = write_npy_folder(tmp_path / "old", Quantised(docs, 4))
    whole = pickle.dumps({f"d{i}": i for i in range(20)})
    path = folder / "documents_ids_to_plaid_ids.pkl"
    for i in range(len(whole)):
        path.write_bytes(whole[:i])
        with pytest.raises(errors.CorruptIndexError):
            weft.import_index(tmp_path / "new.index", folder)


def mutated(data, chance):
    """The bytes with a few of them changed, cut off or put in."""
    data = bytearray(data)
    how = chance.random()
    if how < 0.6 and data:
        for _ in range(chance.choice((1, 2, 8))):
            data[chance.randrange(min(len(data), chance.choice((128, 10**9))))] = chance.randrange(
                256
            )
    elif how < 0.8:
        del data[chance.randrange(len(data) + 1) :]
    else:
        at = chance.randrange(len(data) + 1)
        data[at:at] = chance.randbytes(chance.randrange(1, 9))
    return bytes(data)


def put(data, file):
    """Put a new file in the place of one that may still be mapped."""
    beside = file.parent.with_name("beside")
    beside.write_bytes(data)
    beside.replace(file)


@pytest.mark.filterwarnings("ignore")  # numpy and torch wonder about such files
@pytest.mark.parametrize("layout", ["chunks", "merged", "next-plaid", "colbert"])
def test_mutated_files_are_read_or_refused(docs, tmp_path, layout):
    found, folder = Quantised(docs, 4), tmp_path / "old"
    if layout == "colbert":
        write_colbert(folder, found)
    elif layout == "next-plaid":
        write_next_plaid(folder, found, rows=True)
    else:
        write_npy_folder(folder, found, merged=layout == "merged")
    write_id_maps(folder, {i: f"d{i}" for i in range(20)})
    write_metadata(folder, {"lang": "TEXT"}, [{"lang": "ja"}] * 20)
    chance = random.Random(5)
    outcomes = set()
    for _ in range(250):
        file = chance.choice(sorted(folder.iterdir()))
        whole = file.read_bytes()
        put(mutated(whole, chance), file)
        try:
            for block in ForeignIndex(folder, None):
                assert len(block.values) == block.offsets[-1]
            outcomes.add("read")
        except errors.CorruptIndexError:
            outcomes.add("refused")
        put(whole, file)
    assert outcomes == {"read", "refused"}


def test_what_is_no_index(tmp_path):
    with pytest.raises(errors.NotFoundError, match="no such folder"):
        weft.import_index(tmp_path / "new.index", tmp_path / "nowhere")
    (tmp_path / "old").mkdir()
    with pytest.raises(errors.InvalidArgumentError, match=r"no metadata\.json"):
        weft.import_index(tmp_path / "new.index", tmp_path / "old")
    write_json(tmp_path / "old" / "plan.json", {})
    with pytest.raises(errors.InvalidArgumentError, match="was not finished"):
        weft.import_index(tmp_path / "new.index", tmp_path / "old")
    write_json(tmp_path / "old" / "metadata.json", {"num_chunks": 1})
    with pytest.raises(errors.InvalidArgumentError, match=r"neither centroids\.npy nor"):
        weft.import_index(tmp_path / "new.index", tmp_path / "old")
    assert not (tmp_path / "new.index").exists()


def test_what_was_exported_before_can_be_built_again(docs, tmp_path):
    """The way out: an imported index leaves as any other."""
    found = Quantised(docs, 4)
    weft.import_index(tmp_path / "new.index", write_npy_folder(tmp_path / "old", found))
    weft.export(weft.Index.open(tmp_path / "new.index"), tmp_path / "rows.safetensors")
    source = sources.embeddings(tmp_path / "rows.safetensors")
    assert (source.n_docs, source.n_tokens) == (20, sum(map(len, docs)))
