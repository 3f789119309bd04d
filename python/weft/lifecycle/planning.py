# SPDX-License-Identifier: Apache-2.0
"""What a build needs: every size it derives from the number of tokens, in one place.

The writer takes its limits from here, so that the plan it prints is the plan it follows.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from weft.checks import check_int
from weft.errors import InvalidArgumentError, OutOfMemoryError, StorageError
from weft.lifecycle.codec_sizes import n_more_centroids, outgrown, tree_size
from weft.sparse import BYTES_PER_POSTING, LEAST_POSTINGS, TERM_BYTES
from weft.types import defaults

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weft.lifecycle.entries import CodecEntry
    from weft.types import IndexConfig

MIN_RAM = 128 << 20  # FIXED_BYTES and some to work with
SAMPLE_PER_FINE = 16
LEAST_SAMPLE_PER_FINE = 8

# Anonymous bytes of a build (docs/performance.md, "Build").
FIXED_BYTES = 108 << 20  # interpreter, numpy, blocks being converted and encoded
SAMPLE_EXTRA = 24  # per sampled token beside its row: its cell, its number, its place in k-means
CENTROID_EXTRA = 8  # per centroid beside its row: its bias and its place
SEGMENT_TOKEN_BYTES = 3 + 8  # codes kept for the lists, and the lists
SEGMENT_DOC_BYTES = 96  # id with its offset and place in order, offset of its rows
SPOOL_DOC_BYTES = 4

# Bytes on disk that are not fixed by the layout alone.
POSTINGS_PER_TOKEN = 0.9
ID_BYTES = 20
LIST_BYTES = 4 + 8  # term of a list and where it begins
SPARSE_TERMS = 128  # of a document, where nobody has counted
VOCABULARY, LISTS_SQUARED = 30_000, 1_000  # lists there are: sqrt(1,000 terms), until all are met

_CONTAINERS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Plan:
    """What a build will need; `weft.plan` makes it.

    Attributes
    ----------
    n_docs, n_tokens, n_terms
        What is encoded and stored: what is added, and where a codec is trained for an index that
        had none or has outgrown it, what is there already. `n_terms` are those of all sparse
        vectors.
    disk_bytes
        Size of all fields of that, without texts and metadata.
    spool_bytes
        Needed beside it until the commit.
    memory_bytes
        Peak of anonymous memory; files that are mapped do not count.
    max_ram
        The limit that it was planned for.
    n_coarse, n_fine, n_sample
        Centroids of the two levels and the tokens they are trained on; 0 without a codec.
    """

    n_docs: int
    n_tokens: int
    n_terms: int
    n_segments: int
    n_coarse: int
    n_fine: int
    n_sample: int
    disk_bytes: int
    spool_bytes: int
    memory_bytes: int
    max_ram: int


def padded_dim(dim: int) -> int:
    """Give the dimensions that are stored: the next multiple of 32."""
    return -(-dim // 32) * 32


def sample_bytes(max_ram: int) -> int:
    """Give how many bytes of tokens a codec may be trained on."""
    return max_ram // 4


def sorted_postings(max_ram: int) -> int:
    """Give how many postings of sparse vectors may be sorted at once."""
    return max(min(max_ram // 4, (max_ram - FIXED_BYTES) // 2) // BYTES_PER_POSTING, LEAST_POSTINGS)


def segment_limits(max_ram: int) -> tuple[int, int]:
    """Give the most tokens of one segment, and the most bytes that building one may take."""
    return defaults.segment_tokens, max_ram // 2


def segment_bytes(n_tokens: int, n_windows: int) -> int:
    """Give the memory that building a segment takes."""
    return n_tokens * SEGMENT_TOKEN_BYTES + n_windows * SEGMENT_DOC_BYTES


def segment_cuts(
    doc_starts: NDArray[np.int64], lengths: NDArray[np.uint32], max_ram: int
) -> list[tuple[int, int]]:
    """Cut documents into segments within the limits: ranges [first, last) of windows, in order.

    `doc_starts`: first window of each document, and the number of windows at the end; `lengths`:
    tokens of each window.
    """
    tokens_until = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[doc_starts]
    windows_until = doc_starts
    bytes_until = tokens_until * SEGMENT_TOKEN_BYTES + windows_until * SEGMENT_DOC_BYTES
    most_tokens, most_bytes = segment_limits(max_ram)
    cuts = []
    first, n_docs = 0, len(doc_starts) - 1
    while first < n_docs:
        last = min(
            int(np.searchsorted(until, until[first] + most, side="right")) - 1
            for until, most in (
                (tokens_until, most_tokens),
                (windows_until, most_tokens),
                (bytes_until, most_bytes),
            )
        )
        last = min(max(last, first + 1), n_docs)
        cuts.append((int(doc_starts[first]), int(doc_starts[last])))
        first = last
    return cuts


@dataclass(frozen=True)
class Held:
    """What is left of an index before a build, its bytes on disk, and the codecs of its fields.

    `stays`: these are not trained anew, though the index may outgrow them.
    """

    n_docs: int = 0
    n_tokens: int = 0
    n_terms: int = 0
    n_bytes: int = 0
    codec: CodecEntry | None = None
    dense: CodecEntry | None = None
    stays: bool = False


@dataclass(frozen=True)
class _Tree:
    """The codec of a field after a build, and the tokens it is trained on or grows from.

    Without centroids there is none. `memory` is that of the centroids, old ones included. Where it
    is trained, what there is already is encoded with it, too.
    """

    n_coarse: int = 0
    n_fine: int = 0
    n_sample: int = 0
    memory: int = 0
    trained: bool = False


def plan(
    config: IndexConfig,
    *,
    n_docs: int,
    n_tokens: int,
    n_terms: int | None = None,
    max_ram: int | str | None = None,
) -> Plan:
    """Foretell what building an index takes, all of its fields included.

    Parameters
    ----------
    config
        Of the index.
    n_docs, n_tokens
        Documents and token embeddings, as they are or as they are estimated. Where the index has
        the field `dense`, each document is taken to have a vector.
    n_terms
        Terms of all sparse vectors together, where the index has that field. None: 128 a document,
        or `SparseConfig.document_terms` if that is less.
    max_ram
        Bytes, or a text like "8GiB". None: half of the memory that is available, at most 3 GiB.

    Examples
    --------
    >>> import weft
    >>> weft.plan(weft.IndexConfig(), n_docs=10_000, n_tokens=1_000_000, max_ram="1GiB").n_fine
    20000
    """
    return plan_addition(
        *(config, Held()), n_docs=n_docs, n_tokens=n_tokens, n_terms=n_terms, max_ram=max_ram
    )


def plan_addition(
    config: IndexConfig,
    held: Held,
    *,
    n_docs: int,
    n_tokens: int,
    n_dense: int | None = None,
    n_terms: int | None = None,
    max_ram: int | str | None = None,
) -> Plan:
    """Foretell what adding documents to an index takes; `n_dense` of None: a vector each."""
    n_docs = check_int("n_docs", n_docs, 0)
    n_tokens = check_int("n_tokens", n_tokens, 0)
    n_dense, n_terms = _counts(config, n_docs, n_dense, n_terms)
    ram = parse_ram(max_ram)
    copied = 0
    tree = _tree(config, held, held.codec, held.n_tokens, n_tokens, ram)
    n_dense_held = _dense_of(config, held)
    if tree.trained:
        n_docs, n_tokens = n_docs + held.n_docs, n_tokens + held.n_tokens
        n_dense, n_terms = n_dense + n_dense_held, n_terms + held.n_terms
        n_dense_held = 0
    dense_tree = _Tree()
    if config.dense is not None:
        dense_tree = _tree(config.of_dense(), held, held.dense, n_dense_held, n_dense, ram)
        if dense_tree.trained and n_dense_held:
            n_dense, copied = n_dense + n_dense_held, held.n_bytes

    token_limit, byte_limit = segment_limits(ram)
    building = n_tokens * SEGMENT_TOKEN_BYTES + n_docs * SEGMENT_DOC_BYTES
    n_segments = max(-(-n_tokens // token_limit), -(-building // byte_limit)) if n_docs else 0
    parts = [_rows_bytes(config, tree, n_tokens, n_docs, n_segments)]
    if config.dense is not None:
        parts.append(_rows_bytes(config.of_dense(), dense_tree, n_dense, n_docs, n_segments))
    stages = [stage for _, *both in parts for stage in both]
    disk = copied + sum(written for written, *_ in parts)
    if config.sparse is not None:
        n_lists = n_segments * min(math.isqrt(LISTS_SQUARED * n_terms), VOCABULARY)
        disk += n_terms * TERM_BYTES + n_lists * LIST_BYTES + 4 * n_docs
        at_once = min(n_terms // max(n_segments, 1), sorted_postings(ram))
        stages.append(at_once * BYTES_PER_POSTING)
    spool = spool_bytes(config, n_docs=n_docs, n_tokens=n_tokens, n_dense=n_dense, n_terms=n_terms)
    if config.dense is not None:
        spool += 2 * config.of_dense().dim * n_dense  # in the order of the segments
    return Plan(
        n_docs=n_docs,
        n_tokens=n_tokens,
        n_terms=n_terms,
        n_segments=n_segments,
        n_coarse=tree.n_coarse,
        n_fine=tree.n_fine,
        n_sample=tree.n_sample,
        disk_bytes=disk,
        spool_bytes=spool,
        memory_bytes=FIXED_BYTES
        + n_docs * SPOOL_DOC_BYTES
        + tree.memory
        + dense_tree.memory
        + max(stages),
        max_ram=ram,
    )


def _counts(
    config: IndexConfig, n_docs: int, n_dense: int | None, n_terms: int | None
) -> tuple[int, int]:
    """Give the dense vectors and the terms of sparse ones, as far as the index has such fields."""
    if config.dense is None:
        n_dense = 0
    elif n_dense is None:
        n_dense = n_docs
    if config.sparse is None:
        return n_dense, 0
    most = config.sparse.document_terms
    if n_terms is None:
        n_terms = n_docs * (SPARSE_TERMS if most is None else min(SPARSE_TERMS, most))
    n_terms = check_int("n_terms", n_terms, 0)
    return n_dense, n_terms if most is None else min(n_terms, n_docs * most)


def _dense_of(config: IndexConfig, held: Held) -> int:
    return 0 if config.dense is None else held.n_docs


def _tree(
    config: IndexConfig, held: Held, codec: CodecEntry | None, n_held: int, n_new: int, ram: int
) -> _Tree:
    """Give the codec of a field with `n_new` rows beside `n_held`: trained, grown, or kept."""
    n_rows, centroid = n_held + n_new, padded_dim(config.dim) + CENTROID_EXTRA
    most = sample_bytes(ram) // padded_dim(config.dim)
    memory = 0 if codec is None else (codec.n_coarse + codec.n_fine) * centroid
    if codec is None:
        trains = n_rows >= defaults.codec_tokens
    else:
        trains = n_new > 0 and not held.stays and outgrown(config, codec, n_rows)
    if trains:
        made_for = (defaults.growth_ahead if held.n_docs else 1) * n_rows
        n_coarse, n_fine = tree_size(config, made_for)
        if config.n_fine is None:
            n_fine = min(n_fine, max(most // LEAST_SAMPLE_PER_FINE, n_coarse))
        n_sample = min(n_rows, SAMPLE_PER_FINE * n_fine, most)
        memory += (n_coarse + n_fine) * centroid
        return _Tree(n_coarse, n_fine, n_sample, memory, trained=True)
    if codec is None:
        return _Tree()
    n_more = 0
    if n_new:
        n_more = n_more_centroids(config, codec, n_tokens=n_rows, n_new=n_new, drift=0.0)
        n_more = min(n_more, max(min(n_new, most) // LEAST_SAMPLE_PER_FINE, 1))
    if n_more == 0:
        return _Tree(codec.n_coarse, codec.n_fine, memory=memory)
    n_fine, n_sample = codec.n_fine + n_more, min(n_new, SAMPLE_PER_FINE * n_more, most)
    memory += (codec.n_coarse + n_fine) * centroid
    return _Tree(codec.n_coarse, n_fine, n_sample, memory)


def _rows_bytes(
    config: IndexConfig, tree: _Tree, n_rows: int, n_docs: int, n_segments: int
) -> tuple[int, int, int]:
    """Give the bytes of a field's files, and the memory of its training and of one segment."""
    each, padded = max(n_segments, 1), padded_dim(config.dim)
    disk, building = n_docs * (8 + 8 + 4 + ID_BYTES), n_docs * SEGMENT_DOC_BYTES
    if tree.n_fine == 0:
        return disk + n_rows * 2 * config.dim, 0, building // each
    disk += int(n_rows * bytes_per_token(config, n_docs / each)) + n_segments * 8 * tree.n_fine
    if tree.n_sample:
        disk += (tree.n_coarse + tree.n_fine) * padded
    building += n_rows * SEGMENT_TOKEN_BYTES
    return disk, tree.n_sample * (padded + SAMPLE_EXTRA), building // each


def spool_bytes(
    config: IndexConfig, *, n_docs: int, n_tokens: int, n_dense: int, n_terms: int
) -> int:
    """Give the bytes that what is added takes until the commit, without texts and metadata."""
    found = n_tokens * 2 * config.dim
    if config.dense is not None:
        found += n_dense * _in_a_table(2 * config.of_dense().dim)
    if config.sparse is not None and n_docs:
        found += n_docs * _in_a_table(n_terms * TERM_BYTES // n_docs)
    return found


def _in_a_table(n_bytes: int) -> int:
    """Give what SQLite takes for a blob: as many as fit to a page of 4 KiB, or pages for each."""
    page, header = 4_096, 12
    if n_bytes + header <= page:
        return page // (page // (n_bytes + header))
    return -(-n_bytes // page) * page


def require_room(plan: Plan, folder: Path, *, spooled: int = 0) -> None:
    """Refuse a build that cannot fit, before it starts.

    Parameters
    ----------
    plan
        What the build takes.
    folder
        The index, or the folder that it will be in.
    spooled
        Bytes that have been spooled already.

    Raises
    ------
    OutOfMemoryError
        It needs more memory than `max_ram`, or than there is.
    StorageError
        It needs more disk than is free.
    """
    needed = plan.memory_bytes
    what = f"{plan.n_tokens} tokens" if plan.n_tokens else f"{plan.n_docs} documents"
    if needed > plan.max_ram:
        raise OutOfMemoryError(
            f"memory: building {what} needs {size(needed)}, expected at most the "
            f"{size(plan.max_ram)} of max_ram; raise it, or add the documents in several commits"
        )
    available = available_memory() + FIXED_BYTES  # the interpreter has most of that already
    if needed > available:
        raise OutOfMemoryError(
            f"memory: building {what} needs {size(needed)}, "
            f"{size(available)} are available; lower max_ram, now {size(plan.max_ram)}"
        )
    written = plan.disk_bytes + max(plan.spool_bytes - spooled, 0)
    free = shutil.disk_usage(folder).free
    if written > free:
        raise StorageError(
            f"{folder}: building {what} needs {size(written)} on disk, {size(free)} are free",
            str(folder),
            errno.ENOSPC,
        )


def size(n_bytes: float) -> str:
    """Write a number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.2f} GiB"


def bytes_per_token(config: IndexConfig, docs_per_segment: float) -> float:
    """Give the bytes of one token in a segment, its share of the lists included."""
    padded = padded_dim(config.dim)
    size = 2 + 1 + 2 + 1 + padded * config.nbits / 8
    if config.rerank == "plane":
        size += 1 + padded / 2
    elif config.rerank == "f16":
        size += 2 * config.dim
    return size + POSTINGS_PER_TOKEN * (2 if docs_per_segment <= 2**16 else 3)


def parse_ram(max_ram: int | str | None) -> int:
    """Give `max_ram` in bytes; a text may have a unit: powers of 1,024, without the i 1,000."""
    if max_ram is None:
        return max(MIN_RAM, min(available_memory() // 2, defaults.max_ram))
    if isinstance(max_ram, str):
        match = _SIZE.fullmatch(max_ram)
        if match is None:
            raise InvalidArgumentError(f'max_ram={max_ram!r}: expected bytes, or like "8GiB"')
        number, unit, binary = match.groups()
        base = 1024 if binary else 1000
        max_ram = int(float(number) * base ** " KMGT".index(unit.upper() or " "))
    return check_int("max_ram", max_ram, MIN_RAM)


def available_memory() -> int:
    """Give the bytes of memory that this process could still take, container limits respected."""
    found = []
    with contextlib.suppress(OSError):
        match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        if match:
            found.append(int(match.group(1)) * 1024)
    for folder, limit, used in _CONTAINERS:
        with contextlib.suppress(OSError, ValueError):  # no such file; or no limit, "max"
            stat = (folder / "memory.stat").read_text()
            cache = sum(map(int, re.findall(r"^(?:in)?active_file (\d+)$", stat, re.MULTILINE)))
            taken = int((folder / used).read_text()) - cache  # what is cached can be given up
            found.append(int((folder / limit).read_text()) - taken)
    if not found:
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    return max(min(found), 0)
