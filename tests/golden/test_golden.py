# SPDX-License-Identifier: Apache-2.0
"""Indexes that an earlier version made: each opens, is sound, and answers as the definition does.

What is recorded beside them comes from tests/reference.py and from a reader written from the page
of the format, not from the engine; make.py says how.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import weft
from golden.make import KINDS, WITH_TEXTS, build, corpus

DATA = Path(__file__).resolve().parent / "data"
VERSIONS = {"v1"}
EXPECTED = {v: json.loads((DATA / v / "expected.json").read_text("utf-8")) for v in VERSIONS}
LOSS = {"rows": 1e-3, "plane": 0.02, "eight": 0.02, "two": 1e-3}
"""How far a score from what is stored may lie from that of the rows as they were given."""
EACH = pytest.mark.parametrize(("version", "kind"), [(v, k) for v in VERSIONS for k in KINDS])


def contents(folder, pattern):
    """What the files hold; their names differ from build to build."""
    return sorted(path.read_bytes() for path in folder.glob(pattern))


@EACH
def test_it_opens_and_is_sound(version, kind):
    folder = DATA / version / kind
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    for generation, n_docs in ((2, 45), (3, 60)):
        index = weft.Index.open(folder, generation=generation)
        assert index.verify(deep=True) == ()
        assert len(index) == n_docs
    assert index.config == KINDS[kind][0]
    assert (index.info.n_fine is not None) == KINDS[kind][1]
    assert bool(index.info.operating_points) == KINDS[kind][1]
    assert (index.info.n_segments, index.info.n_empty) == (2, 1)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@EACH
def test_it_answers_as_the_definition_does(version, kind):
    """Over the stored rows to a float's rounding; over the rows as given, to the loss of a code."""
    index = weft.Index.open(DATA / version / kind)
    for query, expected in zip(
        corpus(index.config.dim).queries, EXPECTED[version][kind], strict=True
    ):
        hits = index.exact_search(query, k=5)
        ids, scores = zip(*expected["stored"], strict=True)
        assert hits.ids == ids
        assert hits.scores == pytest.approx(scores, rel=1e-4)
        assert index.score(query, ids).tolist() == pytest.approx(scores, rel=1e-4)
        best_id, best_score = expected["given"][0]
        for found in (hits, index.search(query), index.search(query, recall=1.0)):
            assert found[0].id == best_id
            assert found[0].score == pytest.approx(best_score, rel=LOSS[kind])
        given = [score for _, score in expected["given"]]
        assert hits.scores == pytest.approx(given, abs=6 * LOSS[kind])


@EACH
def test_it_gives_back_the_documents(version, kind):
    index = weft.Index.open(DATA / version / kind)
    given = corpus(index.config.dim)
    found = index.documents(given.ids)
    if index.config.dim != WITH_TEXTS:
        assert {(document.text, len(document.metadata)) for document in found} == {(None, 0)}
        return
    assert [document.text for document in found] == given.texts
    assert [dict(document.metadata) for document in found] == given.metadata
    for window, doc in ((0, 0), (5, 3)):
        assert given.parents[window] == doc
        explained = index.explain(given.windows[window][:2], given.ids[doc])
        places = [(match.start, match.end) for match in explained.matches]
        assert places == [tuple(span) for span in given.spans[window][:2].tolist()]
        assert explained.passage == (2 if doc == 3 else None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_still_gives_the_same_bytes(kind, tmp_path):
    """A change that alters them alters every index: it is a change of the format, or a mistake."""
    build(kind, tmp_path / kind)
    for pattern in ("codec-*.weft", "seg-*.weft"):
        assert contents(tmp_path / kind, pattern) == contents(DATA / "v1" / kind, pattern)


def test_a_golden_index_can_be_added_to(tmp_path):
    folder = shutil.copytree(DATA / "v1" / "plane", tmp_path / "plane")
    index = weft.Index.open(folder)
    rows = np.eye(48, dtype=np.float32)[:3]
    index.add(["new"], [rows])
    assert index.search(rows, k=1).ids == ("new",)
    assert index.verify(deep=True) == ()


@EACH
def test_it_can_be_changed(version, kind, tmp_path):
    """Deletions and compaction take an old index as it is: what stays answers as before."""
    index = weft.Index.open(shutil.copytree(DATA / version / kind, tmp_path / kind))
    ids = corpus(index.config.dim).ids
    queries = corpus(index.config.dim).queries
    gone = {ids[7], ids[13], ids[50]}
    before = [index.exact_search(query, k=100) for query in queries]
    assert index.delete(sorted(gone)) == 3
    for step in (lambda: None, index.compact):
        step()
        assert index.verify(deep=True) == ()
        assert (len(index), index.info.n_empty) == (57, 0)
        for query, old in zip(queries, before, strict=True):
            kept = [(hit.id, hit.score) for hit in old if hit.id not in gone]
            hits = index.exact_search(query, k=100)
            assert [(hit.id, hit.score) for hit in hits] == kept
    assert index.info.n_segments == 1
