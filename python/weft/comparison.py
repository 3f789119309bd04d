# SPDX-License-Identifier: Apache-2.0
"""Rankings beside each other: means, means by group, and whether a difference is more than chance.

One query is one part in n of a mean; a difference whose interval holds zero is no gain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from weft.checks import check_int
from weft.errors import InvalidArgumentError, MissingExtraError
from weft.lifecycle.storage import os_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

RESAMPLES, SEED, CONFIDENCE = 1_000, 0, 0.95
MACRO = "macro"
"""Name of the mean over groups, each counting the same."""


@dataclass(frozen=True)
class Line:
    """One ranking and how good it is: measure -> query -> value, as `per_query` gives it."""

    name: str
    values: Mapping[str, Mapping[str, float]]

    @property
    def means(self) -> dict[str, float]:
        """Measure -> mean over the queries."""
        return {name: _mean(found.values()) for name, found in self.values.items()}

    def means_by(self, groups: Mapping[str, str]) -> dict[str, dict[str, float]]:
        """Give measure -> group -> mean over the group's queries; "macro" is the mean of these.

        Parameters
        ----------
        groups
            Query -> group, such as its language. Queries without one are left out.
        """
        result = {}
        for measure, values in self.values.items():
            members: dict[str, list[float]] = {}
            for query, value in values.items():
                if query in groups:
                    members.setdefault(groups[query], []).append(value)
            means = {group: _mean(members[group]) for group in sorted(members)}
            result[measure] = {**means, MACRO: _mean(means.values())} if means else {}
        return result


@dataclass(frozen=True)
class Difference:
    """How much better a line is than another in one measure, and an interval for it.

    Attributes
    ----------
    name, against, measure
        The difference is the mean of `name` less that of `against`.
    low, high
        The middle 95 % of the differences of resampled queries (paired bootstrap).
    """

    name: str
    against: str
    measure: str
    difference: float
    low: float
    high: float

    @property
    def beyond_chance(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.low > 0 or self.high < 0


def compare(
    line: Line, against: Line, *, resamples: int = RESAMPLES, seed: int = SEED
) -> list[Difference]:
    """Compare two lines in every measure by a paired bootstrap over the queries.

    The queries are drawn with replacement, as many as there are, the same for both lines; the
    interval is between the quantiles .025 and .975 of the differences of the means (percentile
    bootstrap). The same seed gives the same interval.

    Raises
    ------
    InvalidArgumentError
        The lines have other measures or queries.

    Examples
    --------
    >>> from weft.comparison import Line, compare
    >>> old = Line("old", {"RR@10": {f"q{i}": 0.0 for i in range(20)}})
    >>> new = Line("new", {"RR@10": {f"q{i}": float(i < 10) for i in range(20)}})
    >>> compare(new, old)[0].beyond_chance
    True
    """
    resamples = check_int("resamples", resamples, 100, 1_000_000)
    if line.values.keys() != against.values.keys():
        raise InvalidArgumentError(f"{line.name}, {against.name}: not of the same measures")
    found = []
    for measure, values in line.values.items():
        if values.keys() != against.values[measure].keys():
            raise InvalidArgumentError(f"{line.name}, {against.name}: not of the same queries")
        gains = np.array([value - against.values[measure][name] for name, value in values.items()])
        generator = np.random.default_rng(seed)
        means = [
            float(gains[generator.integers(0, len(gains), len(gains))].mean())
            for _ in range(resamples)
        ]
        outside = (1 - CONFIDENCE) / 2
        low, high = np.quantile(means, [outside, 1 - outside])
        found.append(
            Difference(
                line.name, against.name, measure, float(gains.mean()), float(low), float(high)
            )
        )
    return found


def plot(path: Path, lines: Sequence[Line], groups: Mapping[str, str] | None = None) -> None:
    """Draw the lines beside each other: a bar for each measure and, with groups, for each group.

    Parameters
    ----------
    path
        The ending of its name says which kind of file: .png, .svg or .pdf.
    lines
        At least one.
    groups
        Query -> group; the first measure is drawn for each.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    InvalidArgumentError
        Another kind of file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "eval") from error
    if path.suffix not in {".png", ".svg", ".pdf"}:
        raise InvalidArgumentError(f"{path}: expected a name that ends in .png, .svg or .pdf")
    panels = [("all queries", {line.name: line.means for line in lines})]
    if groups:
        measure = next(iter(lines[0].values))
        panels.append((measure, {line.name: line.means_by(groups)[measure] for line in lines}))
    figure = Figure(figsize=(8, 3.2 * len(panels)), layout="constrained")
    places_of_panels = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, (title, bars) in zip(places_of_panels, panels, strict=True):
        width = 0.8 / len(bars)
        found = dict.fromkeys(name for means in bars.values() for name in means)
        names = sorted(found, key=lambda name: name == MACRO)
        for number, (line, means) in enumerate(bars.items()):
            places = np.arange(len(names)) + (number - (len(bars) - 1) / 2) * width
            axes.bar(places, [means.get(name, np.nan) for name in names], width, label=line)
        axes.set_xticks(range(len(names)), names)
        axes.set_ylim(0, 1)
        axes.set_title(title, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    with os_errors("write", path):
        figure.savefig(path, dpi=150)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
