# SPDX-License-Identifier: Apache-2.0
"""Means by group and the paired bootstrap, against loops and against what must follow."""

import random
import statistics

import numpy as np
import pytest

from weft.comparison import Line, compare, plot
from weft.errors import InvalidArgumentError


def line(name, values):
    return Line(name, {"RR@10": {f"q{i}": float(value) for i, value in enumerate(values)}})


def test_means_by_group():
    one = line("a", [1, 0, 0.5, 0.25, 0.75])
    groups = {"q0": "ja", "q1": "am", "q2": "ja", "q4": "ja"}
    assert one.means == {"RR@10": 0.5}
    assert one.means_by(groups) == {"RR@10": {"am": 0.0, "ja": 0.75, "macro": 0.375}}
    assert one.means_by({}) == {"RR@10": {}}


def test_interval_is_that_of_resampled_queries():
    rng = np.random.default_rng(5)
    old, new = rng.random(200), rng.random(200) + 0.05
    found = compare(line("new", new), line("old", old), resamples=4_000)[0]
    gains = [b - a for a, b in zip(old, new, strict=True)]
    other = random.Random(1)
    means = sorted(statistics.fmean(other.choices(gains, k=200)) for _ in range(4_000))
    assert found.difference == pytest.approx(statistics.fmean(gains))
    spread = means[3_900] - means[99]
    assert found.low == pytest.approx(means[99], abs=0.07 * spread)
    assert found.high == pytest.approx(means[3_900], abs=0.07 * spread)
    assert (found.name, found.against, found.measure) == ("new", "old", "RR@10")


def test_pairs_count_and_not_the_spread_of_each_line():
    rng = np.random.default_rng(6)
    hard = rng.random(100)
    paired = compare(line("new", hard + 0.01), line("old", hard))[0]
    assert paired.low == pytest.approx(0.01)
    assert paired.high == pytest.approx(0.01)
    assert paired.beyond_chance
    shuffled = compare(line("new", rng.permutation(hard) + 0.01), line("old", hard))[0]
    assert not shuffled.beyond_chance


def test_the_seed_decides():
    rng = np.random.default_rng(7)
    one, other = line("a", rng.random(50)), line("b", rng.random(50))
    assert compare(one, other, seed=3) == compare(one, other, seed=3)
    assert compare(one, other, seed=3) != compare(one, other, seed=4)
    assert compare(one, one)[0].low == compare(one, one)[0].high == 0.0


def test_lines_that_cannot_be_compared():
    with pytest.raises(InvalidArgumentError, match="not of the same queries"):
        compare(line("a", [1, 0]), line("b", [1]))
    with pytest.raises(InvalidArgumentError, match="not of the same measures"):
        compare(line("a", [1]), Line("b", {"R@1": {"q0": 1.0}}))
    with pytest.raises(InvalidArgumentError, match="resamples=10"):
        compare(line("a", [1]), line("b", [1]), resamples=10)


def test_plot(tmp_path):
    lines = [line("weft", [1, 0, 1]), line("bm25", [0, 0, 1])]
    plot(tmp_path / "all.png", lines)
    plot(tmp_path / "groups.png", lines, {"q0": "ja", "q1": "am"})
    sizes = [
        (path.read_bytes()[:4], int.from_bytes(path.read_bytes()[20:24], "big"))
        for path in (tmp_path / "all.png", tmp_path / "groups.png")
    ]
    assert sizes[0][0] == sizes[1][0] == b"\x89PNG"
    assert sizes[1][1] == 2 * sizes[0][1]  # one panel more
    plot(tmp_path / "named.svg", lines)
    with pytest.raises(InvalidArgumentError, match=r"expected a name that ends in \.png"):
        plot(tmp_path / "table.xls", lines)
