# SPDX-License-Identifier: Apache-2.0
"""A filtered search returns what a search of the matching documents alone would."""

import json
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import weft
from helpers import assert_ranking, exact, ragged_docs, unit_rows
from weft import errors
from weft.lifecycle.filters import parse
from weft.types import defaults

FIELDS = ["a", "b", "c"]
SCALARS = st.one_of(
    st.sampled_from([0, 1, 2, 0.0, 1.0, 2.5, -0.0, "", "1", "ab", "abc", True, False]),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=3),
    st.sampled_from(["a\0b", "\ud7ff", "\ue000", "\U0010ffff", "\U0010ffffz", "日本語"]),
)
CONDITIONS = st.one_of(
    SCALARS,
    st.dictionaries(
        st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"]), SCALARS, min_size=1
    ),
    st.dictionaries(st.sampled_from(["$in", "$nin"]), st.lists(SCALARS, max_size=4), min_size=1),
    st.fixed_dictionaries({"$prefix": st.one_of(st.text(max_size=2), st.just("\U0010ffff"))}),
    st.fixed_dictionaries({"$exists": st.booleans()}),
)
LEAVES = st.dictionaries(st.sampled_from(FIELDS), CONDITIONS, min_size=1, max_size=3)
TREES = st.recursive(
    LEAVES,
    lambda trees: st.one_of(
        st.fixed_dictionaries({"$not": trees}),
        st.fixed_dictionaries({"$and": st.lists(trees, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$or": st.lists(trees, min_size=1, max_size=3)}, optional={
            "a": CONDITIONS}),
    ),
    max_leaves=6,
)  # fmt: skip
METADATA = st.lists(st.dictionaries(st.sampled_from(FIELDS), SCALARS), min_size=1, max_size=10)


def same(value, other):
    return type(value) is type(other) and value == other


COMPARISONS = {
    "$eq": same,
    "$ne": lambda value, other: not same(value, other),
    "$gt": lambda value, other: type(value) is type(other) and value > other,
    "$gte": lambda value, other: type(value) is type(other) and value >= other,
    "$lt": lambda value, other: type(value) is type(other) and value < other,
    "$lte": lambda value, other: type(value) is type(other) and value <= other,
    "$in": lambda value, others: any(same(value, other) for other in others),
    "$nin": lambda value, others: not any(same(value, other) for other in others),
    "$prefix": lambda value, start: isinstance(value, str) and value.startswith(start),
    "$exists": lambda value, wanted: (value is not None) == wanted,
}


def holds(where, metadata):
    """The definition of a filter, for one document."""
    joins = {
        "$and": lambda parts: all(holds(part, metadata) for part in parts),
        "$or": lambda parts: any(holds(part, metadata) for part in parts),
        "$not": lambda part: not holds(part, metadata),
    }
    for name, value in where.items():
        if name in joins:
            if not joins[name](value):
                return False
            continue
        value = value if isinstance(value, dict) else {"$eq": value}
        for operator, given_value in value.items():
            if not COMPARISONS[operator](metadata.get(name), given_value):
                return False
    return True


@pytest.fixture(scope="module")
def few_docs():
    return ragged_docs(np.random.default_rng(3), 12, 4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(metadata=METADATA, trees=st.lists(TREES, min_size=8, max_size=8), gone=st.integers(0, 11))
def test_filters_mean_what_they_say(tmp_path_factory, few_docs, metadata, trees, gone):
    """In two segments, one document of several windows, one deleted, and for a writer as well."""
    index = weft.Index.create(tmp_path_factory.mktemp("i") / "i", weft.IndexConfig(dim=4))
    each = dict.fromkeys(FIELDS, "x")  # in both segments, so that no field is unknown
    everything = [each, *metadata, each]
    ids = [f"d{i}" for i in range(len(everything))]
    cut = len(ids) // 2
    index.add(ids[:cut], few_docs[:cut], metadata=everything[:cut])
    parents = [0, 0, *range(len(ids) - cut)]
    index.add(
        ids[cut:],
        (few_docs * 2)[: len(parents)],
        parents=parents,
        metadata=everything[cut:],
    )
    index.delete([f"d{gone}"])
    searcher = index.searcher()
    query = np.eye(4)[:1]
    for number, where in enumerate(trees):
        expected = {
            doc_id
            for doc_id, fields in zip(ids, everything, strict=True)
            if holds(where, fields) and doc_id != f"d{gone}"
        }
        hits = searcher.search(query, k=50, where=where)
        assert set(hits.ids) == expected
        assert hits.n_matching == len(expected)
        if number >= 2:  # a writer reads the same table
            continue
        with index.writer() as writer:
            assert writer.delete(where=where) == len(expected)
            writer.rollback()
            writer.upsert(ids, (few_docs * 2)[: len(ids)], metadata=everything)
            matching = sum(holds(where, fields) for fields in everything)
            assert writer.delete(where=where) == matching
            writer.rollback()


@pytest.fixture
def docs(rng):
    return ragged_docs(rng, 240, 8, shortest=4)


def collection(make_index, docs):
    """Three segments of 80, every document with the same few fields; some deleted."""
    index = make_index()
    for first in range(0, 240, 80):
        numbers = range(first, first + 80)
        index.add(
            [f"d{i}" for i in numbers],
            docs[first : first + 80],
            metadata=[{"n": i, "half": i % 2 == 0, "name": f"doc {i:03}"} for i in numbers],
        )
    index.delete([f"d{i}" for i in range(0, 240, 7)])
    return index


@pytest.mark.parametrize("coded", [True, False])
@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ({"half": True}, lambda i: i % 2 == 0),
        ({"n": {"$gte": 60, "$lt": 100}}, lambda i: 60 <= i < 100),
        ({"name": {"$prefix": "doc 12"}}, lambda i: 120 <= i < 130),
        ({"n": {"$in": [3, 81, 200, 14]}}, lambda i: i in (3, 81, 200)),
        ({"n": {"$gt": 500}}, lambda i: False),
    ],
)
def test_it_is_search_and_then_filter(make_index, docs, request, coded, where, kept):
    if coded:
        request.getfixturevalue("small_codec")
    index = collection(make_index, docs)
    assert (index.info.n_fine is not None) == coded
    matching = {f"d{i}" for i in range(240) if kept(i) and i % 7}
    for query in docs[:3]:
        for search in (
            index.exact_search,
            lambda *given, **more: index.search(*given, recall=1.0, **more),
        ):
            everything = [hit for hit in search(query, 240) if hit.id in matching]
            for more in ({"where": where}, {"allow": matching | {"nobody", "d0"}}):
                hits = search(query, 10, **more)
                assert [(h.id, h.score) for h in hits] == [(h.id, h.score) for h in everything[:10]]
                assert hits.n_matching == len(matching)
        pruned = weft.SearchParams(ncandidates=300, nskim=0, nrefine=300, nrerank=0)
        hits = index.search(query, k=240, params=pruned, where=where)
        assert set(hits.ids) == matching


def test_where_and_allow_together(make_index, docs):
    index = collection(make_index, docs)
    hits = index.search(docs[0], k=50, where={"half": True}, allow=["d2", "d3", "d4", "d14", "?"])
    assert (set(hits.ids), hits.n_matching) == ({"d2", "d4"}, 2)
    assert len(index.search(docs[0], allow=[])) == 0
    batch = index.search_batch(
        docs[:4], k=5, where={"n": {"$lt": 50}}, allow=(f"d{i}" for i in (1, 2))
    )
    assert [set(hits.ids) for hits in batch] == [{"d1", "d2"}] * 4  # fmt: skip


def test_a_batch_is_one_by_one(make_index, docs, small_codec):
    index = collection(make_index, docs)
    where = {"$not": {"n": {"$lt": 30}}}
    batch = index.search_batch(docs[:6], k=7, where=where)
    for query, hits in zip(docs[:6], batch, strict=True):
        assert hits.hits == index.search(query, k=7, where=where).hits


def test_any_number_of_threads_gives_the_same_bits(make_index, docs, small_codec):
    index = collection(make_index, docs)
    searchers = [index.searcher(threads=threads) for threads in (1, 2, 5)]
    for params in (weft.SearchParams(budget=500), weft.SearchParams(exhaustive=True)):
        for where in ({"half": False}, {"n": {"$lt": 40}}):
            answers = [s.search(docs[5], params=params, where=where) for s in searchers]
            assert answers[0].hits == answers[1].hits == answers[2].hits
            batches = [s.search_batch(docs[:9], params=params, where=where) for s in searchers]
            assert [h.hits for h in batches[0]] == [h.hits for h in batches[2]]


def test_long_documents_match_as_a_whole(make_index, docs):
    index = make_index(
        docs[:6], ids=["long", "short"], parents=[0, 0, 0, 0, 1, 1],
        metadata=[{"kind": "l"}, {"kind": "s", "year": 1}],
    )  # fmt: skip
    index.add(["other"], [docs[7]])  # its segment has no metadata at all
    for where, ids in (
        ({"kind": "l"}, {"long"}),
        ({"year": {"$exists": False}}, {"long", "other"}),
        ({"kind": {"$ne": "l"}}, {"short", "other"}),
    ):
        hits = index.search(docs[2], k=3, where=where)
        assert (set(hits.ids), hits.n_matching) == (ids, len(ids))
    assert index.search(docs[2], where={"kind": "l"})[0].passage == 2
    assert index.search(docs[2], allow=["long"]).ids == ("long",)
    assert index.delete(where={"kind": {"$in": ["l", "m"]}}) == 1
    assert set(index.search(docs[2]).ids) == {"short", "other"}
    scores = exact(docs[5], [docs[7]], ["other"])
    assert_ranking(index.search(docs[5], where={"kind": {"$exists": False}}), scores)


def test_delete_where(make_index, docs, small_codec):
    index = collection(make_index, docs)
    n_docs, n_there = len(index), sum(i % 7 > 0 for i in range(230, 240))
    with index.writer() as writer:
        writer.add(["new", "newer"], docs[:2], metadata=[{"n": 1_000}, {"n": 5}])
        writer.delete(["newer"])
        assert writer.delete(where={"n": {"$gte": 230}}) == 1 + sum(
            i % 7 > 0 for i in range(230, 240)
        )
        assert writer.delete(where={"n": {"$gte": 230}}) == 0
        with pytest.raises(errors.InvalidArgumentError, match="field 'm': no document has it"):
            writer.delete(where={"m": 1})
        for wrong in ({}, {"ids": ["d1"], "where": {"n": 1}}):
            with pytest.raises(errors.InvalidArgumentError, match="ids and where"):
                writer.delete(**wrong)
    assert len(index) == n_docs - n_there
    assert index.verify(deep=True) == ()
    assert len(index.search(docs[0], k=500, where={"n": {"$gte": 230}})) == 0


DEEP = {"a": 1}
for _ in range(100_000):
    DEEP = {"$not": DEEP}
LOOP: dict = {}
LOOP["$not"] = LOOP


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({}, "where: found dict, expected a dictionary with at least one condition"),
        ([], "where: found list"),
        ("lang = 'ja'", "where: found \"lang = 'ja'\", expected"),
        ({"": 1}, "field ''"),
        ({3: 1}, "field 3"),
        ({"nmae": "x"}, "field 'nmae': no document has it, expected one of 'half', 'n', 'name'"),
        ({"n": 1, "$or": [{"n": 2}, {"x": 1}]}, "field 'x': no document has it"),
        ({"n": {"$regex": "x"}}, r"field 'n': operator '\$regex', expected one of \$eq, \$ne"),
        ({"n": {"gt": 2}}, "field 'n': operator 'gt'"),
        ({"n": {}}, "field 'n': no operator"),
        ({"$nor": [{"n": 1}]}, r"operator '\$nor': expected a field, or one of \$and"),
        ({"$and": []}, r"\$and: found list, expected a list of filters"),
        ({"$or": {"n": 1}}, r"\$or: found dict"),
        ({"$and": [{"n": 1}, 3]}, "found 3, expected a dictionary"),
        ({"$not": [{"n": 1}]}, "found list"),
        ({"n": None}, r"field 'n': \$eq value is NoneType, expected str, .*\$exists"),
        ({"n": [1, 2]}, r"field 'n': \$eq value is list"),
        ({"n": {"$gt": {"x": 1}}}, r"\$gt value is dict"),
        ({"n": {"$in": 3}}, r"field 'n': \$in 3: expected a list"),
        ({"n": {"$in": "abc"}}, r"\$in 'abc': expected a list"),
        ({"n": {"$in": [1, None]}}, r"\$in value is NoneType"),
        ({"n": {"$in": list(range(1_001))}}, r"\$in: 1001 values, expected 1000 at most"),
        ({"n": {"$prefix": 1}}, r"\$prefix 1: expected a string"),
        ({"n": {"$exists": 1}}, r"\$exists 1: expected true or false"),
        ({"n": 2**63}, "takes 64 bits, expected 63 at most"),
        ({"n": 10**5_000}, "takes 16610 bits"),
        ({"n": {"$in": 10**5_000}}, r"\$in int: expected a list"),
        ({"n": float("inf")}, "finite"),
        ({"name": "\ud800"}, "surrogate"),
        ({"$or": [{"n": i} for i in range(65)]}, "more than 64 conditions"),
        (DEEP, "nested deeper than 8"),
        (LOOP, "nested deeper than 8"),
        ({"x" * 10**6: 1}, r"field 'x{70,80}\.\.\.: no document has it"),
    ],
)  # fmt: skip
def test_filters_that_cannot_be(make_index, docs, where, message):
    index = collection(make_index, docs)
    with pytest.raises(errors.InvalidArgumentError, match=message) as raised:
        index.search(docs[0], where=where)
    assert len(str(raised.value)) < 1_000


def test_a_filter_of_an_index_without_metadata(make_index, docs):
    for index in (make_index(), make_index(docs[:3]), make_index(docs[:3], texts=["x"] * 3)):
        with pytest.raises(errors.InvalidArgumentError, match="'n': no document has metadata"):
            index.search(docs[0], where={"n": {"$exists": False}})


@pytest.mark.parametrize("allow", ["d1", 7, [1], ["d1", None], b"d1"])
def test_allow_lists_that_cannot_be(make_index, docs, allow):
    index = make_index(docs[:3])
    with pytest.raises(errors.InvalidArgumentError, match="allow"):
        index.search(docs[0], allow=allow)


def test_the_largest_filter_there_may_be(make_index, docs):
    index = collection(make_index, docs)
    values = [*range(500), *map(str, range(500))]
    where = {"$and": [{"n": {"$in": values}}] * defaults.filter_terms}
    assert len(index.search(docs[0], k=500, where=where)) == len(index)
    for _ in range(defaults.filter_depth - 2):
        where = {"$not": where}
    assert len(index.search(docs[0], k=500, where=where)) == len(index)


def test_the_same_filter_written_differently_is_one():
    assert parse({"n": 1}) == parse({"n": {"$eq": 1}}) == parse({"n": {"$in": [1, 1]}})
    assert parse({"a": 1, "b": 2}) == parse({"$and": [{"a": 1}, {"b": 2}]})
    assert len({parse({"n": value}) for value in (1, 1.0, True, "1")}) == 4
    assert hash(parse(json.loads('{"n": {"$in": [2, 1]}}'))) == hash(parse({"n": {"$in": (1, 2)}}))


def test_bitmaps_are_made_once_and_kept_within_bounds(make_index, docs, monkeypatch):
    searcher = collection(make_index, docs).searcher()
    asked = []
    store = searcher._snapshot.segments[0].documents
    select = store.select
    monkeypatch.setattr(store, "select", lambda *given: asked.append(given) or select(*given))
    for _ in range(3):
        assert len(searcher.search(docs[0], where={"n": {"$lt": 9}})) == 7
    assert len(asked) == 2  # is there such a field, and which documents
    for i in range(40):
        searcher.search(docs[0], where={"n": i})
    assert searcher._filters._matching.cache_info().currsize == 32


def test_filters_from_many_threads(make_index, docs):
    searcher = collection(make_index, docs).searcher()
    wrong = []

    def ask(number):
        for i in range(number, 240, 8):
            hits = searcher.search(docs[i], k=240, where={"n": {"$gte": i}})
            if set(hits.ids) != {f"d{j}" for j in range(i, 240) if j % 7}:
                wrong.append(i)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_damaged_metadata_are_named(make_index, docs):
    for sql in ("UPDATE metadata SET doc = 1000 + doc", "UPDATE document SET n_windows = 99"):
        index = make_index(
            docs[:6], ids=["a", "b"], parents=[0, 0, 0, 0, 1, 1], metadata=[{"n": 1}, {"n": 2}]
        )
        (path,) = index.path.glob("*.docs.sqlite")
        size = path.stat().st_size
        with sqlite3.connect(path) as connection:
            connection.execute(sql)
        connection.close()
        assert path.stat().st_size == size
        with pytest.raises(errors.CorruptIndexError, match=path.name):
            weft.Index.open(index.path).search(unit_rows(np.random.default_rng(1), 2, 8),
                                               where={"n": 1})  # fmt: skip


def test_files_made_before_there_was_an_index_of_values(make_index, docs, monkeypatch):
    monkeypatch.setattr("weft.lifecycle.spool.BY_VALUE", "SELECT 1")
    old = collection(make_index, docs)
    monkeypatch.undo()
    new = collection(make_index, docs)
    where = {"$or": [{"n": {"$lt": 50}}, {"name": {"$prefix": "doc 2"}}]}
    hits = new.search(docs[1], k=99, where=where).hits
    assert old.search(docs[1], k=99, where=where).hits == hits
    old.compact()
    assert old.search(docs[1], k=99, where=where).hits == hits
    golden = weft.Index.open(Path(__file__).parents[1] / "golden" / "data" / "v1" / "plane")
    query = np.eye(golden.config.dim)[:2]
    found = golden.search(query, k=60, where={"even": True, "half": {"$gt": 20.0}})
    assert sorted(golden.documents([hit.id])[0].metadata["number"] for hit in found) == list(
        range(42, 60, 2)
    )
