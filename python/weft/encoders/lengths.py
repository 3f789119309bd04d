# SPDX-License-Identifier: Apache-2.0
"""How long a query becomes: the mask tokens that ColBERT models read behind it."""

from __future__ import annotations

from weft.errors import InvalidArgumentError

POLICIES = ("fixed", "min", "dynamic32a", "dynamic32b", "jqara", "none")
"""fixed: the length of the model. min: at least that. dynamic32a: the next multiple of 32 that
leaves room for 8 masks. dynamic32b: the next multiple of 32, at least 8 masks. jqara: as the JQaRA
benchmark has it. none: the query alone."""

_STEP = 32
_MASKS = 8


def expanded_length(policy: str, n: int, query_length: int, window: int) -> int:
    """Give how many tokens are read for a query.

    Parameters
    ----------
    policy
        One of `POLICIES`. `dynamic32a` and `dynamic32b` are two readings of one sentence of
        JaColBERTv2.5 (Clavié 2024); `jqara` is the rule of the JQaRA evaluation.
    n
        Tokens of the query, with special tokens and marker, already cut to what the policy takes.
    query_length
        The length of the model.
    window
        Most tokens that the model can read.

    Examples
    --------
    >>> [expanded_length("dynamic32b", n, 32, 512) for n in (8, 25, 32, 40)]
    [32, 33, 40, 64]
    """
    up = -(-n // _STEP) * _STEP
    match policy:
        case "fixed":
            length = query_length
        case "min":
            length = max(query_length, n)
        case "dynamic32a":
            length = -(-(n + _MASKS) // _STEP) * _STEP
        case "dynamic32b":
            length = max(up, n + _MASKS)
        case "jqara":
            length = n + _MASKS if n % _STEP <= _MASKS else up
        case "none":
            length = n
        case _:
            raise InvalidArgumentError(f"query_policy={policy!r}: expected one of {POLICIES}")
    return min(length, window)


def longest_query(policy: str, query_length: int, window: int) -> int:
    """Give how many tokens of a query are read at most, masks aside."""
    return query_length if policy in {"fixed", "none"} else window
