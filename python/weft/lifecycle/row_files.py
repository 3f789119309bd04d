# SPDX-License-Identifier: Apache-2.0
"""Rows of a field, written as the engine's file of a segment."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from weft import _native

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from weft.types import IndexConfig, Progress


class IdTable(NamedTuple):
    """Ids one after the other, as UTF-8, and where each begins."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.uint64]

    @staticmethod
    def of(ids: Iterable[str], n: int) -> IdTable:
        """Make the table of n ids."""
        data, offsets = bytearray(), np.zeros(n + 1, np.uint64)
        for number, stored in enumerate(ids, start=1):
            data += stored.encode()
            offsets[number] = len(data)
        return IdTable(np.frombuffer(data, np.uint8), offsets)


def rows_file(
    config: IndexConfig,
    codec: _native.Codec | None,
    rows: NDArray[np.float16],
    offsets: NDArray[np.uint64],
    ids: IdTable,
    *,
    device: _native.BuildDevice | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> Callable[[int, str], int]:
    """Give what fills a file with the rows of some windows, for `NewFiles.write`.

    Window i has the rows [offsets[i], offsets[i + 1]). Without a codec they are stored as they are,
    else `device` encodes them, or the CPU.
    """

    def fill(fd: int, path: str) -> int:
        return _native.write_segment(
            fd,
            path,
            codec,
            rows,
            offsets,
            ids.data,
            ids.offsets,
            config.rerank or "none",
            threads,
            progress,
            device,
        )["checksum"]

    return fill
