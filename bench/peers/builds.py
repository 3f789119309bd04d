# SPDX-License-Identifier: Apache-2.0
"""Builds: made once, in a process of their own, and kept with what they took."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from client import Worker

RECORD = "build.json"


def built(
    worker: Worker, about: dict[str, Any], set_folder: Path, place: Path,
    *, identity: dict[str, Any], limit: float, reuse: bool,
) -> dict[str, Any]:  # fmt: skip
    """The record of a build in `place`/index; an earlier one of the same identity is reused.

    `worker` has done nothing yet but say what it is. The record is written last, so that a build
    without one is no build.
    """
    record, index = place / RECORD, place / "index"
    if not about["has_index"]:
        return {}
    if reuse and record.is_file():
        found = json.loads(record.read_text())
        if found.pop("identity") == identity:
            return found | {"reused": True}
    shutil.rmtree(place, ignore_errors=True)
    index.mkdir(parents=True)
    worker.ask("take", folder=str(set_folder))
    with worker.watched_memory() as memory:
        told = worker.ask("build", folder=str(index), limit=limit)
    n_bytes = sum(path.stat().st_size for path in index.rglob("*") if path.is_file())
    found = told | memory | {"index_bytes": n_bytes}
    record.write_text(json.dumps({"identity": identity, **found}))
    return found
