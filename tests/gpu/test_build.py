# SPDX-License-Identifier: Apache-2.0
"""Building on a device beside building on the CPU: the same codes, codecs and files."""

import numpy as np
import pytest

import weft
from helpers import ragged_docs, unit_rows
from weft import _native


def tokens(rng, n, dim, n_centres=20):
    """Clustered rows of unit length, f16."""
    centres = unit_rows(rng, n_centres, dim)
    rows = centres[rng.integers(0, n_centres, n)] + 0.5 * unit_rows(rng, n, dim)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def trained(rows, **changes):
    params = {"nbits": 4, "n_coarse": 0, "n_fine": 0, "iterations": 4, "seed": 42}
    params |= {"max_sample_bytes": 1 << 30, "threads": 2, "progress": None}
    return _native.Codec.train(rows, **(params | changes))


def assert_same_codes(codec, rows, device, plane=False):
    expected = codec._encode(rows, plane)
    found = codec._encode(rows, plane, device=_native.build_device(device))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name].view(np.uint8), array.view(np.uint8), name)


# 128 has kernels of its own; 70 is padded to 96, which is two blocks of the rotation
@pytest.mark.parametrize("dim", [1, 40, 70, 128, 300])
@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
def test_codes(rng, device, dim, nbits):
    rows = tokens(rng, 420, dim)
    codec = trained(rows, nbits=nbits, n_coarse=5, n_fine=60)
    assert_same_codes(codec, rows, device)
    if nbits == 4:
        assert_same_codes(codec, rows, device, plane=True)


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 97])
def test_any_number_of_rows(rng, device, n):
    codec = trained(tokens(rng, 300, 128))
    assert_same_codes(codec, tokens(rng, n, 128), device, plane=True)


@pytest.mark.parametrize("n_coarse", [1, 2, 3])
def test_fewer_cells_than_a_token_looks_at(rng, device, n_coarse):
    rows = tokens(rng, 90, 32)
    codec = trained(rows, n_coarse=n_coarse, n_fine=40)
    assert_same_codes(codec, rows, device)


def test_equal_centroids(rng, device):
    """Nearly every comparison is a tie: the nearer cell and the smaller number win."""
    rows = np.repeat(tokens(rng, 3, 40), 60, axis=0)
    codec = trained(rows, n_coarse=24, n_fine=170)
    assert len(np.unique(codec._decode(codec._encode(rows)), axis=0)) <= 3
    assert_same_codes(codec, rows, device)


def test_a_grown_codec(rng, device):
    codec = trained(tokens(rng, 400, 128), n_coarse=16, n_fine=64)
    fresh = tokens(rng, 500, 128)
    params = {"n_more": 50, "iterations": 3, "n_tokens": 900, "max_sample_bytes": 1 << 30}
    params |= {"threads": 1, "used": [], "progress": None}
    grown = codec.grow(fresh, **params)
    again = codec.grow(fresh, **params, device=_native.build_device(device))
    assert grown.n_fine > codec.n_fine
    assert again.checksum == grown.checksum
    assert_same_codes(grown, fresh, device)


@pytest.mark.parametrize("dim", [32, 128])
def test_cells_in_groups(rng, device, dim):
    """From 2,048 cells on the CPU compares a token with those of 16 groups alone."""
    rows = tokens(rng, 2_600, dim, n_centres=300)
    codec = trained(rows, n_coarse=2_048, n_fine=2_300, iterations=1)
    assert_same_codes(codec, rows[:150], device)


@pytest.mark.parametrize("dim", [8, 128])
def test_training(rng, device, dim):
    rows = tokens(rng, 700, dim)
    there = _native.build_device(device)
    told = []
    codec = trained(rows, device=there, progress=lambda *state: told.append(state))
    assert codec.checksum == trained(rows).checksum
    coarse = [done for stage, done, _ in told if stage == "coarse"]
    assert coarse == sorted(coarse)
    assert coarse[-1] == next(total for stage, _, total in told if stage == "coarse")


def stored(index):
    """Arrays of every file of an index but its documents, whatever the files' names."""
    found = []
    for path in sorted(index.path.glob("*.weft")):
        arrays = _native.read_arrays(str(path))
        found.append(sorted((name, array.tobytes()) for name, array in arrays.items()))
    return sorted(found)


@pytest.mark.usefixtures("small_codec", "unmerged", "early_dense_codec")
@pytest.mark.parametrize(("nbits", "rerank"), [(4, "plane"), (2, "f16"), (8, None)])
def test_files(make_index, rng, device, nbits, rerank):
    dense = weft.DenseConfig(dim=24)
    config = weft.IndexConfig(dim=70, nbits=nbits, rerank=rerank, dense=dense)
    docs, vectors = ragged_docs(rng, 260, 70, shortest=0), unit_rows(rng, 260, 24)
    made = []
    for name in ("cpu", device):
        index = make_index(config=config)
        for first, last in ((0, 120), (120, 260)):  # the second commit grows the codec
            with index.writer(device=name) as writer:
                assert writer.device == name
                ids = [f"d{i}" for i in range(first, last)]
                writer.add(ids, docs[first:last], dense=vectors[first:last])
        made.append(stored(index))
    assert made[0] == made[1]
    assert len(made[0]) >= 6  # two codecs at least, and two segments of two fields


@pytest.mark.usefixtures("small_codec")
def test_what_progress_raises_ends_the_commit(make_index, rng, device):
    index = make_index(config=weft.IndexConfig(dim=16))
    docs = ragged_docs(rng, 120, 16)

    def interrupt(stage, _done, _total):
        if stage == interrupt.at:
            raise InterruptedError

    for interrupt.at in ("coarse", "write"):
        with (
            pytest.raises(InterruptedError),
            index.writer(device=device, progress=interrupt) as writer,
        ):
            writer.add([f"d{i}" for i in range(120)], docs)
        assert len(index) == 0
    with index.writer(device=device) as writer:
        writer.add([f"d{i}" for i in range(120)], docs)
    assert len(index) == 120


def test_wrong_devices(make_index, device, plug_in, tmp_path):
    index = make_index(dim=8)
    kind = device.split(":")[0]
    for wrong in (f"{kind}:99", f"{kind}:x", "tpu", ""):
        with pytest.raises(weft.DeviceError, match=f"device='{wrong}'"):
            index.writer(device=wrong)
    with index.writer(device="auto") as writer:  # what was refused holds no lock
        assert writer.device == f"{kind}:0"
    plug_in(tmp_path / "nothing.so")
    with pytest.raises(weft.DeviceError, match="no CUDA plug-in is installed"):
        index.writer(device="cuda")
    with index.writer(device="auto") as writer:
        assert writer.device == "cpu"
