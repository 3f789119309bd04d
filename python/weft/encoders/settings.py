# SPDX-License-Identifier: Apache-2.0
"""The settings of a recipe as a user gives them: known names, and values of the right kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weft.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class Setting:
    """A name and what may stand behind it: one of `choices`, or any value of type `kind`."""

    name: str
    kind: type = str
    choices: tuple[str, ...] = ()

    def check(self, recipe: str, value: Any) -> None:  # noqa: ANN401
        """Refuse a value that cannot be."""
        fits = type(value) is self.kind or (self.kind is float and type(value) is int)
        if fits and (not self.choices or value in self.choices):
            return
        expected = " or ".join(map(repr, self.choices)) or _KINDS[self.kind]
        raise InvalidArgumentError(f"recipe {recipe}: {self.name}={value!r}: expected {expected}")


_KINDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}


def check_settings(recipe: str, given: Mapping[str, Any], known: Sequence[Setting]) -> None:
    """Refuse settings that a recipe does not have, and values that they cannot take.

    Raises
    ------
    InvalidArgumentError
        Naming the setting, what was found and what was expected.
    """
    by_name = {setting.name: setting for setting in known}
    for name, value in given.items():
        if name not in by_name:
            expected = ", ".join(by_name) or "none at all"
            raise InvalidArgumentError(
                f"recipe {recipe}: it has no option {name!r}; expected {expected}"
            )
        by_name[name].check(recipe, value)
