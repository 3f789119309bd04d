# SPDX-License-Identifier: Apache-2.0
"""The definition of every operation and stage: NumPy, float64, Python integers, plain loops.

Slow on purpose and written without a look at the engine, so that both can be wrong only separately.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LANES = 16
SUM_BITS = 22
SUM_MASK = (1 << SUM_BITS) - 1
INT32_MIN = -(2**31)

# ---- Kernels: layouts ----------------------------------------------------------------------------


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

    With p = 8 / nbits, dimension d belongs to quad q = d // 4, that is to word q // p, byte d % 4
    of it, bits from nbits * (q % p) on.
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


# ---- Kernels: integers ---------------------------------------------------------------------------


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
        values = [(int(dots[r, lane]) + int(bias[r])) >> shift for r in range(len(rows))]
        found = [value * 65536 + 65535 - (first + r) for r, value in enumerate(values)]
        best = sorted(found, reverse=True)[:4]
        keys[: len(best), lane] = best
    return keys.astype(np.int32)


def quantize_dots(dots: np.ndarray, shift: int, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Base scores s16 and table entries u8 of dots s32 [n]."""
    base = [min(max(int(dot) >> shift, -32768), 32767) for dot in dots]
    table = [min(max((b * factor + 2**14) >> 15, 0), 255) for b in base]
    return np.array(base, np.int16), np.array(table, np.uint8)


def table_best(
    rows: np.ndarray, cells: np.ndarray, parents: np.ndarray, children: np.ndarray
) -> np.ndarray:
    """Per column of `rows` u8 [n_rows, lanes], the largest entry that one of the tokens reads."""
    read = rows[np.array(table_rows(cells, parents, children), np.int64)]
    return read.max(axis=0, initial=0)


def table_leaders(
    rows: np.ndarray,
    cells: np.ndarray,
    parents: np.ndarray,
    children: np.ndarray,
    least: np.ndarray,
) -> list[int]:
    """The tokens whose row reaches `least` [lanes] in some column."""
    of_token = table_rows(cells, parents, children)
    return [t for t, row in enumerate(of_token) if (rows[row] >= least).any()]


def table_rows(cells: np.ndarray, parents: np.ndarray, children: np.ndarray) -> list[int]:
    """Which row each token reads: its cell's, or its child's where the cell's high bit is set."""
    out = []
    for parent, child in zip(parents, children, strict=True):
        cell = int(cells[min(int(parent), len(cells) - 1)])
        out.append((cell & 0x7FFFFFFF) + (int(child) if cell >> 31 else 0))
    return out


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
        if int(word) & SUM_MASK:
            bins[min((int(word) & SUM_MASK) >> shift, n_bins - 1)] += 1
    return bins


def collect(words: np.ndarray, least: int) -> np.ndarray:
    """The documents whose sum is at least `least`."""
    return np.array([i for i, word in enumerate(words) if int(word) & SUM_MASK >= least], np.uint32)


# ---- Kernels: floats -----------------------------------------------------------------------------


def score_codes(
    tile_rows: np.ndarray,
    levels: np.ndarray,
    base: np.ndarray,
    base_rows: np.ndarray,
    base_scale: np.ndarray,
    code_scale: np.ndarray,
    middle: int,
) -> np.ndarray:
    """Score f64 [n, lanes] of every token; its base scores are base[base_rows[token]]."""
    scores = np.empty((len(levels), len(tile_rows)))
    centred = 2 * levels.astype(np.int64) - middle
    for token in range(len(levels)):
        residual = tile_rows.astype(np.int64) @ centred[token]
        scores[token] = np.float64(base_scale[token]) * base[base_rows[token]]
        scores[token] += np.float64(code_scale[token]) * residual
    return scores


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


# --- search -------------------------------------------------------------------------------------
# The stages of a pruned search as loops over Python integers. `codec` is the mapping of arrays that
# a codec file holds; a segment is a list of documents, each a list of (parent, child) pairs.


def maxsim(query: np.ndarray, doc: np.ndarray) -> float:
    """Sum over query rows of the largest dot product with a document row."""
    if len(doc) == 0:
        return -np.inf
    tokens = np.asarray(doc, np.float64)
    return sum(max(float(np.dot(q, d)) for d in tokens) for q in np.asarray(query, np.float64))


def prepare_query(rotated: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """The int8 rows of a rotated query, and their one scale."""
    widest = np.float32(np.abs(rotated).max())
    factor = np.float32(127.0) / widest
    rows = np.clip(np.rint(rotated.astype(np.float32) * factor), -127, 127).astype(np.int64)
    return rows, np.float32(widest / np.float32(127.0))


def merge_tokens(rows: np.ndarray, same: float = 0.95) -> list[tuple[int, int]]:
    """(lane, weight) of the tokens that stand for themselves and their near-duplicates."""
    merged: list[list[int]] = []
    norms = [int(row @ row) for row in rows]
    for i in range(len(rows)):
        for entry in merged:
            j = entry[0]
            dot = int(rows[i] @ rows[j])
            if dot > 0 and dot * dot >= same * same * norms[i] * norms[j]:
                entry[1] += 1
                break
        else:
            merged.append([i, 1])
    return [(lane, weight) for lane, weight in merged]


@dataclass
class CentroidScores:
    """[centroid][lane]; table entries in 1/255 of the largest score, base scores in base_unit."""

    coarse_base: np.ndarray
    coarse: np.ndarray
    base: np.ndarray
    fine: np.ndarray
    base_unit: float


def centroid_scores(
    rows: np.ndarray, scale: np.float32, codec: dict[str, np.ndarray]
) -> CentroidScores:
    """Base scores (dot >> shift) and u8 table entries of every centroid."""
    scales = {"coarse": float(codec["scales"][0]), "fine": float(codec["scales"][1])}
    longest_query = max(math.sqrt(int(r @ r)) for r in rows)
    longest = {
        level: max(math.sqrt(int(c @ c)) for c in codec[level].astype(np.int64))
        for level in ("coarse", "fine")
    }
    unit = longest_query * float(scale) * max(longest[n] * scales[n] for n in scales) / 255.0
    out = {}
    for level in ("coarse", "fine"):
        bound = math.ceil(longest_query * longest[level])
        shift = max(0, bound.bit_length() - 15)
        factor = round(scales[level] * float(scale) * 2**shift / unit * 32768.0)
        factor = min(max(factor, 0), 32767)
        base = np.clip((codec[level].astype(np.int64) @ rows.T) >> shift, -32768, 32767)
        table = np.clip((base * factor + 2**14) >> 15, 0, 255)
        out[level] = (base, table, shift)
    base_unit = float(scale) * scales["fine"] * 2 ** out["fine"][2]
    return CentroidScores(*out["coarse"][:2], *out["fine"][:2], base_unit)


def probe_lists(
    scores: CentroidScores,
    merged: list[tuple[int, int]],
    child_offsets: np.ndarray,
    lengths: list[int],
    nprobe: int,
    budget: int,
    floor: float,
) -> tuple[list[list[tuple[int, int]]], set[int]]:
    """Per merged token its (fine centroid, gain), best first, and the cells that were opened."""
    opened: set[int] = set()
    ranked = []
    for lane, _ in merged:
        of_cell = scores.coarse_base[:, lane]
        cells = sorted(range(len(of_cell)), key=lambda c: (-of_cell[c], c))[:nprobe]
        opened |= set(cells)
        fines = [f for c in sorted(cells) for f in range(child_offsets[c], child_offsets[c + 1])]
        fines = [f for f in fines if lengths[f] > 0]
        ranked.append(sorted(fines, key=lambda f: (-scores.fine[f, lane], f)))
    read, rounds = 0, 0
    while rounds < max(map(len, ranked)) and read < budget:
        read += sum(lengths[fines[rounds]] for fines in ranked if rounds < len(fines))
        rounds += 1
    lists = []
    for (lane, weight), fines in zip(merged, ranked, strict=True):
        taken = fines[:rounds]
        least = int(scores.fine[taken[-1], lane]) * round(floor * 256) >> 8 if taken else 0
        lists.append(
            [(f, min(max((int(scores.fine[f, lane]) - least) * weight, 1), 1023)) for f in taken]
        )
    return lists, opened


def gather(
    segments: list[list[list[tuple[int, int]]]],
    child_offsets: np.ndarray,
    lists: list[list[tuple[int, int]]],
    ncandidates: int,
) -> list[tuple[int, int, int]]:
    """(segment, doc, sum of gains) of the documents with the largest sums, in file order."""
    sums: dict[tuple[int, int], int] = {}
    for s, docs in enumerate(segments):
        for d, tokens in enumerate(docs):
            fines = {int(child_offsets[p]) + c for p, c in tokens}
            firsts = (next((g for fine, g in of_token if fine in fines), 0) for of_token in lists)
            total = sum(firsts)
            if total > 0:
                sums[s, d] = total
    best = sorted(sums, key=lambda ref: (-sums[ref], ref))[:ncandidates]
    return [(s, d, sums[s, d]) for s, d in sorted(best)]


def known_scores(
    tokens: list[tuple[int, int]], child_offsets: np.ndarray, scores: CentroidScores, opened: set
) -> np.ndarray:
    """What the table holds of each token: its fine centroid, or its parent in a closed cell."""
    fine, coarse = scores.fine, scores.coarse
    return np.array([fine[child_offsets[p] + c] if p in opened else coarse[p] for p, c in tokens])


def interact(
    segments: list[list[list[tuple[int, int]]]],
    child_offsets: np.ndarray,
    scores: CentroidScores,
    opened: set[int],
    gathered: list[tuple[int, int, int]],
    count: int,
) -> list[tuple[int, int, int]]:
    """Approximate MaxSim from fine centroids (parents where a cell is closed) plus the gains."""
    valued = []
    for s, d, gain in gathered:
        rows = known_scores(segments[s][d], child_offsets, scores, opened)
        valued.append((s, d, 10 * int(np.max(rows, axis=0).sum()) + 3 * gain))
    return sorted(sorted(valued, key=lambda v: (-v[2], v[0], v[1]))[:count])


def leaders(
    tokens: list[tuple[int, int]], child_offsets: np.ndarray, scores: CentroidScores, opened: set
) -> list[int]:
    """Tokens that hold the largest centroid score above 0 of a query token; else the first."""
    rows = known_scores(tokens, child_offsets, scores, opened)
    least = np.maximum(np.max(rows, axis=0), 1)
    return [t for t, row in enumerate(rows) if (row >= least).any()] or [0]


def score_document(
    rows: np.ndarray,
    scale: np.float32,
    scores: CentroidScores,
    fines: np.ndarray,
    steps: np.ndarray,
    stored: np.ndarray,
    levels: np.ndarray,
    middle: int,
) -> float:
    """MaxSim of int8 query rows with tokens m * (base + step * (level - middle / 2))."""
    total = 0.0
    for lane, row in enumerate(rows):
        best = -np.inf
        for t in range(len(fines)):
            m = 0.75 + int(stored[t]) / 512
            base = float(scores.base[fines[t], lane]) * scores.base_unit
            residual = float(scale) * (row @ (levels[t].astype(np.int64) - middle / 2))
            best = max(best, m * (base + float(steps[t]) * residual))
        total += best
    return total


# ---- Codec ---------------------------------------------------------------------------------------
# Tokens and centroids of the tree are int8 rows; arrays carry the names they have in a codec file.

PLANE_RATIO = 12
PLANE_MIDDLE = 15 * PLANE_RATIO + 15


def token_scale(padded_dim: int) -> np.float32:
    """int8 per unit of length of a token as the tree sees it."""
    return np.float32(127 * math.sqrt(padded_dim) / 4)


def distance_biases(centroids: np.ndarray, unit: float = 1.0) -> list[int]:
    """-|c|^2 / 2 * unit, rounded away from zero: added to a dot, it ranks by squared distance."""
    wide = centroids.astype(np.int64)
    return [-min(math.floor(0.5 * unit * int(c @ c) + 0.5), 2**27) for c in wide]


def ranked_centroids(
    rows: np.ndarray, centroids: np.ndarray, count: int, unit: float = 1.0
) -> list[list[int]]:
    """The `count` nearest centroids of every row, best first, as coarsely as int16 values tell."""
    bias = distance_biases(centroids, unit)
    longest = max(math.sqrt(int(c @ c)) for c in centroids.astype(np.int64))
    reach = int(127 * math.sqrt(centroids.shape[1]) * longest - min(bias))
    shift = (reach >> 15).bit_length()
    values = (tile_dots(rows, centroids).T.astype(np.int64) + np.array(bias)) >> shift
    return [sorted(range(len(centroids)), key=lambda c: (-v[c], c))[:count] for v in values]


def kmeans_round(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """One round: means of the nearest rows; empty clusters take outer rows of wide ones."""
    wide = rows.astype(np.int64)
    labels = np.array([best[0] for best in ranked_centroids(rows, centroids, 1)])
    out = centroids.astype(np.int64)
    scatters = []
    for c in range(len(centroids)):
        own = wide[labels == c]
        if len(own):
            mean = own.sum(0) / len(own)
            out[c] = np.sign(mean) * np.floor(np.abs(mean) + 0.5)
            scatters.append((((own - mean) ** 2).sum(), c))
    empty = [c for c in range(len(centroids)) if not (labels == c).any()]
    donors = sorted((s for s in scatters if s[0] > 1e-6), key=lambda s: (-s[0], s[1]))
    for cluster, (_, donor) in zip(empty, donors, strict=False):
        own = wide[labels == donor]
        out[cluster] = own[((own - out[donor]) ** 2).sum(1).argmax()]
    return out.astype(np.int8)


def nearest_child(rows: np.ndarray, codec: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Parent and child of every int8 token: the nearest child over the four nearest cells."""
    scale = np.float64(token_scale(rows.shape[1]))
    coarse_unit, fine_unit = (np.float64(s) * scale for s in codec["scales"])
    offsets = codec["child_offsets"].astype(int)
    bias = distance_biases(codec["fine"], fine_unit)
    parents, children = [], []
    cells_of = ranked_centroids(rows, codec["coarse"], 4, coarse_unit)
    for row, cells in zip(rows.astype(np.int64), cells_of, strict=True):
        found = [
            (int(row @ codec["fine"][f].astype(np.int64)) + bias[f], cell, f - offsets[cell])
            for cell in cells
            for f in range(offsets[cell], offsets[cell + 1])
        ]
        _, cell, child = max(found, key=lambda entry: entry[0])  # the first of equals
        parents.append(cell)
        children.append(child)
    return np.array(parents, np.uint16), np.array(children, np.uint8)


def fines_of(codec: dict[str, np.ndarray], encoded: dict[str, np.ndarray]) -> np.ndarray:
    """The fine centroid of every token."""
    return codec["child_offsets"][encoded["parents"]].astype(np.int64) + encoded["children"]


def plane_positions(residual: np.ndarray, step: float, levels: np.ndarray) -> np.ndarray:
    """What the first plane left over, in levels of the second before rounding."""
    left = residual - step * (levels.astype(np.float64) - 7.5)
    return np.clip(left / (step / PLANE_RATIO) + 7.5, 0, 15)


def direction(
    codec: dict[str, np.ndarray], fine: int, step: float, levels: np.ndarray, middle: int
) -> np.ndarray:
    """c + step * (level - middle / 2): a rotated token before its multiplier."""
    centroid = codec["fine"][fine].astype(np.float64) * np.float64(codec["scales"][1])
    return centroid + step * (levels.astype(np.float64) - middle / 2)


def reconstruct(
    codec: dict[str, np.ndarray], encoded: dict[str, np.ndarray], nbits: int
) -> np.ndarray:
    """Rotated tokens f64 [n, padded_dim], m * (c + step * (level - middle / 2))."""
    dim = codec["coarse"].shape[1]
    levels = unpack_levels(encoded["codes"], dim, nbits).astype(int)
    middle, fineness, stored = 2**nbits - 1, 1, encoded["multipliers"]
    if "plane" in encoded:
        levels = PLANE_RATIO * levels + unpack_levels(encoded["plane"], dim, 4)
        middle, fineness, stored = PLANE_MIDDLE, PLANE_RATIO, encoded["plane_multipliers"]
    factors = 0.984375 + stored / 8192 if middle >= PLANE_MIDDLE else 0.75 + stored / 512
    rows = []
    for t, fine in enumerate(fines_of(codec, encoded)):
        step = float(encoded["steps"][t]) / fineness
        token = direction(codec, int(fine), step, levels[t], middle)
        rows.append(factors[t] * token)
    return np.array(rows)
