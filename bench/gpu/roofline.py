# SPDX-License-Identifier: Apache-2.0
"""How near a timed kernel comes to what its device gives at most."""

from __future__ import annotations

from typing import Any

LIMITS = {
    "code_bytes": "read_bytes_per_s",
    "centroid_bytes": "l2_bytes_per_s",
    "row_bytes": "read_bytes_per_s",
    "operations": "mma_s8_operations_per_s",
}
"""What a row counts, and which line of ceilings.cu bounds that."""


def with_bound(row: dict[str, Any], ceilings: dict[str, Any]) -> dict[str, Any]:
    """Add the least time that bytes and operations of a row take, which of them it is, its share.

    Each byte is counted once, so that a share above 1 means a count that is wrong.
    """
    times = {
        name: 1_000 * row[name] / ceilings[limit] for name, limit in LIMITS.items() if name in row
    }
    if not times:
        return row
    longest = max(times, key=times.__getitem__)
    share = round(times[longest] / row["median_ms"], 4)
    return row | {"bound_ms": times[longest], "bound_by": longest, "share_of_bound": share}
