# SPDX-License-Identifier: Apache-2.0
"""Arrays of every origin come in as the same rows, or are refused by name."""

import subprocess
import sys
import types

import numpy as np
import pytest

import weft
from helpers import ragged_docs, unit_rows
from reference import maxsim as defined_maxsim
from weft import arrays
from weft.errors import InvalidArgumentError


def name(i):
    return f"document {i}"


def rows_of(found):
    blocks = [block.float32() for block in found.blocks(max_rows=3)]
    return np.concatenate(blocks) if blocks else np.empty((0, 0), np.float32)


def bfloat16(rows):
    """The bits of float32 rows rounded to bfloat16, by definition: nearest, ties to even."""
    bits = rows.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class OnlyDLPack:
    """What a library without the array protocol offers."""

    def __init__(self, array, device=(1, 0)):
        self._array, self._device = array, device

    def __dlpack__(self, *, stream=None, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._device


class OnDevice:
    __cuda_array_interface__ = np.eye(2).__array_interface__ | {"stream": 1}


@pytest.mark.parametrize(
    "convert",
    [
        lambda rows: rows,
        lambda rows: rows.astype(np.float64),
        lambda rows: rows.astype(">f4"),
        lambda rows: np.asfortranarray(rows),
        lambda rows: np.repeat(rows, 2, axis=0)[::2],
        lambda rows: np.repeat(rows, 2, axis=1)[:, ::2],
        lambda rows: rows.tolist(),
        lambda rows: OnlyDLPack(rows),
        lambda rows: np.ma.masked_array(rows).data,
    ],
    ids=["f32", "f64", "big-endian", "fortran", "rows", "columns", "lists", "dlpack", "masked"],
)
def test_every_form_gives_the_same_rows(convert, rng):
    rows = unit_rows(rng, 5, 6)
    assert np.array_equal(arrays.query_rows(convert(rows), 6), rows)


def test_read_only_rows_are_not_copied(rng):
    rows = unit_rows(rng, 5, 6)
    rows.flags.writeable = False
    assert np.shares_memory(arrays.query_rows(rows, 6), rows)


def test_half_precision(rng):
    rows = unit_rows(rng, 5, 6).astype(np.float16)
    assert np.array_equal(arrays.query_rows(rows, 6), rows.astype(np.float32))


def test_bfloat16_of_torch(rng):
    torch = pytest.importorskip("torch")
    rows = unit_rows(rng, 5, 6)
    tensor = torch.from_numpy(rows).to(torch.bfloat16)
    expected = tensor.to(torch.float32).numpy()
    assert np.array_equal(expected.view(np.uint32) >> 16, bfloat16(rows))
    assert np.array_equal(arrays.query_rows(tensor, 6), expected)
    assert np.array_equal(arrays.query_rows(tensor.T.contiguous().T, 6), expected)
    found = arrays.ragged([tensor[:2], tensor[2:]], 6, name=name)
    assert np.array_equal(rows_of(found), expected)


def test_torch_tensors(rng):
    torch = pytest.importorskip("torch")
    rows = unit_rows(rng, 5, 6)
    for tensor in (
        torch.from_numpy(rows),
        torch.from_numpy(rows).double(),
        torch.from_numpy(rows).clone().requires_grad_(),
        torch.from_numpy(np.repeat(rows, 2, axis=1))[:, ::2],
    ):
        assert np.array_equal(arrays.query_rows(tensor, 6), rows)
    with pytest.raises(InvalidArgumentError, match=r"query: cannot be read as an array: .*meta"):
        arrays.query_rows(torch.empty((2, 6), device="meta"), 6)


class NamedBfloat16(np.ndarray):
    """What ml_dtypes, hence jax, gives: two bytes a value, and a dtype of this name."""

    dtype = property(lambda _: types.SimpleNamespace(name="bfloat16", kind="V"))


def test_bfloat16_of_other_libraries(rng):
    rows = unit_rows(rng, 5, 6)
    found = arrays.query_rows(bfloat16(rows).view(NamedBfloat16), 6)
    assert np.array_equal(found.view(np.uint32) >> 16, bfloat16(rows))


def test_torch_is_not_imported():
    code = (
        "import sys, numpy as np, weft; weft.maxsim(np.eye(2), [np.eye(2)]);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    "value", [OnDevice(), OnlyDLPack(np.eye(2), device=(2, 0))], ids=["interface", "dlpack"]
)
def test_arrays_of_a_gpu_need_the_plug_in(value):
    if weft.info()["cuda_build"]["state"] == "ready":
        pytest.skip("there is a GPU; tests/gpu reads its arrays")
    with pytest.raises(weft.DeviceError, match=r"query: .*memory of a GPU, and .*; copy it"):
        arrays.query_rows(value, 2)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (np.ones(6), r"query: found 1 dimensions \(6\).*x\[None, :\]"),
        (np.ones((1, 2, 6)), "query: found 3 dimensions"),
        (np.float32(1), "query: found 0 dimensions"),
        (np.ones((2, 5)), "query: dim 5, expected 6"),
        (np.ones((2, 0)), "query: dim 0, expected 6"),
        (np.empty((0, 6)), "query: empty, expected at least one token embedding"),
        (np.ones((2, 6), np.int32), "query: dtype int32, expected one of float16, bfloat16"),
        (np.ones((2, 6), complex), "query: dtype complex128"),
        (np.array([["a"] * 6]), "query: dtype <U1"),
        ([[1.0, 2.0], [3.0]], "query: cannot be read as an array"),
        (None, "query: found 0 dimensions"),
        (np.array([[1.0] * 6, [0.0] * 6]), "query, row 1: all zero"),
        (np.array([[1.0] * 6, [np.nan] * 6]), "query, row 1: NaN or infinite"),
        (np.array([[np.inf] * 6]), "query, row 0: NaN or infinite"),
        (np.array([[1e300] * 6]), "query, row 0: NaN or infinite"),
    ],
)
def test_queries_that_cannot_be(query, message):
    with pytest.raises(InvalidArgumentError, match=message):
        arrays.query_rows(query, 6)


def test_the_three_forms_of_a_ragged_set(rng):
    docs = [unit_rows(rng, n, 4) for n in (3, 0, 1, 7)]
    whole = np.concatenate(docs)
    bounds = [0, 3, 3, 4, 11]
    padded = np.zeros((4, 9, 4), np.float32)
    for i, doc in enumerate(docs):
        padded[i, : len(doc)] = doc
    for found in (
        arrays.ragged(docs, 4, name=name),
        arrays.ragged(tuple(docs), 4, name=name),
        arrays.ragged((whole, bounds), 4, name=name),
        arrays.ragged((whole, np.array(bounds, np.uint32)), 4, name=name),
        arrays.ragged(padded, 4, name=name, lengths=[3, 0, 1, 7]),
    ):
        assert found.offsets.tolist() == bounds
        assert np.array_equal(rows_of(found), whole)
        assert np.array_equal(found.packed(4), whole)


def test_two_documents_in_a_tuple_are_two_documents(rng):
    docs = (unit_rows(rng, 2, 4), unit_rows(rng, 3, 4))
    assert len(arrays.ragged(docs, 4, name=name)) == 2


def test_blocks_are_no_longer_than_asked(rng):
    docs = [unit_rows(rng, n, 4) for n in (3, 10, 1, 1, 1)]
    found = arrays.ragged(docs, 4, name=name)
    sizes = [len(block.values) for block in found.blocks(max_rows=4)]
    assert sum(sizes) == 16
    assert max(sizes) <= 4


def test_documents_of_different_types_share_a_call(rng):
    docs = [unit_rows(rng, 2, 4), unit_rows(rng, 2, 4).astype(np.float16)]
    expected = np.concatenate([doc.astype(np.float32) for doc in docs])
    assert np.array_equal(rows_of(arrays.ragged(docs, 4, name=name)), expected)
    assert np.array_equal(arrays.ragged(docs, 4, name=name).packed(4), expected)


ROWS = np.ones((4, 4), np.float32)


@pytest.mark.parametrize(
    ("embeddings", "lengths", "message"),
    [
        ([ROWS, ROWS[:, :3]], None, "document 1: dim 3, expected 4"),
        ([ROWS, ROWS[0]], None, "document 1: found 1 dimensions"),
        (ROWS, None, r"found one 2-D array.*use \[array\]"),
        (ROWS[None], None, r"3-D array may be padded, expected lengths="),
        (ROWS[None], [5], r"lengths: entry 0 is 5, expected 0..4"),
        (ROWS[None], [-1], r"lengths: entry 0 is -1"),
        (ROWS[None], [1, 2], "lengths: found 2 of them, expected one for each of 1"),
        (ROWS[None], [1.5], "lengths: found 1-D float64"),
        ([ROWS], [4], "lengths: expected only with a padded"),
        ((ROWS, [0, 4]), [4], "lengths: not with"),
        ((ROWS, [0, 3]), None, "offsets: the last is 3, expected the number of rows, 4"),
        ((ROWS, [1, 4]), None, "offsets: expected n . 1 entries beginning with 0"),
        (
            (ROWS, [0, 3, 2, 4]),
            None,
            r"offsets: entry 2 is 2, smaller than the one before it \(3\)",
        ),
        ((ROWS, np.array([0.0, 4.0])), None, "offsets: found 1-D float64"),
        ((ROWS, []), None, "offsets: found 1-D float64"),
        ("texts", None, "embeddings: found str"),
        ({"a": ROWS}, None, "embeddings: found dict"),
        (7, None, "embeddings: found int"),
    ],
)
def test_sets_that_cannot_be(embeddings, lengths, message):
    with pytest.raises(InvalidArgumentError, match=message):
        arrays.ragged(embeddings, 4, name=name, lengths=lengths)


def test_unit_rows_and_the_first_bad_one(rng):
    rows = 5 * unit_rows(rng, 6, 4)
    unit, bad, _ = arrays.normalized(arrays.contiguous(rows))
    assert bad == -1
    assert unit.dtype == np.float16
    assert np.allclose(unit, rows / 5, atol=1e-3)
    rows[4] = 0
    assert arrays.normalized(arrays.contiguous(rows))[1:] == (4, "all zero")
    rows[2, 1] = np.nan
    assert arrays.normalized(arrays.contiguous(rows))[1:] == (2, "NaN or infinite")


@pytest.mark.parametrize("dim", [1, 3, 32, 100, 384])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_maxsim_is_its_definition(rng, dim, dtype):
    query = unit_rows(rng, 5, dim)
    docs = [doc.astype(dtype) for doc in ragged_docs(rng, 20, dim, shortest=1, longest=40)]
    expected = [defined_maxsim(query, doc.astype(np.float32)) for doc in docs]
    for threads in (None, 1, 3):
        found = weft.maxsim(query, docs, threads=threads)
        assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)
        assert found.dtype == np.float32


def test_maxsim_at_the_edges(rng):
    rows = unit_rows(rng, 3, 4)
    assert weft.maxsim(rows, []).shape == (0,)
    assert weft.maxsim(rows, [rows, rows[:0]])[1] == -np.inf
    with pytest.raises(InvalidArgumentError, match="query: empty"):
        weft.maxsim(rows[:0], [rows])
    with pytest.raises(InvalidArgumentError, match="document 1: dim 3, expected 4"):
        weft.maxsim(rows, [rows, rows[:, :3]])
    with pytest.raises(InvalidArgumentError, match="document 2, row 1: NaN or infinite"):
        weft.maxsim(rows, [rows, rows[:0], [[1, 0, 0, 0.0], [np.nan, 0, 0, 0]]])
    with pytest.raises(InvalidArgumentError, match=r"threads=0: expected an integer in 1\.\.1024"):
        weft.maxsim(rows, [rows], threads=0)
