# SPDX-License-Identifier: Apache-2.0
"""Nearest centroids and integer k-means: equal to their definitions, for any number of threads."""

from __future__ import annotations

import numpy as np
import pytest

import reference
from weft import _native

kmeans = _native._quantizer.kmeans
nearest = _native._quantizer.nearest


def clustered(n: int, n_centres: int, dim: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.normal(0, 30, (n_centres, dim))
    rows = centres[random.integers(n_centres, size=n)] + random.normal(0, 12, (n, dim))
    return np.clip(np.rint(rows), -127, 127).astype(np.int8)


def run(rows: np.ndarray, n_clusters: int, iterations: int, threads: int = 1) -> np.ndarray:
    return kmeans(rows, n_clusters=n_clusters, iterations=iterations, seed=5, threads=threads)


@pytest.mark.parametrize("dim", [32, 96, 256])
@pytest.mark.parametrize("n_centroids", [4, 5, 100, 700])
def test_nearest_is_the_definition(n_centroids: int, dim: int) -> None:
    rows, centroids = clustered(150, 20, dim, 0), clustered(n_centroids, 20, dim, 1)
    expected = reference.ranked_centroids(rows, centroids, 4)
    np.testing.assert_array_equal(nearest(rows, centroids), expected)


@pytest.mark.parametrize("n_centroids", [1, 2, 3])
def test_nearest_of_few(n_centroids: int) -> None:
    rows, centroids = clustered(40, 5, 32, 2), clustered(n_centroids, 5, 32, 3)
    expected = reference.ranked_centroids(rows, centroids, n_centroids)
    np.testing.assert_array_equal(nearest(rows, centroids)[:, :n_centroids], expected)


@pytest.mark.parametrize("n_centroids", [2048, 5000])
def test_nearest_of_many_misses_few(n_centroids: int) -> None:
    """Beyond 2,047 centroids only those of the nearest groups are compared."""
    rows, centroids = clustered(5000, 400, 64, 4), clustered(n_centroids, 400, 64, 4)
    found = nearest(rows, centroids)
    distances = (
        (rows.astype(np.int64) ** 2).sum(1)[:, None]
        - 2 * (rows.astype(np.int64) @ centroids.T.astype(np.int64))
        + (centroids.astype(np.int64) ** 2).sum(1)
    )
    of_found = np.take_along_axis(distances, found, 1)
    assert all(len(set(four)) == 4 for four in found)
    assert of_found[:, 0].mean() <= 1.01 * distances.min(1).mean()
    assert (of_found[:, 0] <= distances.min(1) + 64).mean() >= 0.97
    for part in (slice(0, 1), slice(7, 300)):
        np.testing.assert_array_equal(nearest(rows[part], centroids), found[part])


def test_starts_from_distinct_rows() -> None:
    rows = clustered(200, 10, 32, 0)
    start = {row.tobytes() for row in run(rows, 50, 0)}
    assert len(start) == 50
    assert start <= {row.tobytes() for row in rows}


@pytest.mark.parametrize(
    ("n", "n_centres", "dim", "n_clusters"),
    [(400, 12, 32, 12), (300, 300, 96, 40), (150, 3, 64, 60), (64, 64, 32, 64), (9, 9, 32, 1)],
)
def test_each_round_is_the_definition(n: int, n_centres: int, dim: int, n_clusters: int) -> None:
    rows = clustered(n, n_centres, dim, n)
    before = run(rows, n_clusters, 0)
    for iterations in range(1, 5):
        after = run(rows, n_clusters, iterations)
        np.testing.assert_array_equal(after, reference.kmeans_round(rows, before))
        before = after


def test_empty_clusters_are_filled() -> None:
    # 60 copies of one row and a few others: most of the rows drawn first are that copy.
    rows = np.concatenate([np.repeat(clustered(1, 1, 32, 1), 60, 0), clustered(12, 12, 32, 2)])
    centroids = run(rows, 10, 8)
    assert len({c.tobytes() for c in centroids}) == 10
    np.testing.assert_array_equal(run(rows, 10, 3), reference.kmeans_round(rows, run(rows, 10, 2)))


def test_equal_rows() -> None:
    rows = np.repeat(clustered(1, 1, 32, 3), 20, 0)
    np.testing.assert_array_equal(run(rows, 4, 5), rows[:4])


def test_finds_separate_clusters() -> None:
    random = np.random.default_rng(3)
    centres = random.choice([-100, 100], (8, 64))
    rows = (centres[np.arange(400) % 8] + random.integers(-5, 6, (400, 64))).astype(np.int8)
    centroids = run(rows, 24, 10).astype(int)
    gaps = np.abs(centroids[:, None] - centres[None]).max(2)
    assert (gaps.min(1) <= 5).all()
    assert set(gaps.argmin(1)) == set(range(8))


def test_threads_change_nothing() -> None:
    rows = clustered(5000, 100, 32, 4)
    first = run(rows, 130, 4, threads=1).tobytes()
    assert all(run(rows, 130, 4, threads=threads).tobytes() == first for threads in (2, 3))
