# SPDX-License-Identifier: Apache-2.0
"""The codec of one commit: trained, or the one there is, or that with more fine centroids.

A codec is trained for the tokens there are. Later tokens are noticed in two ways: there are more of
them than its lists are meant for, or they lie farther from its centroids than the tokens that it
was trained on. Either way it gets more fine centroids, and codes stay as they are. Once an index
has grown too far from what it was trained on, another is trained, if what is stored of the rows is
good enough to be encoded again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft import _native
from weft.lifecycle.codec_sizes import n_more_centroids
from weft.lifecycle.entries import CodecEntry
from weft.lifecycle.planning import sample_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from weft.lifecycle.new_files import NewFiles
    from weft.types import IndexConfig, Progress

    MadeOnce = Callable[[str, Callable[[], Sequence[str]]], list[str]]


def share_beyond(
    codec: _native.Codec | None, rows: NDArray[np.float16], threads: int
) -> float | None:
    """Give the share of rows that lie beyond the error of the codec; None without either."""
    if codec is None or len(rows) == 0:
        return None
    return round(codec.share_beyond(rows, threads), 4)


class CodecBuild:
    """Makes the codec of a field in a commit.

    One that an interrupted commit has made is used again; `stage` names it among what was made.
    """

    def __init__(
        self,
        config: IndexConfig,
        files: NewFiles,
        made_once: MadeOnce,
        stage: str,
        *,
        device: _native.BuildDevice | None,
        threads: int,
        max_ram: int,
        progress: Progress,
    ) -> None:
        self._config = config
        self._files = files
        self._made_once = made_once
        self._stage = stage
        self._device = device
        self._threads = threads
        self._sample_bytes = sample_bytes(max_ram)
        self._progress = progress

    def train(self, rows: NDArray[np.float16], n_tokens: int) -> tuple[_native.Codec, CodecEntry]:
        """Train a codec on the rows, made for so many tokens."""

        def make() -> list[str]:
            trained = _native.Codec.train(
                rows,
                nbits=self._config.nbits,
                n_coarse=self._config.n_coarse or 0,
                n_fine=self._config.n_fine or 0,
                iterations=self._config.kmeans_iterations,
                seed=self._config.seed,
                max_sample_bytes=self._sample_bytes,
                threads=self._threads,
                progress=self._progress,
                n_tokens=n_tokens,
                device=self._device,
            )
            return [self._files.write_codec(trained)]

        stage = f"{self._stage} for {n_tokens}, {self._sample_bytes}"
        return self._opened(stage, make, len(rows))

    def grow(
        self,
        codec: _native.Codec,
        entry: CodecEntry,
        rows: NDArray[np.float16],
        used: Sequence[int],
        n_tokens: int,
    ) -> tuple[_native.Codec, CodecEntry]:
        """Give the codec for new rows: the one there is, or more of it.

        `used` are the checksums that segments name, `n_tokens` those of the index with the new.
        """
        drift = codec.share_beyond(rows, self._threads)
        n_more = n_more_centroids(
            self._config, entry, n_tokens=n_tokens, n_new=len(rows), drift=drift
        )
        if n_more == 0:
            return codec, entry

        def make() -> list[str]:
            grown = codec.grow(
                rows,
                n_more=n_more,
                iterations=self._config.kmeans_iterations,
                n_tokens=n_tokens,
                max_sample_bytes=self._sample_bytes,
                threads=self._threads,
                used=used,
                progress=self._progress,
                device=self._device,
            )
            return [self._files.write_codec(grown)]

        known = ", ".join(f"{checksum:08x}" for checksum in sorted({codec.checksum, *used}))
        stage = f"{self._stage} {codec.checksum:08x} and {n_more} for {n_tokens}, of {known}"
        return self._opened(f"{stage}, {self._sample_bytes}", make, entry.n_trained)

    def _opened(
        self, stage: str, make: Callable[[], Sequence[str]], n_trained: int
    ) -> tuple[_native.Codec, CodecEntry]:
        (name,) = self._made_once(stage, make)
        codec = self._files.open_codec(name)
        return codec, CodecEntry(name, codec.n_coarse, codec.n_fine, codec.n_tokens, n_trained)
