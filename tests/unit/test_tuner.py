# SPDX-License-Identifier: Apache-2.0
"""What the tuner asks of dense vectors, and how far it looks."""

from types import SimpleNamespace

import numpy as np
import pytest

from weft.tuner import Tuner, TuningQueries


def test_means_that_cancel_out_are_left_out(rng):
    rows = rng.normal(size=(8, 3)).astype(np.float32)
    rows[3] = -rows[2]
    sources = np.arange(8, dtype=np.uint32).reshape(4, 2)
    means = TuningQueries(rows, np.arange(0, 9, 2, dtype=np.uint64), sources).as_means()
    assert len(means) == 3
    assert means.sources.tolist() == [[0, 1], [4, 5], [6, 7]]
    for row, (first, second) in zip(means.values, means.sources, strict=True):
        mean = (rows[first].astype(float) + rows[second]) / 2
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)


@pytest.mark.parametrize(("n_coarse", "most"), [(16, 64), (2_048, 64), (4_096, 128), (65_536, 256)])
def test_more_cells_are_probed_where_there_are_more(n_coarse, most):
    """64 of 8,192 cells, and 600 documents refined, were too few at 50 million tokens."""
    queries = TuningQueries(np.ones((1, 3), np.float32), np.array([0, 1], np.uint64), None)
    codec = SimpleNamespace(n_coarse=n_coarse, n_fine=100 * n_coarse)
    ladders = Tuner(None, codec, [300_000], 48_000_000, queries, reranks=True).ladders(10)
    assert max(ladders["nprobe"]) == most
    assert max(ladders["nrefine"]) == 2_000
    assert all(list(ladder) == sorted(ladder) for ladder in ladders.values())
