# SPDX-License-Identifier: Apache-2.0
"""What adding to an index takes: the plan of a commit, from what it holds and what is spooled."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from weft.lifecycle.planning import Held, plan_addition, require_room, spool_bytes
from weft.sparse import TERM_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from weft.lifecycle.manifest import Manifest
    from weft.lifecycle.spool import Spool


def held(manifest: Manifest) -> Held:
    """Give what there is to add to."""
    sparse = [s.field_file("sparse") for s in manifest.segments if "sparse" in s.fields]
    return Held(
        n_docs=manifest.n_docs,
        n_tokens=manifest.n_tokens,
        n_terms=sum(manifest.files[name].size for name in sparse) // TERM_BYTES,
        n_bytes=sum(entry.size for entry in manifest.files.values()),
        codec=manifest.codec,
        dense=manifest.dense.codec,
    )


def require_room_for(
    spool: Spool,
    base: Manifest,
    folder: Path,
    *,
    max_ram: int,
    retrain: bool = False,
    stays: bool = False,
) -> None:
    """Refuse a commit that cannot fit.

    `retrain`: somebody has asked for all that there is to be encoded again. `stays`: nothing is,
    though the index may have outgrown its codecs.

    Raises
    ------
    OutOfMemoryError, StorageError
        As `require_room`.
    """
    config, there, given = base.config, replace(held(base), stays=stays), spool.given()
    n_docs, n_tokens = given.n_docs, given.n_tokens
    n_dense, _ = spool.count_vectors("dense", given.n_windows)
    n_terms = spool.count_vectors("sparse", given.n_windows)[1] // TERM_BYTES
    spooled = spool_bytes(
        config, n_docs=n_docs, n_tokens=n_tokens, n_dense=n_dense, n_terms=n_terms
    )
    if retrain:
        n_docs, n_tokens = n_docs + there.n_docs, n_tokens + there.n_tokens
        n_dense, n_terms = n_dense + there.n_docs, n_terms + there.n_terms
        there = Held()
    needed = plan_addition(
        *(config, there),
        n_docs=n_docs,
        n_tokens=n_tokens,
        n_dense=n_dense,
        n_terms=n_terms,
        max_ram=max_ram,
    )
    require_room(needed, folder, spooled=spooled)
