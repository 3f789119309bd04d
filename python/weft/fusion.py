# SPDX-License-Identifier: Apache-2.0
"""How the rankings of several fields become one: weighted sums, reciprocal ranks, reranking.

A field is named; it gives a list of its best documents, and may be asked for the exact score of
others. A document that a field holds nothing of scores 0 there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from weft.checks import FrozenDict, check_int
from weft.errors import InvalidArgumentError

NAMES = ("multi", "dense", "sparse")
"""The fields that can be joined."""
DEPTH = 100
RERANK_DEPTH = 200
RRF_CONSTANT = 60

Scores: TypeAlias = "Mapping[str, Mapping[str, float]]"
"""Field -> document -> score."""


def _weights(given: object) -> FrozenDict:
    if not isinstance(given, Mapping):
        raise InvalidArgumentError(
            f'weights={given!r}: expected a mapping by name, like {{"dense": 0.4, "multi": 0.6}}'
        )
    for name, weight in given.items():
        _check_name(name)
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not 0 <= weight < math.inf:
            raise InvalidArgumentError(
                f"weights[{name!r}]={weight!r}: expected a finite number of at least 0"
            )
    if not sum(given.values()) > 0:
        raise InvalidArgumentError(f"weights={dict(given)!r}: expected one above 0")
    return FrozenDict({name: float(weight) for name, weight in given.items()})


def _check_name(name: object) -> None:
    if name not in NAMES:
        raise InvalidArgumentError(f"field {name!r}: expected one of {', '.join(NAMES)}")


def _check_fields(weights: Mapping[str, float], fields: tuple[str, ...]) -> None:
    if set(weights) != set(fields):
        raise InvalidArgumentError(
            f"weights of {', '.join(sorted(weights))}: expected one for each field of the query, "
            f"{', '.join(sorted(fields))}"
        )


@dataclass(frozen=True)
class Weighted:
    """The weighted sum of the scores of each candidate; candidates are the best of every field.

    Parameters
    ----------
    weights
        By name of the field. Scores of `multi` count as the mean over the query's tokens.
    divide
        Divide by the sum of the weights.
    missing
        What counts for a field in whose list a candidate is not: "rescore", its exact score;
        "zero", nothing.
    depth
        Documents taken from each field.

    Examples
    --------
    >>> import weft
    >>> weft.Weighted({"dense": 0.4, "sparse": 0.2, "multi": 0.4}).missing
    'rescore'
    """

    weights: Mapping[str, float]
    divide: bool = True
    missing: Literal["rescore", "zero"] = "rescore"
    depth: int = DEPTH

    def __post_init__(self) -> None:
        """Check every field."""
        object.__setattr__(self, "weights", _weights(self.weights))
        object.__setattr__(self, "depth", check_int("depth", self.depth, 1))
        if self.missing not in ("rescore", "zero"):
            raise InvalidArgumentError(f'missing={self.missing!r}: expected "rescore" or "zero"')
        if not isinstance(self.divide, bool):
            raise InvalidArgumentError(f"divide={self.divide!r}: expected True or False")

    def check(self, fields: tuple[str, ...]) -> None:
        """Refuse fields without a weight, and weights without a field."""
        _check_fields(self.weights, fields)

    def listed(self, fields: tuple[str, ...]) -> tuple[str, ...]:
        """Give all fields."""
        return fields

    def rescored(self, fields: tuple[str, ...]) -> tuple[str, ...]:
        """Give all fields, or none."""
        return fields if self.missing == "rescore" else ()

    def fused(self, lists: Scores, exact: Scores) -> dict[str, float]:
        """Give the sums."""
        scores = exact if self.missing == "rescore" else lists
        candidates = dict.fromkeys(doc for found in lists.values() for doc in found)
        return _sums(candidates, scores, self.weights, divide=self.divide)


@dataclass(frozen=True)
class ReciprocalRank:
    """Reciprocal rank fusion: the sum of weight / (60 + rank) over the fields, ranks from 1.

    Parameters
    ----------
    weights
        By name of the field; None: 1 each.
    depth
        Documents taken from each field.

    References
    ----------
    Cormack, Clarke and Buettcher, Reciprocal rank fusion outperforms Condorcet and individual rank
    learning methods, SIGIR 2009.

    Examples
    --------
    >>> import weft
    >>> weft.ReciprocalRank(depth=50).weights is None
    True
    """

    weights: Mapping[str, float] | None = None
    depth: int = DEPTH

    def __post_init__(self) -> None:
        """Check every field."""
        if self.weights is not None:
            object.__setattr__(self, "weights", _weights(self.weights))
        object.__setattr__(self, "depth", check_int("depth", self.depth, 1))

    def check(self, fields: tuple[str, ...]) -> None:
        """Refuse fields without a weight, and weights without a field."""
        if self.weights is not None:
            _check_fields(self.weights, fields)

    def listed(self, fields: tuple[str, ...]) -> tuple[str, ...]:
        """Give all fields."""
        return fields

    def rescored(self, fields: tuple[str, ...]) -> tuple[str, ...]:
        """Give none: ranks are all that counts."""
        return ()

    def fused(self, lists: Scores, exact: Scores) -> dict[str, float]:
        """Give the sums; the order of a list is its ranking."""
        sums: dict[str, float] = {}
        for name in sorted(lists):
            weight = 1.0 if self.weights is None else self.weights[name]
            for rank, doc in enumerate(lists[name], start=1):
                sums[doc] = sums.get(doc, 0.0) + weight / (RRF_CONSTANT + rank)
        return sums


@dataclass(frozen=True)
class Rerank:
    """Candidates from one field alone, in the order of the weighted sum of exact scores.

    Parameters
    ----------
    first
        The field that gives the candidates.
    weights
        By name of the field; `first` is left out unless it is named.
    divide
        Divide by the sum of the weights.
    depth
        Candidates.

    Examples
    --------
    >>> import weft
    >>> weft.Rerank("dense", {"multi": 1.0}).depth
    200
    """

    first: str
    weights: Mapping[str, float] = field(default_factory=FrozenDict)
    divide: bool = True
    depth: int = RERANK_DEPTH

    def __post_init__(self) -> None:
        """Check every field."""
        _check_name(self.first)
        object.__setattr__(self, "weights", _weights(self.weights))
        object.__setattr__(self, "depth", check_int("depth", self.depth, 1))
        if not isinstance(self.divide, bool):
            raise InvalidArgumentError(f"divide={self.divide!r}: expected True or False")

    def check(self, fields: tuple[str, ...]) -> None:
        """Refuse fields that nothing is asked of, and such as are missing."""
        _check_fields({self.first: 1.0, **self.weights}, fields)

    def listed(self, fields: tuple[str, ...]) -> tuple[str, ...]:
        """Give the first field."""
        return (self.first,)

    def rescored(self, fields: tuple[str, ...]) -> tuple[str, ...]:
        """Give the fields with a weight."""
        return tuple(name for name in fields if name in self.weights)

    def fused(self, lists: Scores, exact: Scores) -> dict[str, float]:
        """Give the sums."""
        return _sums(dict(lists[self.first]), exact, self.weights, divide=self.divide)


def _sums(
    candidates: Mapping[str, object], scores: Scores, weights: Mapping[str, float], *, divide: bool
) -> dict[str, float]:
    divisor = sum(weights.values()) if divide else 1.0
    names = sorted(weights)
    return {
        doc: sum(weights[name] * scores[name].get(doc, 0.0) for name in names) / divisor
        for doc in candidates
    }


Fusion: TypeAlias = Weighted | ReciprocalRank | Rerank
"""A rule that makes one ranking of several.

`listed` names the fields whose best documents are candidates, `rescored` those that the exact
score of every candidate is needed of; `fused` gives the score of each candidate.
"""
