# SPDX-License-Identifier: Apache-2.0
"""Texts, metadata and places of tokens come back as they were given."""

import os
import sqlite3

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from helpers import names
from weft.errors import CorruptIndexError, IncompatibleIndexError, InvalidArgumentError
from weft.lifecycle import documents as d
from weft.lifecycle.spool import Spool
from weft.lifecycle.storage import Directory
from weft.lifecycle.windows import Batch

ROWS = np.ones((6, 4), np.float16)


@pytest.fixture
def directory(tmp_path):
    return Directory(tmp_path)


def write(directory, name="seg.docs.sqlite", first=0, last=4):
    """Three documents, the second of two windows; windows [first, last) of them in a file."""
    spool = Spool(directory, 4)
    places = d.encode_spans(np.array([[0, 3], [4, 9]]))
    batch = Batch(
        ids=["a", "b", "c"],
        n_windows=[1, 2, 1],
        lengths=np.array([2, 1, 1, 2]),
        texts=["text of a", "x" * 10 + "\0 ü 鍵 😀", None],
        metadata=[d.check_metadata({"n": 1, "s": "1", "f": 1.0, "b": True}, "a"), {}, {}],
        spans=[places, None, None, places],
        dense=[None] * 3,
        sparse=[None] * 3,
    )
    spool.append(batch, [ROWS])
    os.close(directory.create(name))
    spool.write_documents(directory.path / name, first, last)
    spool.close()
    return directory.path / name


def test_documents_come_back(directory):
    store = d.DocumentStore(write(directory))
    text, metadata = store.get(0)
    assert text == "text of a"
    assert metadata == {"n": 1, "s": "1", "f": 1.0, "b": True}
    assert {name: type(value) for name, value in metadata.items()} == {
        "n": int, "s": str, "f": float, "b": bool,
    }  # fmt: skip
    assert store.get(1) == ("x" * 10 + "\0 ü 鍵 😀", {})
    assert store.get(3) == (None, {})
    assert store.spans(0, 2).tolist() == [[0, 3], [4, 9]]
    assert store.spans(1, 1) is None
    assert store.spans(3, 2).tolist() == [[0, 3], [4, 9]]
    store.check(4)
    store.close()


def test_a_later_segment_counts_from_nought(directory):
    store = d.DocumentStore(write(directory, first=1, last=4))
    assert store.get(0)[0].startswith("xxx")
    assert store.get(2) == (None, {})
    assert store.spans(2, 2) is not None
    store.check(3)
    store.close()


def test_a_path_that_needs_quoting(tmp_path):
    folder = tmp_path / "a b?c#d%41"
    folder.mkdir()
    store = d.DocumentStore(write(Directory(folder)))
    assert store.get(0)[0] == "text of a"
    store.close()


def test_the_file_is_never_written_to(directory):
    path = write(directory)
    store = d.DocumentStore(path)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        store._connection.execute("DELETE FROM document")
    store.close()
    assert names(directory.path) == [path.name]


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda data: b"", CorruptIndexError),
        (
            lambda data: b"no database at all, but long enough to look like one" * 100,
            CorruptIndexError,
        ),
        (lambda data: data[:512], CorruptIndexError),
        (lambda data: data[:100] + b"\xff" * 4000 + data[4100:], CorruptIndexError),
        (
            lambda data: data.replace(b"CREATE TABLE spans", b"CREATE T\xa0BLE spans"),
            CorruptIndexError,
        ),
        (lambda data: data[:60] + b"\0\0\0\x09" + data[64:], IncompatibleIndexError),
        (lambda data: data[:60] + b"\0\0\0\0" + data[64:], CorruptIndexError),
    ],
    ids=["empty", "text", "torn", "overwritten", "not text", "newer", "older"],
)
def test_files_that_are_damaged(directory, damage, kind):
    path = write(directory)
    data = path.read_bytes()
    path.write_bytes(damage(data))
    with pytest.raises(kind, match=r"seg\.docs\.sqlite"):
        d.DocumentStore(path).get(0)


@pytest.mark.parametrize(
    ("sql", "read"),
    [
        ("UPDATE document SET text = x'00ff' WHERE doc = 0", lambda store: store.get(0)),
        ("UPDATE metadata SET value = 'x' WHERE field = 'n'", lambda store: store.get(0)),
        ("UPDATE metadata SET type = 'eval' WHERE field = 'n'", lambda store: store.get(0)),
        ("UPDATE metadata SET value = 7 WHERE field = 'b'", lambda store: store.get(0)),
        ("UPDATE spans SET places = x'01' WHERE window = 0", lambda store: store.spans(0, 2)),
        ("UPDATE spans SET places = 'text'", lambda store: store.spans(0, 2)),
        ("UPDATE document SET n_windows = 9", lambda store: store.check(4)),
        ("DROP TABLE metadata", lambda store: store.get(0)),
    ],
)
def test_values_that_cannot_be(directory, sql, read):
    path = write(directory)
    with sqlite3.connect(path) as connection:
        connection.execute(sql)
    connection.close()
    store = d.DocumentStore(path)
    with pytest.raises(CorruptIndexError, match=r"seg\.docs\.sqlite"):
        read(store)
    store.close()


@given(
    hnp.arrays(
        np.int64, st.tuples(st.integers(0, 30), st.just(2)), elements=st.integers(0, 2**31 - 1)
    )
)
def test_places_come_back(places):
    places = np.stack([places[:, 0], places[:, 0] + places[:, 1]], axis=1)
    blob = d.encode_spans(places)
    assert np.array_equal(d.decode_spans(blob, len(places)), places)


def test_the_layout_of_places():
    """A version, then per token folded distance and length, seven bits a byte, lowest first."""
    places = np.array([[0, 3], [4, 9], [2, 2], [300, 428]])
    assert d.encode_spans(places) == bytes(
        [1, 0, 3, 8, 5, 3, 0, (596 & 127) | 128, 596 >> 7, 0 | 128, 1]
    )
    ordinary = np.array([[i * 5, i * 5 + 4] for i in range(1_000)])
    assert len(d.encode_spans(ordinary)) == 1 + 2 * 1_000


@given(st.binary(max_size=40), st.integers(0, 10))
def test_any_bytes_are_places_or_refused(blob, n_tokens):
    try:
        found = d.decode_spans(blob, n_tokens)
    except ValueError:
        return
    assert found.shape == (n_tokens, 2)
    assert (found[:, 0] <= found[:, 1]).all()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ([("a", 1)], "metadata is list, expected a dictionary"),
        ({1: "x"}, "metadata field 1, expected a string"),
        ({"": "x"}, "metadata field ''"),
        ({"a": None}, "metadata field 'a' is NoneType.*leave out"),
        ({"a": ["x"]}, "metadata field 'a' is list"),
        ({"a": 2**63}, "takes 64 bits, expected 63 at most"),
        ({"a": float("nan")}, "expected a finite number"),
        ({"a": "\ud800"}, "surrogate"),
    ],
)
def test_metadata_that_cannot_be(metadata, message):
    with pytest.raises(InvalidArgumentError, match=f"^document 'p'.*{message}"):
        d.check_metadata(metadata, "document 'p'")


def test_numpy_values_are_values():
    checked = d.check_metadata(
        {"i": np.int64(3), "f": np.float32(0.5), "b": np.bool_(True), "s": np.str_("x")}, "p"
    )
    assert checked == {"i": ("int", 3), "f": ("float", 0.5), "b": ("bool", True), "s": ("str", "x")}


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([[0, 1]], r"expected integers \(2, 2\)"),
        ([[0, 1], [0.5, 1]], "expected integers"),
        ([0, 1], "expected integers"),
        ([[0, 1], [3, 2]], r"span of token 1 is 3\.\.2"),
        ([[-1, 1], [0, 2]], r"span of token 0 is -1\.\.1"),
        ([[0, 1], [2, 6]], r"span of token 1 is 2\.\.6, expected 0 <= start <= end <= 5"),
    ],
)
def test_places_that_cannot_be(spans, message):
    with pytest.raises(InvalidArgumentError, match=message):
        d.check_spans(spans, 2, "12345", "document 'p'")
