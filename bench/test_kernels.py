# SPDX-License-Identifier: Apache-2.0
"""Time of every kernel on every usable table: `pytest bench/test_kernels.py`.

The table at the end gives nanoseconds per unit (a document token against 32 query tokens of 128
dimensions unless the name says otherwise), and the ratio to the f32 tile of the same table.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from weft import _native

kernels = _native._kernels

Run = Callable[[str, int], object]
NO_TOKENS = np.array([], np.uint32)  # all of them
TILE = "maxsim_rows"


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that begins at a multiple of 64 bytes, as the engine's buffers do."""
    raw = np.empty(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    out = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


def normal(random: np.random.Generator, shape: tuple[int, ...], widest: float) -> np.ndarray:
    """Normal s8, as rotated rows are; 127 lies `widest` deviations out."""
    values = random.standard_normal(shape) * (127 / widest)
    return np.clip(np.rint(values), -127, 127).astype(np.int8)


def tile(lanes: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """A random tile; its sums need not be true ones here."""
    random = np.random.default_rng(0)
    data = normal(random, (lanes // 16, dim // 4, 16, 4), 4.0)
    return aligned(data), random.integers(-100, 100, lanes, dtype=np.int32)


def rows_of(n: int, dim: int) -> np.ndarray:
    """Like fine centroids, which share one scale."""
    return aligned(normal(np.random.default_rng(1), (n, dim), 4.7))


def tile_dots(n: int, lanes: int, dim: int) -> tuple[Run, int]:
    query, rows = tile(lanes, dim), rows_of(n, dim)
    return lambda isa, repeat: kernels.tile_dots(isa, *query, rows, repeat), n


def nearest(n: int, lanes: int) -> tuple[Run, int]:
    query, rows = tile(lanes, 128), rows_of(n, 128)
    bias = np.zeros(n, np.int32)
    keys = np.full((4, lanes), -(2**31), np.int32)
    return lambda isa, repeat: kernels.nearest(isa, *query, rows, bias, 0, 6, keys, repeat), n


def row_dots(n: int, dim: int) -> tuple[Run, int]:
    x, rows = rows_of(1, dim)[0], rows_of(n, dim)
    return lambda isa, repeat: kernels.row_dots(isa, x, rows, repeat), n


def quantize_dots(n: int) -> tuple[Run, int]:
    dots = np.random.default_rng(2).integers(-(2**20), 2**20, n, dtype=np.int32)
    return lambda isa, repeat: kernels.quantize_dots(isa, dots, 6, 300, repeat), n


def shuffled_documents(n_tokens: int, length: int) -> Iterator[np.ndarray]:
    """Ranges of 256 documents at a time, the whole pool over and over in random order.

    Most documents of a pool larger than the caches are in none of them when their turn comes.
    """
    first = np.random.default_rng(3).permutation(n_tokens // length) * length
    ranges = np.stack([first, np.full(len(first), length)], axis=1).astype(np.uint32)
    parts = [part.copy() for part in np.array_split(ranges, max(1, len(ranges) // 256))]
    return itertools.cycle([part for part in parts if len(part) == len(parts[0])])


def table_maxsim(n_rows: int, lanes: int) -> tuple[Run, int]:
    random = np.random.default_rng(4)
    n_tokens, length, n_cells = 1 << 20, 128, 2048
    rows = aligned(random.integers(0, 256, (n_rows + 255, lanes), dtype=np.uint8))
    cells = np.linspace(0, n_rows - 1, n_cells + 1).astype(np.uint32)
    cells |= random.integers(0, 2, n_cells + 1, dtype=np.uint32) << np.uint32(31)
    parents = random.integers(0, n_cells, n_tokens, dtype=np.uint16)
    children = random.integers(0, 12, n_tokens, dtype=np.uint8)
    ranges = shuffled_documents(n_tokens, length)
    given = (rows, cells, parents, children)
    units = len(next(ranges)) * length
    return lambda isa, repeat: kernels.table_maxsim(isa, *given, next(ranges), repeat), units


def accumulate(n_docs: int, n_lists: int) -> tuple[Run, int]:
    random = np.random.default_rng(5)
    n = 50_000 // n_lists * n_lists
    width = 3
    docs = np.sort(random.integers(0, n_docs, (n_lists, n // n_lists)), axis=1).ravel()
    packed = docs.astype("<u4").view(np.uint8).reshape(n, 4)[:, :width].ravel()
    packed = np.concatenate([packed, np.zeros(4, np.uint8)])
    words = np.zeros(n_docs + 1, np.uint32)

    def run(isa: str, repeat: int) -> object:
        return kernels.accumulate(isa, packed, n, width, n_docs, 9, 1, words, repeat)

    return run, n


def accumulators(n_docs: int, share: float) -> np.ndarray:
    random = np.random.default_rng(6)
    words = random.integers(1, 4096, n_docs, dtype=np.uint32)
    words[random.random(n_docs) >= share] = 0
    return words


def histogram(n_docs: int, share: float) -> tuple[Run, int]:
    words = accumulators(n_docs, share)
    return lambda isa, repeat: kernels.histogram(isa, words, 2, 1024, repeat), n_docs


def collect(n_docs: int, share: float) -> tuple[Run, int]:
    words = accumulators(n_docs, share)
    return lambda isa, repeat: kernels.collect(isa, words, 4000, repeat), n_docs


def score_codes(nbits: int, lanes: int, *, scattered: bool) -> tuple[Run, int]:
    random = np.random.default_rng(7)
    n_tokens = 1 << (20 if scattered else 12)
    codes = random.integers(0, 256, (n_tokens, 16 * nbits), dtype=np.uint8)
    if nbits == 8:  # a row's largest of 128 elements has the last level, at 2.7 deviations
        codes = normal(random, codes.shape, 2.7).view(np.uint8) ^ 0x80
    codes = aligned(codes)
    base = aligned(random.integers(-1000, 1000, (16_384, lanes), dtype=np.int16))
    base_rows = random.integers(0, len(base), n_tokens, dtype=np.uint32)
    scale = random.uniform(0.9, 1.1, n_tokens).astype(np.float32)
    ranges = shuffled_documents(n_tokens, 120)
    given = (*tile(lanes, 128), codes, base, base_rows, scale, scale, (1 << nbits) - 1, nbits)
    units = len(next(ranges)) * 120
    return lambda isa, repeat: kernels.score_codes(
        isa, *given, next(ranges), NO_TOKENS, keep=False, repeat=repeat
    ), units


def maxsim_rows(n: int, lanes: int, dim: int) -> tuple[Run, int]:
    random = np.random.default_rng(8)
    query = aligned(random.standard_normal((lanes // 16, dim, 16)).astype(np.float32))
    rows = aligned(random.standard_normal((n, dim)).astype(np.float32))
    return lambda isa, repeat: kernels.maxsim_rows(isa, query, rows, repeat), n


def quantize_row(n: int, dim: int) -> tuple[Run, int]:
    rows = np.random.default_rng(9).standard_normal((n, dim)).astype(np.float32)
    factors = np.linspace(0.3, 1.0, 20, dtype=np.float32)
    return lambda isa, repeat: kernels.quantize_row(isa, rows, factors, 15, repeat), n


def to_int8(dim: int) -> tuple[Run, int]:
    row = np.random.default_rng(10).standard_normal(dim).astype(np.float32)
    return lambda isa, repeat: kernels.to_int8(isa, row, 40.0, repeat), 1


def half_to_float(n: int) -> tuple[Run, int]:
    halves = np.random.default_rng(11).standard_normal(n).astype(np.float16).view(np.uint16)
    return lambda isa, repeat: kernels.half_to_float(isa, halves, repeat), n


def float_to_half(n: int) -> tuple[Run, int]:
    floats = np.random.default_rng(12).standard_normal(n).astype(np.float32)
    return lambda isa, repeat: kernels.float_to_half(isa, floats, repeat), n


CASES: dict[str, Callable[[], tuple[Run, int]]] = {
    TILE: lambda: maxsim_rows(512, 32, 128),
    "tile_dots": lambda: tile_dots(1024, 32, 128),
    "tile_dots 16 lanes": lambda: tile_dots(1024, 16, 128),
    "tile_dots 128 lanes": lambda: tile_dots(1024, 128, 128),
    "tile_dots 1,024 dims": lambda: tile_dots(256, 32, 1024),
    "nearest": lambda: nearest(1024, 32),
    "score_codes 4 bits": lambda: score_codes(4, 32, scattered=False),
    "score_codes 4 bits, scattered": lambda: score_codes(4, 32, scattered=True),
    "score_codes 4 bits, scattered, 16 lanes": lambda: score_codes(4, 16, scattered=True),
    "score_codes 1 bit, scattered": lambda: score_codes(1, 32, scattered=True),
    "score_codes 2 bits, scattered": lambda: score_codes(2, 32, scattered=True),
    "score_codes 8 bits, scattered": lambda: score_codes(8, 32, scattered=True),
    "table_maxsim 12,000 rows, scattered": lambda: table_maxsim(12_000, 32),
    "table_maxsim 30,000 rows, scattered": lambda: table_maxsim(30_000, 32),
    "row_dots (row)": lambda: row_dots(4096, 128),
    "quantize_row (row of 128, 20 factors)": lambda: quantize_row(64, 128),
    "to_int8 (row of 128)": lambda: to_int8(128),
    "quantize_dots (dot)": lambda: quantize_dots(65_536),
    "accumulate (posting, 20,000 documents)": lambda: accumulate(20_000, 500),
    "accumulate (posting, 1,000,000 documents)": lambda: accumulate(1_000_000, 500),
    "histogram (document, 3 % met)": lambda: histogram(1_000_000, 0.03),
    "histogram (document, 50 % met)": lambda: histogram(20_000, 0.5),
    "collect (document, 3 % met)": lambda: collect(1_000_000, 0.03),
    "half_to_float (number)": lambda: half_to_float(4096),
    "float_to_half (number)": lambda: float_to_half(4096),
}


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], float]]:
    """Collects nanoseconds per unit and prints them when the module is done."""
    times: dict[tuple[str, str], float] = {}
    yield times
    isas = [isa for isa in kernels.available() if any(key[1] == isa for key in times)]
    lines = [f"{'ns per unit (ratio to the f32 tile)':<44}" + "".join(f"{isa:>18}" for isa in isas)]
    for case in CASES:
        row = f"{case:<44}"
        for isa in isas:
            ns, tile_ns = times.get((case, isa)), times.get((TILE, isa))
            ratio = f" ({ns / tile_ns:.3f})" if ns and tile_ns else ""
            row += f"{f'{ns:.2f}{ratio}' if ns else '':>18}"
        if any((case, isa) in times for isa in isas):
            lines.append(row)
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("\n\n" + "\n".join(lines))


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("case", CASES)
def test_kernel(case: str, isa: str, benchmark, report: dict[tuple[str, str], float]) -> None:
    run, units = CASES[case]()
    # many short rounds, of which the least disturbed counts; scattered documents are met once
    repeat = 1 if isa == "scalar" or "scattered" in case else max(20, 20_000 // units)
    benchmark.pedantic(run, (isa, repeat), warmup_rounds=1, rounds=3 if isa == "scalar" else 50)
    ns = benchmark.stats.stats.min * 1e9 / (units * repeat)
    benchmark.extra_info["ns_per_unit"] = report[case, isa] = ns
