# SPDX-License-Identifier: Apache-2.0
"""Vectors of different languages moved over each other: shift, scale, rotate, language by language.

CCP (Wu et al. 2022) brings languages together after training: each is shifted to mean 0, scaled to
variance 1 in every dimension, and rotated onto a pivot language, x' = W (x - mean) / std. Its
rotation is learned adversarially, and there is no public code of that. Here it is fitted either on
translations (orthogonal Procrustes, Schönemann 1966) or, *instead of* the adversarial step, on
mutual nearest neighbours under CSLS (Lample et al. 2018).
"""

from __future__ import annotations

import base64
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from weft.errors import InvalidArgumentError, NotFoundError
from weft.lifecycle.storage import os_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

logger = logging.getLogger("weft")

Side: TypeAlias = Literal["query", "document"]
Key: TypeAlias = "str | tuple[str, str]"
"""A language, or a language and a side: "de", ("de", "query")."""

STAGES = ("shift", "shift_scale", "shift_scale_rotate")
FEW = 1_000
"""From fewer vectors than that, statistics of a language are warned of."""

SMALLEST_STD = 1e-6
ROUNDS = 5
NEIGHBOURS = 10
MATCHED = 5_000
"""Rows of each language that neighbours are looked for among: the first ones."""


@dataclass(frozen=True, eq=False)
class _Map:
    """One language: mean and std `[dim]`, rotation `[dim, dim]` or None; float32."""

    mean: NDArray[np.float32]
    std: NDArray[np.float32] | None
    rotation: NDArray[np.float32] | None
    n: int

    def apply(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = rows - self.mean
        if self.std is not None:
            rows = rows / np.maximum(self.std, np.float32(SMALLEST_STD))
        return rows if self.rotation is None else rows @ self.rotation.T


@dataclass(frozen=True, eq=False)
class Calibration:
    """A map for the vectors of each language; made by `fit` or `load`.

    Attributes
    ----------
    stage
        One of `STAGES`.
    pivot
        The language that others are rotated onto.
    method
        How rotations were found: "pairs", "neighbours", or None without them.
    longest
        Length of the longest vector that it was fitted on, once mapped.

    Examples
    --------
    >>> import numpy as np
    >>> from weft.encoders.calibration import Calibration
    >>> rng = np.random.default_rng(0)
    >>> samples = {"en": rng.normal(size=(2_000, 8)), "de": rng.normal(5.0, size=(2_000, 8))}
    >>> calibration = Calibration.fit(samples, pivot="en", stage="shift_scale")
    >>> moved = calibration.apply(samples["de"], "de")
    >>> bool(np.abs(moved.mean(axis=0)).max() < 1e-5), calibration.languages
    (True, ('de', 'en'))
    """

    stage: str
    pivot: str
    method: str | None
    longest: float
    _maps: Mapping[Key, _Map]

    @staticmethod
    def fit(
        samples: Mapping[Key, ArrayLike],
        *,
        pivot: str,
        stage: str,
        pairs: Mapping[Key, tuple[ArrayLike, ArrayLike]] | None = None,
    ) -> Calibration:
        """Fit the map of each language.

        Parameters
        ----------
        samples
            Vectors of each language, `[n, dim]`, not scaled to unit length. A key is a language;
            or a language with "query" or "document", for a map of each tower.
        pivot
            One of the languages. It is not rotated.
        stage
            "shift", "shift_scale" or "shift_scale_rotate".
        pairs
            For rotations, by the keys of `samples`: vectors of a language and those of their
            translations into the pivot, row by row. None: mutual nearest neighbours under CSLS
            (10 neighbours, five rounds, among the first 5,000 rows of each) stand in for them.

        Raises
        ------
        InvalidArgumentError
            A stage, language or array that cannot be; too few vectors are warned of.
        """
        if stage not in STAGES:
            raise InvalidArgumentError(f"stage={stage!r}: expected one of {', '.join(STAGES)}")
        rows = {key: _rows(name_of(key), given) for key, given in samples.items()}
        for key in rows:
            _check_key(key)
        if not any(_language(key) == pivot for key in rows):
            raise InvalidArgumentError(
                f"pivot={pivot!r}: no vectors of it; expected one of {_listed(rows)}"
            )
        if len({given.shape[1] for given in rows.values()}) != 1:
            found = sorted({given.shape[1] for given in rows.values()})
            raise InvalidArgumentError(f"samples: vectors of {found} values, expected one width")
        maps = {key: _statistics(key, given, stage) for key, given in rows.items()}
        rotated = stage == "shift_scale_rotate"
        if pairs is not None and not rotated:
            raise InvalidArgumentError(f"pairs: the stage {stage!r} has no use for them")
        if rotated:
            for key in [key for key in maps if _language(key) != pivot]:
                onto = _get(maps, pivot, _side(key) or "document") or _get(maps, pivot, "query")
                assert onto is not None
                if pairs is None:
                    other = next(rows[k] for k in rows if maps[k] is onto)
                    rotation = _neighbours_rotation(maps[key].apply(rows[key]), onto.apply(other))
                else:
                    rotation = _pairs_rotation(key, pairs, maps[key], onto)
                maps[key] = _Map(maps[key].mean, maps[key].std, rotation, maps[key].n)
        longest = max(float(np.linalg.norm(maps[k].apply(rows[k]), axis=1).max()) for k in rows)
        method = ("neighbours" if pairs is None else "pairs") if rotated else None
        return Calibration(stage, pivot, method, longest, maps)

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that it has a map for."""
        return tuple(sorted({_language(key) for key in self._maps}))

    @property
    def dim(self) -> int:
        """Values in a vector."""
        return len(next(iter(self._maps.values())).mean)

    def apply(
        self, vectors: ArrayLike, language: str | None, side: Side = "document"
    ) -> NDArray[np.float32]:
        """Map vectors of one language: float32 `[n, dim]`, not of unit length.

        Raises
        ------
        InvalidArgumentError
            There is no map for the language, or none is named. It is never guessed.
        """
        found = None if language is None else _get(self._maps, language, side)
        if found is None:
            raise InvalidArgumentError(
                f"language={language!r}: the calibration of these vectors has none for such a "
                f"{side}; expected one of {', '.join(self.languages)}"
            )
        return found.apply(_rows("vectors", vectors))

    def to_json(self) -> dict[str, Any]:
        """Give everything as JSON values; arrays are base64 of their little-endian float32."""
        return {
            "stage": self.stage,
            "pivot": self.pivot,
            "method": self.method,
            "longest": self.longest,
            "maps": {
                name_of(key): {
                    "n": one.n,
                    "mean": _to_text(one.mean),
                    "std": _to_text(one.std),
                    "rotation": _to_text(one.rotation),
                }
                for key, one in self._maps.items()
            },
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Calibration:
        """Read back what `to_json` gave.

        Raises
        ------
        InvalidArgumentError
            It is something else, or damaged.
        """
        try:
            maps: dict[Key, _Map] = {}
            for name, one in value["maps"].items():
                mean = _from_text(one["mean"])
                std, rotation = _from_text(one["std"]), _from_text(one["rotation"])
                assert mean is not None
                if rotation is not None:
                    rotation = rotation.reshape(len(mean), len(mean))
                if std is not None:
                    std = std.reshape(mean.shape)
                language, _, side = name.partition("/")
                maps[(language, side) if side else language] = _Map(mean, std, rotation, one["n"])
            stage = STAGES[STAGES.index(value["stage"])]
            (_,) = {len(one.mean) for one in maps.values()}  # all of one width, and some
            return Calibration(
                stage, value["pivot"], value["method"], float(value["longest"]), maps
            )
        except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
            raise InvalidArgumentError(f"calibration: cannot be read ({error!r})") from error

    def save(self, path: str | Path) -> None:
        """Write it to a JSON file."""
        with os_errors("write", Path(path)):
            Path(path).write_text(json.dumps(self.to_json()), encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Calibration:
        """Read it from the file that `save` wrote.

        Raises
        ------
        NotFoundError, InvalidArgumentError
            No such file, or something else in it.
        """
        if not Path(path).is_file():
            raise NotFoundError(f"calibration {path}: no such file")
        with os_errors("read", Path(path)):
            data = Path(path).read_bytes()
        try:
            value = json.loads(data)
        except ValueError as error:
            raise InvalidArgumentError(f"calibration {path}: not JSON ({error})") from error
        return Calibration.from_json(value)


def name_of(key: Key) -> str:
    """Give a key as a text."""
    return key if isinstance(key, str) else "/".join(key)


def _check_key(key: Key) -> None:
    parts = (key,) if isinstance(key, str) else key
    good = len(parts) in {1, 2} and parts[0] and "/" not in parts[0]
    if not good or (len(parts) == 2 and parts[1] not in {"query", "document"}):
        raise InvalidArgumentError(
            f"samples: key {key!r}; expected a language, or a language with 'query' or 'document'"
        )


def _language(key: Key) -> str:
    return key if isinstance(key, str) else key[0]


def _side(key: Key) -> str | None:
    return None if isinstance(key, str) else key[1]


def _get(maps: Mapping[Key, _Map], language: str, side: str) -> _Map | None:
    return maps.get((language, side), maps.get(language))


def _listed(rows: Mapping[Key, object]) -> str:
    return ", ".join(sorted({_language(key) for key in rows})) or "none"


def _rows(name: str, given: ArrayLike) -> NDArray[np.float32]:
    rows = np.asarray(given, np.float32)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise InvalidArgumentError(
            f"{name}: an array of shape {rows.shape}, expected finite vectors (n, dim)"
        )
    return rows


def _statistics(key: Key, rows: NDArray[np.float32], stage: str) -> _Map:
    if len(rows) == 0:
        raise InvalidArgumentError(f"{name_of(key)}: no vectors; expected at least {FEW}")
    if len(rows) < FEW:
        logger.warning(
            "the statistics of %s come from %d vectors only: they need not fit others; expected at "
            "least %d", name_of(key), len(rows), FEW,
        )  # fmt: skip
    mean = rows.mean(axis=0, dtype=np.float64)
    std = None if stage == "shift" else rows.std(axis=0, dtype=np.float64).astype(np.float32)
    return _Map(mean.astype(np.float32), std, None, len(rows))


def _pairs_rotation(
    key: Key, pairs: Mapping[Key, tuple[ArrayLike, ArrayLike]], own: _Map, onto: _Map
) -> NDArray[np.float32]:
    if key not in pairs:
        raise InvalidArgumentError(
            f"pairs: none of {name_of(key)}; expected them for each language"
        )
    source, target = (_rows(f"pairs of {name_of(key)}", given) for given in pairs[key])
    if source.shape != target.shape:
        raise InvalidArgumentError(
            f"pairs of {name_of(key)}: {source.shape} and {target.shape}; expected row for row"
        )
    return _procrustes(own.apply(source), onto.apply(target)).astype(np.float32)


def _procrustes(source: NDArray[np.float32], target: NDArray[np.float32]) -> NDArray[np.float64]:
    """Give the orthogonal W that brings W x closest to y, over rows x and y."""
    left, _, right = np.linalg.svd(target.astype(np.float64).T @ source.astype(np.float64))
    rotation: NDArray[np.float64] = left @ right
    return rotation


def _neighbours_rotation(
    source: NDArray[np.float32], target: NDArray[np.float32]
) -> NDArray[np.float32]:
    source, target = _unit(source[:MATCHED]), _unit(target[:MATCHED])
    rotation = np.eye(source.shape[1])
    for _ in range(ROUNDS):
        near = (source @ rotation.T.astype(np.float32)) @ target.T
        k = min(NEIGHBOURS, *near.shape)
        of_source = np.partition(near, -k, axis=1)[:, -k:].mean(axis=1)
        of_target = np.partition(near, -k, axis=0)[-k:].mean(axis=0)
        scores = 2.0 * near - of_source[:, None] - of_target
        best, back = scores.argmax(axis=1), scores.argmax(axis=0)
        mutual = np.flatnonzero(back[best] == np.arange(len(best)))
        rotation = _procrustes(source[mutual], target[best[mutual]])
    return rotation.astype(np.float32)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = rows / np.maximum(norms, np.finfo(np.float32).tiny)
    return unit


def _to_text(array: NDArray[np.float32] | None) -> str | None:
    return None if array is None else base64.b64encode(array.astype("<f4").tobytes()).decode()


def _from_text(text: str | None) -> NDArray[np.float32] | None:
    if text is None:
        return None
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)
