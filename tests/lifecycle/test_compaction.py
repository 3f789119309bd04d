# SPDX-License-Identifier: Apache-2.0
"""What a commit merges unasked: enough to stay healthy, and never more than that costs."""

import math
import shutil
from collections import namedtuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import weft
from helpers import assert_ranking, exact, ragged_docs
from weft.lifecycle.compaction import must_be_merged, n_segments_compacted
from weft.lifecycle.entries import SegmentEntry, TombstonesEntry
from weft.lifecycle.manifest import load
from weft.types import defaults

MAX_RAM = 1 << 30
Usage = namedtuple("Usage", "total used free")


def entry(n_tokens, deleted=0, name="seg-"):
    gone = TombstonesEntry(f"{name}.del-", 0, 0, 0, deleted) if deleted else None
    return SegmentEntry(name, 1, 1, 0, n_tokens, documents=False, tombstones=gone)


@given(st.lists(st.integers(1, 1_000), min_size=1, max_size=400))
def test_any_sequence_of_commits_stays_in_bounds(sizes):
    """Segments stay few and a token is copied log2 n times at most, whatever the commits add."""
    segments, written = [], 0
    for number, size in enumerate(sizes):
        merged = must_be_merged(segments, MAX_RAM)
        if merged:
            together = sum(segment.n_tokens + 1 for segment in merged)
            assert together >= 2 * max(segment.n_tokens + 1 for segment in merged)
            segments = [segment for segment in segments if segment not in merged]
            segments.append(entry(together - 1, name=f"m{number}"))
            written += together
        segments.append(entry(size, name=f"s{number}"))
        total = sum(segment.n_tokens + 1 for segment in segments)
        assert len(segments) <= max(defaults.merged_segments, math.log2(total)) + 1
    assert written <= total * max(math.log2(total), 1)


def test_equal_commits_are_copied_seldom():
    """1,000 equal commits: each is copied 4 times at most, not 10."""
    segments, written = [], 0
    for number in range(1_000):
        merged = must_be_merged(segments, MAX_RAM)
        written += sum(segment.n_tokens + 1 for segment in merged)
        if merged:
            segments = [segment for segment in segments if segment not in merged]
            together = sum(segment.n_tokens + 1 for segment in merged)
            segments.append(entry(together - 1, name=f"m{number}"))
        segments.append(entry(99, name=f"s{number}"))
    assert written < 4 * 1_000 * 100


def test_a_fifth_deleted_is_too_much():
    full, half = entry(1_000, 200), entry(1_000, 202)
    assert must_be_merged([full, half, entry(50)], MAX_RAM) == [half]


def test_large_segments_are_left_alone():
    large = [entry(defaults.segment_tokens - 10, name=f"seg-{i}") for i in range(40)]
    assert must_be_merged(large, MAX_RAM) == []
    assert n_segments_compacted(large, MAX_RAM) == 40
    parts = [entry(defaults.segment_tokens // 4, name=f"seg-{i}") for i in range(6)]
    assert n_segments_compacted(parts, MAX_RAM) == 2


def test_many_small_commits(make_index, rng):
    docs, ids = ragged_docs(rng, 60, 8), [f"d{i}" for i in range(60)]
    index = make_index()
    for i, doc in enumerate(docs):
        index.add([ids[i]], [doc], texts=[f"text {i}"])
        assert index.info.n_segments <= defaults.merged_segments
        if i % 10 == 9:
            scores = exact(docs[3], docs[: i + 1], ids[: i + 1])
            assert_ranking(index.exact_search(docs[3], k=100), scores)
    assert index.generation == 61
    assert [d.text for d in index.documents(["d0", "d59"])] == ["text 0", "text 59"]
    assert index.verify(deep=True) == ()
    assert index.compact() == 62
    assert index.info.n_segments == index.info.n_segments_compacted == 1


@pytest.mark.parametrize("coded", [True, False])
def test_deleting_much_takes_the_space_back(make_index, rng, request, coded):
    if coded:
        request.getfixturevalue("small_codec")
    docs = ragged_docs(rng, 100, 8, shortest=6, longest=6)
    index = make_index(docs)
    assert index.delete([f"d{i}" for i in range(20)]) == 20
    assert (index.info.n_segments, index.info.n_deleted) == (1, 20)
    before = index.exact_search(docs[50], k=100)
    assert index.delete(["d20"]) == 1
    assert (index.info.n_segments, index.info.n_deleted) == (1, 0)
    after = index.exact_search(docs[50], k=100)
    assert after.hits == tuple(hit for hit in before.hits if hit.id != "d20")


def test_a_full_disk_does_not_keep_from_deleting(make_index, rng, monkeypatch, caplog):
    index = make_index(ragged_docs(rng, 10, 8))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100, 90, 10))
    assert index.delete([f"d{i}" for i in range(5)]) == 5
    assert (len(index), index.info.n_deleted) == (5, 5)
    assert "1 segments should be merged" in caplog.text
    monkeypatch.undo()
    index.delete(["d5"])
    assert (len(index), index.info.n_deleted) == (4, 0)


def test_nothing_new_merges_nothing(make_index, rng, unmerged):
    index = make_index(ragged_docs(rng, 10, 8))
    index.delete([f"d{i}" for i in range(5)])
    unmerged.undo()
    with index.writer() as writer:
        assert writer.commit() == 3
    assert index.info.n_deleted == 5
    index.add(["new"], [np.eye(8)])
    assert (index.info.n_deleted, index.info.n_segments) == (0, 2)
    assert weft.Index.open(index.path).verify(deep=True) == ()


@pytest.mark.parametrize("config", [{}, {"rerank": "f16"}, {"rerank": None}])
def test_a_codec_is_trained_anew(make_index, rng, small_codec, config):
    docs, ids = ragged_docs(rng, 400, 8, shortest=4), [f"d{i}" for i in range(400)]
    index = make_index(docs[:60], config=weft.IndexConfig(dim=8, **config))
    for first in range(60, 400, 85):
        index.add(ids[first : first + 85], docs[first : first + 85], texts=ids[first : first + 85])
    index.delete(["d7", "d99"])
    before, generation = index.info, index.generation
    assert index.compact(retrain=True) == generation + 1
    after = index.info
    assert (after.n_coarse, after.n_fine) == (before.n_coarse_retrained, before.n_fine_retrained)
    codec = load(index._directory).codec
    assert (codec.n_tokens, codec.n_trained) == (after.n_tokens, after.n_tokens)
    assert (after.n_docs, after.n_segments, after.n_deleted) == (398, 1, 0)
    assert after.truth == ("rows" if config.get("rerank") == "f16" else "stored")
    assert index.verify(deep=True) == ()
    assert index.documents(["d399", "d0"])[0].text == "d399"
    left = [i for i in range(400) if i not in (7, 99)]
    scores = exact(docs[5], [docs[i] for i in left], [f"d{i}" for i in left])
    assert_ranking(index.exact_search(docs[5], k=398), scores, 0.25)


def test_without_a_codec_there_is_none_to_train_anew(make_index, rng):
    index = make_index(ragged_docs(rng, 5, 8))
    assert index.compact(retrain=True) == 2
    assert index.info.n_fine is None
