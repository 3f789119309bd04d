# SPDX-License-Identifier: Apache-2.0
"""Filters: which documents of an index a search may return.

A filter is a tree that JSON can hold. Its conditions become SQL over the table of metadata, with
every value bound; each gives the documents that meet it, and the tree joins these sets. A value is
compared with values of its own type only: a field that is missing, or holds another type, fails.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial, reduce
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeAlias

import numpy as np

from weft.errors import CorruptIndexError, InvalidArgumentError
from weft.lifecycle.bitmaps import as_mask, from_mask
from weft.lifecycle.documents import check_scalar
from weft.types import Scalar, defaults

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from weft.lifecycle.documents import DocumentStore
    from weft.lifecycle.snapshot import OpenSegment, Snapshot

    Mask: TypeAlias = NDArray[np.bool_]
    Words: TypeAlias = NDArray[np.uint64]

ORDER = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
OPERATORS = ("$eq", "$ne", *ORDER, "$in", "$nin", "$prefix", "$exists")
JOINS = ("$and", "$or", "$not")
NAMES_SHOWN = 10
CACHED_FILTERS = 32
CACHED_ALLOWS = 8


@dataclass(frozen=True)
class Term:
    """The documents whose `field` meets a condition on its `type` and `value`."""

    field: str
    condition: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True)
class Every:
    """What all parts have in common."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Either:
    """What any part holds; nothing where there are none."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Not:
    """What the part does not hold."""

    part: Filter


Filter: TypeAlias = "Term | Every | Either | Not"


class Selectable(Protocol):
    """Something with the tables of `weft.lifecycle.documents`."""

    def select(self, sql: str, *values: object) -> Iterable[tuple[Any, ...]]:
        """Give the rows of a statement."""


def parse(where: object) -> Filter:
    """Give a filter in one form, whatever way it was written; equal filters are equal.

    Raises
    ------
    InvalidArgumentError
        Something that is no filter, or a larger one than is allowed; names what and where.
    """
    return _Parser().tree(where, 1)


class _Parser:
    """Counts the terms of one filter while it reads it."""

    def __init__(self) -> None:
        self._n_terms = 0

    def tree(self, found: object, depth: int) -> Filter:
        if depth > defaults.filter_depth:
            _refuse(f"nested deeper than {defaults.filter_depth}")
        if not isinstance(found, Mapping) or not found:
            _refuse(
                f"found {_shown(found)}, expected a dictionary with at least one condition, "
                f'like {{"year": {{"$gte": 2024}}}}'
            )
        return _every([self._entry(name, value, depth) for name, value in found.items()])

    def _entry(self, name: object, value: object, depth: int) -> Filter:
        if not isinstance(name, str) or not name:
            _refuse(f"field {_shown(name)}: expected a string that is not empty")
        if name == "$not":
            return Not(self.tree(value, depth + 1))
        if name in JOINS:
            if not isinstance(value, (list, tuple)) or not value:
                _refuse(f"{name}: found {_shown(value)}, expected a list of filters")
            parts = [self.tree(part, depth + 1) for part in value]
            return _every(parts) if name == "$and" else Either(tuple(parts))
        if name.startswith("$"):
            _refuse(f"operator {_shown(name)}: expected a field, or one of {', '.join(JOINS)}")
        if not isinstance(value, Mapping):
            value = {"$eq": value}
        if not value:
            _refuse(f"field {_shown(name)}: no operator, expected one of {', '.join(OPERATORS)}")
        return _on_one_field([self._term(name, symbol, given) for symbol, given in value.items()])

    def _term(self, field: str, symbol: object, given: object) -> Filter:
        self._n_terms += 1
        if self._n_terms > defaults.filter_terms:
            _refuse(f"more than {defaults.filter_terms} conditions")
        if symbol not in OPERATORS:
            _refuse(
                f"field {_shown(field)}: operator {_shown(symbol)}, expected one of "
                f"{', '.join(OPERATORS)}"
            )
        what = f"field {_shown(field)}: {symbol}"
        if symbol == "$exists":
            if not isinstance(given, bool):
                _refuse(f"{what} {_shown(given)}: expected true or false")
            exists = Term(field, "1", ())
            return exists if given else Not(exists)
        if symbol in ("$in", "$nin"):
            if not isinstance(given, (list, tuple, set, frozenset)):
                _refuse(f"{what} {_shown(given)}: expected a list of values")
            if len(given) > defaults.filter_values:
                _refuse(f"{what}: {len(given)} values, expected {defaults.filter_values} at most")
            found = _one_of(field, [_value(value, what) for value in given])
            return found if symbol == "$in" else Not(found)
        kind, value = _value(given, what)
        if symbol == "$prefix":
            if not isinstance(value, str):
                _refuse(f"{what} {_shown(given)}: expected a string")
            return _prefix(field, value)
        if symbol in ORDER:
            return Term(field, f"type = ? AND value {ORDER[symbol]} ?", (kind, value))
        equal = _one_of(field, [(kind, value)])
        return equal if symbol == "$eq" else Not(equal)


def _value(given: object, what: str) -> tuple[str, Scalar]:
    return check_scalar(given, f"where: {what} value", "; $exists asks for the field")


def _every(parts: Sequence[Filter]) -> Filter:
    return parts[0] if len(parts) == 1 else Every(tuple(parts))


def _on_one_field(parts: Sequence[Filter]) -> Filter:
    """As `_every`; a document has one value of a field, so conditions on it can be one term."""
    terms = [part for part in parts if isinstance(part, Term)]
    if len(terms) < len(parts):
        return _every(parts)
    conditions = " AND ".join(term.condition for term in terms)
    return Term(terms[0].field, conditions, tuple(chain(*(term.values for term in terms))))


def _one_of(field: str, values: Iterable[tuple[str, Scalar]]) -> Filter:
    by_kind: dict[str, set[Scalar]] = {}
    for kind, value in values:
        by_kind.setdefault(kind, set()).add(value)
    terms = [
        Term(
            field,
            f"type = ? AND value IN ({', '.join('?' * len(some))})",
            (kind, *sorted(some)),
        )
        for kind, some in sorted(by_kind.items())
    ]
    return terms[0] if len(terms) == 1 else Either(tuple(terms))


def _prefix(field: str, start: str) -> Term:
    """Texts from `start` up to the first in the order of code points that begins otherwise."""
    stem = start.rstrip("\U0010ffff")
    if not stem:
        return Term(field, "type = ? AND value >= ?", ("str", start))
    after = ord(stem[-1]) + 1
    end = stem[:-1] + chr(0xE000 if after == 0xD800 else after)
    return Term(field, "type = ? AND value >= ? AND value < ?", ("str", start, end))


def _refuse(message: str) -> NoReturn:
    raise InvalidArgumentError(f"where: {message}")


def _shown(found: object) -> str:
    short = isinstance(found, (str, float)) or (isinstance(found, int) and abs(found) < 2**64)
    text = repr(found) if short else type(found).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."


def fields_of(found: Filter) -> frozenset[str]:
    """Give the fields that a filter names."""
    match found:
        case Term(field):
            return frozenset([field])
        case Not(part):
            return fields_of(part)
        case Every(parts) | Either(parts):
            return frozenset(chain.from_iterable(fields_of(part) for part in parts))


def require_fields(found: Filter, tables: Sequence[Selectable]) -> None:
    """Refuse a filter with a field that no document has."""
    for field in sorted(fields_of(found)):
        if any(
            any(True for _ in table.select("SELECT 1 FROM metadata WHERE field = ? LIMIT 1", field))
            for table in tables
        ):
            continue
        rows = (table.select("SELECT DISTINCT field FROM metadata") for table in tables)
        names = sorted({str(name) for (name,) in chain.from_iterable(rows)})
        known = ", ".join(map(_shown, names[:NAMES_SHOWN])) + ", ..." * (len(names) > NAMES_SHOWN)
        _refuse(
            f"field {_shown(field)}: no document has it, expected one of {known}"
            if names
            else f"field {_shown(field)}: no document has metadata"
        )


def evaluate(found: Filter, table: Selectable, n_windows: int) -> Mask:
    """Tell of the first window of each document whether the filter holds; others are anything.

    Raises
    ------
    ValueError
        The table names documents that are not there.
    """
    match found:
        case Term(field, condition, values):
            rows = table.select(
                f"SELECT doc FROM metadata WHERE field = ? AND {condition}", field, *values
            )
            docs = np.fromiter(chain.from_iterable(rows), np.int64)
            if len(docs) and not 0 <= docs.min() <= docs.max() < n_windows:
                raise ValueError(f"a document outside 0..{n_windows - 1}")
            mask = np.zeros(n_windows, np.bool_)
            mask[docs] = True
            return mask
        case Not(part):
            return ~evaluate(part, table, n_windows)
        case Every(parts):
            return reduce(operator.and_, (evaluate(part, table, n_windows) for part in parts))
        case Either(parts):
            masks = (evaluate(part, table, n_windows) for part in parts)
            return reduce(operator.or_, masks, np.zeros(n_windows, np.bool_))


class _NoDocuments:
    """The tables of a segment whose documents have neither texts nor metadata."""

    def select(self, _sql: str, *_values: object) -> Iterable[tuple[Any, ...]]:
        return ()


class Windows:
    """The windows of a segment, as a filter sees them."""

    def __init__(self, segment: OpenSegment, field: str = "multi") -> None:
        self._segment = segment
        self._field = field
        self.n = segment.entry.n_windows
        self.table: Selectable = segment.documents or _NoDocuments()

    @cached_property
    def findable(self) -> Mask:
        """Those that a search of the field may return: neither empty nor deleted."""
        return (self._segment.lengths(self._field) > 0) & ~as_mask(self._segment.deleted, self.n)

    @cached_property
    def _first(self) -> NDArray[np.int64] | None:
        """The first window of the document of each; None where every document has one window."""
        store = self._segment.documents
        if store is None or self.n == self._segment.entry.n_docs:
            return None
        first = np.arange(self.n)
        for doc, n_windows in store.long_documents():
            if not 0 <= doc < doc + n_windows <= self.n:
                raise self._damaged(store, f"document {doc} has {n_windows} windows")
            first[doc : doc + n_windows] = doc
        return first

    def matching(self, found: Filter) -> Mask:
        """Give all windows of the documents that match."""
        try:
            mask = evaluate(found, self.table, self.n)
        except (ValueError, TypeError) as error:
            raise self._damaged(self._segment.documents, str(error)) from error
        return mask if self._first is None else mask[self._first]

    def documents(self, mask: Mask) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give the first windows of the documents in a mask, and how many windows they have."""
        windows = np.flatnonzero(mask)
        if self._first is None:
            return windows, np.ones_like(windows)
        return np.unique(self._first[windows], return_counts=True)

    def _damaged(self, store: DocumentStore | None, message: str) -> CorruptIndexError:
        path = None if store is None else str(store.path)
        return CorruptIndexError(
            f"{path}: {message}; the file is damaged, restore it or rebuild the index", path
        )


@dataclass(frozen=True)
class Allowed:
    """A bit for each window of each segment that may be returned, and how many documents may."""

    bitmaps: list[Words]
    n_matching: int


class Filters:
    """Turns filters and lists of ids into bitmaps of a snapshot, and remembers the last ones."""

    def __init__(self, snapshot: Snapshot, field: str = "multi") -> None:
        self._segments = [Windows(segment, field) for segment in snapshot.segments]
        # Of functions, not methods: a cycle would keep the files of a dropped snapshot open.
        self._matching = lru_cache(CACHED_FILTERS)(partial(_matching, self._segments))
        self._listed = lru_cache(CACHED_ALLOWS)(partial(_listed, self._segments, snapshot))

    @cached_property
    def n_findable(self) -> int:
        """Documents that a search of the field may return."""
        return sum(len(windows.documents(windows.findable)[0]) for windows in self._segments)

    def allowed(self, where: object, allow: Iterable[str] | None) -> Allowed | None:
        """Give what both allow; None where neither is given."""
        parts = []
        if where is not None:
            parts.append(self._matching(parse(where)))
        if allow is not None:
            parts.append(self._listed(check_allow(allow)))
        if len(parts) < 2:
            return parts[0] if parts else None
        both = zip(parts[0].bitmaps, parts[1].bitmaps, strict=True)
        return _count(self._segments, [one & other for one, other in both])


def _matching(segments: Sequence[Windows], found: Filter) -> Allowed:
    require_fields(found, [windows.table for windows in segments])
    return _count(segments, [from_mask(windows.matching(found)) for windows in segments])


def _listed(segments: Sequence[Windows], snapshot: Snapshot, ids: frozenset[str]) -> Allowed:
    masks = [np.zeros(windows.n, np.bool_) for windows in segments]
    for place in filter(None, map(snapshot.find, ids)):
        masks[place.segment][place.first : place.first + place.n_windows] = True
    return _count(segments, [from_mask(mask) for mask in masks])


def _count(segments: Sequence[Windows], bitmaps: list[Words]) -> Allowed:
    n_matching = sum(
        len(windows.documents(as_mask(words, windows.n) & windows.findable)[0])
        for windows, words in zip(segments, bitmaps, strict=True)
    )
    return Allowed(bitmaps, n_matching)


def check_allow(allow: Iterable[str]) -> frozenset[str]:
    """Give the ids; they are walked over once, so that several searches may use what is given."""
    if isinstance(allow, str) or not isinstance(allow, Iterable):
        raise InvalidArgumentError(f"allow={_shown(allow)}: expected ids, as a list or set")
    ids = list(allow)
    for doc_id in ids:
        if not isinstance(doc_id, str):
            raise InvalidArgumentError(f"allow: id {_shown(doc_id)}, expected a string")
    return frozenset(ids)
