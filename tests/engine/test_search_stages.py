# SPDX-License-Identifier: Apache-2.0
"""Each stage of a pruned search against its definition in reference.py, then the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import reference
from engine.small_index import Built, build, params
from weft import _native
from weft.errors import InvalidArgumentError
from weft.lifecycle.bitmaps import from_mask


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("stages"), "plane")


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize(
    "changes", [{}, {"budget": 1}, {"nprobe": 16, "budget": 10_000}, {"floor": 0.0}]
)
def test_stages_match_their_definitions(
    built: Built, which: int, changes: dict[str, object]
) -> None:
    query = built.queries[which]
    settings = {
        "nprobe": 4,
        "budget": 120,
        "ncandidates": 60,
        "nrefine": 20,
        "floor": 0.75,
    } | changes
    trace = built.searcher._trace(query, 5, params(**changes))
    rows, scale = reference.prepare_query(_native._quantizer.rotate(query, built.codec.seed))
    merged = reference.merge_tokens(rows)
    assert trace["merged"] == merged
    assert len(merged) == (5 if which == 3 else len(query))
    scores = reference.centroid_scores(rows, scale, built.codec_arrays)
    child_offsets = built.codec_arrays["child_offsets"].astype(np.int64)
    lists, opened = reference.probe_lists(
        scores,
        merged,
        child_offsets,
        built.lengths,
        int(settings["nprobe"]),
        int(settings["budget"]),
        float(settings["floor"]),
    )
    assert trace["lists"] == lists
    gathered = reference.gather(built.coded, child_offsets, lists, int(settings["ncandidates"]))
    assert trace["gathered"] == gathered
    if len(gathered) >= 5:
        interacted = reference.interact(
            built.coded, child_offsets, scores, opened, gathered, int(settings["nrefine"])
        )
        kept = [(s, d) for s, d, _ in trace["interacted"]]
        assert kept == [(s, d) for s, d, _ in interacted]
        if len(kept) > 8:
            skims = {"nskim": settings["nrefine"], "nrefine": 8}
            again = built.searcher._trace(query, 5, params(**(changes | skims)))
            check_skim(built, again["skimmed"], kept, rows, scale, scores, opened)


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
@pytest.mark.parametrize("changes", [{}, {"budget": 10}, {"budget": 1_000, "ncandidates": 40}])
def test_a_filter_reads_on_until_enough_survives(
    built: Built, which: int, share: float, changes: dict[str, int]
) -> None:
    settings = {"nprobe": 4, "budget": 120, "ncandidates": 60} | changes
    rng = np.random.default_rng(int(100 * share))
    allowed = [rng.random(len(docs)) < share for docs in built.coded]
    trace = built.searcher._trace(
        built.queries[which], 1, params(**changes), [from_mask(mask) for mask in allowed]
    )
    rows, scale = reference.prepare_query(
        _native._quantizer.rotate(built.queries[which], built.codec.seed)
    )
    merged = reference.merge_tokens(rows)
    scores = reference.centroid_scores(rows, scale, built.codec_arrays)
    child_offsets = built.codec_arrays["child_offsets"].astype(np.int64)

    def probed(budget: int) -> list[list[tuple[int, int]]]:
        return reference.probe_lists(
            scores, merged, child_offsets, built.lengths, settings["nprobe"], budget, 0.75
        )[0]

    surviving = [0] * len(built.lengths)
    for docs, mask in zip(built.coded, allowed, strict=True):
        for tokens, kept in zip(docs, mask, strict=True):
            for fine in {int(child_offsets[p]) + c for p, c in tokens if kept}:
                surviving[fine] += 1
    every = probed(10**9)
    rounds = [
        [fines[r][0] for fines in every if r < len(fines)] for r in range(max(map(len, every)))
    ]
    wanted = min(settings["budget"], settings["ncandidates"])
    read = survived = 0
    for fines in rounds:
        if read >= settings["budget"] and survived >= wanted:
            break
        read += sum(built.lengths[fine] for fine in fines)
        survived += sum(surviving[fine] for fine in fines)
    lists = probed(read)
    assert trace["lists"] == lists
    met = reference.gather(built.coded, child_offsets, lists, 10**9)
    met = [found for found in met if allowed[found[0]][found[1]]]
    best = sorted(met, key=lambda found: (-found[2], found[:2]))[: settings["ncandidates"]]
    assert trace["gathered"] == sorted(best)


def check_skim(
    built: Built,
    skimmed: list[tuple[int, int, float]],
    candidates: list[tuple[int, int]],
    rows: np.ndarray,
    scale: np.float32,
    scores: reference.CentroidScores,
    opened: set[int],
) -> None:
    """Eight documents, with the scores of their leaders, and none better left out."""
    child_offsets = built.codec_arrays["child_offsets"].astype(np.int64)
    expected, fewer = {}, 0
    for s, d in candidates:
        a, span = built.arrays[s], built.tokens(s, d)
        leaders = reference.leaders(built.coded[s][d], child_offsets, scores, opened)
        fewer += len(leaders) < len(built.coded[s][d])
        levels = reference.unpack_levels(a["codes"][span][leaders], 64, 4)
        fines = reference.fines_of(built.codec_arrays, a)[span][leaders]
        per_token = (a[name][span][leaders] for name in ("steps", "multipliers"))
        expected[s, d] = reference.score_document(
            rows, scale, scores, fines, *per_token, levels, 15
        )
    assert fewer > 0 or len(rows) > 10
    assert len(skimmed) == 8
    for s, d, score in skimmed:
        assert score == pytest.approx(expected.pop((s, d)), rel=1e-5)
    assert max(expected.values()) <= min(score for _, _, score in skimmed) + 1e-5


@pytest.mark.parametrize("rerank", ["plane", "f16", "none"])
def test_exhaustive_ranking_is_that_of_the_stored_form(tmp_path: Path, rerank: str) -> None:
    built = build(tmp_path, rerank, n_docs=60)
    for query in built.queries:
        rows, scale = reference.prepare_query(_native._quantizer.rotate(query, built.codec.seed))
        scores = reference.centroid_scores(rows, scale, built.codec_arrays)
        expected = {}
        for s, docs in enumerate(built.docs):
            a = built.arrays[s]
            for d, doc in enumerate(docs):
                span = built.tokens(s, d)
                if len(doc) == 0:
                    continue
                if rerank == "f16":
                    expected[s, d] = reference.maxsim(query, doc.astype(np.float64))
                    continue
                fields = {
                    name: values[span]
                    for name, values in a.items()
                    if len(values) == len(a["codes"])
                }
                if rerank == "plane":
                    rows_of_doc = reference.reconstruct(built.codec_arrays, fields, 4)
                    rotated = _native._quantizer.rotate(query, built.codec.seed)
                    expected[s, d] = reference.maxsim(rotated, rows_of_doc)
                    continue
                levels = reference.unpack_levels(a["codes"][span], 64, 4)
                expected[s, d] = reference.score_document(
                    rows,
                    scale,
                    scores,
                    reference.fines_of(built.codec_arrays, a)[span],
                    a["steps"][span],
                    a["multipliers"][span],
                    levels,
                    15,
                )
        every = len(expected)
        found = built.searcher.search(query, every, params(exhaustive=True, nrerank=10_000))
        assert found.path == "exhaustive"
        assert found.n_matching == every == len(found.ids)
        refs = list(zip(map(int, found.segments), map(int, found.docs), strict=True))
        assert sorted(refs) == sorted(expected)
        np.testing.assert_allclose(found.scores, [expected[r] for r in refs], rtol=2e-4, atol=2e-4)
        assert all(np.diff(found.scores) <= 0)


def test_pruned_with_everything_allowed_equals_exhaustive(built: Built) -> None:
    n = sum(len(docs) for docs in built.docs)
    wide = {"nprobe": 16, "budget": 10**6, "ncandidates": n, "nrefine": n}
    for query in built.queries:
        for nrerank in (0, 12):
            pruned = built.searcher.search(query, 10, params(**wide, nrerank=nrerank))
            full = built.searcher.search(query, 10, params(exhaustive=True, nrerank=nrerank))
            assert (pruned.path, full.path) == ("pruned", "exhaustive")
            assert pruned.ids == full.ids
            assert pruned.scores.tobytes() == full.scores.tobytes()


def test_batch_is_one_by_one_for_any_number_of_threads(built: Built) -> None:
    values = np.concatenate(built.queries)
    offsets = np.cumsum([0, *map(len, built.queries)]).astype(np.uint64)
    every_stage = params(budget=2000, ncandidates=200, nskim=150, nrefine=100, nrerank=80)
    for how in (params(), every_stage, params(exhaustive=True, nrerank=80)):
        batch = built.searcher.search_batch(values, offsets, 7, how)  # a thread for each
        for query, found in zip(built.queries, batch, strict=True):
            one = built.searcher.search(query, 7, how)  # two threads for all
            assert found.ids == one.ids
            assert found.scores.tobytes() == one.scores.tobytes()


def test_only_allowed_documents_are_found(built: Built) -> None:
    rng = np.random.default_rng(0)
    keep = [rng.random(len(docs)) < 0.2 for docs in built.docs]
    bitmaps = []
    for flags in keep:
        bits = np.packbits(flags, bitorder="little")
        words = np.zeros((len(flags) + 63) // 64 * 8, np.uint8)
        words[: len(bits)] = bits
        bitmaps.append(words.view(np.uint64))
    for query in built.queries:
        full = params(exhaustive=True)
        for how in (full, params(nprobe=16, budget=10**6, ncandidates=500, nrefine=500)):
            found = built.searcher.search(query, 10, how, bitmaps)
            assert found.path == ("exhaustive" if how is full else "pruned")
            assert len(found.ids) == 10
            assert all(keep[s][d] for s, d in zip(found.segments, found.docs, strict=True))
            assert found.n_matching == sum(
                int(flag and len(doc) > 0)
                for flags, docs in zip(keep, built.docs, strict=True)
                for flag, doc in zip(flags, docs, strict=True)
            )


def test_alignment_adds_up_to_the_score(built: Built) -> None:
    query = built.queries[2]
    found = built.searcher.search(query, 5, params(exhaustive=True, nrerank=10_000))
    for s, d, score in zip(found.segments, found.docs, found.scores, strict=True):
        tokens, similarities = built.searcher.align(query, int(s), int(d))
        assert float(similarities.sum()) == pytest.approx(float(score), abs=1e-5)
        assert tokens.max() < len(built.docs[s][d])
        again = built.searcher.score(query, int(s), np.array([d], np.uint32))
        assert again[0] == score


def test_more_results_than_documents_gives_all(built: Built) -> None:
    filled = sum(len(doc) > 0 for docs in built.docs for doc in docs)
    found = built.searcher.search(
        built.queries[0], 10_000, params(ncandidates=10_000, nrefine=10_000)
    )
    assert len(found.ids) == filled == len(set(found.ids))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nprobe": 0}, "nprobe=0"),
        ({"budget": 0}, "budget=0"),
        ({"nrefine": 3}, "nrefine=3"),
        ({"ncandidates": 10}, "ncandidates=10"),
        ({"nrerank": 2}, "nrerank=2"),
        ({"floor": 1.5}, "floor=1.5"),
    ],
)
def test_bad_parameters_are_named(built: Built, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        built.searcher.search(built.queries[0], 5, params(**changes))


def test_truth_is_exact(built: Built) -> None:
    docs = [doc for part in built.docs for doc in part]
    values = np.concatenate(built.queries)
    offsets = np.cumsum([0, *map(len, built.queries)]).astype(np.uint64)
    truth = _native.Truth(values, offsets, 10, 2)
    half = len(docs) // 2
    for first, part in ((0, docs[:half]), (half, docs[half:])):
        truth.scan(np.concatenate(part), np.cumsum([0, *map(len, part)]).astype(np.uint64), first)
    numbers, scores = truth.result()
    for q, query in enumerate(built.queries):
        exact = [reference.maxsim(query, doc.astype(np.float64)) for doc in docs]
        np.testing.assert_allclose(scores[q], np.sort(exact)[::-1][:10], rtol=1e-5)
        np.testing.assert_allclose([exact[n] for n in numbers[q]], scores[q], rtol=1e-5)
