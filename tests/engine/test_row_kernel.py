# SPDX-License-Identifier: Apache-2.0
"""The kernel of a query of one token, against its definition and against that of many."""

from __future__ import annotations

import numpy as np
import pytest

import reference
from engine.test_kernels import (
    DIMS,
    NO_TOKENS,
    each_isa,
    each_nbits,
    extreme_queries,
    generator,
    random_bytes,
    same_bits,
)
from weft import _native

kernels = _native._kernels


@each_isa
@each_nbits
@pytest.mark.parametrize(("dim", "n"), [(dim, 5) for dim in [*DIMS, 384]] + [(128, 0), (128, 100)])
def test_score_row(isa: str, nbits: int, middle: int, dim: int, n: int) -> None:
    random = generator(nbits, middle, dim, n, 10)
    row = random_bytes(random, 1, dim)
    levels = random.integers(0, middle + 1, (n, dim), dtype=np.uint8)
    levels[n // 2 :] = np.where(random.random((n - n // 2, dim)) < 0.5, 0, middle)
    base = random.integers(-32768, 32768, (20, 16), dtype=np.int16)
    base_rows = random.integers(0, 20, n, dtype=np.uint32)
    scales = random.uniform(1e-5, 2e-5, (2, n)).astype(np.float32)
    scales[1] /= 100
    codes = reference.pack_levels(levels, nbits)
    given = (codes, base, base_rows, *scales, middle, nbits)
    scores = kernels.score_row(isa, row[0], *given)
    expected = reference.score_codes(row, levels, base[:, :1], base_rows, *scales, middle)
    np.testing.assert_allclose(scores, expected[:, 0], rtol=1e-5, atol=1e-6)
    tile = reference.byte_tile(np.concatenate([row, np.zeros((15, dim), np.int8)]))
    whole = np.array([[0, n]], np.uint32)
    _, lanes = kernels.score_codes("scalar", *tile, *given, whole, NO_TOKENS)
    assert same_bits(scores, lanes[:, 0].copy())


@each_isa
@pytest.mark.parametrize(("nbits", "middle"), [(1, 1), (2, 3), (4, 15), (8, 255)])
@pytest.mark.parametrize("dim", [32, 128, 4128])
def test_extreme_codes_of_a_row_saturate_nothing(
    isa: str, nbits: int, middle: int, dim: int
) -> None:
    levels = np.full((3, dim), middle, np.uint8)
    levels[1] = 0
    levels[2, ::2] = 0
    ones, base, rows = np.ones((2, 3), np.float32), np.zeros((1, 16), np.int16), np.zeros(3, "u4")
    for row in extreme_queries(dim)[:3]:
        given = (reference.pack_levels(levels, nbits), base, rows, *ones, middle, nbits)
        dots = (2 * levels.astype(np.int64) - middle) @ row.astype(np.int64)
        found = kernels.score_row(isa, row, *given)
        np.testing.assert_array_equal(found, dots.astype(np.float32))
