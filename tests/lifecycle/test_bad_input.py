# SPDX-License-Identifier: Apache-2.0
"""Bad input has a defined result or one clear error, and never changes the index."""

import contextlib
import os
import shutil

import numpy as np
import pytest

import weft
from helpers import ragged_docs, unit_rows
from weft import errors
from weft.errors import InvalidArgumentError

DIM = 8
GOOD = np.eye(DIM, dtype=np.float32)[:3]


def broken(row, column, value):
    rows = GOOD.copy()
    rows[row] = 0.0 if column is None else rows[row]
    if column is not None:
        rows[row, column] = value
    return rows


def state(index):
    """Every byte of the folder but the lock's."""
    return {
        str(path.relative_to(index.path)): path.read_bytes()
        for path in sorted(index.path.rglob("*"))
        if path.is_file() and path.name != "LOCK"
    }


@pytest.fixture
def index(make_index, rng):
    return make_index(ragged_docs(rng, 4, DIM), texts=["a", "b", "c", "d"])


ADDS = {
    "wrong dim": ((["x"], [np.ones((3, DIM + 1))]), {}, "document 'x': dim 9, expected 8"),
    "wrong dim later": ((["x", "y"], [GOOD, GOOD[:, :4]]), {}, "document 'y': dim 4, expected 8"),
    "NaN": ((["x", "y"], [GOOD, broken(1, 2, np.nan)]), {}, "document 'y', row 1: NaN or infinite"),
    "infinite": ((["x"], [broken(2, 0, np.inf)]), {}, "document 'x', row 2: NaN or infinite"),
    "minus infinite": ((["x"], [broken(0, 0, -np.inf)]), {}, "document 'x', row 0: NaN"),
    "float64 overflow": (
        (["x"], [GOOD.astype(float) * 1e300]),
        {},
        "document 'x', row 0: NaN or infinite",
    ),
    "zero row": ((["x"], [broken(1, None, 0)]), {}, "document 'x', row 1: all zero.*drop the row"),
    "NaN in a window": (
        (["x"], [GOOD, broken(1, 1, np.nan)]),
        {"parents": [0, 0]},
        "document 'x', window 1, row 1: NaN",
    ),
    "one dimension": ((["x"], [GOOD[0]]), {}, r"document 'x': found 1 dimensions.*x\[None, :\]"),
    "integers": (
        (["x"], [np.eye(DIM, dtype=int)]),
        {},
        "document 'x': dtype int64, expected one of",
    ),
    "strings": ((["x"], [[["a"] * DIM]]), {}, "document 'x': dtype <U1"),
    "one array": ((["x"], GOOD), {}, r"found one 2-D array.*use \[array\]"),
    "padded": ((["x"], GOOD[None]), {}, "expected lengths="),
    "too few": (
        (["x", "y"], [GOOD]),
        {},
        "embeddings: found 1 of them, expected 2, one for each id",
    ),
    "too many": ((["x"], [GOOD, GOOD]), {}, "embeddings: found 2 of them, expected 1"),
    "bad offsets": ((["x", "y"], (GOOD, [0, 2, 5])), {}, "offsets: the last is 5"),
    "no embeddings": ((["x"], None), {}, "embeddings: found NoneType"),
    "id twice": ((["x", "x"], [GOOD, GOOD]), {}, "id 'x': twice in one call"),
    "id in the index": ((["x", "d1"], [GOOD, GOOD]), {}, "id 'd1': in the index already"),
    "id a number": (([1], [GOOD]), {}, r"id 1: int, expected a string; use str\(id\)"),
    "id bytes": (([b"x"], [GOOD]), {}, "id b'x': bytes, expected a string"),
    "id None": (([None], [GOOD]), {}, "id None: NoneType"),
    "ids one string": (
        ("xyz", [GOOD] * 3),
        {},
        r"ids='xyz': expected a sequence of ids; use \[id\]",
    ),
    "id empty": (([""], [GOOD]), {}, r"id '': 0 bytes of UTF-8, expected 1\.\.1024"),
    "id too long": ((["é" * 513], [GOOD]), {}, r"1026 bytes of UTF-8, expected 1\.\.1024"),
    "id with NUL": ((["a\0b"], [GOOD]), {}, r"expected no U\+0000 and no U\+001F"),
    "id with separator": ((["a\x1f0"], [GOOD]), {}, r"expected no U\+0000 and no U\+001F"),
    "id with surrogate": ((["a\ud800"], [GOOD]), {}, "half a surrogate pair"),
    "text a number": (
        (["x"], [GOOD]),
        {"texts": [3]},
        "document 'x': text: int, expected a string",
    ),
    "text with surrogate": (
        (["x"], [GOOD]),
        {"texts": ["\udfff"]},
        "document 'x': text: .*surrogate",
    ),
    "texts one string": (
        (["x"], [GOOD]),
        {"texts": "x"},
        "texts: found str, expected a sequence of 1",
    ),
    "too few texts": ((["x", "y"], [GOOD] * 2), {"texts": ["a"]}, "texts: found 1 .*, expected 2"),
    "metadata nested": (
        (["x"], [GOOD]),
        {"metadata": [{"a": {"b": 1}}]},
        "document 'x': metadata field 'a' is dict, expected str, int, float or bool",
    ),
    "metadata a dictionary": ((["x"], [GOOD]), {"metadata": {"a": 1}}, "metadata: found dict"),
    "spans short": ((["x"], [GOOD]), {"spans": [[[0, 1]]]}, r"document 'x': spans.*\(3, 2\)"),
    "spans outside": (
        (["x"], [GOOD]),
        {"spans": [[[0, 1], [1, 2], [2, 9]]], "texts": ["abc"]},
        r"document 'x': span of token 2 is 2\.\.9.*<= 3",
    ),
    "parents without windows": (
        (["x", "y"], [GOOD]),
        {"parents": [0]},
        "parents: expected positions",
    ),
}


@pytest.mark.parametrize("case", ADDS)
def test_a_refused_add_changes_nothing(index, case):
    given, more, message = ADDS[case]
    before = state(index)
    with index.writer() as writer:
        writer.add(["kept"], [GOOD], texts=["kept"])
        with pytest.raises(InvalidArgumentError, match=message):
            writer.add(*given, **more)
        assert len(weft.Index.open(index.path)) == 4
        writer.rollback()
    assert state(index) == before
    with index.writer() as writer:
        writer.add(["kept"], [GOOD], texts=["kept"])
        with pytest.raises(InvalidArgumentError):
            writer.add(*given, **more)
        writer.add(["x"], [GOOD])
    assert sorted(index.search(GOOD, k=10).ids) == ["d0", "d1", "d2", "d3", "kept", "x"]
    assert index.verify(deep=True) == ()


def test_an_id_twice_in_one_writer(index):
    with index.writer() as writer:
        writer.add(["x", "y"], [GOOD, GOOD])
        with pytest.raises(InvalidArgumentError, match="id 'y': added before"):
            writer.add(["z", "y"], [GOOD, GOOD])
        writer.add(["z"], [GOOD])
    assert len(index) == 7


@pytest.mark.parametrize(
    "doc_id", ["a", "é" * 512, " ", "a b/c?", "\n", "😀", "ÀÀ", "\x01", "\x7f"]
)
def test_ids_that_can_be(make_index, doc_id):
    index = make_index([GOOD], ids=[doc_id])
    assert index.search(GOOD)[0].id == doc_id
    assert index.documents([doc_id])[0].id == doc_id


def test_zero_documents(make_index):
    index = make_index()
    assert len(index) == 0
    hits = index.search(GOOD, k=10)
    assert (len(hits), hits.n_matching, hits.generation) == (0, 0, 1)
    assert len(index.exact_search(GOOD)) == 0
    assert index.verify(deep=True) == ()
    assert index.score(GOOD, []).shape == (0,)
    index.add([], [])
    index.add([], (np.empty((0, DIM), np.float32), [0]))
    assert index.generation == 1


QUERIES = {
    "empty": (GOOD[:0], "query: empty, expected at least one token embedding"),
    "wrong dim": (np.ones((2, 5)), "query: dim 5, expected 8"),
    "one dimension": (GOOD[0], r"query: found 1 dimensions.*x\[None, :\]"),
    "NaN": (broken(1, 0, np.nan), "query, row 1: NaN or infinite"),
    "infinite": (broken(2, 0, np.inf), "query, row 2: NaN or infinite"),
    "zero row": (broken(0, None, 0), "query, row 0: all zero"),
    "text": ("what is late interaction?", "query: "),
    "None": (None, "query: "),
    "integers": (np.eye(DIM, dtype=int), "query: dtype int64"),
}


@pytest.mark.parametrize("case", QUERIES)
def test_queries_that_cannot_be(index, case):
    query, message = QUERIES[case]
    for ask in (
        lambda: index.search(query),
        lambda: index.exact_search(query),
        lambda: index.score(query, ["d0"]),
        lambda: index.explain(query, "d0"),
    ):
        with pytest.raises(InvalidArgumentError, match=f"^{message}"):
            ask()


@pytest.mark.parametrize("case", ["empty", "wrong dim", "NaN", "zero row", "one dimension"])
def test_a_bad_query_of_a_batch_is_named_by_its_place(index, case):
    query, message = QUERIES[case]
    with pytest.raises(InvalidArgumentError, match=message.replace("query", "query 2")):
        index.search_batch([GOOD, GOOD, query, GOOD])


@pytest.mark.parametrize("k", [0, -1, 1.0, "10", None, True])
def test_k_that_cannot_be(index, k):
    for ask in (index.search, index.exact_search, lambda q, k: index.search_batch([q], k)):
        with pytest.raises(InvalidArgumentError, match=r"^k=.*: expected an integer >= 1"):
            ask(GOOD, k)


@pytest.mark.parametrize("recall", [0, -0.1, 1.01, 95, float("nan"), "0.9", True])
def test_recalls_that_cannot_be(index, recall):
    with pytest.raises(InvalidArgumentError, match=r"^recall=.*: expected a number in \(0, 1\]"):
        index.search(GOOD, recall=recall)


FORMS = {
    "float64": lambda rows: rows.astype(np.float64),
    "float16": lambda rows: rows.astype(np.float16),
    "big-endian": lambda rows: rows.astype(">f4"),
    "strided": lambda rows: np.repeat(np.repeat(rows, 2, axis=0), 3, axis=1)[::2, ::3],
    "fortran": lambda rows: np.asfortranarray(rows),
    "backwards": lambda rows: rows[::-1].copy()[::-1],
    "read-only": lambda rows: np.frombuffer(rows.tobytes(), np.float32).reshape(rows.shape),
    "scaled": lambda rows: rows * 17.5,
    "tiny": lambda rows: rows * 1e-20,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_array_gives_the_same_index(make_index, rng, form):
    docs = [doc.astype(np.float16).astype(np.float32) for doc in ragged_docs(rng, 6, DIM)]
    expected = make_index(docs)
    index = make_index([FORMS[form](doc) for doc in docs])
    query = unit_rows(rng, 3, DIM)
    assert index.search(query).ids == expected.search(query).ids
    assert np.allclose(index.search(query).scores, expected.search(query).scores, atol=2e-3)
    if form not in ("scaled", "tiny"):
        converted = FORMS[form](query)
        assert np.allclose(index.search(converted).scores, index.search(query).scores, atol=2e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_tensors_give_the_same_index(make_index, rng, dtype):
    torch = pytest.importorskip("torch")
    docs = ragged_docs(rng, 6, DIM)
    tensors = [torch.from_numpy(doc).to(getattr(torch, dtype)) for doc in docs]
    index, expected = make_index(tensors), make_index(docs)
    packed = make_index(
        (torch.cat(tensors), torch.tensor([0, *np.cumsum([len(doc) for doc in docs])])),
        ids=[f"d{i}" for i in range(6)],
    )
    query = unit_rows(rng, 3, DIM)
    for found in (index, packed):
        scores = {hit.id: hit.score for hit in found.search(query)}
        for hit in expected.search(query):
            assert scores[hit.id] == pytest.approx(hit.score, abs=0.02)
    hits = index.search(torch.from_numpy(query).to(getattr(torch, dtype)))
    assert hits[0].score == pytest.approx(index.search(query)[0].score, abs=0.02)


def test_what_was_given_is_not_changed(make_index, rng):
    docs = [3 * doc for doc in ragged_docs(rng, 3, DIM)]
    copies = [doc.copy() for doc in docs]
    index = make_index(docs)
    query = unit_rows(rng, 3, DIM)
    copy = query.copy()
    index.search(query)
    index.explain(query, "d0")
    assert all(np.array_equal(a, b) for a, b in zip(docs, copies, strict=True))
    assert np.array_equal(query, copy)


# ---- files ---------------------------------------------------------------------------------------


@pytest.fixture
def coded(make_index, small_codec, rng):
    index = make_index(ragged_docs(rng, 100, DIM), texts=[f"text {i}" for i in range(100)])
    assert index.info.n_fine
    return index


def use(path):
    """Everything that reads: an answer, or one of our errors."""
    index = weft.Index.open(path)
    index.search(GOOD)
    index.search(GOOD, recall=1.0)
    index.exact_search(GOOD)
    index.documents(["d1", "d99"])
    index.explain(GOOD, "d7")


@pytest.mark.parametrize(
    "pattern", ["manifest-*.json", "codec-*.weft", "seg-*.weft", "seg-*.sqlite"]
)
@pytest.mark.parametrize("size", [0, 1, 63, 64, 500, -2])
def test_a_truncated_file(coded, pattern, size):
    path = max(coded.path.glob(pattern))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(errors.CorruptIndexError, match=path.name):
        use(coded.path)


@pytest.mark.parametrize("pattern", ["codec-*.weft", "seg-*.weft", "seg-*.sqlite"])
def test_a_lengthened_file(coded, pattern):
    (path,) = coded.path.glob(pattern)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(errors.CorruptIndexError, match=path.name):
        use(coded.path)
    assert coded.verify()[0].file == path.name


@pytest.mark.parametrize("pattern", ["codec-*.weft", "seg-*.weft"])
def test_a_file_of_another_kind(coded, pattern):
    (path,) = coded.path.glob(pattern)
    path.write_bytes(b"PK" * (path.stat().st_size // 2) + b"x" * (path.stat().st_size % 2))
    with pytest.raises(errors.CorruptIndexError, match=path.name):
        use(coded.path)


@pytest.mark.parametrize("pattern", ["codec-*.weft", "seg-*.weft", "seg-*.sqlite"])
def test_flipped_bits_are_an_answer_or_an_error(coded, pattern, rng):
    (path,) = coded.path.glob(pattern)
    good = path.read_bytes()
    for at in rng.choice(len(good), 150, replace=False):
        damaged = bytearray(good)
        damaged[at] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        with contextlib.suppress(errors.WeftError):
            use(coded.path)
    path.write_bytes(good)
    use(coded.path)


def test_an_index_of_a_newer_format(index):
    path = index.path / "manifest-000002.json"
    path.write_bytes(path.read_bytes().replace(b'"format":1', b'"format":2'))
    with pytest.raises(
        errors.IncompatibleIndexError, match=r"manifest-000002.json: format 2.*upgrade"
    ):
        weft.Index.open(index.path)
    with pytest.raises(errors.IncompatibleIndexError):
        index.add(["x"], [GOOD])


def test_an_index_is_not_changed_by_reading(coded):
    before = {path.name: path.stat().st_mtime_ns for path in coded.path.iterdir()}
    use(coded.path)
    coded.verify(deep=True)
    assert {path.name: path.stat().st_mtime_ns for path in coded.path.iterdir()} == before


def test_a_read_only_folder_can_be_searched(coded, tmp_path):
    copy = shutil.copytree(coded.path, tmp_path / "copy")
    for path in copy.iterdir():
        path.chmod(0o444)
    copy.chmod(0o555)
    try:
        use(copy)
        if os.geteuid() != 0:  # root may write anyhow
            with pytest.raises(errors.StorageError):
                weft.Index.open(copy).writer()
    finally:
        copy.chmod(0o755)
