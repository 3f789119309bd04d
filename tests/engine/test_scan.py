# SPDX-License-Identifier: Apache-2.0
"""Documents of one token and a query of one: scanned as rows, ranked as their definition says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import reference
from engine.small_index import Built, build, params
from weft import _native
from weft.lifecycle.bitmaps import from_mask

EVERY_STAGE = {"nprobe": 16, "budget": 10**6, "ncandidates": 10**4, "nrefine": 10**4}


def rows_index(folder: Path, rerank: str, nbits: int = 4) -> Built:
    return build(folder, rerank, n_docs=5_000, longest=1, nbits=nbits)


def code_scores(built: Built, query: np.ndarray, nbits: int) -> dict[tuple[int, int], float]:
    rows, scale = reference.prepare_query(_native._quantizer.rotate(query, built.codec.seed))
    scores = reference.centroid_scores(rows, scale, built.codec_arrays)
    expected = {}
    for s, docs in enumerate(built.docs):
        a = built.arrays[s]
        fines = reference.fines_of(built.codec_arrays, a)
        levels = reference.unpack_levels(a["codes"], 64, nbits)
        for d, doc in enumerate(docs):
            if len(doc) > 0:
                span = built.tokens(s, d)
                per_token = (fines[span], a["steps"][span], a["multipliers"][span], levels[span])
                expected[s, d] = reference.score_document(
                    rows, scale, scores, *per_token, (1 << nbits) - 1
                )
    return expected


@pytest.mark.parametrize("nbits", [1, 2, 4])
def test_the_best_rows_by_codes_are_found(tmp_path: Path, nbits: int) -> None:
    built = rows_index(tmp_path, "none", nbits)
    query = built.queries[0]
    expected = code_scores(built, query, nbits)
    found = built.searcher.search(query, 100, params(exhaustive=True))
    assert (found.path, found.n_matching) == ("exhaustive", len(expected))
    refs = list(zip(found.segments.tolist(), found.docs.tolist(), strict=True))
    assert len(set(refs)) == 100
    np.testing.assert_allclose(found.scores, [expected.pop(ref) for ref in refs], atol=2e-5)
    assert max(expected.values()) <= found.scores.min() + 2e-5


@pytest.mark.parametrize(("nbits", "rerank"), [(1, "none"), (4, "plane"), (4, "f16"), (8, "none")])
def test_a_scan_is_a_search_of_everything_bit_for_bit(
    tmp_path: Path, nbits: int, rerank: str
) -> None:
    built = rows_index(tmp_path, rerank, nbits)
    query = built.queries[0]
    for k, nrerank in ((1, 0), (10, 0), (10, 30), (2_000, 2_000)):
        pruned = built.searcher.search(query, k, params(**EVERY_STAGE, nrerank=nrerank))
        scanned = built.searcher.search(query, k, params(exhaustive=True, nrerank=nrerank))
        assert (pruned.path, scanned.path) == ("pruned", "exhaustive")
        assert pruned.ids == scanned.ids
        assert pruned.scores.tobytes() == scanned.scores.tobytes()


@pytest.mark.parametrize("share", [1.0, 0.9, 0.05])
def test_filters_and_threads_change_no_score(tmp_path: Path, share: float) -> None:
    built = rows_index(tmp_path, "plane")
    query = built.queries[0]
    random = np.random.default_rng(4)
    allowed = [random.random(len(docs)) < share for docs in built.docs]
    bitmaps = [from_mask(mask) for mask in allowed]
    how = params(exhaustive=True, nrerank=40)
    answers = [
        _native.Searcher(built.segments, built.codec, threads).search(query, 10, how, bitmaps)
        for threads in (1, 2, 5)
    ]
    expected = code_scores(built, query, 4)
    kept = {ref: score for ref, score in expected.items() if allowed[ref[0]][ref[1]]}
    for found in answers:
        refs = list(zip(found.segments.tolist(), found.docs.tolist(), strict=True))
        assert found.n_matching == len(kept)
        assert set(refs) <= set(sorted(kept, key=kept.__getitem__)[-40:])
        assert (found.ids, found.scores.tobytes()) == (
            answers[0].ids,
            answers[0].scores.tobytes(),
        )


def test_equal_scores_come_in_the_order_of_ids(tmp_path: Path) -> None:
    """More documents tie with the last place than there are places."""
    built = build(tmp_path, "none", n_docs=3_000, longest=1, n_different=3)
    found = built.searcher.search(built.queries[0], 50, params(exhaustive=True))
    best = [s for s in found.scores.tolist() if s == found.scores[0]]
    assert len(best) == 50
    expected = code_scores(built, built.queries[0], 4)
    top = max(expected.values())
    ids = [built.id(*ref) for ref, score in expected.items() if score > top - 1e-9]
    assert len(ids) > 500
    assert list(found.ids) == sorted(ids, key=str.encode)[:50]


@pytest.mark.parametrize("rerank", ["none", "plane", "f16"])
def test_given_documents_score_what_a_search_says(tmp_path: Path, rerank: str) -> None:
    """For any number of threads, in the order that they are given in."""
    built = build(tmp_path, rerank, n_docs=400)
    query = built.queries[2]
    found = built.searcher.search(query, 400, params(exhaustive=True, nrerank=400))
    expected = {
        (int(s), int(d)): score
        for s, d, score in zip(found.segments, found.docs, found.scores, strict=True)
    }
    for s, docs in enumerate(built.docs):
        asked = np.random.default_rng(s).permutation(len(docs)).astype(np.uint32)
        wanted = [expected.get((s, int(d)), -np.inf) for d in asked]
        for threads in (1, 2, 5):
            searcher = _native.Searcher(built.segments, built.codec, threads)
            assert searcher.score(query, s, asked).tolist() == wanted
