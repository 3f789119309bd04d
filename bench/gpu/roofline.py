# SPDX-License-Identifier: Apache-2.0
"""How near a timed kernel comes to what its device gives at most."""

from __future__ import annotations

from typing import Any

LIMITS = {
    "code_bytes": "read_bytes_per_s",
    "centroid_bytes": "l2_bytes_per_s",
    "upload_bytes": "upload_bytes_per_s",
    "operations": "mma_s8_operations_per_s",
}
"""What a row counts, and which line of ceilings.cu bounds that."""


def with_bound(row: dict[str, Any], ceilings: dict[str, Any]) -> dict[str, Any]:
    """Add the least time that bytes and operations of a row take, which of them it is, its share.

    Each byte is counted once, so that a share above 1 means a count that is wrong. Rows have times
    as `median_ms` or `seconds`, operations as `operations` or `operations_per_token`.
    """
    counts = dict(row)
    if "operations_per_token" in row:
        counts["operations"] = row["operations_per_token"] * row["tokens"]
    times = {
        name: 1_000 * counts[name] / ceilings[limit]
        for name, limit in LIMITS.items()
        if name in counts
    }
    if not times:
        return row
    longest = max(times, key=times.__getitem__)
    took = row["median_ms"] if "median_ms" in row else 1_000 * row["seconds"]
    share = round(times[longest] / took, 4)
    return row | {"bound_ms": times[longest], "bound_by": longest, "share_of_bound": share}
