# SPDX-License-Identifier: Apache-2.0
"""Pickles of plain values, read without running anything: dict, list, str, int and float.

Python's own reader calls whatever a pickle names, so a foreign one is never given to it. This one
knows the operations that plain values are made of, and refuses the first that is none of them.
"""

from __future__ import annotations

import pickletools
from typing import TYPE_CHECKING, Any

from weft.errors import CorruptIndexError
from weft.lifecycle.storage import os_errors

if TYPE_CHECKING:
    from pathlib import Path

_VALUES = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINFLOAT"}
_VALUES |= {"BININT", "BININT1", "BININT2", "LONG1"}
_IGNORED = {"PROTO", "FRAME"}
_MARK = object()


def read_plain_pickle(path: Path) -> object:
    """Give the dict, list, str, int or float that a pickle holds.

    Raises
    ------
    CorruptIndexError
        It holds something else, or is damaged.
    """
    with os_errors("read", path):
        data = path.read_bytes()
    try:
        return _evaluate(data)
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise CorruptIndexError(
            f"{path}: not a pickle of plain values ({error}); expected dict, list, str, int or "
            f"float, nothing else is read",
            str(path),
        ) from error


def _evaluate(data: bytes) -> object:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for operation, value, _ in pickletools.genops(data):
        name = operation.name
        if name in _VALUES:
            stack.append(value)
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in {"BINPUT", "LONG_BINPUT"}:
            memo[_number(value)] = stack[-1]
        elif name in {"BINGET", "LONG_BINGET"}:
            stack.append(memo[_number(value)])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in {"SETITEM", "SETITEMS"}:
            items = _taken(stack, 2 if name == "SETITEM" else None)
            _top(stack, dict).update(zip(items[::2], items[1::2], strict=True))
        elif name in {"APPEND", "APPENDS"}:
            items = _taken(stack, 1 if name == "APPEND" else None)
            _top(stack, list).extend(items)
        elif name == "STOP":
            (found,) = stack
            return found
        elif name not in _IGNORED:
            raise ValueError(f"found {name}")
    raise ValueError("it has no end")


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value


def _top(stack: list[Any], kind: type) -> Any:  # noqa: ANN401
    if type(stack[-1]) is not kind:
        raise TypeError(f"{type(stack[-1]).__name__} where a {kind.__name__} is filled")
    return stack[-1]


def _taken(stack: list[Any], n: int | None) -> list[Any]:
    """Take the last n values, or those after the last mark, from the stack."""
    if n is None:
        n = next((i for i, value in enumerate(reversed(stack)) if value is _MARK), len(stack))
        found = stack[len(stack) - n :]
        del stack[max(len(stack) - n - 1, 0) :]
    else:
        found = stack[len(stack) - n :]
        del stack[len(stack) - n :]
    if any(value is _MARK for value in found):
        raise ValueError("a mark among the values")
    return found
