# SPDX-License-Identifier: Apache-2.0
"""Arrays in the memory of a device, as other libraries show them, wherever host arrays are taken.

On `emu` the memory of the host is the device's, so that arrays of numpy stand for those of a GPU;
on a GPU they are torch's, shown as another library would.
"""

import ctypes
import threading

import numpy as np
import pytest

import weft
from helpers import ragged_docs, unit_rows
from weft import _native, arrays
from weft.host_arrays import host_array

ON_CUDA, ON_METAL = 2, 8


class ByInterface:
    """Shows the CUDA array interface alone."""

    def __init__(self, view, **more):
        shown = getattr(view, "__cuda_array_interface__", None) or view.__array_interface__
        self.owner, self.shape = view, tuple(view.shape)
        self.__cuda_array_interface__ = {**shown, "version": 3, "stream": None, **more}


class ByDLPack:
    """Shows DLPack alone, and notes the streams it was asked to be ready for."""

    def __init__(self, view, device=ON_CUDA):
        self.owner, self.device, self.streams = view, device, []
        self.shape = tuple(view.shape)

    def __dlpack_device__(self):
        return (self.device, 0)

    def __dlpack__(self, *, stream):
        self.streams.append(stream)
        options = {"stream": stream} if getattr(self.owner, "is_cuda", False) else {}
        return self.owner.__dlpack__(**options)


@pytest.fixture
def resident(device):
    """Put an array of numpy into the memory of the device."""
    if device.startswith("emu"):
        return lambda array: array
    torch = pytest.importorskip("torch")
    return lambda array: torch.from_numpy(np.ascontiguousarray(array)).to(device)


VIEWS = {
    "whole": np.s_[:],
    "rows": np.s_[1::2],
    "columns": np.s_[:, ::2],
    "part": np.s_[3:5, 1:7],
    "none": np.s_[:0],
}


@pytest.mark.parametrize("show", [ByInterface, ByDLPack])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i8", "u1"])
@pytest.mark.parametrize("view", VIEWS)
def test_every_view_arrives_as_it_is(rng, resident, show, dtype, view):
    whole = (100 * rng.random((6, 8))).astype(dtype)
    found = host_array(show(resident(whole)[VIEWS[view]]), "it")
    assert found.dtype == whole.dtype
    assert np.array_equal(found, whole[VIEWS[view]])


def test_views_that_go_backwards_or_over_three_dims(rng, emulator, plug_in):
    plug_in(emulator)
    whole = rng.random((4, 5, 6))
    for view in (whole[::-1], whole[:, ::-2, 1:], whole.T, whole[2, 3, 4, None]):
        for show in (ByInterface, ByDLPack):
            assert np.array_equal(host_array(show(view), "it"), view)


@pytest.mark.parametrize("show", [ByInterface, ByDLPack])
def test_documents_and_queries(make_index, rng, resident, device, small_codec, show):
    docs, query = ragged_docs(rng, 120, 32), unit_rows(rng, 9, 32)
    ids = [f"d{i}" for i in range(120)]
    config = weft.IndexConfig(dim=32)
    lend = lambda array: show(resident(array))  # noqa: E731
    wanted = make_index(docs, ids=ids, config=config).search(query, recall=1.0)
    packed = np.concatenate(docs), np.cumsum([0, *map(len, docs)])
    padded = np.zeros((120, 12, 32), np.float32)
    for number, doc in enumerate(docs):
        padded[number, : len(doc)] = doc
    forms = [
        ([lend(doc) for doc in docs], {}),
        (tuple(map(lend, packed)), {}),
        (lend(padded), {"lengths": lend(np.array([len(doc) for doc in docs]))}),
    ]
    for embeddings, more in forms:
        index = make_index(embeddings, ids=ids, config=config, **more)
        for searcher in (index.searcher(), index.searcher(device=device)):
            asked = [
                searcher.search(lend(query), recall=1.0),
                *searcher.search_batch([lend(query), query], recall=1.0),
            ]
            for hits in asked:
                assert (hits.ids, hits.scores) == (wanted.ids, wanted.scores)
    assert np.array_equal(
        weft.maxsim(lend(query), [lend(doc) for doc in docs]), weft.maxsim(query, docs)
    )


def test_dense_vectors(rng, resident, tmp_path):
    rows = unit_rows(rng, 5, 6)
    config = weft.IndexConfig(dense=weft.DenseConfig(dim=6))
    index = weft.Index.create(tmp_path / "dense.index", config)
    index.add(list("abcde"), dense=ByInterface(resident(rows)))
    hits = index.searcher().dense.search(ByDLPack(resident(rows[3])), k=1)
    assert hits.ids == ("d",)


def test_bfloat16(rng, emulator, plug_in):
    torch = pytest.importorskip("torch")
    plug_in(emulator)
    rows = torch.from_numpy(unit_rows(rng, 5, 6)).to(torch.bfloat16)
    assert np.array_equal(arrays.query_rows(ByDLPack(rows), 6), rows.float().numpy())


def test_the_stream_is_the_one_that_the_copy_comes_on(monkeypatch, rng, emulator, plug_in):
    plug_in(emulator)
    streams, fetch = [], _native.fetch

    def noted(address, n_bytes, stream):
        streams.append(stream)
        return fetch(address, n_bytes, stream)

    monkeypatch.setattr(_native, "fetch", noted)
    rows = unit_rows(rng, 2, 4)
    for given, wanted in ((None, 1), (1, 1), (2, 2), (77, 77)):
        host_array(ByInterface(rows, stream=given), "it")
        assert streams.pop() == wanted
    shown = ByDLPack(rows)
    host_array(shown, "it")
    assert shown.streams == streams == [1]


def test_what_cannot_be_read(rng, emulator, plug_in):
    plug_in(emulator)
    rows = unit_rows(rng, 2, 4)
    for wrong, message in (
        (ByInterface(rows, mask=rows), "query: cannot be read as an array: it has a mask"),
        (ByDLPack(rows, device=ON_METAL), "query: in the memory of a device of DLPack's type 8"),
        (ByDLPack(rows.astype(complex)), "query: cannot be read as an array: its values are 128"),
        (ByInterface(rows > 0), "query: dtype bool, expected one of float16"),
    ):
        with pytest.raises(weft.InvalidArgumentError, match=message):
            arrays.query_rows(wrong, 4)


@pytest.mark.gpu
def test_tensors_of_torch(make_index, rng):
    torch = pytest.importorskip("torch")
    docs, query = ragged_docs(rng, 20, 16), unit_rows(rng, 4, 16)
    wanted = make_index(docs, dim=16).search(query)
    index = make_index([torch.from_numpy(doc).cuda() for doc in docs], dim=16)
    with torch.cuda.stream(torch.cuda.Stream()):
        asked = torch.from_numpy(query).cuda() * 1
        hits = index.search(asked)
    assert (hits.ids, hits.scores) == (wanted.ids, wanted.scores)


@pytest.mark.gpu
def test_memory_of_the_host_is_not_taken_for_a_devices(rng):
    with pytest.raises(weft.DeviceError, match="its address is not in the memory of a CUDA device"):
        host_array(ByInterface(unit_rows(rng, 2, 4)), "query")


@pytest.mark.gpu
@pytest.mark.usefixtures("small_codec")
def test_a_thread_keeps_the_device_it_had(make_index, rng):
    """The driver's word: a thread without a context has none after a search, either."""
    driver = ctypes.CDLL("libcuda.so.1")
    index = make_index(ragged_docs(rng, 120, 32), config=weft.IndexConfig(dim=32))
    found = []

    def work():
        for _ in range(2):
            context = ctypes.c_void_p(1)
            assert driver.cuCtxGetCurrent(ctypes.byref(context)) == 0
            found.append(context.value)
            index.searcher(device="cuda:0").search(unit_rows(rng, 3, 32))

    index.searcher(device="cuda:0")  # the driver has started
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None, None]
