# SPDX-License-Identifier: Apache-2.0
"""Taking an index out again: texts as JSON Lines, rows as arrays, both as Parquet; all stream."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from weft.errors import IndexExistsError, InvalidArgumentError, MissingExtraError
from weft.lifecycle.bitmaps import as_mask
from weft.lifecycle.storage import os_errors
from weft.lifecycle.windows import document_id
from weft.types import Document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from weft.index import Index
    from weft.lifecycle.snapshot import OpenSegment, Snapshot
    from weft.searcher import Searcher
    from weft.types import Progress, Scalar

BLOCK_WINDOWS = 4_096
GROUP_TOKENS, GROUP_DOCUMENTS = 65_536, 4_096
"""A row group of a Parquet file ends at either."""


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    `exact` tells whether token embeddings are the rows as they were added; otherwise they are what
    the codes say of them. None for texts.
    """

    files: tuple[str, ...]
    n_docs: int
    n_tokens: int
    exact: bool | None


def export(
    index: Index, path: str | os.PathLike[str], *, progress: Progress | None = None
) -> Exported:
    """Write the documents of an index to files that other programs read.

    What is not Parquet is read by `weft build` too.

    Parameters
    ----------
    index
        Its present generation is written, deleted documents left out.
    path
        `.jsonl`: an object with id, text and metadata for each document. `.safetensors`: tensors
        `values`, float16 `[n_tokens, dim]`, and `offsets`, int64 `[n_docs + 1]`. `.npy`: the
        values, with `offsets.npy` beside it. Beside both, `ids.txt` has one id a line. `.parquet`:
        columns `id`, `text`, `metadata` (JSON) and `embeddings`, a list of lists of float32. The
        windows of a long document follow each other as one.
    progress
        Called with ("export", documents done, all documents).

    Raises
    ------
    IndexExistsError
        One of the files exists.
    InvalidArgumentError
        Another kind of file; or an id has a line break, which `ids.txt` cannot hold.
    MissingExtraError
        A `.parquet` file is asked for and pyarrow is not installed.

    Examples
    --------
    >>> import numpy as np, weft
    >>> index = weft.Index.create("exported.index", weft.IndexConfig(dim=4))
    >>> index.add(["a", "b"], [np.eye(4)[:1], np.eye(4)], texts=["one", "four"])
    2
    >>> weft.export(index, "texts.jsonl").n_docs
    2
    >>> weft.export(index, "rows.safetensors").files
    ('rows.safetensors', 'ids.txt')
    """
    target = Path(path)
    searcher = index.searcher()
    work = _Export(searcher._snapshot, progress or (lambda _stage, _done, _total: None))
    if target.suffix == ".jsonl":
        _write_all({target: work.write_texts})
        return Exported((str(target),), len(searcher), work.manifest.n_tokens, None)
    beside = {target.with_name("ids.txt"): work.write_ids}
    files: dict[Path, Callable[[BinaryIO], None]]
    if target.suffix == ".safetensors":
        files = {target: work.write_safetensors, **beside}
    elif target.suffix == ".npy":
        files = {target: work.write_npy, target.with_name("offsets.npy"): work.write_offsets}
        files |= beside
    elif target.suffix == ".parquet":
        files = {target: work.write_parquet}
    else:
        raise InvalidArgumentError(
            f"{target}: expected a name that ends in .jsonl, .safetensors, .npy or .parquet"
        )
    _write_all(files)
    names = tuple(str(file) for file in files)
    exact = searcher.truth == "rows"
    return Exported(names, len(searcher), work.manifest.n_tokens, exact)


def stored_rows(searcher: Searcher, ids: Sequence[str]) -> list[NDArray[np.float32]]:
    """Give the token embeddings of documents in their order: the best that is stored of them.

    Each is float32 `[n_tokens, dim]`; the windows of a long document follow each other.

    Raises
    ------
    NotFoundError
        An id is unknown.
    """
    segments = searcher._snapshot.segments
    found = []
    for place in searcher.places(ids):
        native = segments[place.segment].native
        windows = range(place.first, place.first + place.n_windows)
        found.append(np.concatenate([native.rows(w).astype(np.float32) for w in windows]))
    return found


def stored_documents(index: Index) -> Iterator[Document]:
    """Give the documents of an index, with their texts and metadata where it keeps them."""
    work = _Export(index.searcher()._snapshot, lambda _stage, _done, _total: None)
    yield from work.documents()


class _Export:
    """Writers of the documents of a snapshot; each walks over them once."""

    def __init__(self, snapshot: Snapshot, progress: Progress) -> None:
        self.manifest = snapshot.manifest
        self._snapshot = snapshot
        self._progress = progress

    def _documents(self) -> Iterator[tuple[str, OpenSegment, list[int]]]:
        """Give the id of each document, its segment and its windows there."""
        for segment in self._snapshot.segments:
            windows = np.flatnonzero(~as_mask(segment.deleted, segment.entry.n_windows))
            blocks = np.split(windows, range(BLOCK_WINDOWS, len(windows), BLOCK_WINDOWS))
            stored = (
                pair
                for block in blocks
                for pair in zip(
                    block.tolist(), segment.native.ids(block.astype(np.uint32)), strict=True
                )
            )
            for doc_id, group in groupby(stored, key=lambda pair: document_id(pair[1])):
                yield doc_id, segment, [window for window, _ in group]

    def documents(self) -> Iterator[Document]:
        for doc_id, segment, windows in self._documents():
            text, metadata = _text(segment, windows[0])
            yield Document(doc_id, text, metadata)

    def write_texts(self, file: BinaryIO) -> None:
        for number, found in enumerate(self.documents(), start=1):
            line = {"id": found.id, "text": found.text, "metadata": found.metadata}
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            self._report(number)

    def write_parquet(self, file: BinaryIO) -> None:
        """Write row groups of whole documents; split by bytes, the zeros of float16 values pack."""
        try:
            import pyarrow as pa
            from pyarrow import parquet
        except ImportError as error:
            raise MissingExtraError("pyarrow", "parquet") from error
        dim = self.manifest.config.dim
        schema = pa.schema(
            [
                pa.field("id", pa.string(), nullable=False),
                pa.field("text", pa.string()),
                pa.field("metadata", pa.string(), nullable=False),
                pa.field("embeddings", pa.large_list(pa.large_list(pa.float32())), nullable=False),
            ]
        )
        values = "embeddings.list.element.list.element"
        with parquet.ParquetWriter(
            file,
            schema,
            compression="zstd",
            use_dictionary=["metadata"],
            use_byte_stream_split=[values],
        ) as writer:
            for documents in self._groups():
                ids, texts, metadata, rows = zip(*documents, strict=True)
                packed = np.concatenate([np.empty((0, dim), np.float32), *rows])
                starts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
                lists = pa.LargeListArray.from_arrays(
                    np.arange(len(packed) + 1, dtype=np.int64) * dim, pa.array(packed.ravel())
                )
                embeddings = pa.LargeListArray.from_arrays(starts, lists)
                columns = [pa.array(ids), pa.array(texts, pa.string()), pa.array(metadata)]
                writer.write_table(pa.table([*columns, embeddings], schema=schema))

    def _groups(self) -> Iterator[list[tuple[str, str | None, str, NDArray[np.float32]]]]:
        """Give (id, text, metadata as JSON, rows) of some documents at a time."""
        group: list[tuple[str, str | None, str, NDArray[np.float32]]] = []
        n_tokens = 0
        for number, (doc_id, segment, windows) in enumerate(self._documents(), start=1):
            text, metadata = _text(segment, windows[0])
            rows = np.concatenate([segment.native.rows(w).astype(np.float16) for w in windows])
            if group and (n_tokens + len(rows) > GROUP_TOKENS or len(group) == GROUP_DOCUMENTS):
                yield group
                group, n_tokens = [], 0
            packed = json.dumps(metadata, ensure_ascii=False)
            group.append((doc_id, text, packed, rows.astype(np.float32)))
            n_tokens += len(rows)
            self._report(number)
        if group:
            yield group

    def write_ids(self, file: BinaryIO) -> None:
        for doc_id, _, _ in self._documents():
            if "\n" in doc_id:
                raise InvalidArgumentError(
                    f"id {doc_id!r}: has a line break, which a file of one id a line cannot hold"
                )
            file.write(doc_id.encode() + b"\n")

    def write_npy(self, file: BinaryIO) -> None:
        shape = (self.manifest.n_tokens, self.manifest.config.dim)
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        self._write_rows(file)

    def write_offsets(self, file: BinaryIO) -> None:
        np.save(file, self._offsets())

    def write_safetensors(self, file: BinaryIO) -> None:
        """Write the length of the header, the header padded to 8 bytes, and the tensors."""
        offsets = self._offsets()
        n_tokens, dim = self.manifest.n_tokens, self.manifest.config.dim
        n_bytes = 2 * n_tokens * dim
        header = json.dumps(
            {
                "values": {
                    "dtype": "F16", "shape": [n_tokens, dim], "data_offsets": [0, n_bytes],
                },
                "offsets": {
                    "dtype": "I64", "shape": [len(offsets)],
                    "data_offsets": [n_bytes, n_bytes + offsets.nbytes],
                },
            }
        ).encode()  # fmt: skip
        header += b" " * (-len(header) % 8)
        file.write(len(header).to_bytes(8, "little") + header)
        self._write_rows(file)
        file.write(offsets.tobytes())

    def _offsets(self) -> NDArray[np.int64]:
        """Give where each document begins in the values, and their number at the end."""
        counts = np.zeros(self.manifest.n_docs + 1, "<i8")
        of: OpenSegment | None = None
        for number, (_, segment, windows) in enumerate(self._documents(), start=1):
            if segment is not of:
                of, lengths = segment, segment.native.lengths()
            counts[number] = lengths[windows].sum()
        return np.cumsum(counts, dtype="<i8")

    def _write_rows(self, file: BinaryIO) -> None:
        for number, (_, segment, windows) in enumerate(self._documents(), start=1):
            for window in windows:
                file.write(segment.native.rows(window).astype("<f2").tobytes())
            self._report(number)

    def _report(self, n_done: int) -> None:
        if n_done % 1_000 == 0 or n_done == self.manifest.n_docs:
            self._progress("export", n_done, self.manifest.n_docs)


def _text(segment: OpenSegment, window: int) -> tuple[str | None, dict[str, Scalar]]:
    return (None, {}) if segment.documents is None else segment.documents.get(window)


def _write_all(files: Mapping[Path, Callable[[BinaryIO], None]]) -> None:
    """Write files under temporary names, and give them their own when all are complete."""
    for path in files:
        if path.exists():
            raise IndexExistsError(f"{path}: exists already; remove it, or choose another name")
    parts = {path: path.with_name(f"{path.name}.part") for path in files}
    try:
        for path, write in files.items():
            with os_errors("write", path), parts[path].open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        for path, part in parts.items():
            with os_errors("write", path):
                part.rename(path)
    finally:
        for part in parts.values():
            with contextlib.suppress(OSError):
                part.unlink()
