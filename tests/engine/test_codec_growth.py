# SPDX-License-Identifier: Apache-2.0
"""A codec that grows: what is added, what stays, and how far tokens are from its centroids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import reference
from engine.test_codec import arrays_of, save, tokens, train, write_container
from weft import _native, errors

quantizer = _native._quantizer


def grow(codec: _native.Codec, rows: np.ndarray, **changes: object) -> _native.Codec:
    params: dict[str, object] = {"n_more": 30, "iterations": 4, "n_tokens": len(rows), "used": []}
    params |= {"max_sample_bytes": 1 << 30, "threads": 2, "progress": None}
    return codec.grow(rows, **(params | changes))


def on_grid(rows: np.ndarray) -> np.ndarray:
    """Tokens as the tree sees them."""
    rotated = quantizer.rotate(rows.astype(np.float32), 42)
    scale = float(reference.token_scale(rotated.shape[1]))
    return np.array([reference.to_int8(row, scale) for row in rotated])


def squared_distances(codec: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Of every token to its fine centroid, in steps of the grid."""
    grid = on_grid(rows)
    parents, children = reference.nearest_child(grid, codec)
    fines = codec["child_offsets"][parents].astype(int) + children
    return ((grid.astype(np.int64) - codec["fine"][fines]) ** 2).sum(1)


@pytest.mark.parametrize("dim", [40, 128])
def test_the_error_is_that_of_95_in_100_tokens(dim: int, tmp_path: Path) -> None:
    rows = tokens(2_000, dim)
    codec = train(rows, n_coarse=16, n_fine=80)
    arrays = arrays_of(codec, tmp_path)
    distances = np.sort(squared_distances(arrays, rows))
    # Distances come from halves that were rounded: they are 1 off at most.
    assert abs(codec.error - distances[1_899]) <= 1
    assert codec.error == arrays["error"][0]
    others = tokens(1_500, dim, seed=5, n_clusters=7)
    beyond = (squared_distances(arrays, others) > codec.error).mean()
    assert codec.share_beyond(others, 1) == pytest.approx(beyond, abs=0.002)
    assert beyond > 0.5 > 0.06 > codec.share_beyond(rows, 2) > 0.04


def test_what_is_there_stays(tmp_path: Path) -> None:
    rows, others = tokens(2_000, 64), tokens(1_500, 64, seed=5, n_clusters=7)
    codec = train(rows, n_coarse=16, n_fine=80)
    old = arrays_of(codec, tmp_path)
    grown = grow(codec, others)
    new = arrays_of(grown, tmp_path)
    assert (grown.n_coarse, grown.n_fine, grown.n_tokens) == (16, 110, 2_000)
    for name in ("coarse", "scales", "error"):
        assert np.array_equal(old[name], new[name])
    for cell in range(16):
        first, last = old["child_offsets"][cell : cell + 2]
        begin = new["child_offsets"][cell]
        assert np.array_equal(old["fine"][first:last], new["fine"][begin : begin + last - first])
    encoded = codec._encode(rows, plane=True)
    assert np.array_equal(codec._decode(encoded), grown._decode(encoded))
    assert grown.share_beyond(others, 1) < 0.7 * codec.share_beyond(others, 1)
    again = _native.Codec.open(str(tmp_path / "codec.weft"))
    assert again.checksum == grown.checksum != codec.checksum


def test_children_go_where_distances_are(tmp_path: Path) -> None:
    """By the square root of what the children of a cell leave over, one after the other."""
    codec = train(tokens(2_000, 64), n_coarse=16, n_fine=80)
    rows = tokens(470, 64, seed=5, n_clusters=9)
    old = arrays_of(codec, tmp_path)
    new = arrays_of(grow(codec, rows), tmp_path)  # 30 * 16 rows would be drawn: all of them are
    grid = on_grid(rows).astype(np.int64)
    cells = np.array([best[0] for best in reference.ranked_centroids(grid, old["coarse"], 1)])
    weights, room = np.zeros(16), np.zeros(16, int)
    for cell in range(16):
        first, last = old["child_offsets"][cell : cell + 2].astype(int)
        own = grid[cells == cell]
        gaps = own[:, None] - old["fine"][first:last][None].astype(np.int64)
        weights[cell] = np.sqrt((gaps**2).sum(2).min(1).sum()) if len(own) else 0.0
        room[cell] = len(own)
    counts = np.zeros(16, int)
    for _ in range(30):
        bids = np.where(counts < room, weights / (2 * counts + 1), -1.0)
        counts[bids.argmax()] += 1
    added = np.diff(new["child_offsets"].astype(int)) - np.diff(old["child_offsets"].astype(int))
    assert added.tolist() == counts.tolist()


def test_new_children_are_means_of_the_tokens_nearest_to_them(tmp_path: Path) -> None:
    """With one cell, and rounds enough for k-means to come to rest."""
    rows, others = tokens(400, 32), tokens(75, 32, seed=5, n_clusters=4)  # all are drawn
    codec = train(rows, n_coarse=1, n_fine=6)
    new = arrays_of(grow(codec, others, n_more=5, iterations=40), tmp_path)["fine"]
    grid = on_grid(others)
    labels = np.array([best[0] for best in reference.ranked_centroids(grid, new, 1)])
    for child in range(6, 11):
        mean = grid[labels == child].astype(float).mean(0)
        assert np.abs(mean - new[child]).max() <= 0.5 + 1e-9


def test_cells_do_not_overflow() -> None:
    rows = tokens(9_000, 32, n_clusters=2)
    codec = train(rows[:3_000], n_coarse=2, n_fine=200)
    grown = grow(codec, rows, n_more=1_000)
    assert (grown.n_coarse, grown.n_fine) == (2, 512)
    assert grown.n_tokens == 9_000  # of which 512 * 50 could be
    assert grow(grown, rows).n_fine == 512


@pytest.mark.parametrize("more", [{"n_more": 10**6}, {"max_sample_bytes": 32 * 80}])
def test_no_more_than_the_sample_tells_means_of(more: dict[str, int]) -> None:
    codec = train(tokens(2_000, 32), n_coarse=16, n_fine=80)
    n_sampled = min(1_600, more.get("max_sample_bytes", 10**9) // 32)
    assert grow(codec, tokens(1_600, 32, seed=5), **more).n_fine <= 80 + n_sampled // 8


def test_same_bytes_for_any_number_of_threads(tmp_path: Path) -> None:
    codec, rows = train(tokens(20_000, 64)), tokens(15_000, 64, seed=5)
    made = set()
    for threads in (1, 2, 5):
        save(grow(codec, rows, n_more=200, threads=threads), tmp_path / "grown.weft")
        made.add((tmp_path / "grown.weft").read_bytes())
        assert codec.share_beyond(rows, threads) == codec.share_beyond(rows, 1)
    assert len(made) == 1


def test_ancestors_in_use_are_known(tmp_path: Path) -> None:
    rows = tokens(3_000, 32)
    first = train(rows[:1_000], n_coarse=4, n_fine=20)
    second = grow(first, rows, n_more=5, used=[first.checksum])
    third = grow(second, rows, n_more=5, used=[first.checksum, second.checksum])
    assert arrays_of(third, tmp_path)["ancestors"].tolist() == [first.checksum, second.checksum]
    fresh = grow(second, rows, n_more=5, used=[second.checksum])
    assert arrays_of(fresh, tmp_path)["ancestors"].tolist() == [second.checksum]


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("meta", 8, -1, "meta: value 8 is -1, expected 0..4096"),
        ("meta", 8, 2, "ancestors"),
        ("ancestor_children", (0, 3), 0, "ancestors: cell 3 had 0 children"),
        ("ancestor_children", (0, 3), 300, "ancestors: cell 3 had 300 children"),
    ],
)
def test_hostile_file(name: str, index: object, value: int, message: str, tmp_path: Path) -> None:
    codec = grow(train(tokens(2_000, 64), n_coarse=8, n_fine=40), tokens(2_000, 64, seed=5))
    arrays = arrays_of(codec, tmp_path)
    arrays[name][index] = value
    write_container(tmp_path / "hostile.weft", arrays)
    with pytest.raises(errors.CorruptIndexError, match=message):
        _native.Codec.open(str(tmp_path / "hostile.weft"))


def test_rows_of_another_dim() -> None:
    codec = train(tokens(2_000, 64))
    with pytest.raises(errors.InvalidArgumentError, match="rows have dim 32, the codec has 64"):
        grow(codec, tokens(100, 32))
