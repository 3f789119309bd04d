# SPDX-License-Identifier: Apache-2.0
"""An index that grows beyond what its codec was trained for, or by another kind of documents."""

import dataclasses
import shutil
from collections import namedtuple

import numpy as np
import pytest

import weft
from format_reader import decode, meta, read, rotation_matrix
from helpers import assert_ranking, exact, names, ragged_docs, unit_rows
from reference import maxsim
from weft.lifecycle.builder import Build
from weft.lifecycle.codec_sizes import n_more_centroids, outgrown, tree_size
from weft.lifecycle.entries import CodecEntry
from weft.lifecycle.manifest import load
from weft.types import defaults

WIDE = weft.SearchParams(
    budget=10**9, nprobe=65_536, ncandidates=10**6, nskim=0, nrefine=10**6, nrerank=10**6
)


@pytest.fixture(autouse=True)
def _early(small_codec, unmerged):
    """A codec from 400 tokens on, and every commit a segment."""


def grown_index(make_index, rng, **config):
    """Five commits, the first of which trains a codec; the later ones hold 2.5 times as much.

    Codes alone: where more is stored of the rows, another codec would be trained.
    """
    docs = ragged_docs(rng, 700, 16, shortest=4)
    ids = [f"d{i}" for i in range(700)]
    index = make_index(config=weft.IndexConfig(dim=16, n_coarse=16, rerank=None, **config))
    for part in (slice(0, 200), *(slice(200 + 125 * i, 325 + 125 * i) for i in range(4))):
        index.add(ids[part], docs[part])
    return index, ids, docs


def scores_from_files(index, query):
    """{id: score} by docs/format.md: every segment read with the newest codec alone."""
    found = {}
    manifest = load(index._directory)
    codec, _ = read(index.path / manifest.codec.file)
    numbers = meta(codec, "Codec meta")
    rotated = (
        query.astype(float)
        @ rotation_matrix(numbers["padded_dim"], numbers["seed"] % 2**64)[: query.shape[1]]
    )  # zeros are what a query is padded with
    for entry in manifest.segments:
        arrays, _ = read(index.path / entry.file)
        rows = decode(arrays, codec, numbers["nbits"])
        ends, raw = arrays["id_offsets"].astype(int), arrays["id_bytes"].tobytes()
        starts = arrays["doc_offsets"].astype(int)
        for doc in range(len(starts) - 1):
            stored = raw[ends[doc] : ends[doc + 1]].decode()
            found[stored] = float(maxsim(rotated, rows[starts[doc] : starts[doc + 1]]))
    return found


def test_old_segments_are_searched_with_the_grown_codec(make_index, rng):
    index, _, _ = grown_index(make_index, rng)
    manifest = load(index._directory)
    codec, _ = read(index.path / manifest.codec.file)
    assert len(codec["ancestors"]) >= 2
    assert len(manifest.segments) == 5
    assert index.verify(deep=True) == ()
    for _ in range(10):
        query = unit_rows(rng, 4, 16)
        expected = scores_from_files(index, query)
        assert len(expected) == 700
        assert_ranking(index.exact_search(query, k=700), expected, 0.01)
        assert_ranking(index.search(query, k=20, params=WIDE), expected, 0.01)


def test_lists_of_old_segments_hold_what_they_did(make_index, rng):
    """One cell and one list at a time: what the engine meets is what the files say."""
    index, _, docs = grown_index(make_index, rng)
    narrow = dataclasses.replace(WIDE, nprobe=1, budget=1)
    wide = [set(index.search(doc[:1], k=30, params=narrow).ids) for doc in docs[::50]]
    index.compact()  # new lists of all tokens, by the newest codec
    assert index.info.n_segments == 1
    merged = [set(index.search(doc[:1], k=30, params=narrow).ids) for doc in docs[::50]]
    assert wide == merged


def test_fine_centroids_follow_the_tokens(make_index, rng):
    index, _, docs = grown_index(make_index, rng)
    info = index.info
    due = sum(map(len, docs)) // 50
    assert due >= info.n_fine > (1 - defaults.fine_growth) * due - 1
    assert info.n_coarse == 16
    before = {name: (index.path / name).read_bytes() for name in names(index.path, "seg-")}
    index.add(["late"], [unit_rows(rng, 400, 16)])
    assert index.info.n_fine > info.n_fine
    for name, data in before.items():
        assert (index.path / name).read_bytes() == data


def test_documents_of_another_kind_are_noticed(make_index, rng):
    docs = ragged_docs(rng, 700, 16, shortest=4)
    index = make_index(docs, dim=16)
    same = ragged_docs(np.random.default_rng(7), 700, 16, shortest=4)[:40]
    index.add([f"same{i}" for i in range(40)], same)
    n_fine, drift = index.info.n_fine, index.info.drift
    assert drift < 0.1
    other = [unit_rows(rng, 8, 16) for _ in range(40)]
    index.add([f"other{i}" for i in range(40)], other)
    entry = load(index._directory).segments[-1]
    assert entry.drift > defaults.drift
    assert index.info.n_fine >= n_fine + 320 // 50
    assert index.info.drift > drift


def test_a_given_number_of_centroids_stays(make_index, rng, caplog):
    index, _, _ = grown_index(make_index, rng, n_fine=40)
    assert index.info.n_fine == 40
    assert "has no room to grow" in caplog.text


def test_a_grown_index_is_tuned_again(make_index, rng):
    docs = ragged_docs(rng, 400, 16, shortest=4)
    index = make_index(docs[:100], dim=16)
    tuned = load(index._directory).tuning.n_tokens
    index.add([f"e{i}" for i in range(90)], docs[100:190])
    assert load(index._directory).tuning.n_tokens == tuned
    index.add([f"f{i}" for i in range(210)], docs[190:])
    assert load(index._directory).tuning.n_tokens == index.info.n_tokens

    index.tune([docs[0]])
    index.add([f"g{i}" for i in range(800)], docs + docs)
    assert load(index._directory).tuning.queries == "given queries"  # that somebody chose


@pytest.mark.parametrize("config", [{}, {"rerank": "f16"}, {"nbits": 8}])
def test_an_index_that_has_doubled_is_trained_anew(make_index, rng, config):
    docs, ids = ragged_docs(rng, 400, 16, shortest=4), [f"d{i}" for i in range(400)]
    texts, metadata = [f"text of {i}" for i in ids], [{"n": i} for i in range(400)]
    index = make_index(config=weft.IndexConfig(dim=16, **config))

    def add(first, last):
        part = slice(first, last)
        index.add(ids[part], docs[part], texts=texts[part], metadata=metadata[part])
        return load(index._directory)

    first = add(0, 100).codec
    assert (first.n_tokens, first.n_trained) == (index.info.n_tokens,) * 2
    assert add(100, 170).codec.n_trained == first.n_trained
    index.delete(["d3", "d120"])
    anew = add(170, 260)
    n_tokens = sum(map(len, docs[:260])) - len(docs[3]) - len(docs[120])
    assert (anew.codec.n_trained, anew.codec.n_tokens) == (n_tokens, 2 * n_tokens)
    assert anew.codec.n_coarse == tree_size(index.config, 2 * n_tokens)[0] > first.n_coarse
    assert len(anew.segments) == 1
    assert anew.tuning.n_tokens == n_tokens
    assert index.info.drift < 0.1
    assert add(260, 400).codec.n_trained == n_tokens  # there are less than twice as many
    assert index.verify(deep=True) == ()
    left = [i for i in range(400) if i not in (3, 120)]
    scores = exact(docs[5], [docs[i] for i in left], [ids[i] for i in left])
    assert_ranking(index.exact_search(docs[5], k=398), scores, 0.02)
    (document,) = index.documents(["d99"])
    assert (document.text, dict(document.metadata)) == ("text of d99", {"n": 99})


def test_a_token_is_encoded_again_less_than_twice():
    """On the whole, in commits of any size, however many there are."""
    for first, step in ((100, 1), (100, 99), (1_000, 100), (100, 10_000)):
        n_trained, n_tokens, n_again = first, first, 0
        for _ in range(3_000):
            codec = CodecEntry("codec", 16, 16, 2 * n_trained, n_trained)
            if outgrown(weft.IndexConfig(), codec, n_tokens + step):
                n_trained, n_again = n_tokens + step, n_again + n_tokens
            n_tokens += step
        assert n_tokens / 4 < n_again < 2 * n_tokens


def test_many_strangers_do_not_wait(make_index, rng):
    """Long before the index has doubled, once there are a quarter as many as it was trained on."""
    docs = ragged_docs(rng, 700, 16, shortest=4)
    index = make_index(docs, dim=16)
    n_trained = index.info.n_tokens
    for i in range(2):
        n = n_trained // 6 // 8
        index.add([f"other{i}-{j}" for j in range(n)], [unit_rows(rng, 8, 16) for _ in range(n)])
        again = load(index._directory).codec.n_trained
        assert again == (n_trained, index.info.n_tokens)[i]
    assert index.info.drift < 0.1
    index.add(["more"], [unit_rows(rng, 8, 16)])
    assert load(index._directory).codec.n_trained == again


def test_what_would_be_lost_waits():
    codec = CodecEntry("codec", 16, 16, 2_000, 1_000)
    waits = {(4, "plane"): 2, (4, "f16"): 2, (2, "f16"): 2, (8, None): 2, (4, None): 4}
    for (nbits, rerank), times in waits.items():
        config = weft.IndexConfig(nbits=nbits, rerank=rerank)
        assert outgrown(config, codec, times * 1_000)
        assert not outgrown(config, codec, times * 1_000 - 1)
        assert outgrown(config, codec, 1_300, 250) == (times == 2)
        assert not outgrown(config, codec, 1_300, 249)
    for nbits in (1, 2):
        assert not outgrown(weft.IndexConfig(nbits=nbits, rerank=None), codec, 10**9)


def test_without_room_the_codec_stays(make_index, rng, monkeypatch, caplog):
    docs = ragged_docs(rng, 400, 16, shortest=4)
    index = make_index(docs[:150], dim=16)
    codec = load(index._directory).codec
    plan = index.plan(n_docs=250, n_tokens=sum(map(len, docs[150:])))
    assert (plan.n_docs, plan.n_tokens) == (400, sum(map(len, docs)))
    usage = namedtuple("Usage", "total used free")(0, 0, plan.disk_bytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    index.add([f"e{i}" for i in range(250)], docs[150:])
    assert "the index has outgrown its codec, which stays" in caplog.text
    assert load(index._directory).codec.n_trained == codec.n_trained
    monkeypatch.undo()
    index.add(["last"], [docs[0]])
    assert load(index._directory).codec.n_trained == index.info.n_tokens


def test_how_many_centroids_are_due():
    config, codec = weft.IndexConfig(), CodecEntry("codec", 512, 10_000, 500_000, 500_000)

    def more(n_tokens, n_new, drift=0.05, given=config):
        return n_more_centroids(given, codec, n_tokens=n_tokens, n_new=n_new, drift=drift)

    assert more(549_950, 50_000) == 0
    assert more(550_000, 50_000) == 1_000
    assert more(510_000, 10_000, drift=0.5) == 200
    assert more(300_000, 10_000, drift=0.5) == 200  # many were deleted
    assert more(10**9, 10**6) == 512 * 256 - 10_000
    assert more(10**9, 10**6, 0.5, weft.IndexConfig(n_fine=10_000)) == 0


def test_drift_is_kept_by_merges(make_index, rng):
    index, _, _ = grown_index(make_index, rng)
    entries = load(index._directory).segments
    index.compact()
    (merged,) = load(index._directory).segments
    total = sum(entry.n_tokens for entry in entries)
    expected = sum(entry.drift * entry.n_tokens for entry in entries) / total
    assert merged.drift == pytest.approx(expected, abs=1e-4)
    assert index.info.drift == merged.drift


class Interrupted(Exception):  # noqa: N818
    pass


def test_what_an_interruption_left_is_not_used_beside_other_segments(make_index, rng, monkeypatch):
    """A grown codec knows the segments of its commit: one that keeps others makes its own."""
    docs = [unit_rows(rng, 8, 16) for _ in range(800)]
    ids = [f"d{i}" for i in range(800)]
    index = make_index(config=weft.IndexConfig(dim=16, n_coarse=16, rerank=None))
    for part in (slice(0, 200), slice(200, 300), slice(300, 600)):
        index.add(ids[part], docs[part])
    saved = index.path.with_name("saved.index")

    def left(*_):
        shutil.copytree(index.path, saved)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Build, "_write_segments", left)
        writer = index.writer(resume=True)
        writer.delete(ids[:200])  # all that the first codec has encoded
        writer.add(ids[600:], docs[600:])
        with pytest.raises(Interrupted):
            writer.commit()
        writer.close()
    again = weft.Index.open(saved)
    with again.writer(resume=True) as writer:
        writer.delete(ids[200:300])
        writer.add(ids[600:], docs[600:])
    assert len(again) == 700
    assert again.verify(deep=True) == ()
