# SPDX-License-Identifier: Apache-2.0
"""Every kernel of every usable table against its definition, and bit for bit against scalar."""

from __future__ import annotations

import numpy as np
import pytest

import reference
from weft import _native

kernels = _native._kernels
ISAS = kernels.available()

DIMS = [32, 96, 128, 160, 1056, 4128]
LANES = [16, 32, 48, 80]
COUNTS = [0, 1, 3, 4, 5, 7, 8, 9, 12, 13, 100]
SHAPES = (
    [(dim, 32, 9) for dim in DIMS]
    + [(96, lanes, 13) for lanes in LANES]
    + [(128, lanes, n) for lanes in (16, 32, 48) for n in COUNTS]
)

each_isa = pytest.mark.parametrize("isa", ISAS)
each_shape = pytest.mark.parametrize(("dim", "lanes", "n"), SHAPES)
each_nbits = pytest.mark.parametrize(
    ("nbits", "middle"), [(1, 1), (2, 3), (4, 15), (8, 255), (8, 135)]
)


def generator(*seed: int) -> np.random.Generator:
    """A generator that depends on the test's parameters alone."""
    return np.random.default_rng(seed)


def random_bytes(random: np.random.Generator, n: int, dim: int) -> np.ndarray:
    """Rows s8 [n, dim] in -127..127; now and then one is all 127, all -127 or alternating."""
    rows = random.integers(-127, 128, (n, dim), dtype=np.int8)
    extremes = [np.full(dim, 127), np.full(dim, -127), np.where(np.arange(dim) % 2, 127, -127)]
    for row in range(n):
        if random.random() < 0.3:
            rows[row] = extremes[random.integers(3)]
    return rows


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal shapes, types and bytes."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_scalar_is_always_there_and_last() -> None:
    assert ISAS[-1] == "scalar"
    assert kernels.active() in ISAS


# ---- Integer tiles -------------------------------------------------------------------------------


@each_isa
@each_shape
def test_tile_dots(isa: str, dim: int, lanes: int, n: int) -> None:
    random = generator(dim, lanes, n)
    queries, rows = random_bytes(random, lanes, dim), random_bytes(random, n, dim)
    for n_padding in (0, 8, 13):  # from 8 on, half of the last group need not be computed
        queries[lanes - n_padding :] = 0
        dots = kernels.tile_dots(isa, *reference.byte_tile(queries), rows)
        np.testing.assert_array_equal(dots, reference.tile_dots(queries, rows))


@each_isa
def test_tile_dots_of_extreme_rows(isa: str) -> None:
    dim = 4128
    signs = np.array([1, -1], np.int8)
    queries = np.full((16, dim), 127, np.int8) * np.resize(signs, (16, 1))
    rows = np.full((2, dim), 127, np.int8) * signs[:, None]
    dots = kernels.tile_dots(isa, *reference.byte_tile(queries), rows)
    np.testing.assert_array_equal(np.abs(dots), 127 * 127 * dim)
    np.testing.assert_array_equal(dots[0], -dots[1])


def crowded_rows(dim: int) -> np.ndarray:
    """Rows in which neighbours add up to about 128 or more: one pair, or all of them."""
    rows = []
    for total in (127, 128, 129, 130, 191, 254):
        for pair in ((total // 2, total - total // 2), (127, total - 127), (total - 127, 127)):
            for place in (0, 2, 30, dim - 4, dim - 2):
                rows.append(np.zeros(dim, np.int8))
                rows[-1][place : place + 2] = pair
            rows.append(np.resize(np.array(pair, np.int8), dim))
    return np.concatenate([rows, np.negative(rows)])


def extreme_queries(dim: int) -> np.ndarray:
    """All 127, all -127, and mixtures, in 16 lanes."""
    signs = generator(dim, 20).choice(np.array([1, -1], np.int8), (16, dim))
    signs[:2] = [[1], [-1]]
    return signs * np.int8(127)


@each_isa
@pytest.mark.parametrize("dim", [32, 128, 4128])
def test_extreme_neighbours_saturate_nothing(isa: str, dim: int) -> None:
    queries, rows = extreme_queries(dim), crowded_rows(dim)
    tile = reference.byte_tile(queries)
    expected = reference.tile_dots(queries, rows)
    np.testing.assert_array_equal(kernels.tile_dots(isa, *tile, rows), expected)
    for row in range(len(rows)):  # also where it fills a register block alone
        dots = kernels.tile_dots(isa, *tile, rows[row : row + 1])
        np.testing.assert_array_equal(dots[0], expected[row])


@each_isa
@pytest.mark.parametrize("dim", [32, 128, 4128])
def test_extreme_codes_saturate_nothing(isa: str, dim: int) -> None:
    queries = extreme_queries(dim)
    levels = (crowded_rows(dim).view(np.uint8)) ^ 0x80
    levels = np.concatenate(
        [levels, np.zeros((1, dim), np.uint8), np.full((1, dim), 255, np.uint8)]
    )
    n = len(levels)
    base, base_rows = np.zeros((1, 16), np.int16), np.zeros(n, np.uint32)
    given = (
        reference.pack_levels(levels, 8),
        base,
        base_rows,
        *np.ones((2, n), np.float32),
        255,
        8,
    )
    whole = np.array([[0, n]], np.uint32)
    _, scores = kernels.score_codes(isa, *reference.byte_tile(queries), *given, whole, NO_TOKENS)
    dots = (2 * levels.astype(np.int64) - 255) @ queries.T.astype(np.int64)
    np.testing.assert_array_equal(scores, dots.astype(np.float32))


@each_isa
@each_shape
def test_padding_lanes_give_zero(isa: str, dim: int, lanes: int, n: int) -> None:
    random = generator(dim, lanes, n, 1)
    queries, rows = random_bytes(random, lanes - 3, dim), random_bytes(random, n, dim)
    dots = kernels.tile_dots(isa, *reference.byte_tile(queries), rows)
    np.testing.assert_array_equal(dots[:, lanes - 3 :], 0)
    np.testing.assert_array_equal(dots[:, : lanes - 3], reference.tile_dots(queries, rows))


@each_isa
@each_shape
def test_nearest(isa: str, dim: int, lanes: int, n: int) -> None:
    random = generator(dim, lanes, n, 2)
    queries, rows = random_bytes(random, lanes, dim), random_bytes(random, n, dim)
    bias = random.integers(-(2**26), 2**26, n, dtype=np.int32)
    first = int(random.integers(0, 65536 - n))
    tile = reference.byte_tile(queries)
    empty = np.full((4, lanes), reference.INT32_MIN, np.int32)
    keys = kernels.nearest(isa, *tile, rows, bias, first, 13, empty)
    np.testing.assert_array_equal(keys, reference.nearest(queries, rows, bias, first, 13))

    half = n // 2  # two calls in sequence are one call over both parts
    keys = kernels.nearest(isa, *tile, rows[:half], bias[:half], first, 13, empty)
    keys = kernels.nearest(isa, *tile, rows[half:], bias[half:], first + half, 13, keys)
    np.testing.assert_array_equal(keys, reference.nearest(queries, rows, bias, first, 13))


@each_isa
def test_nearest_prefers_the_smaller_number_among_equals(isa: str) -> None:
    random = generator(3)
    queries = random_bytes(random, 16, 64)
    rows = np.repeat(random_bytes(random, 3, 64), 5, axis=0)
    bias = np.zeros(15, np.int32)
    empty = np.full((4, 16), reference.INT32_MIN, np.int32)
    keys = kernels.nearest(isa, *reference.byte_tile(queries), rows, bias, 65521, 6, empty)
    np.testing.assert_array_equal(keys, reference.nearest(queries, rows, bias, 65521, 6))
    numbers = 65535 - (keys & 0xFFFF)
    np.testing.assert_array_equal(numbers[1:] - numbers[0], np.arange(1, 4)[:, None] * np.ones(16))


@each_isa
@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("dim", DIMS)
def test_row_dots(isa: str, dim: int, n: int) -> None:
    random = generator(dim, n, 4)
    x, rows = random_bytes(random, 1, dim)[0], random_bytes(random, n, dim)
    dots = kernels.row_dots(isa, x, rows)
    np.testing.assert_array_equal(dots, reference.tile_dots(x[None], rows)[:, 0])


@each_isa
@pytest.mark.parametrize("shift", [0, 6, 12])
@pytest.mark.parametrize("factor", [0, 1, 255, 16384, 32767])
def test_quantize_dots(isa: str, shift: int, factor: int) -> None:
    random = generator(shift, factor)
    edges = [0, 1, -1, 32767, 32768, -32768, -32769, 2**27, -(2**27), 2**31 - 1, -(2**31)]
    dots = random.integers(-(2**27), 2**27, 320, dtype=np.int32)
    dots[: len(edges)] = edges
    dots[160:] >>= 10
    base, table = kernels.quantize_dots(isa, dots, shift, factor)
    expected_base, expected_table = reference.quantize_dots(dots, shift, factor)
    np.testing.assert_array_equal(base, expected_base)
    np.testing.assert_array_equal(table, expected_table)


# ---- Tables and accumulators ---------------------------------------------------------------------


@each_isa
@pytest.mark.parametrize("lanes", [16, 32, 48, 64, 80, 112, 128])
def test_table_maxsim(isa: str, lanes: int) -> None:
    random = generator(lanes, 5)
    n_cells, n_rows = 50, 400
    rows = random.integers(0, 256, (n_rows + 255, lanes), dtype=np.uint8)
    cells = random.integers(0, n_rows, n_cells + 1, dtype=np.uint32)
    cells |= random.integers(0, 2, n_cells + 1, dtype=np.uint32) << np.uint32(31)
    parents = random.integers(0, n_cells + 5, 300, dtype=np.uint16)  # some are past the last cell
    parents[0] = 65535
    children = random.integers(0, 256, 300, dtype=np.uint8)
    ranges = np.array([(first, n) for first, n in zip(range(11), COUNTS, strict=True)], np.uint32)
    sums, best = kernels.table_maxsim(isa, rows, cells, parents, children, ranges)
    expected = [
        reference.table_best(rows, cells, parents[first : first + n], children[first : first + n])
        for first, n in ranges.astype(int)
    ]
    np.testing.assert_array_equal(best, expected)
    np.testing.assert_array_equal(sums, np.sum(expected, axis=1))

    # Bounds that some tokens reach: the largest entries of a few lanes, out of reach in the others.
    least = np.minimum(np.array(expected[-1], int) + 1, 255).astype(np.uint8)
    least[: lanes // 3] = expected[-1][: lanes // 3]
    leaders = kernels.table_leaders(isa, rows, cells, parents, children, ranges, least)
    for found, (first, n) in zip(leaders, ranges.astype(int), strict=True):
        part = slice(first, first + n)
        wanted = reference.table_leaders(rows, cells, parents[part], children[part], least)
        np.testing.assert_array_equal(found, wanted)
    assert 0 < len(leaders[-1]) < ranges[-1][1]


@each_isa
@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 1000])
def test_accumulate(isa: str, width: int, n: int) -> None:
    random = generator(width, n, 6)
    limit = 700
    docs = random.integers(0, 900, n).tolist()  # repeated ones, and ones past the limit
    words = random.integers(0, 1 << 12, limit + 1, dtype=np.uint32)
    words |= random.integers(0, 4, limit + 1, dtype=np.uint32) << np.uint32(reference.SUM_BITS)
    packed = reference.pack_docs(docs, width)
    for stamp, gain in ((3, 255), (1023, 1), (0, 77)):
        got = kernels.accumulate(isa, packed, n, width, limit, gain, stamp, words)
        words = reference.accumulate(docs, limit, gain, stamp, words)
        np.testing.assert_array_equal(got, words)


def random_words(random: np.random.Generator, n: int, share: float) -> np.ndarray:
    """Accumulators of which about `share` have a sum; all have stamps."""
    sums = random.integers(0, reference.SUM_MASK + 1, n, dtype=np.uint32)
    sums[random.random(n) >= share] = 0
    return sums | random.integers(0, 1024, n, dtype=np.uint32) << np.uint32(reference.SUM_BITS)


@each_isa
@pytest.mark.parametrize("n", [0, 1, 15, 16, 33, 1000])
@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_histogram_and_collect(isa: str, n: int, share: float) -> None:
    random = generator(n, int(share * 100), 7)
    words = random_words(random, n, share)
    for shift, n_bins in ((12, 1024), (14, 100), (0, 1)):
        got = kernels.histogram(isa, words, shift, n_bins)
        np.testing.assert_array_equal(got, reference.histogram(words, shift, n_bins))
    some = int(words[n // 2] & reference.SUM_MASK) if n else 1
    for least in (1, max(some, 1), reference.SUM_MASK, reference.SUM_MASK + 1, 2**32 - 1):
        got = kernels.collect(isa, words, least)
        np.testing.assert_array_equal(got, reference.collect(words, least))


# ---- Residual codes ------------------------------------------------------------------------------


@each_isa
@each_nbits
@each_shape
def test_score_codes(isa: str, nbits: int, middle: int, dim: int, lanes: int, n: int) -> None:
    random = generator(nbits, middle, dim, lanes, n)
    queries = random_bytes(random, lanes, dim)
    queries[lanes - int(random.choice([0, 8, 11])) :] = 0
    levels = random.integers(0, middle + 1, (n, dim), dtype=np.uint8)
    levels[n // 2 :] = np.where(random.random((n - n // 2, dim)) < 0.5, 0, middle)
    base = random.integers(-32768, 32768, (20, lanes), dtype=np.int16)
    base_rows = random.integers(0, 20, n, dtype=np.uint32)
    base_scale = random.uniform(1e-5, 2e-5, n).astype(np.float32)
    code_scale = random.uniform(1e-7, 2e-7, n).astype(np.float32)
    codes = reference.pack_levels(levels, nbits)
    ranges = np.array([[0, n], [n // 3, n - n // 3], [n, 0]], np.uint32)
    tile = reference.byte_tile(queries)
    given = (codes, base, base_rows, base_scale, code_scale, middle, nbits)

    def run(isa: str, ranges: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        best, scores = kernels.score_codes(isa, *tile, *given, ranges, tokens)
        for mine, theirs in zip(
            (best, scores),
            kernels.score_codes("scalar", *tile, *given, ranges, tokens),
            strict=True,
        ):
            assert same_bits(mine, theirs)
        return best, scores

    best, scores = run(isa, ranges, NO_TOKENS)
    done = 0
    for i, (first, count) in enumerate(ranges.astype(int)):
        part = slice(first, first + count)
        expected = reference.score_codes(
            queries, levels[part], base, base_rows[part], base_scale[part], code_scale[part], middle
        )
        np.testing.assert_allclose(scores[done : done + count], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(best[i], expected_best(scores[done : done + count]))
        done += count

    some = np.flatnonzero(random.random(n) < 0.3).astype(np.uint32)  # the rest goes by place
    if len(some) > 0:
        best, scores = run(isa, ranges[:1], some)
        by_place = (values[: len(some)] for values in (base_rows, base_scale, code_scale))
        expected = reference.score_codes(queries, levels[some], base, *by_place, middle)
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(best[0], expected_best(scores))


NO_TOKENS = np.array([], np.uint32)  # all of them


def expected_best(scores: np.ndarray) -> np.ndarray:
    return scores.max(axis=0, initial=-np.inf)


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
def test_packing_is_reversible(nbits: int) -> None:
    levels = generator(nbits).integers(0, 1 << nbits, (3, 96), dtype=np.uint8)
    codes = reference.pack_levels(levels, nbits)
    np.testing.assert_array_equal(reference.unpack_levels(codes, 96, nbits), levels)


@each_isa
def test_a_damaged_scale_never_wins(isa: str) -> None:
    random = generator(8)
    queries = random_bytes(random, 16, 32)
    codes = random.integers(0, 256, (9, 16), dtype=np.uint8)
    base_rows = np.zeros(9, np.uint32)
    base = random.integers(-100, 100, (1, 16), dtype=np.int16)
    scale = np.full(9, 1e-3, np.float32)
    scale[4] = np.nan
    tile = reference.byte_tile(queries)
    whole = np.array([[0, 9]], np.uint32)
    parts = np.array([[0, 4], [5, 4]], np.uint32)
    given = (*tile, codes, base, base_rows, scale, scale, 15, 4)
    best, _ = kernels.score_codes(isa, *given, whole, NO_TOKENS)
    others, _ = kernels.score_codes(isa, *given, parts, NO_TOKENS)
    np.testing.assert_array_equal(best[0], others.max(axis=0))


# ---- Floats --------------------------------------------------------------------------------------


@each_isa
@pytest.mark.parametrize(
    ("dim", "lanes", "n"), [(dim, 32, 9) for dim in (1, 3, 100, 128, 1055, 4097)] + SHAPES[6:]
)
def test_maxsim_rows(isa: str, dim: int, lanes: int, n: int) -> None:
    random = generator(dim, lanes, n, 9)
    queries = random.standard_normal((lanes, dim)).astype(np.float32)
    rows = random.standard_normal((n, dim + 5)).astype(np.float32)
    tile = reference.float_tile(queries)
    best = kernels.maxsim_rows(isa, tile, rows)
    expected = reference.maxsim_rows(queries, rows[:, :dim])
    terms = np.abs(queries) @ np.abs(rows[:, :dim]).T
    tolerance = 1e-5 * terms.max(axis=1, initial=0) + 1e-6
    np.testing.assert_array_equal(np.isfinite(best), n > 0)
    if n > 0:
        assert np.all(np.abs(best - expected) <= tolerance)
    assert same_bits(best, kernels.maxsim_rows("scalar", tile, rows))


@each_isa
@pytest.mark.parametrize("middle", [1, 3, 15, 255])
@pytest.mark.parametrize("dim", [32, 96, 128, 4128])
def test_quantize_row(isa: str, middle: int, dim: int) -> None:
    random = generator(middle, dim)
    factors = np.linspace(0.3, 1.0, 20, dtype=np.float32)
    rows = (random.standard_normal((6, dim)) / np.sqrt(dim)).astype(np.float32)
    rows[1] = np.abs(rows[1])
    rows[2, 5] = 3.0
    rows[3] = np.where(rows[3] > 0, 0.25, -0.25)
    rows[4] *= 1e-20
    rows[5, dim // 2 :] = 0.0
    levels, steps = kernels.quantize_row(isa, rows, factors, middle)
    for row, got, step in zip(rows, levels, steps, strict=True):
        found = reference.quantize_row(row, factors, middle)
        most = max(explained for explained, _, _ in found)
        x, z = row.astype(np.float64), got - middle / 2
        assert (x @ z) ** 2 / (z @ z) >= most * (1 - 1e-5)
        np.testing.assert_allclose(step, x @ z / (z @ z), rtol=1e-5)
        unlike = [np.abs(positions - got).max() for _, _, positions in found]
        assert min(unlike) <= 0.5 + 1e-4  # the levels are the rounded ones of one factor
    again, again_steps = kernels.quantize_row("scalar", rows, factors, middle)
    assert same_bits(levels, again)
    assert same_bits(steps, again_steps)


@each_isa
def test_quantize_row_of_zeros(isa: str) -> None:
    rows = np.zeros((2, 64), np.float32)
    rows[1] = -0.0
    levels, steps = kernels.quantize_row(isa, rows, np.ones(3, np.float32), 15)
    np.testing.assert_array_equal(levels, 7)
    np.testing.assert_array_equal(steps, 0)


@each_isa
@pytest.mark.parametrize(("factors", "level"), [([1.0, 2.0], 15), ([2.0, 1.0], 11)])
def test_quantize_row_takes_the_first_of_equal_factors(
    isa: str, factors: list[float], level: int
) -> None:
    row = np.full((1, 32), 0.5, np.float32)  # every step reconstructs it exactly
    levels, _ = kernels.quantize_row(isa, row, np.array(factors, np.float32), 15)
    np.testing.assert_array_equal(levels, level)


HARD_FLOATS = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45, 3.4e38, -3.4e38, 0.5, 1.5, 2.5]


@each_isa
@pytest.mark.parametrize("scale", [1.0, 127.0, -3.7, 0.0, 1e38])
def test_to_int8(isa: str, scale: float) -> None:
    row = (generator(10).standard_normal(4128) * 2).astype(np.float32)
    row[: len(HARD_FLOATS)] = HARD_FLOATS
    row[32:288] = np.arange(-128, 128) + 0.5
    np.testing.assert_array_equal(kernels.to_int8(isa, row, scale), reference.to_int8(row, scale))


@each_isa
def test_half_to_float(isa: str) -> None:
    halves = np.arange(65536).astype(np.uint16)
    floats = kernels.half_to_float(isa, halves)
    np.testing.assert_array_equal(floats, halves.view(np.float16).astype(np.float32))
    assert same_bits(floats, kernels.half_to_float("scalar", halves))
    np.testing.assert_array_equal(np.signbit(floats), halves >= 0x8000)


@each_isa
@pytest.mark.parametrize("n", COUNTS)
def test_half_tails(isa: str, n: int) -> None:
    floats = generator(n, 11).standard_normal(n).astype(np.float32)
    halves = kernels.float_to_half(isa, floats)
    np.testing.assert_array_equal(halves, floats.astype(np.float16).view(np.uint16))
    np.testing.assert_array_equal(
        kernels.half_to_float(isa, halves), floats.astype(np.float16).astype(np.float32)
    )


@each_isa
def test_float_to_half(isa: str) -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[1:] + halves[:-1]) / 2  # ties
    bits = generator(12).integers(0, 2**32, 200_000, dtype=np.uint32)
    beside = [np.nextafter(between, towards, dtype=np.float32) for towards in (-np.inf, np.inf)]
    some = [halves, between, *beside, np.array(HARD_FLOATS), np.array([65519.9, 65520, 65536, 1e9])]
    floats = np.concatenate(some).astype(np.float32)
    floats = np.concatenate([floats, -floats, bits.view(np.float32)])
    got = kernels.float_to_half(isa, floats)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = floats.astype(np.float16)
    number = ~np.isnan(floats)
    np.testing.assert_array_equal(got[number], expected.view(np.uint16)[number])
    assert np.isnan(got.view(np.float16)[~number]).all()
    assert same_bits(got, kernels.float_to_half("scalar", floats))
