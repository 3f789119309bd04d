# SPDX-License-Identifier: Apache-2.0
"""The codec: what it stores against the definition, tiny cases, equal bytes, hostile files."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import reference
from weft import _native, errors

quantizer = _native._quantizer

DIMS = [1, 3, 31, 33, 96, 128, 200, 768]
NBITS = [1, 2, 4, 8]
each_dim = pytest.mark.parametrize("dim", DIMS)
each_nbits = pytest.mark.parametrize("nbits", NBITS)


def tokens(n: int, dim: int, seed: int = 0, n_clusters: int = 20) -> np.ndarray:
    """Clustered rows of unit length, f16."""
    random = np.random.default_rng([n, dim, seed])
    centres = random.standard_normal((n_clusters, dim))
    rows = centres[random.integers(n_clusters, size=n)] + 0.7 * random.standard_normal((n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def train(rows: np.ndarray, **changes: object) -> _native.Codec:
    params: dict[str, object] = {"nbits": 4, "n_coarse": 0, "n_fine": 0, "iterations": 6}
    params |= {"seed": 42, "max_sample_bytes": 1 << 30, "threads": 2, "progress": None}
    return _native.Codec.train(rows, **(params | changes))


def save(codec: _native.Codec, path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        return codec.write(fd, str(path))
    finally:
        os.close(fd)


def arrays_of(codec: _native.Codec, folder: Path) -> dict[str, np.ndarray]:
    save(codec, folder / "codec.weft")
    return _native.read_arrays(str(folder / "codec.weft"))


def write_container(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A .weft file made from its description alone, checksums and all."""
    names = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]
    offset = 64 + 128 * len(arrays)
    table, payload = b"", b""
    for name, array in arrays.items():
        raw = array.tobytes()
        shape = (*array.shape, 0, 0, 0)[:4]
        table += struct.pack(
            "<48sBB6x4QQQI20x",
            name.encode(),
            names.index(array.dtype.str[1:]),
            array.ndim,
            *shape,
            offset,
            len(raw),
            _native.crc32c(raw),
        )
        raw += b"\0" * (-len(raw) % 64)
        payload += raw
        offset += len(raw)
    header = struct.pack("<8sIIQQ28x", b"\x89WEFT\r\n\x1a", 1, len(arrays), len(table), offset)
    checksum = struct.pack("<I", _native.crc32c(header + table))
    path.write_bytes(header + checksum + table + payload)


# ---- Packing -------------------------------------------------------------------------------------


@each_nbits
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_unpack_inverts_pack(nbits: int, data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 3)), 32 * data.draw(st.integers(1, 6)))
    levels = data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 2**nbits - 1)))
    codes = quantizer.pack(levels, nbits)
    np.testing.assert_array_equal(codes, reference.pack_levels(levels, nbits))
    np.testing.assert_array_equal(quantizer.unpack(codes, nbits), levels)


def test_merged_planes() -> None:
    upper, lower = np.random.default_rng(0).integers(0, 16, (2, 5, 160), dtype=np.uint8)
    merged = quantizer.merge_planes(quantizer.pack(upper, 4), quantizer.pack(lower, 4))
    np.testing.assert_array_equal(merged, reference.PLANE_RATIO * upper + lower)


# ---- What is stored ------------------------------------------------------------------------------


@each_dim
@each_nbits
def test_decode_is_the_formula(dim: int, nbits: int, tmp_path: Path) -> None:
    rows = tokens(300, dim)
    codec = train(rows, nbits=nbits)
    arrays = arrays_of(codec, tmp_path)
    encoded = codec._encode(rows)
    rotated = reference.reconstruct(arrays, encoded, nbits)
    decoded = codec._decode(encoded)
    expected = quantizer.unrotate(rotated.astype(np.float32), dim, 42)
    np.testing.assert_allclose(decoded, expected, atol=2e-6)
    error = ((decoded - rows.astype(np.float32)) ** 2).sum(1).mean()
    assert error < {1: 0.5, 2: 0.15, 4: 0.02, 8: 1e-3}[nbits]


@each_dim
def test_second_plane(dim: int, tmp_path: Path) -> None:
    rows = tokens(300, dim)
    codec = train(rows)
    arrays = arrays_of(codec, tmp_path)
    one, two = codec._encode(rows), codec._encode(rows, plane=True)
    for name in ("parents", "children"):
        np.testing.assert_array_equal(one[name], two[name])
    # The first plane's step is a tenth wider than alone (two roundings to f16).
    np.testing.assert_allclose(
        two["steps"].astype(float), 1.1 * one["steps"].astype(float), rtol=2e-3
    )
    rotated = reference.reconstruct(arrays, two, 4)
    expected = quantizer.unrotate(rotated.astype(np.float32), dim, 42)
    np.testing.assert_allclose(codec._decode(two), expected, atol=2e-6)

    errors_of = [((codec._decode(e) - rows.astype(np.float32)) ** 2).sum(1) for e in (one, two)]
    assert errors_of[1].mean() < 0.1 * errors_of[0].mean() + 1e-8
    upper = reference.unpack_levels(two["codes"], codec.padded_dim, 4)
    lower = reference.unpack_levels(two["plane"], codec.padded_dim, 4)
    residual = quantizer.rotate(rows.astype(np.float32), 42).astype(np.float64)
    residual -= arrays["fine"][reference.fines_of(arrays, two)] * np.float64(arrays["scales"][1])
    for t in np.flatnonzero(two["steps"]):
        positions = reference.plane_positions(residual[t], float(two["steps"][t]), upper[t])
        assert np.abs(lower[t] - positions).max() <= 0.501


@each_dim
@each_nbits
def test_levels_are_the_nearest(dim: int, nbits: int, tmp_path: Path) -> None:
    """An element that is not clipped comes back within half a step."""
    rows = tokens(200, dim, seed=1)
    codec = train(rows, nbits=nbits)
    arrays = arrays_of(codec, tmp_path)
    encoded = codec._encode(rows)
    levels = reference.unpack_levels(encoded["codes"], codec.padded_dim, nbits).astype(int)
    residual = quantizer.rotate(rows.astype(np.float32), 42).astype(np.float64)
    fines = reference.fines_of(arrays, encoded)
    residual -= arrays["fine"][fines] * np.float64(arrays["scales"][1])
    steps = encoded["steps"].astype(np.float64)[:, None]
    middle = 2**nbits - 1
    inside = (levels > 0) & (levels < middle) & (steps > 0)
    gaps = np.abs(residual - steps * (levels - middle / 2)) / np.where(steps > 0, steps, 1)
    # Levels are chosen before the step is fitted to them, which moves it by a few hundredths.
    assert (gaps[inside] <= 0.5 + 0.1 * np.abs(levels - middle / 2)[inside]).all()
    assert nbits == 1 or dim < 31 or np.median(gaps[inside]) < 0.3


@each_dim
@pytest.mark.parametrize("nbits", [2, 4, 8])
def test_reconstructions_have_unit_length(dim: int, nbits: int) -> None:
    rows = tokens(300, dim, seed=2)
    codec = train(rows, nbits=nbits)
    for plane in {False, nbits == 4}:
        decoded = codec._decode(codec._encode(rows, plane=plane)).astype(np.float64)
        encoded = codec._encode(rows, plane=plane)
        stored = encoded["plane_multipliers" if plane else "multipliers"]
        fine = plane or nbits == 8
        assert ((stored > 0) & (stored < 255)).mean() > (0.9 if fine else 0.95)
        if codec.padded_dim == dim:  # otherwise a little of the length lies in the padding
            lengths = np.linalg.norm(decoded, axis=1)[(stored > 0) & (stored < 255)]
            assert np.abs(lengths - 1).max() <= (0.5 / 8192 if fine else 0.5 / 512 / 0.75) + 1e-5


@each_dim
def test_assigns_the_nearest_child(dim: int, tmp_path: Path) -> None:
    rows = tokens(400, dim, seed=3, n_clusters=40)
    codec = train(rows, n_coarse=16, n_fine=60)
    arrays = arrays_of(codec, tmp_path)
    encoded = codec._encode(rows)
    rotated = quantizer.rotate(rows.astype(np.float32), 42)
    bytes_ = reference.to_int8(rotated, reference.token_scale(codec.padded_dim))
    parents, children = reference.nearest_child(bytes_, arrays)
    np.testing.assert_array_equal(encoded["parents"], parents)
    np.testing.assert_array_equal(encoded["children"], children)


def test_a_token_does_not_depend_on_its_neighbours() -> None:
    rows = tokens(700, 96, seed=4)
    codec = train(rows)
    together = codec._encode(rows, plane=True)
    for part in (slice(0, 1), slice(3, 20), slice(100, 333), slice(600, 700)):
        alone = codec._encode(np.ascontiguousarray(rows[part]), plane=True)
        for name, values in alone.items():
            np.testing.assert_array_equal(values, together[name][part])


# ---- Training ------------------------------------------------------------------------------------


@each_dim
@pytest.mark.parametrize("n", [1, 2, 17])
def test_few_tokens(n: int, dim: int) -> None:
    rows = tokens(n, dim)
    codec = train(rows)
    assert (codec.dim, codec.n_tokens) == (dim, n)
    assert codec.n_coarse == min(n, 16)
    assert codec.n_coarse <= codec.n_fine <= max(n, codec.n_coarse)
    decoded = codec._decode(codec._encode(rows))
    assert (decoded * rows.astype(np.float32)).sum(1).min() > 0.98


@each_nbits
def test_equal_rows(nbits: int) -> None:
    rows = np.repeat(tokens(1, 96), 500, 0)
    codec = train(rows, nbits=nbits)
    decoded = codec._decode(codec._encode(rows))
    assert (decoded == decoded[0]).all()
    np.testing.assert_allclose(decoded[0], rows[0], atol=0.01)


def test_zero_residual(tmp_path: Path) -> None:
    """A token that is its centroid: step 0, and the centroid comes back."""
    row = np.zeros((1, 64), np.float32)
    row[0, 5] = 1.0
    rotated = quantizer.rotate(row, 42)  # multiples of 1/64
    centroid = np.rint(rotated * 64).astype(np.int8)
    np.testing.assert_array_equal(centroid / 64, rotated)
    arrays = arrays_of(train(tokens(1, 64)), tmp_path)
    arrays["fine"], arrays["scales"][1] = centroid, 1 / 64
    write_container(tmp_path / "exact.weft", arrays)
    codec = _native.Codec.open(str(tmp_path / "exact.weft"))
    encoded = codec._encode(row.astype(np.float16), plane=True)
    assert encoded["steps"][0] == 0
    np.testing.assert_allclose(codec._decode(encoded), row, atol=2e-3)


@pytest.mark.parametrize(
    ("n", "n_coarse", "n_fine", "expected"),
    [
        (3000, 0, 0, (64, 64)),
        (3000, 8, 40, (8, 40)),
        (3000, 0, 10, (10, 10)),
        (3000, 1, 256, (1, 256)),
        (40, 60, 60, (40, 40)),
        (20_000, 0, 0, (128, 400)),
    ],
)
def test_number_of_centroids(n: int, n_coarse: int, n_fine: int, expected: tuple[int, int]) -> None:
    codec = train(tokens(n, 32), n_coarse=n_coarse, n_fine=n_fine, iterations=2)
    assert (codec.n_coarse, codec.n_fine) == expected


def test_children_follow_spread_and_size(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    wide = random.standard_normal((2000, 64)) + 6 * np.eye(64)[0]
    tight = 0.05 * random.standard_normal((2000, 64)) - 6 * np.eye(64)[0]
    rows = np.concatenate([wide, tight])
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    codec = train(rows, n_coarse=2, n_fine=100)
    children = np.diff(arrays_of(codec, tmp_path)["child_offsets"])
    assert children.sum() == 100
    assert children.max() > 5 * children.min()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nbits": 3}, "nbits=3"),
        ({"iterations": 0}, "iterations=0"),
        ({"n_coarse": 65_537}, "n_coarse=65537"),
        ({"n_coarse": 4, "n_fine": 3}, "n_fine=3: expected 4..1024"),
        ({"n_coarse": 1, "n_fine": 257}, "n_fine=257: expected 1..256"),
        ({"max_sample_bytes": 31}, "max_sample_bytes=31"),
    ],
)
def test_refuses_parameters(changes: dict[str, int], message: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=message):
        train(tokens(100, 32), **changes)


def test_refuses_rows() -> None:
    with pytest.raises(errors.InvalidArgumentError, match="training rows"):
        train(np.zeros((0, 32), np.float16))
    codec = train(tokens(100, 32), nbits=2)
    with pytest.raises(errors.InvalidArgumentError, match="rows have dim 33"):
        codec._encode(tokens(3, 33))
    with pytest.raises(errors.InvalidArgumentError, match="nbits=4, found nbits=2"):
        codec._encode(tokens(3, 32), plane=True)


def test_sample_is_bounded() -> None:
    seen: list[tuple[str, int, int]] = []
    train(tokens(5000, 64), max_sample_bytes=64 * 1000, progress=lambda *call: seen.append(call))
    assert seen[0] == ("sample", 1000, 1000)
    stages = [stage for stage, _, _ in seen]
    assert sorted(set(stages), key=stages.index) == ["sample", "coarse", "fine"]
    for stage in set(stages):
        calls = [(done, total) for name, done, total in seen if name == stage]
        assert calls == sorted(calls)
        assert calls[-1][0] == calls[-1][1]


@pytest.mark.parametrize("stage", ["sample", "coarse", "fine"])
@pytest.mark.parametrize("exception", [KeyboardInterrupt, ZeroDivisionError])
def test_progress_can_end_it(stage: str, exception: type[BaseException]) -> None:
    def progress(name: str, done: int, total: int) -> None:
        if name == stage:
            raise exception

    with pytest.raises(exception):
        train(tokens(3000, 32), progress=progress)


# ---- Equal bytes ---------------------------------------------------------------------------------

PRINT_CHECKSUMS = """
import sys, numpy as np
from weft import _native
rows = np.load(sys.argv[1])
sizes = {1: (32, 150, 4), 4: (32, 150, 4), 2: (2100, 2200, 1)}
for threads in (1, 2, 3):
    for nbits, (n_coarse, n_fine, iterations) in sizes.items():
        codec = _native.Codec.train(
            rows, nbits=nbits, n_coarse=n_coarse, n_fine=n_fine, iterations=iterations, seed=7,
            max_sample_bytes=1 << 20, threads=threads, progress=None,
        )
        encoded = codec._encode(rows, plane=nbits == 4, threads=threads)
        crc = 0
        for name in sorted(encoded):
            crc = _native.crc32c(encoded[name], crc)
        print(nbits, codec.checksum, crc)
"""


@pytest.mark.parametrize("dim", [33, 128])
def test_same_bytes_for_any_threads_and_isa(dim: int, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", tokens(6000, dim))
    lines: set[str] = set()
    for isa in _native.info()["isas"]:
        done = subprocess.run(
            [sys.executable, "-c", PRINT_CHECKSUMS, str(tmp_path / "rows.npy")],
            env=os.environ | {"WEFT_ISA": isa}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert len(done.stdout.split("\n")) == 10
        lines |= set(done.stdout.split("\n"))
    assert len(lines) == 4, lines  # one line per nbits, and the empty one


# ---- Files ---------------------------------------------------------------------------------------


def test_file_round_trip(tmp_path: Path) -> None:
    rows = tokens(2000, 96)
    codec = train(rows)
    checksum = save(codec, tmp_path / "a.weft")
    opened = _native.Codec.open(str(tmp_path / "a.weft"))
    for name in [
        "dim",
        "padded_dim",
        "nbits",
        "n_coarse",
        "n_fine",
        "n_tokens",
        "seed",
        "checksum",
    ]:
        assert getattr(opened, name) == getattr(codec, name), name
    assert save(opened, tmp_path / "b.weft") == checksum
    assert (tmp_path / "a.weft").read_bytes() == (tmp_path / "b.weft").read_bytes()
    write_container(tmp_path / "c.weft", _native.read_arrays(str(tmp_path / "a.weft")))
    assert (tmp_path / "a.weft").read_bytes() == (tmp_path / "c.weft").read_bytes()
    for name, values in codec._encode(rows, plane=True).items():
        np.testing.assert_array_equal(opened._encode(rows, plane=True)[name], values)


@pytest.mark.parametrize(("name", "value"), [("parents", 65_535), ("children", 255)])
def test_decode_survives_a_bad_centroid(name: str, value: int) -> None:
    rows = tokens(50, 32)
    codec = train(rows)
    encoded = codec._encode(rows)
    encoded[name][:] = value
    encoded["steps"][:] = np.inf
    assert codec._decode(encoded).shape == (50, 32)


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("meta", 1, 0, "meta: value 1 is 0"),
        ("meta", 1, 4098, "meta: value 1 is 4098"),
        ("meta", 1, 65, "padded_dim: found 64, expected 96"),
        ("meta", 2, 96, "coarse"),
        ("meta", 2, -64, "meta: value 2"),
        ("meta", 3, 3, "nbits: found 3"),
        ("meta", 3, 16, "meta: value 3"),
        ("meta", 5, 9, "child_offsets"),
        ("meta", 5, 65_537, "meta: value 5"),
        ("meta", 5, 2**63 - 1, "meta: value 5"),
        ("meta", 6, 41, "fine"),
        ("meta", 7, 0, "meta: value 7"),
        ("scales", 0, np.nan, "scales: found nan"),
        ("scales", 1, np.inf, "scales: found inf"),
        ("scales", 0, -1.0, "scales: found -1"),
        ("scales", 1, 0.0, "scales: found 0"),
        ("scales", 0, 1.0, "scales: a coarse centroid has length"),
        ("scales", 1, 3e38, "scales: a fine centroid has length"),
        ("coarse", (3, 5), -128, "coarse: found -128"),
        ("fine", (39, 63), -128, "fine: found -128"),
        ("child_offsets", 0, 1, "child_offsets: begins with 1"),
        ("child_offsets", 3, 0, "child_offsets: cell 2"),
        ("child_offsets", 8, 2**32 - 1, "child_offsets: cell 7"),
        ("child_offsets", 8, 41, "fine: found"),
    ],
)
def test_hostile_file(name: str, index: object, value: float, message: str, tmp_path: Path) -> None:
    arrays = arrays_of(train(tokens(2000, 64), n_coarse=8, n_fine=40), tmp_path)
    arrays[name][index] = value
    path = tmp_path / "hostile.weft"
    write_container(path, arrays)
    with pytest.raises(errors.CorruptIndexError, match=message) as caught:
        _native.Codec.open(str(path))
    assert caught.value.path == str(path)


@pytest.mark.parametrize("missing", ["meta", "coarse", "fine", "scales", "child_offsets", "error"])
def test_missing_or_foreign_array(missing: str, tmp_path: Path) -> None:
    arrays = arrays_of(train(tokens(2000, 64)), tmp_path)
    path = tmp_path / "hostile.weft"
    for replacement in (None, arrays[missing].astype(np.float64), arrays[missing][:-1]):
        others = {name: array for name, array in arrays.items() if name != missing}
        write_container(path, others if replacement is None else others | {missing: replacement})
        with pytest.raises(errors.CorruptIndexError, match=missing):
            _native.Codec.open(str(path))


@pytest.mark.parametrize("version", [1, 2, 4])
def test_other_version(version: int, tmp_path: Path) -> None:
    arrays = arrays_of(train(tokens(100, 32)), tmp_path)
    arrays["meta"][0] = version
    write_container(tmp_path / "other.weft", arrays)
    with pytest.raises(errors.IncompatibleIndexError, match=f"codec version {version}"):
        _native.Codec.open(str(tmp_path / "other.weft"))
