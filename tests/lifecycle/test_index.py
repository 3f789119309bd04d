# SPDX-License-Identifier: Apache-2.0
"""The life of an index: made, filled, committed, opened, searched, explained, verified."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import weft
from helpers import FakeEncoder, assert_ranking, exact, names, ragged_docs, unit_rows
from weft import errors

# ---- small: rows, searched exhaustively ----------------------------------------------------------


@pytest.mark.parametrize("n_docs", [0, 1, 2, 10])
def test_a_few_documents(make_index, rng, n_docs):
    docs = ragged_docs(rng, n_docs, 8)
    index = make_index(docs)
    assert len(index) == n_docs
    query = unit_rows(rng, 3, 8)
    hits = index.search(query, k=100)
    assert len(hits) == n_docs
    assert hits.n_matching == n_docs
    assert hits.operating_point.path == "exhaustive"
    assert_ranking(hits, exact(query, docs, [f"d{i}" for i in range(n_docs)]))
    assert index.verify(deep=True) == ()


@pytest.mark.parametrize("dim", [1, 7, 32, 100, 384, 4097])
def test_any_dim(make_index, rng, dim):
    docs = ragged_docs(rng, 12, dim)
    index = make_index(docs, dim=dim)
    query = unit_rows(rng, 4, dim)
    expected = exact(query, docs, [f"d{i}" for i in range(12)])
    assert_ranking(index.search(query, k=12), expected)
    assert_ranking(index.exact_search(query, k=12), expected)


def test_equal_scores_go_by_id_as_utf8(make_index, rng):
    ids = ["b", "a", "é", "z", "aa", "😀", "\uffff", "a\x01"]
    row = np.eye(8, dtype=np.float32)[:1]
    index = make_index([row] * 4, ids=ids[:4])
    index.add(ids[4:], [row] * 4)
    assert index.search(row, k=8).ids == tuple(sorted(ids, key=str.encode))
    assert index.search(row, k=3).ids == tuple(sorted(ids, key=str.encode)[:3])


def test_k_beyond_the_number_of_documents(make_index, rng):
    index = make_index(ragged_docs(rng, 5, 8))
    for k in (5, 6, 1_000_000_000_000):
        assert len(index.search(unit_rows(rng, 2, 8), k=k)) == 5
        assert len(index.exact_search(unit_rows(rng, 2, 8), k=k)) == 5


def test_empty_documents_are_counted_and_never_found(make_index, rng):
    docs = [np.empty((0, 8), np.float32), *ragged_docs(rng, 3, 8), np.empty((0, 8), np.float32)]
    index = make_index(docs, texts=["", "one", "two", "three", None])
    info = index.info
    assert (info.n_docs, info.n_empty) == (5, 2)
    hits = index.search(unit_rows(rng, 2, 8), k=10)
    assert sorted(hits.ids) == ["d1", "d2", "d3"]
    assert hits.n_matching == 3
    assert index.score(unit_rows(rng, 2, 8), ["d0", "d1"])[0] == -np.inf
    assert index.documents(["d0", "d4"])[0].text == ""
    with pytest.raises(errors.InvalidArgumentError, match="'d0': the document is empty"):
        index.explain(unit_rows(rng, 2, 8), "d0")


def test_an_index_of_empty_documents_alone(make_index, rng):
    index = make_index([np.empty((0, 8), np.float32)] * 3)
    assert len(index.search(unit_rows(rng, 2, 8))) == 0
    assert index.search(unit_rows(rng, 2, 8)).n_matching == 0
    assert index.verify(deep=True) == ()


def test_batch_is_one_by_one(make_index, rng):
    index = make_index(ragged_docs(rng, 30, 8))
    queries = [unit_rows(rng, n, 8) for n in (1, 5, 17, 40)]
    batch = index.search_batch(queries, k=7)
    assert [hits.hits for hits in batch] == [index.search(q, k=7).hits for q in queries]
    packed = (np.concatenate(queries), np.cumsum([0, 1, 5, 17, 40]))
    assert [hits.hits for hits in index.search_batch(packed, k=7)] == [h.hits for h in batch]
    assert index.search_batch([], k=7) == ()
    assert make_index().search_batch(queries)[0].hits == ()


def test_many_threads_share_a_searcher(make_index, rng):
    index = make_index(ragged_docs(rng, 50, 8), texts=[f"text {i}" for i in range(50)])
    searcher = index.searcher(threads=2)
    queries = [unit_rows(rng, 4, 8) for _ in range(20)]
    expected = [searcher.search(query, k=5).ids for query in queries]
    found = {}

    def work(number):
        ids = [searcher.search(query, k=5).ids for query in queries]
        texts = [d.text for d in searcher.documents([f"d{i}" for i in range(50)])]
        found[number] = (ids, texts)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(found[n] == (expected, [f"text {i}" for i in range(50)]) for n in range(4))


def test_score_is_search(make_index, rng):
    index = make_index(ragged_docs(rng, 10, 8))
    index.add(["x"], ragged_docs(rng, 1, 8))
    query = unit_rows(rng, 3, 8)
    hits = index.search(query, k=20)
    scores = index.score(query, list(reversed(hits.ids)))
    assert np.allclose(scores, hits.scores[::-1])
    assert index.score(query, []).shape == (0,)
    with pytest.raises(ValueError, match="read-only"):
        scores[0] = 1


def test_explain_adds_up(make_index, rng, fake_encoder):
    text = "the quick brown fox jumps over the lazy dog"
    (windows,) = fake_encoder.encode_documents([text])
    index = make_index(dim=16)
    index.add(["fox"], [windows[0].values], texts=[text], spans=[windows[0].spans])
    (query,) = fake_encoder.encode_queries(["lazy brown bear"])
    found = index.explain(query.values, "fox")
    words = [text[match.start : match.end] for match in found.matches]
    assert words[:2] == ["lazy", "brown"]
    assert [match.query_token for match in found.matches] == [0, 1, 2]
    assert sum(match.similarity for match in found.matches) == pytest.approx(found.score, rel=1e-5)
    assert found.score == pytest.approx(index.search(query.values)[0].score, rel=1e-5)
    assert found.matches[0].similarity == pytest.approx(1.0, abs=2e-3)


def test_without_places_a_match_has_tokens_only(make_index, rng):
    docs = ragged_docs(rng, 2, 8, shortest=4)
    index = make_index(docs)
    match = index.explain(docs[0][2:3], "d0").matches[0]
    assert (match.token, match.start, match.end) == (2, None, None)


def test_texts_and_metadata(make_index, rng):
    metadata = [{"year": 2024, "lang": "ja", "score": 0.5, "open": True}, None, {}]
    texts = ["one", None, "鍵 \0 😀"]
    index = make_index(ragged_docs(rng, 3, 8), texts=texts, metadata=metadata)
    index.add(["bare"], ragged_docs(rng, 1, 8))
    found = index.documents(["d2", "d0", "bare", "d1"])
    assert [document.text for document in found] == ["鍵 \0 😀", "one", None, None]
    assert [dict(document.metadata) for document in found] == [{}, metadata[0], {}, {}]
    assert type(found[1].metadata["open"]) is bool


def test_unknown_ids(make_index, rng):
    index = make_index(ragged_docs(rng, 3, 8))
    for unknown in ("d3", "", "d0\x1f0", "D0"):
        with pytest.raises(errors.NotFoundError, match="no such document"):
            index.documents([unknown])
        with pytest.raises(errors.NotFoundError):
            index.score(unit_rows(rng, 1, 8), ["d0", unknown])
        with pytest.raises(errors.NotFoundError):
            index.explain(unit_rows(rng, 1, 8), unknown)
    with pytest.raises(errors.InvalidArgumentError, match="expected a string"):
        index.documents([7])
    with pytest.raises(errors.InvalidArgumentError, match="expected a sequence of ids"):
        index.documents("d0")


# ---- commits, generations ------------------------------------------------------------------------


def test_a_commit_is_one_generation(make_index, rng):
    index = make_index()
    assert index.generation == 1
    with index.writer() as writer:
        writer.add(["a"], ragged_docs(rng, 1, 8))
        writer.add(["b"], ragged_docs(rng, 1, 8))
        assert len(weft.Index.open(index.path)) == 0
        assert writer.commit() == 2
        assert len(index) == 2
        writer.add(["c"], ragged_docs(rng, 1, 8))
    assert (index.generation, len(index)) == (3, 3)
    assert index.search(unit_rows(rng, 1, 8)).generation == 3


def test_nothing_new_is_no_generation(make_index, rng):
    index = make_index(ragged_docs(rng, 2, 8))
    with index.writer() as writer:
        assert writer.commit() == 2
    assert index.generation == 2
    index.add([], [])
    assert index.generation == 2


def test_a_snapshot_stays_as_it_was(make_index, rng):
    index = make_index(ragged_docs(rng, 3, 8), texts=["a", "b", "c"])
    searcher = index.searcher()
    query = unit_rows(rng, 2, 8)
    before = searcher.search(query, k=10)
    for number in range(4):  # after which the files of the snapshot are gone
        index.add([f"new{number}"], ragged_docs(rng, 1, 8))
    again = searcher.search(query, k=10)
    assert again.hits == before.hits
    assert again.generation == before.generation == 2
    assert searcher.documents(["d1"])[0].text == "b"
    assert len(index.search(query, k=10)) == 7


def test_refresh_adopts_a_newer_generation(make_index, rng):
    index = make_index(ragged_docs(rng, 2, 8))
    reader = weft.Index.open(index.path)
    assert not reader.refresh()
    index.add(["new"], ragged_docs(rng, 1, 8))
    assert len(reader.search(unit_rows(rng, 1, 8))) == 2
    assert reader.refresh()
    assert len(reader.search(unit_rows(rng, 1, 8))) == 3


def test_a_late_reader_takes_the_newest(make_index, rng, small_codec):
    """Opened, overtaken by commits that removed its files, and only then searched."""
    index = make_index(ragged_docs(rng, 20, 8))
    reader = weft.Index.open(index.path)
    index.add([f"e{i}" for i in range(80)], ragged_docs(rng, 80, 8))  # trains: replaces segments
    for number in range(3):
        index.add([f"new{number}"], ragged_docs(rng, 1, 8))
    assert len(reader.search(unit_rows(rng, 1, 8), k=200)) == 103
    assert reader.generation == index.generation


def test_old_generations(make_index, rng):
    index = make_index(ragged_docs(rng, 2, 8))
    index.add(["new"], ragged_docs(rng, 1, 8))
    old = weft.Index.open(index.path, generation=2)
    assert len(old.search(unit_rows(rng, 1, 8))) == 2
    with pytest.raises(errors.NotFoundError, match="no generation 1; there are 2, 3"):
        weft.Index.open(index.path, generation=1)
    with pytest.raises(errors.InvalidArgumentError, match="generation 2 is not the newest"):
        old.writer()
    index.writer().close()  # the refused writer holds no lock


def test_going_on_from_the_last_good_generation(make_index, rng):
    index = make_index(ragged_docs(rng, 2, 8))
    index.add(["lost"], ragged_docs(rng, 1, 8))
    newest = index.path / "manifest-000003.json"
    newest.write_bytes(newest.read_bytes()[:-20])
    for attempt in (lambda: weft.Index.open(index.path), index.refresh, index.writer):
        with pytest.raises(errors.CorruptIndexError, match=r"manifest-000003\.json.*generation=2"):
            attempt()
    good = weft.Index.open(index.path, generation=2)
    good.add(["found"], ragged_docs(rng, 1, 8))
    assert good.generation == 4
    again = weft.Index.open(index.path)
    assert sorted(again.search(unit_rows(rng, 1, 8)).ids) == ["d0", "d1", "found"]


def test_files_of_two_generations_are_kept(make_index, rng):
    index = make_index(ragged_docs(rng, 2, 8))
    for number in range(3):
        index.add([f"n{number}"], ragged_docs(rng, 1, 8))
    assert names(index.path, "manifest") == ["manifest-000004.json", "manifest-000005.json"]
    assert len(names(index.path, "seg-")) == 4
    assert len(names(index.path)) == 2 + 4 + len(["LOCK"])


# ---- writer --------------------------------------------------------------------------------------


def test_an_exception_leaves_the_index_as_it_was(make_index, rng):
    index = make_index(ragged_docs(rng, 2, 8))
    before = names(index.path)
    writer = index.writer()
    with pytest.raises(ZeroDivisionError), writer:
        writer.add(["new"], ragged_docs(rng, 1 // (len(index) - 2), 8))
    assert names(index.path) == before
    assert weft.Index.open(index.path).generation == 2


def test_rollback_forgets(make_index, rng):
    index = make_index()
    with index.writer() as writer:
        writer.add(["a"], ragged_docs(rng, 1, 8))
        writer.rollback()
        writer.add(["a", "b"], ragged_docs(rng, 2, 8))
    assert len(index) == 2


def test_a_closed_writer_says_so(make_index, rng):
    index = make_index()
    writer = index.writer()
    writer.close()
    writer.close()
    for use in (writer.commit, writer.rollback, writer.tune, lambda: writer.add([], [])):
        with pytest.raises(errors.WriterClosedError, match=r"index\.writer\(\)"):
            use()


def test_a_second_writer_is_told_who_holds_the_lock(make_index, rng):
    index = make_index()
    with index.writer() as writer:
        writer.add(["a"], ragged_docs(rng, 1, 8))
        with pytest.raises(errors.IndexLockedError, match=f"process {os.getpid()} on"):
            weft.Index.open(index.path).writer()
        with pytest.raises(errors.IndexLockedError):
            index.add(["b"], ragged_docs(rng, 1, 8))
    assert len(index) == 1
    index.writer().close()


def test_leftovers_of_a_dead_writer_are_cleaned(make_index, rng):
    index = make_index(ragged_docs(rng, 2, 8))
    code = (
        "import os, sys, numpy as np, weft;"
        "writer = weft.Index.open(sys.argv[1]).writer();"
        "writer.add(['x'], [np.eye(8)]);"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, index.path], check=False)
    left = names(index.path, "build-")
    assert len(left) == 1
    assert len(weft.Index.open(index.path)) == 2
    (index.path / "notes.txt").write_text("mine")
    with index.writer() as writer:
        assert not set(left) & set(names(index.path))
        writer.add(["x"], ragged_docs(rng, 1, 8))
    assert len(index) == 3
    assert "notes.txt" in names(index.path)
    assert not names(index.path, "build-")


def test_a_running_build_is_spared(make_index):
    from weft.lifecycle.storage import Directory

    index = make_index()
    directory = Directory(index.path)
    name = "build-" + "ab" * 16
    directory.make_folder(name)
    lock = directory.lock(name)
    index.writer().close()
    assert name in names(index.path)
    lock.release()
    index.writer().close()
    assert name not in names(index.path)


def test_devices(make_index):
    index = make_index()
    for make in (index.writer, index.searcher):
        with pytest.raises(errors.DeviceError, match="device='cuda:0'"):
            make(device="cuda:0")
    index.writer().close()


# ---- create and open -----------------------------------------------------------------------------


def test_create_refuses_what_is_there(tmp_path):
    path = tmp_path / "a.index"
    weft.Index.create(path, weft.IndexConfig(dim=8))
    with pytest.raises(errors.IndexExistsError, match="index is there already"):
        weft.Index.create(path, weft.IndexConfig(dim=8))
    assert weft.Index.create(path, weft.IndexConfig(dim=8), exist_ok=True).generation == 1
    with pytest.raises(errors.IncompatibleIndexError, match="another configuration"):
        weft.Index.create(path, weft.IndexConfig(dim=9), exist_ok=True)
    with pytest.raises(errors.IncompatibleIndexError, match="another encoder"):
        weft.Index.create(
            path, weft.IndexConfig(dim=8), encoder=weft.EncoderInfo("m", "r", 8, "f"), exist_ok=True
        )
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    for name in ("file", "full"):
        with pytest.raises(errors.IndexExistsError, match="not an index"):
            weft.Index.create(tmp_path / name)
    (tmp_path / "hollow").mkdir()
    assert len(weft.Index.create(tmp_path / "hollow")) == 0
    assert len(weft.Index.create(tmp_path / "new" / "deep.index")) == 0


def test_create_with_an_encoder(tmp_path):
    encoder = FakeEncoder(dim=24)
    index = weft.Index.create(tmp_path / "a.index", encoder=encoder)
    assert index.config.dim == 24
    assert weft.Index.open(index.path).info.encoder == encoder.info
    with pytest.raises(errors.InvalidArgumentError, match=r"dim=8: expected the encoder's, 24"):
        weft.Index.create(tmp_path / "b.index", weft.IndexConfig(dim=8), encoder=encoder)
    with pytest.raises(errors.InvalidArgumentError, match="encoder='MiniLM'"):
        weft.Index.create(tmp_path / "b.index", encoder="MiniLM")
    assert not (tmp_path / "b.index").exists()


def test_open_what_is_not_there(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("absent", "file", "empty"):
        with pytest.raises(errors.NotFoundError, match="no index there"):
            weft.Index.open(tmp_path / name)


def test_a_folder_can_be_moved(make_index, rng, tmp_path):
    index = make_index(ragged_docs(rng, 2, 8), texts=["a", "b"])
    moved = index.path.rename(tmp_path / "somewhere else")
    found = weft.Index.open(moved)
    assert len(found.search(unit_rows(rng, 1, 8))) == 2
    assert found.documents(["d1"])[0].text == "b"


def test_info(make_index, rng):
    index = make_index(ragged_docs(rng, 7, 8), texts=["t"] * 7)
    info = index.info
    assert (info.n_docs, info.n_windows, info.n_segments, info.generation) == (7, 7, 1, 2)
    assert info.n_bytes == sum(path.stat().st_size for path in index.path.glob("seg-*"))
    assert repr(index).endswith("generation=2, n_docs=7)")
    assert index.plan(n_docs=10, n_tokens=100).n_tokens == 100
    assert weft.info()["devices"][0] == "cpu"
