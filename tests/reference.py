# SPDX-License-Identifier: Apache-2.0
"""The definition of every operation and stage: NumPy, float64, Python integers, plain loops.

Slow on purpose and written without a look at the engine, so that both can be wrong only separately.
"""

from __future__ import annotations

import numpy as np

LANES = 16
SUM_BITS = 22
SUM_MASK = (1 << SUM_BITS) - 1
INT32_MIN = -(2**31)

# ---- Kernels: layouts ------------------------------------------------------------------------------


def byte_tile(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows s8 [n, dim] as a tile: data s8 [groups, dim / 4, 16, 4] and the sum of every lane."""
    n, dim = rows.shape
    groups = (n + LANES - 1) // LANES
    data = np.zeros((groups, dim // 4, LANES, 4), np.int8)
    sums = np.zeros(groups * LANES, np.int32)
    for lane in range(n):
        group, slot = divmod(lane, LANES)
        for quad in range(dim // 4):
            data[group, quad, slot] = rows[lane, 4 * quad : 4 * quad + 4]
        sums[lane] = int(rows[lane].astype(np.int64).sum())
    return data, sums


def float_tile(rows: np.ndarray) -> np.ndarray:
    """Rows f32 [n, dim] as a tile f32 [groups, dim, 16]."""
    n, dim = rows.shape
    groups = (n + LANES - 1) // LANES
    data = np.zeros((groups, dim, LANES), np.float32)
    for lane in range(n):
        data[lane // LANES, :, lane % LANES] = rows[lane]
    return data


def pack_levels(levels: np.ndarray, nbits: int) -> np.ndarray:
    """Levels u8 [n, dim] as codes u8 [n, dim * nbits / 8].

    With p = 8 / nbits, dimension d belongs to quad q = d // 4, that is to word q // p, byte d % 4 of
    it, bits from nbits * (q % p) on.
    """
    n, dim = levels.shape
    per_byte = 8 // nbits
    codes = np.zeros((n, dim * nbits // 8), np.uint8)
    for d in range(dim):
        word, slot = divmod(d // 4, per_byte)
        codes[:, 4 * word + d % 4] |= levels[:, d] << np.uint8(nbits * slot)
    return codes


def unpack_levels(codes: np.ndarray, dim: int, nbits: int) -> np.ndarray:
    """The inverse of `pack_levels`."""
    per_byte = 8 // nbits
    levels = np.zeros((len(codes), dim), np.uint8)
    for d in range(dim):
        word, slot = divmod(d // 4, per_byte)
        levels[:, d] = codes[:, 4 * word + d % 4] >> np.uint8(nbits * slot) & ((1 << nbits) - 1)
    return levels


def pack_docs(docs: list[int], width: int) -> np.ndarray:
    """Doc ordinals as little-endian numbers of `width` bytes, with 4 bytes of slack."""
    packed = b"".join(int(doc).to_bytes(width, "little") for doc in docs)
    return np.frombuffer(packed + b"\xaa" * 4, np.uint8).copy()


# ---- Kernels: integers -----------------------------------------------------------------------------


def tile_dots(tile_rows: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Dots s32 [n, lanes] of rows s8 [n, dim] and tile rows s8 [lanes, dim]."""
    return (rows.astype(np.int64) @ tile_rows.astype(np.int64).T).astype(np.int32)


def nearest(
    tile_rows: np.ndarray, rows: np.ndarray, bias: np.ndarray, first: int, shift: int
) -> np.ndarray:
    """The four largest keys [4, lanes] of every lane; INT32_MIN where there are fewer rows."""
    dots = tile_dots(tile_rows, rows)
    keys = np.full((4, len(tile_rows)), INT32_MIN, np.int64)
    for lane in range(len(tile_rows)):
        found = [
            ((int(dots[r, lane]) + int(bias[r])) >> shift) * 65536 + 65535 - (first + r)
            for r in range(len(rows))
        ]
        best = sorted(found, reverse=True)[:4]
        keys[: len(best), lane] = best
    return keys.astype(np.int32)


def quantize_dots(dots: np.ndarray, shift: int, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Base scores s16 and table entries u8 of dots s32 [n]."""
    base = [min(max(int(dot) >> shift, -32768), 32767) for dot in dots]
    table = [min(max((b * factor + 2**14) >> 15, 0), 255) for b in base]
    return np.array(base, np.int16), np.array(table, np.uint8)


def table_maxsim(
    rows: np.ndarray, cells: np.ndarray, parents: np.ndarray, children: np.ndarray
) -> int:
    """Sum over the columns of `rows` of the largest entry that one of the tokens reads."""
    best = np.zeros(rows.shape[1], np.int64)
    for parent, child in zip(parents, children, strict=True):
        cell = int(cells[min(int(parent), len(cells) - 1)])
        row = (cell & 0x7FFFFFFF) + (int(child) if cell >> 31 else 0)
        best = np.maximum(best, rows[row])
    return int(best.sum())


def accumulate(docs: list[int], limit: int, gain: int, stamp: int, words: np.ndarray) -> np.ndarray:
    """The accumulators u32 after one list: each document gains once per stamp."""
    out = words.copy()
    for doc in docs:
        word = int(out[min(doc, limit)])
        if word >> SUM_BITS != stamp:
            out[min(doc, limit)] = stamp << SUM_BITS | (word + gain) & SUM_MASK
    return out


def histogram(words: np.ndarray, shift: int, n_bins: int) -> np.ndarray:
    """How many sums other than 0 fall into each bin."""
    bins = np.zeros(n_bins, np.uint32)
    for word in words:
        total = int(word) & SUM_MASK
        if total:
            bins[min(total >> shift, n_bins - 1)] += 1
    return bins


def collect(words: np.ndarray, least: int) -> np.ndarray:
    """The documents whose sum is at least `least`."""
    return np.array([i for i, word in enumerate(words) if int(word) & SUM_MASK >= least], np.uint32)


# ---- Kernels: floats -------------------------------------------------------------------------------


def score_codes(
    tile_rows: np.ndarray,
    levels: np.ndarray,
    parents: np.ndarray,
    base: np.ndarray,
    base_scale: np.ndarray,
    code_scale: np.ndarray,
    middle: int,
) -> np.ndarray:
    """Best score f64 [lanes] over tokens; `base` [n_cells + 1, lanes] ends with the sentinel."""
    best = np.full(len(tile_rows), -np.inf)
    centred = 2 * levels.astype(np.int64) - middle
    for token in range(len(levels)):
        residual = tile_rows.astype(np.int64) @ centred[token]
        row = base[min(int(parents[token]), len(base) - 1)].astype(np.float64)
        score = np.float64(base_scale[token]) * row + np.float64(code_scale[token]) * residual
        best = np.maximum(best, score)
    return best


def maxsim_rows(tile_rows: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Largest dot f64 [lanes] of every tile row and the rows f32 [n, dim]; -inf without rows."""
    dots = tile_rows.astype(np.float64) @ rows.astype(np.float64).T
    return dots.max(axis=1, initial=-np.inf)


def quantize_row(
    row: np.ndarray, factors: np.ndarray, middle: int
) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """For every factor: (what the least squares reconstruction explains, levels, positions).

    Positions are the levels before rounding.
    """
    x = row.astype(np.float64)
    widest = np.abs(x).max()
    found = []
    for factor in factors.astype(np.float64):
        step = widest * factor * 2 / middle
        positions = np.clip(x / step + middle / 2, 0, middle)
        levels = np.rint(positions)
        z = levels - middle / 2
        found.append(((x @ z) ** 2 / (z @ z), levels.astype(np.uint8), positions))
    return found


def to_int8(row: np.ndarray, scale: float) -> np.ndarray:
    """Rounded f32 products as s8; NaN gives 0."""
    with np.errstate(over="ignore", invalid="ignore"):
        product = row.astype(np.float32) * np.float32(scale)
    return np.clip(np.rint(np.where(np.isnan(product), 0, product)), -127, 127).astype(np.int8)
