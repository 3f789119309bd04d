# SPDX-License-Identifier: Apache-2.0
"""Streams of documents from files, and of embeddings from arrays; nothing is read ahead of need.

A `Source` is iterated once for its documents. It knows the bytes it has read of how many, and what
it skipped. Text is UTF-8 and nothing else: a file that is not is refused, or skipped and counted.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.errors import InvalidArgumentError, NotFoundError, StorageError
from weft.lifecycle.documents import check_text
from weft.lifecycle.storage import os_errors
from weft.types import Document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from weft.types import Scalar

TEXT_SUFFIXES = (".txt", ".md", ".rst")
_CORPUS_NAMES = ("corpus.jsonl", "corpus.jsonl.gz")
_KEPT_MESSAGES = 100
_BLOCK_TOKENS = 65_536
_NPY_MAGIC = b"\x93NUMPY"
_SAFETENSORS_DTYPES = {
    "F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2",
    "I32": "<i4", "I64": "<i8", "U32": "<u4", "U64": "<u8",
}  # fmt: skip


class Source:
    """Documents from files, in a fixed order.

    Attributes
    ----------
    n_bytes, n_bytes_read
        Size of the files (compressed, where they are), and how much of it has been read.
    n_read, n_skipped
        Documents given, and documents left out because `on_error` is "skip".
    messages
        Why documents were skipped; the first hundred.
    dropped_fields
        Field names whose values cannot be metadata (lists and objects), with how often.
    """

    def __init__(
        self, files: list[Path], read: Callable[[Source, Path], Iterator[Document]], on_error: str
    ) -> None:
        if on_error not in {"stop", "skip"}:
            raise InvalidArgumentError(f"on_error={on_error!r}: expected 'stop' or 'skip'")
        self._files = files
        self._read = read
        self._on_error = on_error
        self.n_bytes = sum(file.stat().st_size for file in files)
        self._restart()

    def _restart(self) -> None:
        self.n_bytes_read = 0
        self.n_read = 0
        self.n_skipped = 0
        self.messages: list[str] = []
        self.dropped_fields: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Document]:
        """Read from the start."""
        self._restart()
        before = 0
        for file in self._files:
            try:
                for document in self._read(self, file):
                    self.n_read += 1
                    yield document
            except (gzip.BadGzipFile, zlib.error, EOFError) as error:
                raise InvalidArgumentError(f"{file}: damaged gzip data ({error})") from error
            except OSError as error:
                raise StorageError(f"{file}: {error.strerror}", str(file), error.errno) from error
            before += file.stat().st_size
            self.n_bytes_read = before

    def refuse(self, message: str) -> None:
        """Raise, or count and go on, as `on_error` says."""
        if self._on_error == "stop":
            raise InvalidArgumentError(message)
        self.n_skipped += 1
        if len(self.messages) < _KEPT_MESSAGES:
            self.messages.append(message)

    def lines(self, file: Path) -> Iterator[tuple[str, str]]:
        """Give (place, text) of each line that is not blank, without its end."""
        start = self.n_bytes_read
        with file.open("rb") as raw:
            packed = file.suffix == ".gz"
            stream: Iterable[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw
            for number, line in enumerate(stream, 1):
                self.n_bytes_read = start + raw.tell()
                place = f"{file}:{number}"
                try:
                    text = line.decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    self.refuse(f"{place}: not UTF-8 (byte {error.start} of the line)")
                    continue
                if number == 1:
                    text = text.removeprefix("\ufeff")
                if text.strip():
                    yield place, text


def read(path: str | Path, *, on_error: str = "stop") -> Source:
    """Open whatever is at the path: the kinds are those of `folder`, `jsonl` and `tsv`.

    Parameters
    ----------
    path
        A folder in the BEIR layout (with a `corpus.jsonl` or `corpus.jsonl.gz`), any other folder,
        or a file whose name ends in .jsonl, .jsonl.gz or .tsv.
    on_error
        "stop" raises at the first line or file that cannot be used; "skip" counts it and goes on.

    Raises
    ------
    NotFoundError
        If nothing is there.
    InvalidArgumentError
        If it is none of these kinds.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from weft import sources
    >>> notes = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (notes / "keys.md").write_text("Rotate the signing key each year.")
    >>> [(document.id, document.text) for document in sources.read(notes)]
    [('keys.md', 'Rotate the signing key each year.')]
    """
    path = Path(path)
    if path.is_dir():
        corpus = next((path / name for name in _CORPUS_NAMES if (path / name).is_file()), None)
        return (
            folder(path, on_error=on_error) if corpus is None else jsonl(corpus, on_error=on_error)
        )
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return jsonl(path, on_error=on_error)
    if path.name.endswith((".tsv", ".tsv.gz")):
        return tsv(path, on_error=on_error)
    _require_file(path)
    raise InvalidArgumentError(
        f"{path}: expected a folder, or a file whose name ends in .jsonl, .jsonl.gz or .tsv"
    )


def folder(path: str | Path, *, on_error: str = "stop") -> Source:
    """Give a document for each .txt, .md and .rst file below a folder.

    The id is the path below the folder, with slashes. Hidden files and folders are left out.
    """
    root = Path(path)
    if not root.is_dir():
        raise NotFoundError(f"{root}: no such folder")
    below = (file.relative_to(root) for file in root.rglob("*"))
    names = sorted(
        name.as_posix()
        for name in below
        if name.suffix in TEXT_SUFFIXES and not any(part.startswith(".") for part in name.parts)
    )
    files = [root / name for name in names if (root / name).is_file()]
    if not files:
        raise NotFoundError(f"{root}: no {', '.join(TEXT_SUFFIXES)} files below this folder")

    def read_file(source: Source, file: Path) -> Iterator[Document]:
        try:
            text = file.read_bytes().decode("utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            return source.refuse(f"{file}: not UTF-8 (byte {error.start})")
        yield Document(file.relative_to(root).as_posix(), text)
        return None

    return Source(files, read_file, on_error)


def jsonl(path: str | Path, *, on_error: str = "stop") -> Source:
    """Give a document for each line of a JSON Lines file, plain or .gz, as BEIR lays it out.

    A line is an object with `_id` or `id` (a string or an integer) and `text` (a string). A `title`
    becomes the first line of the text. Other fields, and those of an object `metadata`, are
    metadata where they are strings, numbers or booleans; null means absent; fields of other types
    are dropped and counted.
    """
    return Source([_require_file(Path(path))], _read_jsonl, on_error)


def _read_jsonl(source: Source, file: Path) -> Iterator[Document]:
    for place, line in source.lines(file):
        try:
            fields = json.loads(line)
        except ValueError as error:
            source.refuse(f"{place}: not JSON ({error})")
            continue
        try:
            yield _document(fields, source.dropped_fields)
        except (TypeError, ValueError) as error:
            source.refuse(f"{place}: {error}")


def _document(fields: Any, dropped: Counter[str]) -> Document:  # noqa: ANN401
    if not isinstance(fields, dict):
        raise TypeError(f"{type(fields).__name__}, expected an object")
    key = next((name for name in ("_id", "id") if name in fields), None)
    if key is None:
        raise ValueError("no _id or id; expected one of them")
    found = fields[key]
    if not isinstance(found, str | int) or isinstance(found, bool):
        raise TypeError(f"{key}={found!r}: expected a string")
    for name in ("text", "title"):
        if not isinstance(fields.get(name, "" if name == "title" else None) or "", str):
            raise TypeError(f"{name}: {type(fields[name]).__name__}, expected a string")
    if "text" not in fields or fields["text"] is None:
        raise ValueError("no text; expected a string")
    for name in (key, "text", "title"):
        if isinstance(fields.get(name), str):
            check_text(fields[name], name)
    rest = {name: fields[name] for name in fields.keys() - {key, "text", "title", "metadata"}}
    extra = fields.get("metadata")
    if isinstance(extra, dict):
        rest = {**extra, **rest}
    elif extra is not None:
        rest["metadata"] = extra
    metadata: dict[str, Scalar] = {}
    for name in sorted(rest):
        if isinstance(rest[name], str | int | float):
            metadata[name] = rest[name]
        elif rest[name] is not None:
            dropped[name] += 1
    return Document(str(found), _joined(fields.get("title"), fields["text"]), metadata)


def _joined(title: str | None, text: str) -> str:
    """Put a title before its text, on a line of its own."""
    return f"{title}\n{text}" if title and title.strip() else text


def tsv(path: str | Path, *, on_error: str = "stop") -> Source:
    """Give a document for each line of tab-separated id, text and, perhaps, title.

    A first line that names the columns is left out. There is no quoting.
    """
    return Source([_require_file(Path(path))], _read_tsv, on_error)


def _read_tsv(source: Source, file: Path) -> Iterator[Document]:
    for place, line in source.lines(file):
        columns = line.split("\t")
        if source.n_read == 0 and [name.lower() for name in columns[:2]] == ["id", "text"]:
            continue
        if len(columns) not in (2, 3):
            source.refuse(f"{place}: {len(columns)} columns, expected id, text and perhaps title")
            continue
        yield Document(columns[0], _joined(columns[2] if len(columns) == 3 else None, columns[1]))


def _require_file(path: Path) -> Path:
    if path.is_dir():
        raise InvalidArgumentError(f"{path}: a folder, expected a file")
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file")
    return path


class EmbeddingSource:
    """Token embeddings from files, block by block, as `Writer.add` takes them.

    Attributes
    ----------
    dim, n_docs, n_tokens
        What the files hold.
    """

    def __init__(
        self, values: NDArray[Any], offsets: NDArray[Any], ids: list[str] | None, place: str
    ) -> None:
        _check_ragged(values, offsets, place)
        self._values = values
        self._offsets = offsets.astype(np.int64)
        self._ids = ids
        self.dim, self.n_tokens, self.n_docs = values.shape[1], len(values), len(offsets) - 1
        if ids is not None and len(ids) != self.n_docs:
            raise InvalidArgumentError(f"{place}: {len(ids)} ids, expected {self.n_docs}")

    def __iter__(self) -> Iterator[tuple[list[str], tuple[NDArray[Any], NDArray[np.int64]]]]:
        """Give (ids, (values, offsets)) of about 65,536 tokens; ids default to "0", "1", ..."""
        first = 0
        while first < self.n_docs:
            limit = self._offsets[first] + _BLOCK_TOKENS
            last = int(np.searchsorted(self._offsets, limit, side="right")) - 1
            last = min(max(last, first + 1), self.n_docs)
            offsets = self._offsets[first : last + 1]
            values = self._values[offsets[0] : offsets[-1]]
            if values.dtype == np.uint16:  # bfloat16
                values = (values.astype(np.uint32) << 16).view(np.float32)
            numbers = range(first, last)
            ids = [self._ids[i] if self._ids else str(i) for i in numbers]
            yield ids, (values, offsets - offsets[0])
            first = last


def embeddings(
    path: str | Path, *, offsets: str | Path | None = None, ids: str | Path | None = None
) -> EmbeddingSource:
    """Give the token embeddings of a .npy or .safetensors file; the file is mapped, not read.

    Parameters
    ----------
    path
        A .npy file of shape (n_tokens, dim), or a .safetensors file with tensors `values`, such an
        array, and `offsets`. float16, float32, float64, and bfloat16 in .safetensors.
    offsets
        For .npy: an integer .npy file of shape (n_docs + 1,); document i has the rows offsets[i] up
        to offsets[i + 1]. None looks for `offsets.npy` beside the file.
    ids
        A UTF-8 file with one id a line. None looks for `ids.txt` beside the file, and where there
        is none ids are "0", "1", ...

    Raises
    ------
    NotFoundError
        If a file is missing.
    InvalidArgumentError
        If the contents are not as described.
    """
    path = _require_file(Path(path))
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
        values, bounds = tensors["values"], tensors["offsets"]
    elif path.suffix == ".npy":
        values = load_npy(path)
        if values.dtype.kind != "f":
            raise InvalidArgumentError(f"{path}: {values.dtype}, expected float16, 32 or 64")
        bounds = load_npy(Path(offsets) if offsets else path.with_name("offsets.npy"))
    else:
        raise InvalidArgumentError(f"{path}: expected a name that ends in .npy or .safetensors")
    names = Path(ids) if ids else path.with_name("ids.txt")
    known = ids is not None or names.is_file()
    return EmbeddingSource(values, bounds, read_id_lines(names) if known else None, str(path))


def load_npy(path: Path) -> NDArray[Any]:
    """Map a .npy file of numbers; one of objects, which is a pickle, is refused."""
    with os_errors("read", path), _require_file(path).open("rb") as file:
        if file.read(len(_NPY_MAGIC)) != _NPY_MAGIC:  # np.load would take it for a pickle
            raise InvalidArgumentError(f"{path}: not a .npy file by its first bytes")
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy's parser of the header raises whatever Python's does
        raise InvalidArgumentError(f"{path}: not a .npy array of numbers ({error})") from error
    return array


def read_id_lines(path: Path) -> list[str]:
    """Give the lines of a UTF-8 file with one id a line."""
    try:
        text = _require_file(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{path}: not UTF-8 (byte {error.start})") from error
    return text.removesuffix("\n").split("\n") if text else []


def _read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """Map `values` and `offsets` of a file; bfloat16 comes as uint16.

    The format: the length of the header (u64), the header (JSON: dtype, shape and byte range of
    each tensor), the bytes.
    """
    try:
        with os_errors("read", path), path.open("rb") as file:
            size = path.stat().st_size
            start = 8 + int.from_bytes(file.read(8), "little")
            if not 8 < start <= min(size, 100_000_000):
                raise ValueError(f"a header of {start - 8} bytes")  # noqa: TRY301
            header = json.loads(file.read(start - 8))
        if not isinstance(header, dict):
            raise TypeError(f"its header is a {type(header).__name__}")  # noqa: TRY301
        tensors = {}
        for name in {"values", "offsets"} & header.keys():
            entry = header[name]
            if entry["dtype"] not in _SAFETENSORS_DTYPES:
                raise InvalidArgumentError(  # noqa: TRY301
                    f"{path}: {name!r} is {entry['dtype']}, expected one of "
                    f"{', '.join(_SAFETENSORS_DTYPES)}"
                )
            dtype, shape = np.dtype(_SAFETENSORS_DTYPES[entry["dtype"]]), tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            n_bytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
            if not 0 <= begin <= end <= size - start or end - begin != n_bytes:
                raise ValueError(f"{name!r} in bytes {begin}..{end}")  # noqa: TRY301
            if n_bytes == 0:
                tensors[name] = np.zeros(shape, dtype)
            else:
                tensors[name] = np.memmap(path, dtype, "r", start + begin, shape)
    except InvalidArgumentError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidArgumentError(
            f"{path}: not a .safetensors file, or damaged ({error})"
        ) from error
    missing = {"values", "offsets"} - tensors.keys()
    if missing:
        raise InvalidArgumentError(
            f"{path}: no tensor {min(missing)!r} in it, expected 'values' and 'offsets', "
            f"found {', '.join(sorted(header.keys() - {'__metadata__'})) or 'none'}"
        )
    return tensors


def _check_ragged(values: NDArray[Any], offsets: NDArray[Any], place: str) -> None:
    if values.ndim != 2 or (values.dtype.kind != "f" and values.dtype != np.uint16):
        raise InvalidArgumentError(
            f"{place}: {values.dtype} of shape {values.shape}, expected floats (n_tokens, dim)"
        )
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 1:
        raise InvalidArgumentError(
            f"{place}: offsets are {offsets.dtype} of shape {offsets.shape}, "
            f"expected integers (n_docs + 1,)"
        )
    if offsets[0] != 0 or offsets[-1] != len(values) or bool((offsets[1:] < offsets[:-1]).any()):
        raise InvalidArgumentError(
            f"{place}: offsets go from {offsets[0]} to {offsets[-1]}, "
            f"expected from 0 to {len(values)} without a step back"
        )
