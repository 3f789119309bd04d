# SPDX-License-Identifier: Apache-2.0
"""What an index holds and how healthy it is, as its manifest tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft.lifecycle.codec_sizes import tree_size
from weft.lifecycle.compaction import mean_drift, n_segments_compacted
from weft.lifecycle.health import DenseInfo, IndexInfo
from weft.lifecycle.planning import parse_ram

if TYPE_CHECKING:
    from pathlib import Path

    from weft.lifecycle.manifest import Manifest
    from weft.types import EncoderInfo


def describe(path: Path, manifest: Manifest, encoder: EncoderInfo | None) -> IndexInfo:
    """Give what `Index.info` says of a generation; the encoder is whole."""
    codec, n_tokens = manifest.codec, manifest.n_tokens
    retrained = None if codec is None else tree_size(manifest.config, n_tokens)
    return IndexInfo(
        path=str(path),
        generation=manifest.generation,
        config=manifest.config,
        encoder=encoder,
        n_docs=manifest.n_docs,
        n_windows=manifest.n_windows,
        n_empty=manifest.n_empty,
        n_tokens=n_tokens,
        n_deleted=manifest.n_deleted,
        n_segments=len(manifest.segments),
        n_segments_compacted=n_segments_compacted(manifest.segments, parse_ram(None)),
        n_bytes=sum(entry.size for entry in manifest.files.values()),
        n_deleted_bytes=manifest.n_deleted_bytes,
        n_coarse=None if codec is None else codec.n_coarse,
        n_fine=None if codec is None else codec.n_fine,
        n_coarse_retrained=None if retrained is None else retrained[0],
        n_fine_retrained=None if retrained is None else retrained[1],
        drift=mean_drift((s.drift, s.live("n_tokens")) for s in manifest.segments),
        operating_points=manifest.operating_points,
        truth=None if manifest.tuning is None else manifest.tuning.truth,
        dense=None if manifest.config.dense is None else _describe_dense(manifest),
    )


def _describe_dense(manifest: Manifest) -> DenseInfo:
    codec, tuning = manifest.dense.codec, manifest.dense.tuning
    retrained = None
    if codec is not None:
        retrained = tree_size(manifest.config.of_dense(), manifest.n_docs)
    return DenseInfo(
        n_coarse=None if codec is None else codec.n_coarse,
        n_fine=None if codec is None else codec.n_fine,
        n_coarse_retrained=None if retrained is None else retrained[0],
        n_fine_retrained=None if retrained is None else retrained[1],
        drift=mean_drift((s.dense_drift, s.live("n_docs")) for s in manifest.segments),
        operating_points=manifest.dense.operating_points,
        truth=None if tuning is None else tuning.truth,
    )
