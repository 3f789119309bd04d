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
from weft.types import defaults

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weft.types import IndexConfig

MIN_RAM = 128 << 20  # FIXED_BYTES and some to work with
MAX_COARSE = 65_536
TOKENS_PER_FINE = 50
CHILDREN_BY_RULE = 128
MAX_CHILDREN = 256
SAMPLE_PER_FINE = 24
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
    disk_bytes
        Size of the finished index without texts and metadata.
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


def tree_size(config: IndexConfig, n_tokens: int) -> tuple[int, int]:
    """Give the numbers of coarse and fine centroids for so many tokens.

    Coarse: the power of two nearest to the square root, 16 to 65,536, doubled until it has at most
    128 fine centroids each. Fine: a fiftieth of the tokens.
    """
    wanted = config.n_fine or n_tokens // TOKENS_PER_FINE
    coarse = config.n_coarse
    if coarse is None:
        power = round(math.log2(math.sqrt(max(n_tokens, 1))))
        coarse = min(max(2**power, 16), MAX_COARSE)
        while coarse < MAX_COARSE and wanted > CHILDREN_BY_RULE * coarse:
            coarse *= 2
        if config.n_fine is not None:
            coarse = min(coarse, config.n_fine)
    if config.n_fine is not None:
        return coarse, config.n_fine
    return coarse, min(max(wanted, coarse), CHILDREN_BY_RULE * coarse)


def sample_bytes(max_ram: int) -> int:
    """Give how many bytes of tokens a codec may be trained on."""
    return max_ram // 4


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


def plan(
    config: IndexConfig, *, n_docs: int, n_tokens: int, max_ram: int | str | None = None
) -> Plan:
    """Foretell what building an index takes.

    Parameters
    ----------
    config
        Of the index.
    n_docs, n_tokens
        Documents and token embeddings, as they are or as they are estimated.
    max_ram
        Bytes, or a text like "8GiB". None: half of the memory that is available, at most 3 GiB.

    Examples
    --------
    >>> import weft
    >>> weft.plan(weft.IndexConfig(), n_docs=10_000, n_tokens=1_000_000, max_ram="1GiB").n_fine
    20000
    """
    n_docs = check_int("n_docs", n_docs, 0)
    n_tokens = check_int("n_tokens", n_tokens, 0)
    ram = parse_ram(max_ram)
    padded = padded_dim(config.dim)
    row = 2 * config.dim
    doc_bytes = n_docs * (8 + 8 + 4 + ID_BYTES)
    spool = n_tokens * row
    has_codec = n_tokens >= defaults.codec_tokens

    token_limit, byte_limit = segment_limits(ram)
    building = n_tokens * SEGMENT_TOKEN_BYTES + n_docs * SEGMENT_DOC_BYTES
    n_segments = max(-(-n_tokens // token_limit), -(-building // byte_limit)) if n_docs else 0
    memory = FIXED_BYTES + n_docs * SPOOL_DOC_BYTES

    n_coarse = n_fine = n_sample = 0
    if not has_codec:
        disk = n_tokens * row + doc_bytes
        memory += n_docs * SEGMENT_DOC_BYTES // max(n_segments, 1)
    else:
        n_coarse, n_fine = tree_size(config, n_tokens)
        n_sample = sample_bytes(ram) // padded
        if config.n_fine is None:
            n_fine = min(n_fine, max(n_sample // LEAST_SAMPLE_PER_FINE, n_coarse))
        n_sample = min(n_tokens, SAMPLE_PER_FINE * n_fine, n_sample)
        tree = (n_coarse + n_fine) * (padded + CENTROID_EXTRA)
        memory += tree + max(n_sample * (padded + SAMPLE_EXTRA), building // n_segments)
        disk = int(n_tokens * bytes_per_token(config, n_docs / n_segments)) + doc_bytes
        disk += n_segments * 8 * n_fine + (n_coarse + n_fine) * padded
    return Plan(
        n_docs=n_docs,
        n_tokens=n_tokens,
        n_segments=n_segments,
        n_coarse=n_coarse,
        n_fine=n_fine,
        n_sample=n_sample,
        disk_bytes=disk,
        spool_bytes=spool,
        memory_bytes=memory,
        max_ram=ram,
    )


def require_room(plan: Plan, folder: Path, *, spooled: bool = False) -> None:
    """Refuse a build that cannot fit, before it starts.

    Parameters
    ----------
    plan
        What the build takes.
    folder
        The index, or the folder that it will be in.
    spooled
        The rows have been spooled already.

    Raises
    ------
    OutOfMemoryError
        It needs more memory than `max_ram`, or than there is.
    StorageError
        It needs more disk than is free.
    """
    needed = plan.memory_bytes
    if needed > plan.max_ram:
        raise OutOfMemoryError(
            f"memory: building {plan.n_tokens} tokens needs {size(needed)}, expected at most the "
            f"{size(plan.max_ram)} of max_ram; raise it, or add the documents in several commits"
        )
    available = available_memory() + FIXED_BYTES  # the interpreter has most of that already
    if needed > available:
        raise OutOfMemoryError(
            f"memory: building {plan.n_tokens} tokens needs {size(needed)}, "
            f"{size(available)} are available; lower max_ram, now {size(plan.max_ram)}"
        )
    written = plan.disk_bytes + (0 if spooled else plan.spool_bytes)
    free = shutil.disk_usage(folder).free
    if written > free:
        raise StorageError(
            f"{folder}: building {plan.n_tokens} tokens needs {size(written)} on disk, "
            f"{size(free)} are free",
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
