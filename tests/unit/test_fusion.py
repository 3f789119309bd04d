# SPDX-License-Identifier: Apache-2.0
"""Rules of fusion against plain loops over the scores of each field."""

import itertools

import numpy as np
import pytest

import weft
from weft.errors import InvalidArgumentError

FIELDS = ("multi", "dense", "sparse")
WEIGHTS = {"dense": 0.5, "sparse": 0.3, "multi": 0.1}  # no two alike: a swap shows


@pytest.fixture
def scores(rng):
    """Exact scores of 30 documents in each field, some of them equal."""
    return {
        name: {f"d{i}": float(score) for i, score in enumerate(np.round(rng.random(30), 2))}
        for name in FIELDS
    }


def ranked(found):
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def best(scores, depth=8):
    """The first of each field, in order."""
    return {name: dict(list(ranked(found).items())[:depth]) for name, found in scores.items()}


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("missing", ["rescore", "zero"])
def test_weighted(scores, divide, missing):
    lists = best(scores)
    fused = weft.Weighted(WEIGHTS, divide=divide, missing=missing).fused(lists, scores)
    union = {doc for name in FIELDS for doc in lists[name]}
    assert set(fused) == union
    assert len(union) > 8
    for doc in union:
        total = 0.0
        for name in FIELDS:
            if missing == "rescore":
                total += WEIGHTS[name] * scores[name][doc]
            elif doc in lists[name]:
                total += WEIGHTS[name] * lists[name][doc]
        if divide:
            total /= 0.5 + 0.3 + 0.1
        assert fused[doc] == pytest.approx(total, rel=1e-12)


def test_weights_go_by_name(scores):
    lists = best(scores)
    right = weft.Weighted(WEIGHTS).fused(lists, scores)
    for names in itertools.permutations(WEIGHTS):
        given = dict(zip(names, WEIGHTS.values(), strict=True))
        same = weft.Weighted(given).fused(lists, scores) == right
        assert same == (given == WEIGHTS)
    backwards = dict(reversed(WEIGHTS.items()))
    assert weft.Weighted(backwards).fused(lists, scores) == right


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_reciprocal_rank(scores, weights):
    lists = best(scores)
    fused = weft.ReciprocalRank(weights).fused(lists, {})
    for doc in {doc for name in FIELDS for doc in lists[name]}:
        total = 0.0
        for name in FIELDS:
            for place, other in enumerate(lists[name]):
                if other == doc:
                    total += (1.0 if weights is None else weights[name]) / (60 + 1 + place)
        assert fused[doc] == pytest.approx(total, rel=1e-12)
    assert weft.ReciprocalRank().fused({"dense": {"a": 9.0, "b": 9.0}}, {}) == {
        "a": 1 / 61, "b": 1 / 62,
    }  # fmt: skip


def test_rerank(scores):
    lists = {"dense": best(scores)["dense"]}
    rule = weft.Rerank("dense", {"multi": 2.0, "sparse": 1.0})
    fused = rule.fused(lists, scores)
    assert set(fused) == set(lists["dense"])
    for doc, score in fused.items():
        total = 2.0 * scores["multi"][doc] + 1.0 * scores["sparse"][doc]
        assert score == pytest.approx(total / 3.0, rel=1e-12)
    assert rule.listed(FIELDS) == ("dense",)
    assert rule.rescored(FIELDS) == ("multi", "sparse")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: weft.Weighted([0.4, 0.2, 0.4]), r"weights=\[0.4, 0.2, 0.4\]: expected a mapping"),
        (lambda: weft.Weighted({"colbert": 1.0}), "field 'colbert': expected one of multi"),
        (lambda: weft.Weighted({"dense": -1.0}), r"weights\['dense'\]=-1.0: expected a finite"),
        (lambda: weft.Weighted({"dense": True}), r"weights\['dense'\]=True: expected a finite"),
        (lambda: weft.Weighted({"dense": float("nan")}), r"weights\['dense'\]=nan"),
        (lambda: weft.Weighted({"dense": 0.0}), "expected one above 0"),
        (lambda: weft.Weighted({}), "expected one above 0"),
        (lambda: weft.Weighted({"dense": 1.0}, missing="mean"), "missing='mean': expected"),
        (lambda: weft.Weighted({"dense": 1.0}, divide=1), "divide=1: expected True or False"),
        (lambda: weft.Weighted({"dense": 1.0}, depth=0), "depth=0: expected an integer >= 1"),
        (lambda: weft.Rerank("best", {"dense": 1.0}), "field 'best': expected one of"),
        (lambda: weft.Rerank("dense"), "expected one above 0"),
    ],
)
def test_what_is_no_rule(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()


def test_fields_that_do_not_fit():
    with pytest.raises(InvalidArgumentError, match="weights of dense: expected one for each field"):
        weft.Weighted({"dense": 1.0}).check(("multi", "dense"))
    with pytest.raises(InvalidArgumentError, match="of the query, dense, multi"):
        weft.ReciprocalRank({"dense": 1.0}).check(("multi", "dense"))
    with pytest.raises(InvalidArgumentError, match=r"of the query, dense$"):
        weft.Rerank("dense", {"multi": 1.0}).check(("dense",))
    weft.Rerank("dense", {"multi": 1.0}).check(("dense", "multi"))
    weft.ReciprocalRank().check(("sparse",))
