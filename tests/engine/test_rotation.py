# SPDX-License-Identifier: Apache-2.0
"""The rotation keeps dot products, inverts, mixes every dimension, and never changes."""

from __future__ import annotations

import numpy as np
import pytest

from weft import _native, errors

quantizer = _native._quantizer

DIMS = [1, 3, 31, 32, 33, 96, 128, 200, 224, 768, 4097]
each_dim = pytest.mark.parametrize("dim", DIMS)


def rows_of(dim: int, n: int = 6) -> np.ndarray:
    return np.random.default_rng(dim).standard_normal((n, dim)).astype(np.float32)


@each_dim
def test_keeps_dot_products(dim: int) -> None:
    rows = rows_of(dim)
    rotated = quantizer.rotate(rows, 42).astype(np.float64)
    assert rotated.shape == (len(rows), -(-dim // 32) * 32)
    wide = rows.astype(np.float64)
    tolerance = 1e-5 * np.abs(wide) @ np.abs(wide).T + 1e-6
    assert (np.abs(rotated @ rotated.T - wide @ wide.T) <= tolerance).all()


@each_dim
def test_inverts(dim: int) -> None:
    rows = rows_of(dim)
    back = quantizer.unrotate(quantizer.rotate(rows, 7), dim, 7)
    np.testing.assert_allclose(back, rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dim", [32, 96, 128, 200, 768])
def test_spreads_one_dimension_over_all(dim: int) -> None:
    matrix = quantizer.rotate(np.eye(dim, dtype=np.float32), 42)
    padded = matrix.shape[1]
    # Every dimension reaches every block, and none keeps more than a fair share of its own.
    assert np.abs(matrix).max() <= 6 / np.sqrt(padded) + 1e-6
    reach = (np.abs(matrix) > 1e-6).mean(axis=1)
    assert reach.min() >= 0.4


def test_depends_on_the_seed_alone() -> None:
    rows = rows_of(128)
    first = quantizer.rotate(rows, 1)
    assert first.tobytes() == quantizer.rotate(rows, 1).tobytes()
    assert np.abs(first - quantizer.rotate(rows, 2)).max() > 0.1


@pytest.mark.parametrize(
    ("dim", "expected"), [(96, 0x20FFC119), (128, 0x51310E4C), (200, 0x07AE3824)]
)
def test_is_part_of_the_format(dim: int, expected: int) -> None:
    """Codec files store a seed, so the rotation of a seed may never change."""
    rows = (np.arange(3 * dim, dtype=np.float32).reshape(3, dim) % 17 - 8) / 8
    assert _native.crc32c(quantizer.rotate(rows, 42)) == expected


@pytest.mark.parametrize("dim", [0, 4098])
def test_refuses_dim(dim: int) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=f"dim={dim}: expected 1"):
        quantizer.rotate(np.zeros((1, dim), np.float32), 42)
