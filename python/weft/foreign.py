# SPDX-License-Identifier: Apache-2.0
"""Index folders of the PLAID family, read chunk by chunk: fast-plaid, next-plaid, PyLate, ColBERT.

All of them store a token as the number of its centroid and, for each dimension, the number of the
bucket that its residual falls in [COLBERTV2]. They differ in their files: `.npy` with the chunks
merged or not, or `.pt`. Every file is read as hostile input, none is unpickled.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from weft.errors import (
    CorruptIndexError,
    InvalidArgumentError,
    MissingExtraError,
    NotFoundError,
    StorageError,
)
from weft.lifecycle.storage import os_errors
from weft.plain_pickle import read_plain_pickle
from weft.sources import load_npy, read_id_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from weft.types import Scalar

BLOCK_TOKENS = 65_536
ID_MAP = "documents_ids_to_plaid_ids.pkl"
METADATA = "metadata.db"


@dataclass(frozen=True)
class Block:
    """Some documents as `Writer.add` takes them: ids, packed rows, metadata if there are any."""

    ids: list[str]
    values: NDArray[np.float32]
    offsets: NDArray[np.int64]
    metadata: list[dict[str, Scalar]] | None


class _Files(Protocol):
    """How an engine lays out its numbers."""

    def codec(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Give the centroids and the weights of the buckets."""

    def chunk(self, number: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Give the codes of a chunk and its packed residuals."""


class ForeignIndex:
    """An index folder of another engine; iterating gives its documents, decoded, in blocks.

    Attributes
    ----------
    kind
        "fast-plaid", "next-plaid", "pylate" or "colbert-ai".
    dim, nbits
        Dimensions of a token embedding, and bits of each in the residual.
    n_docs, n_tokens
        What the folder holds, with documents that will be left out.
    n_read
        How many of the documents have been gone through.
    exact
        Whether the rows come as they were encoded, not as they were quantised.
    """

    def __init__(self, folder: Path, ids: Path | None) -> None:
        self.folder = folder
        self.kind, inner, map_file = _recognise(folder)
        self._inner = inner
        header = _read_json(inner / "metadata.json", dict)
        n_chunks = _count(header, "num_chunks", inner / "metadata.json")
        self._lengths = [_read_lengths(inner / f"doclens.{i}.json") for i in range(n_chunks)]
        starts = np.cumsum([0, *(len(lengths) for lengths in self._lengths)])
        self._first_doc: list[int] = starts.tolist()
        self.n_docs = self._first_doc[-1]
        self.n_tokens = sum(int(lengths.sum()) for lengths in self._lengths)
        self._files: _Files
        if (inner / "centroids.npy").is_file():
            self._files = _NpyFiles(inner, self._lengths)
        else:
            self._files = _PtFiles(inner)
        centroids, weights = self._files.codec()
        self._codec = _Codec(centroids, weights, inner)
        self.dim, self.nbits = self._codec.dim, self._codec.nbits
        self._rows = self._exact_rows()
        self.exact = self._rows is not None
        self._ids = _document_ids(ids, map_file, self.n_docs)
        self._metadata = _Metadata(inner / METADATA) if (inner / METADATA).is_file() else None
        self._checkpoint = (header.get("config") or {}).get("checkpoint")
        self.n_read = self._n_empty = self._n_unnamed = 0

    def __iter__(self) -> Iterator[Block]:
        """Walk over the documents that have tokens and an id."""
        self.n_read = self._n_empty = self._n_unnamed = 0
        row = 0
        for number, lengths in enumerate(self._lengths):
            codes, residuals = self._files.chunk(number)
            self._codec.check(
                codes, residuals, int(lengths.sum()), f"{self._inner}: chunk {number}"
            )
            ends = np.cumsum(lengths)
            first = 0
            while first < len(lengths):
                begin = int(ends[first] - lengths[first])
                last = int(np.searchsorted(ends, begin + BLOCK_TOKENS, side="right"))
                last = max(last, first + 1)
                end = int(ends[last - 1])
                if self._rows is not None:
                    values = self._rows[row + begin : row + end]
                else:
                    values = self._codec.decode(codes[begin:end], residuals[begin:end])
                block = self._block(self._first_doc[number] + first, values, lengths[first:last])
                if block.ids:
                    yield block
                first = last
            row += int(ends[-1]) if len(ends) else 0

    def _block(self, first: int, values: NDArray[np.float32], lengths: NDArray[np.int64]) -> Block:
        self.n_read = last = first + len(lengths)
        ids: list[str | None] = [str(i) for i in range(first, last)]
        if self._ids is not None:
            ids = self._ids[first:last]
        has_id = np.array([doc_id is not None for doc_id in ids], bool)
        kept = has_id & (lengths > 0)
        self._n_unnamed += int((~has_id).sum())
        self._n_empty += int((has_id & (lengths == 0)).sum())
        metadata = None if self._metadata is None else self._metadata.rows(first, last)
        if not kept.all():
            values = values[np.repeat(kept, lengths)]
        offsets = np.concatenate([[0], np.cumsum(lengths[kept])]).astype(np.int64)
        chosen = np.flatnonzero(kept).tolist()
        return Block(
            [str(ids[i]) for i in chosen],
            values,
            offsets,
            None if metadata is None else [metadata[i] for i in chosen],
        )

    def _exact_rows(self) -> NDArray[np.float32] | None:
        """Map the rows that next-plaid keeps while it is small, if they are those of the index."""
        rows, counts = self._inner / "embeddings.npy", self._inner / "embeddings_lengths.json"
        if not (rows.is_file() and counts.is_file()):
            return None
        lengths = _read_lengths(counts)
        found = _load(rows)
        same = np.array_equal(lengths, np.concatenate([[], *self._lengths]))
        if not same or found.dtype != np.float32 or found.shape != (self.n_tokens, self.dim):
            return None
        return found

    def lost(self) -> list[str]:
        """Say what the folder does not hold and what cannot be taken over; call it at the end."""
        said = []
        if not self.exact:
            said.append(
                f"the rows as they were encoded: the source keeps {self.nbits}-bit residuals, "
                f"which were decoded"
            )
            if (self._inner / "embeddings.npy").is_file():
                said.append("embeddings.npy: the rows are there as a pickle, which is never read")
        if self._ids is None:
            said.append("ids: the source keeps none, documents are named by their number")
        if self._n_unnamed:
            said.append(
                f"{self._n_unnamed} documents without an id: removed there, or added again later"
            )
        if self._n_empty:
            said.append(f"{self._n_empty} documents without tokens: deleted there, or empty")
        said.append("texts: the source keeps none")
        if self._metadata is not None:
            said += self._metadata.lost()
        if isinstance(self._checkpoint, str):
            said.append(f"the encoder: {self._checkpoint} made the rows")
        return said


def _recognise(folder: Path) -> tuple[str, Path, Path | None]:
    """Give the kind of a folder, where its numbers are, and where its ids."""
    if not folder.is_dir():
        raise NotFoundError(f"{folder}: no such folder")
    ids = folder / ID_MAP
    inner = folder / "fast_plaid_index" if (folder / "fast_plaid_index").is_dir() else folder
    if not (inner / "metadata.json").is_file():
        unfinished = " (there is a plan.json: indexing was not finished)"
        raise InvalidArgumentError(
            f"{folder}: not an index of fast-plaid, next-plaid, PyLate or ColBERT: no metadata.json"
            f"{unfinished if (inner / 'plan.json').is_file() else ''}"
        )
    if (inner / "centroids.npy").is_file():
        header = _read_json(inner / "metadata.json", dict)
        kind = "next-plaid" if "next_plaid_compatible" in header else "fast-plaid"
    elif (inner / "centroids.pt").is_file():
        kind = "colbert-ai"
    else:
        raise InvalidArgumentError(
            f"{folder}: not an index of fast-plaid, next-plaid, PyLate or ColBERT: neither "
            f"centroids.npy nor centroids.pt"
        )
    return ("pylate", inner, ids) if ids.is_file() else (kind, inner, None)


class _Codec:
    """Centroids, and for each byte of a packed residual the values that it stands for."""

    def __init__(self, centroids: NDArray[Any], weights: NDArray[Any], folder: Path) -> None:
        if centroids.ndim != 2 or centroids.dtype.kind != "f" or 0 in centroids.shape:
            raise CorruptIndexError(
                f"{folder}: centroids are {centroids.dtype} {centroids.shape}, "
                f"expected floats (n, dim)",
                str(folder),
            )
        self._centroids = centroids
        self.dim = centroids.shape[1]
        self.nbits = max(len(weights.ravel()), 1).bit_length() - 1
        valid = weights.shape == (2**self.nbits,) and self.nbits in (1, 2, 4, 8)
        if not valid or weights.dtype.kind != "f" or self.dim * self.nbits % 8:
            raise CorruptIndexError(
                f"{folder}: bucket weights are {weights.dtype} {weights.shape}, expected 2, 4, 16 "
                f"or 256 floats",
                str(folder),
            )
        # The bits of a value are packed lowest first, into bytes filled from their highest bit.
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
        places = bits.reshape(256, -1, self.nbits) << np.arange(self.nbits)
        self._values = weights.astype(np.float32)[places.sum(axis=2)]

    def check(self, codes: NDArray[Any], residuals: NDArray[Any], n_tokens: int, what: str) -> None:
        """Refuse a chunk that is not what its lengths and the centroids say."""
        packed = (n_tokens, self.dim * self.nbits // 8)
        if codes.shape != (n_tokens,) or codes.dtype.kind not in "iu":
            raise CorruptIndexError(
                f"{what}: codes are {codes.dtype} {codes.shape}, expected integers ({n_tokens},)",
                what,
            )
        if residuals.shape != packed or residuals.dtype != np.uint8:
            raise CorruptIndexError(
                f"{what}: residuals are {residuals.dtype} {residuals.shape}, expected uint8 "
                f"{packed}",
                what,
            )
        if n_tokens and not 0 <= int(codes.min()) <= int(codes.max()) < len(self._centroids):
            raise CorruptIndexError(
                f"{what}: codes from {codes.min()} to {codes.max()}, expected numbers of "
                f"{len(self._centroids)} centroids",
                what,
            )

    def decode(self, codes: NDArray[Any], residuals: NDArray[Any]) -> NDArray[np.float32]:
        """Give float32 `[n, dim]`: each centroid and its residual added."""
        rows: NDArray[np.float32] = self._centroids[codes].astype(np.float32)
        rows += self._values[residuals].reshape(rows.shape)
        return rows


class _NpyFiles:
    """fast-plaid and next-plaid: a file for each chunk, or all of them merged in one."""

    def __init__(self, folder: Path, lengths: list[NDArray[np.int64]]) -> None:
        self._folder = folder
        self._n_rows = [int(n.sum()) for n in lengths]

    def codec(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return _load(self._folder / "centroids.npy"), _load(self._folder / "bucket_weights.npy")

    def chunk(self, number: int) -> tuple[NDArray[Any], NDArray[Any]]:
        return self._part("codes", number), self._part("residuals", number)

    def _part(self, name: str, number: int) -> NDArray[Any]:
        """Give what a chunk has of its own, which is newer, or its part of the merged file."""
        own = self._folder / f"{number}.{name}.npy"
        if own.is_file():
            return _load(own)
        merged = _load(self._folder / f"merged_{name}.npy")
        first = sum(self._merged_rows(name)[:number])
        return merged[first : first + self._n_rows[number]]

    def _merged_rows(self, name: str) -> list[int]:
        """Give how many rows of each chunk the merged file holds."""
        path = self._folder / f"merged_{name}.manifest.json"
        if not path.is_file():  # frozen by an old version: all, in their order
            return self._n_rows
        entries = _read_json(path, dict)
        names = [f"{i}.{name}.npy" for i in range(len(self._n_rows))]
        return [_count(entries[key], "rows", path) if key in entries else 0 for key in names]


class _PtFiles:
    """ColBERT, and PyLate over it: files of torch, read by its weights-only load."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def codec(self) -> tuple[NDArray[Any], NDArray[Any]]:
        pair = self._read("buckets.pt")
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise CorruptIndexError(
                f"{self._folder / 'buckets.pt'}: expected cutoffs and weights",
                str(self._folder / "buckets.pt"),
            )
        return self._numbers("centroids.pt"), self._array(pair[1], "buckets.pt")

    def chunk(self, number: int) -> tuple[NDArray[Any], NDArray[Any]]:
        return self._numbers(f"{number}.codes.pt"), self._numbers(f"{number}.residuals.pt")

    def _numbers(self, name: str) -> NDArray[Any]:
        return self._array(self._read(name), name)

    def _array(self, found: Any, name: str) -> NDArray[Any]:  # noqa: ANN401
        path = self._folder / name
        if not hasattr(found, "detach"):
            raise CorruptIndexError(f"{path}: {type(found).__name__}, expected a tensor", str(path))
        tensor = found.detach()
        array: NDArray[Any] = (
            tensor.float() if "bfloat16" in str(tensor.dtype) else tensor
        ).numpy()
        return array

    def _read(self, name: str) -> Any:  # noqa: ANN401
        try:
            import torch
        except ImportError as error:
            raise MissingExtraError("torch", "encode") from error
        path = self._folder / name
        if not path.is_file():
            raise CorruptIndexError(f"{path}: missing", str(path))
        try:
            with os_errors("read", path):
                return torch.load(path, map_location="cpu", weights_only=True)
        except StorageError:
            raise
        except Exception as error:  # whatever torch says of a damaged file
            reason = str(error).partition("\n")[0]
            raise CorruptIndexError(
                f"{path}: torch's weights-only load refuses it ({reason})", str(path)
            ) from error


class _Metadata:
    """The table of fields that fast-plaid and next-plaid keep beside an index."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._dropped: dict[str, int] = {}
        self._connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
        )
        self._connection.execute("PRAGMA trusted_schema = OFF")
        self._fields = [row[1] for row in self._select("PRAGMA table_info(METADATA)")]
        if "_subset_" not in self._fields:
            raise CorruptIndexError(
                f"{path}: no table METADATA with a column _subset_ in it", str(path)
            )

    def rows(self, first: int, last: int) -> list[dict[str, Scalar]]:
        """Give the fields of each document; blobs, which weft has no field for, are left out."""
        found: list[dict[str, Scalar]] = [{} for _ in range(first, last)]
        for row in self._select(
            "SELECT * FROM METADATA WHERE _subset_ >= ? AND _subset_ < ?", first, last
        ):
            fields = dict(zip(self._fields, row, strict=True))
            number = fields.pop("_subset_")
            if type(number) is not int or not first <= number < last:
                raise CorruptIndexError(
                    f"{self._path}: _subset_ is {number!r}, asked for {first} to {last - 1}",
                    str(self._path),
                )
            document = found[number - first]
            for name, value in fields.items():
                if isinstance(value, str | int | float):
                    document[name] = value
                elif value is not None:
                    self._dropped[name] = self._dropped.get(name, 0) + 1
        return found

    def _select(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(sql, values).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise CorruptIndexError(f"{self._path}: {error}", str(self._path)) from error

    def lost(self) -> list[str]:
        dropped = [f"{name} ({n} values)" for name, n in sorted(self._dropped.items())]
        said = ["metadata: true and false are stored there as 1 and 0, and stay so"]
        if dropped:
            said.append(f"metadata that is no text or number: {', '.join(dropped)}")
        return said


def _document_ids(
    given: Path | None, map_file: Path | None, n_docs: int
) -> list[str | None] | None:
    """Give the id of each document, None for those without one, or None where there are no ids."""
    ids: list[str | None]
    if given is not None:
        ids = [*read_id_lines(given)]
        if len(ids) != n_docs:
            raise InvalidArgumentError(f"{given}: {len(ids)} ids, expected {n_docs}")
        return ids
    if map_file is None:
        return None
    found = read_plain_pickle(map_file)
    ids = [None] * n_docs
    numbers = found.items() if isinstance(found, dict) else [(None, None)]
    for doc_id, number in numbers:
        if type(doc_id) not in (str, int) or type(number) is not int or not 0 <= number < n_docs:
            raise CorruptIndexError(
                f"{map_file}: id {doc_id!r} is document {number!r}, expected a string or an "
                f"integer, and a number below {n_docs}",
                str(map_file),
            )
        if ids[number] is not None:
            raise CorruptIndexError(
                f"{map_file}: document {number} has two ids, {ids[number]!r} and {doc_id!r}",
                str(map_file),
            )
        ids[number] = str(doc_id)
    return ids


def _load(path: Path) -> NDArray[Any]:
    try:
        return load_npy(path)
    except (InvalidArgumentError, NotFoundError) as error:
        raise CorruptIndexError(str(error), str(path)) from error


def _read_json(path: Path, kind: type) -> Any:  # noqa: ANN401
    try:
        with os_errors("read", path):
            found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CorruptIndexError(f"{path}: not JSON ({error})", str(path)) from error
    except StorageError as error:
        raise CorruptIndexError(str(error), str(path)) from error
    if not isinstance(found, kind):
        raise CorruptIndexError(
            f"{path}: {type(found).__name__}, expected {kind.__name__}", str(path)
        )
    return found


def _count(fields: object, name: str, path: Path) -> int:
    value = fields.get(name) if isinstance(fields, dict) else None
    if type(value) is not int or value < 0:
        raise CorruptIndexError(f"{path}: {name} is {value!r}, expected a count", str(path))
    return value


def _read_lengths(path: Path) -> NDArray[np.int64]:
    found = _read_json(path, list)
    if not all(type(n) is int and 0 <= n < 2**31 for n in found):
        raise CorruptIndexError(f"{path}: expected numbers of tokens", str(path))
    return np.array(found, np.int64)
