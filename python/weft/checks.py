# SPDX-License-Identifier: Apache-2.0
"""Checks of single parameters, and a dictionary that stays as it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from weft.errors import InvalidArgumentError


class FrozenDict(dict[str, Any]):
    """A dictionary that cannot be changed; values given as lists are kept as tuples.

    Examples
    --------
    >>> from weft.checks import FrozenDict
    >>> FrozenDict({"year": 2024})["year"]
    2024
    """

    def __init__(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        super().__init__({name: _freeze(value) for name, value in dict(items).items()})

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("this dictionary cannot be changed; copy it with dict()")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild through `__init__`, since items cannot be set one by one."""
        return FrozenDict, (dict(self),)


def _freeze(value: object) -> object:
    if isinstance(value, Mapping):
        return FrozenDict(value)
    if isinstance(value, (list, tuple)):
        return tuple(_freeze(item) for item in value)
    return value


def check_int(name: str, value: object, low: int, high: int | None = None) -> int:
    """Give `value` as an int between `low` and `high`, or refuse it by name."""
    expected = f"an integer >= {low}" if high is None else f"an integer in {low}..{high}"
    try:
        number = None if isinstance(value, bool) else value.__index__()  # type: ignore[attr-defined]
    except AttributeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        raise InvalidArgumentError(f"{name}={value!r}: expected {expected}")
    return int(number)


def check_fraction(name: str, value: object, *, zero: bool) -> float:
    """Give `value` as a float in (0, 1], or [0, 1] where `zero`, or refuse it by name."""
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not (0.0 <= number <= 1.0) or (number == 0.0 and not zero):
        interval = "[0, 1]" if zero else "(0, 1]"
        raise InvalidArgumentError(f"{name}={value!r}: expected a number in {interval}")
    return number
