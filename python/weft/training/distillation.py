# SPDX-License-Identifier: Apache-2.0
"""Teacher scores: what somebody who knows better thinks of the documents of each example."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Literal, TypeAlias

from weft.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from weft.training.mining import Example
    from weft.training.scorers import Scorer

Normalise: TypeAlias = Literal["none", "minmax", "softmax"]
NORMALISE = ("none", "minmax", "softmax")
EPSILON = 1e-8
BATCH_EXAMPLES = 256


def distill(
    examples: Iterable[Example], teacher: Scorer, *, normalise: Normalise = "none"
) -> Iterator[Example]:
    """Give the examples with the teacher's scores.

    Parameters
    ----------
    examples
        As `weft.training.mining.mine` gives them.
    teacher
        Anything of `weft.training.scorers`, or what has its methods.
    normalise
        For each example: "none" keeps the scores, "minmax" is (s - least) / (greatest - least +
        1e-8), "softmax" makes probabilities of them.

    Raises
    ------
    InvalidArgumentError
        The teacher has no finite score for a document.

    Examples
    --------
    >>> from weft.training.distillation import distill
    >>> from weft.training.mining import Example, Negative
    >>> from weft.training.scorers import RunScorer
    >>> example = Example("q", "tea?", ("a",), (Negative("b", "bm25", 12, 1.5),))
    >>> [scored] = distill([example], RunScorer({"q": {"a": 3.0, "b": 1.0}}, "run"))
    >>> scored.scores
    {'a': 3.0, 'b': 1.0}
    """
    if normalise not in NORMALISE:
        raise InvalidArgumentError(
            f"normalise={normalise!r}: expected one of {', '.join(NORMALISE)}"
        )
    rest = iter(examples)
    while batch := list(islice(rest, BATCH_EXAMPLES)):
        found = teacher.score([(one.query, one.text, one.ids) for one in batch])
        for one, scores in zip(batch, found, strict=True):
            for name in one.ids:
                if not math.isfinite(scores.get(name, math.nan)):
                    raise InvalidArgumentError(
                        f"{teacher.name}: score {scores.get(name)} of document {name!r} for query "
                        f"{one.query!r}, expected a finite number"
                    )
            yield replace(one, scores=_normalised(scores, normalise))


def _normalised(scores: Mapping[str, float], how: Normalise) -> dict[str, float]:
    low, high = min(scores.values()), max(scores.values())
    if how == "minmax":
        return {name: (score - low) / (high - low + EPSILON) for name, score in scores.items()}
    if how == "softmax":
        weights = {name: math.exp(score - high) for name, score in scores.items()}
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}
    return dict(scores)
