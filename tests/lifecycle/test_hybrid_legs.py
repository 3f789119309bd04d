# SPDX-License-Identifier: Apache-2.0
"""How a hybrid search asks its fields: exactly, at once, and at which operating point."""

import pytest

import weft
from helpers import ragged_docs
from lifecycle.test_hybrid import DIM, WEIGHTS, close_ranking, first, world
from weft import errors

__all__ = ["world"]


def test_exact_search_joins_exact_lists(world):
    rule = weft.Weighted(WEIGHTS, depth=20)
    for threads in (1, 2):
        hybrid = weft.HybridSearcher(world.index.searcher(threads=threads), rule)
        for _ in range(5):
            query = world.query()
            exact = world.exact(query)
            lists = [first(scores, 20) for scores in exact.values()]
            expected = {
                doc_id: sum(WEIGHTS[name] * exact[name][doc_id] for name in WEIGHTS)
                / sum(WEIGHTS.values())
                for doc_id in {doc_id for found in lists for doc_id in found}
            }
            close_ranking(hybrid.exact_search(query, 10), expected)


def test_threads_change_nothing(world):
    query = world.query()
    for rule in (weft.Weighted(WEIGHTS), weft.ReciprocalRank(), weft.Rerank("dense", WEIGHTS)):
        one, two = (
            weft.HybridSearcher(world.index.searcher(threads=threads), rule).search(query, 20)
            for threads in (1, 2)
        )
        assert one.hits == two.hits


@pytest.mark.parametrize("failing", ["multi", "dense", "sparse"])
def test_whatever_a_field_raises_is_raised(world, monkeypatch, failing):
    """Also what is raised on the second thread; then the others have ended, too."""
    searcher = world.index.searcher(threads=2)
    ended = []

    def fails(*_, **__):
        raise errors.StorageError(f"{failing} is gone", "x", 5)

    def ends(name, search):
        def found(*args, **options):
            hits = search(*args, **options)
            ended.append(name)
            return hits

        return found

    legs = {"multi": (searcher, "search"), "dense": (searcher.dense, "search")}
    legs["sparse"] = (searcher.sparse, "search_products")
    for name, (leg, method) in legs.items():
        how = fails if name == failing else ends(name, getattr(leg, method))
        monkeypatch.setattr(leg, method, how)
    with pytest.raises(errors.StorageError, match=f"{failing} is gone"):
        weft.HybridSearcher(searcher).search(world.query())
    assert ("multi" in ended) == (failing != "multi")
    assert ("dense" in ended) == (failing != "dense")


@pytest.mark.usefixtures("small_codec")
@pytest.mark.parametrize(("k", "recall"), [(5, None), (5, 0.8), (10, 0.9)])
def test_recall_is_of_the_documents_asked_for(world, monkeypatch, k, recall):
    """The operating point is the cheapest for k, not for the list's length, and wide enough."""
    world.index.add([f"e{i}" for i in range(200)], ragged_docs(world.random, 200, DIM))
    points = world.index.info.operating_points
    target = 0.95 if recall is None else recall
    (expected,) = [
        point for point in points
        if point.target == target and point.k == min(p.k for p in points if p.k >= k)
    ]  # fmt: skip
    searcher, asked = world.index.searcher(), []
    search = searcher.search

    def watched(rows, depth, **options):
        asked.append((depth, options["params"]))
        return search(rows, depth, **options)

    monkeypatch.setattr(searcher, "search", watched)
    hybrid = weft.HybridSearcher(searcher, weft.ReciprocalRank(depth=50))
    hits = hybrid.search(world.query(), k, recall=recall)
    ((depth, params),) = asked
    assert depth == 50
    assert (params.nprobe, params.budget) == (expected.params.nprobe, expected.params.budget)
    assert params.nrefine == max(expected.params.nrefine, 50)
    found = hits.operating_point
    assert (found.k, found.target, found.measured) == (
        expected.k, expected.target, expected.measured,
    )  # fmt: skip
    assert found.path in ("pruned", "exhaustive")
