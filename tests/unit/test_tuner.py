# SPDX-License-Identifier: Apache-2.0
"""What the tuner asks of dense vectors."""

import numpy as np

from weft.tuner import TuningQueries


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
