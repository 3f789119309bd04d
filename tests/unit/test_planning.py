# SPDX-License-Identifier: Apache-2.0
"""The plan follows its stated rules, and segments stay within their limits."""

import errno
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import weft
from weft.errors import InvalidArgumentError, OutOfMemoryError, StorageError
from weft.lifecycle import codec_sizes, planning
from weft.types import defaults


@pytest.mark.parametrize(
    ("n_tokens", "n_coarse", "n_fine"),
    [
        (1, 16, 16),
        (100_000, 256, 2_000),
        (1_000_000, 1_024, 20_000),
        (10_000_000, 4_096, 200_000),
        (100_000_000, 16_384, 2_000_000),
        (10_000_000_000, 65_536, 65_536 * 128),
    ],
)
def test_size_of_the_tree(n_tokens, n_coarse, n_fine):
    assert codec_sizes.tree_size(weft.IndexConfig(), n_tokens) == (n_coarse, n_fine)


def test_sizes_that_are_given_hold():
    assert codec_sizes.tree_size(weft.IndexConfig(n_coarse=64), 1_000_000) == (64, 8_192)
    assert codec_sizes.tree_size(weft.IndexConfig(n_fine=500), 1_000_000) == (500, 500)


@pytest.mark.parametrize("n_tokens", [0, 10**5, 10**6, 10**7, 10**8, 10**9])
def test_memory_stays_below_three_gib(n_tokens):
    for n_docs in (n_tokens // 100, n_tokens // 20):
        found = weft.plan(weft.IndexConfig(), n_docs=n_docs, n_tokens=n_tokens, max_ram="3GiB")
        assert found.memory_bytes < 3 << 30
        assert found.n_segments >= n_tokens // defaults.segment_tokens


def test_four_bits_without_rerank_are_small():
    config = weft.IndexConfig(rerank=None)
    found = weft.plan(config, n_docs=100_000, n_tokens=10_000_000, max_ram="3GiB")
    assert found.disk_bytes / 10_000_000 <= 78


def test_a_small_index_is_its_rows():
    found = weft.plan(weft.IndexConfig(dim=64), n_docs=10, n_tokens=1_000, max_ram="1GB")
    assert (found.n_coarse, found.n_fine, found.n_sample, found.n_segments) == (0, 0, 0, 1)
    assert 128_000 <= found.disk_bytes <= 130_000
    assert found.spool_bytes == 128_000


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("8GiB", 8 << 30),
        ("512 MiB", 512 << 20),
        ("1.5GB", 1_500_000_000),
        ("200000000", 200_000_000),
        (1 << 30, 1 << 30),
    ],
)
def test_memory_in_words(text, n):
    assert planning.parse_ram(text) == n


@pytest.mark.parametrize("text", ["much", "8 giga", "-1GiB", 1.5, True, 1_000, "1MiB"])
def test_memory_that_cannot_be(text):
    with pytest.raises(InvalidArgumentError, match="max_ram="):
        planning.parse_ram(text)


ROOM = {
    "memory for the limit": ("memory", "memory: building 1000000 tokens needs .*MiB of max_ram"),
    "memory of the machine": ("available", "memory: .* needs .* 1.0 MiB are available"),
    "disk": ("disk", r"building 1000000 tokens needs .* MiB on disk, 5\.0 MiB are free"),
}


def free(n_bytes):
    return lambda _folder: SimpleNamespace(free=n_bytes)


@pytest.mark.parametrize("case", ROOM)
def test_a_build_that_cannot_fit_is_refused(case, tmp_path, monkeypatch):
    which, message = ROOM[case]
    ram = "128MiB" if which == "memory" else "3GiB"
    found = weft.plan(weft.IndexConfig(), n_docs=10_000, n_tokens=1_000_000, max_ram=ram)
    if which == "available":
        monkeypatch.setattr(planning, "available_memory", lambda: (1 << 20) - planning.FIXED_BYTES)
    if which == "disk":
        monkeypatch.setattr(planning.shutil, "disk_usage", free(5 << 20))
    with pytest.raises(StorageError if which == "disk" else OutOfMemoryError, match=message):
        planning.require_room(found, tmp_path)


def test_what_is_spooled_already_needs_no_disk(tmp_path, monkeypatch):
    found = weft.plan(weft.IndexConfig(), n_docs=10_000, n_tokens=1_000_000, max_ram="3GiB")
    monkeypatch.setattr(planning.shutil, "disk_usage", free(found.disk_bytes))
    planning.require_room(found, tmp_path, spooled=found.spool_bytes)
    with pytest.raises(StorageError) as caught:
        planning.require_room(found, tmp_path)
    assert caught.value.errno == errno.ENOSPC


def test_a_small_build_fits_the_smallest_memory(tmp_path):
    found = weft.plan(weft.IndexConfig(), n_docs=100, n_tokens=10_000, max_ram=planning.MIN_RAM)
    planning.require_room(found, tmp_path)


def test_memory_by_default():
    assert planning.MIN_RAM <= planning.parse_ram(None) <= defaults.max_ram


def test_a_container_limits_what_is_available(tmp_path, monkeypatch):
    """What is cached counts as free, no limit as none."""
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100\nactive_file 20\nfile 120\n")
    (tmp_path / "memory.current").write_text("1120\n")
    (tmp_path / "memory.max").write_text("5000\n")
    names = ("memory.max", "memory.current")
    monkeypatch.setattr(planning, "_CONTAINERS", [(tmp_path, *names)])
    assert planning.available_memory() == 4_000
    (tmp_path / "memory.max").write_text("max\n")
    assert planning.available_memory() > 1 << 20


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 50)), max_size=60),
    st.integers(100, 4_000),
    st.integers(20, 120),
)
def test_segments_are_cut_between_documents(docs, max_ram, most_tokens):
    """Every document is in one segment, in order, and only a document alone may exceed a limit."""
    n_windows = np.array([n for n, _ in docs], np.int64)
    starts = np.concatenate([[0], np.cumsum(n_windows)]).astype(np.int64)
    lengths = np.repeat(np.array([n for _, n in docs], np.uint32), n_windows)
    limits = planning.segment_limits
    try:
        planning.segment_limits = lambda ram: (most_tokens, ram)
        cuts = planning.segment_cuts(starts, lengths, max_ram)
    finally:
        planning.segment_limits = limits
    assert [first for first, _ in cuts] + [starts[-1]] == [
        0,
        *(last for _, last in cuts),
    ] or not docs
    for first, last in cuts:
        assert first in starts
        assert last in starts
        n_docs = int(((starts >= first) & (starts < last)).sum())
        tokens = int(lengths[first:last].sum())
        size = tokens * planning.SEGMENT_TOKEN_BYTES
        size += (last - first) * planning.SEGMENT_DOC_BYTES
        assert n_docs == 1 or (tokens <= most_tokens and size <= max_ram)
