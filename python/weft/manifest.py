# SPDX-License-Identifier: Apache-2.0
"""The manifest: one small file that says what an index is at one generation.

`manifest-000017.json` is canonical JSON, `{"body": ..., "checksum": "crc32c of the body"}`: keys
sorted, no spaces, UTF-8. It is read as hostile input: whatever is wrong with it is a
`CorruptIndexError` that names it, and it can name no file outside the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.arrays import crc32c
from weft.checks import FrozenDict
from weft.errors import (
    CorruptIndexError,
    IncompatibleIndexError,
    InvalidArgumentError,
    NotFoundError,
    StorageError,
)
from weft.types import EncoderInfo, IndexConfig, OperatingPoint, SearchParams, defaults

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from weft.storage import Directory

FORMAT = 1
MAX_GENERATION = 999_999_999
_MANIFEST = re.compile(r"manifest-([0-9]{6,9})\.json")
_FILE = re.compile(
    r"(codec-[0-9a-f]{32}|seg-[0-9a-f]{32}\.(multi|del-[0-9a-f]{32}))\.weft"
    r"|seg-[0-9a-f]{32}\.docs\.sqlite"
)
_OURS = re.compile(r"(manifest|codec|seg|tmp)-.*\.(json|weft|sqlite)|build-[0-9a-f]{32}")
_CHECKSUM = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True)
class FileEntry:
    """Size and checksum of a file.

    The checksum of a segment is that of its header and table, which hold those of its arrays; of a
    codec, that of all it says; of any other file, that of all its bytes.
    """

    size: int
    checksum: str


@dataclass(frozen=True)
class CodecEntry:
    """The codec file, the size of its tree, and the number of tokens it was trained for."""

    file: str
    n_coarse: int
    n_fine: int
    n_tokens: int


@dataclass(frozen=True)
class TombstonesEntry:
    """The deleted documents of a segment: the file that says which, and how much of it they are."""

    file: str
    n_docs: int
    n_windows: int
    n_empty: int
    n_tokens: int


@dataclass(frozen=True)
class SegmentEntry:
    """One segment: its name, what it holds, and whether it has a file of documents.

    `n_docs` counts documents, `n_windows` what they are stored as, `n_empty` documents without
    tokens; deleted ones are counted too, since they are still stored.
    """

    name: str
    n_docs: int
    n_windows: int
    n_empty: int
    n_tokens: int
    documents: bool
    tombstones: TombstonesEntry | None = None

    @classmethod
    def new(
        cls, lengths: NDArray[np.uint32], starts: NDArray[np.int64], *, documents: bool
    ) -> SegmentEntry:
        """Name a segment to come: the tokens of its windows, the first windows of its documents."""
        per_document = np.add.reduceat(lengths.astype(np.int64), starts)
        return cls(
            name=f"seg-{uuid.uuid4().hex}",
            n_docs=len(starts),
            n_windows=len(lengths),
            n_empty=int(np.count_nonzero(per_document == 0)),
            n_tokens=int(per_document.sum()),
            documents=documents,
        )

    @property
    def file(self) -> str:
        """Codes, lists and ids."""
        return f"{self.name}.multi.weft"

    @property
    def documents_file(self) -> str:
        """Texts, metadata and places of tokens."""
        return f"{self.name}.docs.sqlite"

    @property
    def files(self) -> tuple[str, ...]:
        """Every file of the segment."""
        documents = (self.documents_file,) if self.documents else ()
        tombstones = () if self.tombstones is None else (self.tombstones.file,)
        return (self.file, *documents, *tombstones)

    def live(self, count: str) -> int:
        """Give one of the counts without what is deleted."""
        deleted = 0 if self.tombstones is None else getattr(self.tombstones, count)
        return int(getattr(self, count)) - int(deleted)

    @property
    def deleted_share(self) -> float:
        """How much of it is deleted, by tokens and windows, which is what it stores."""
        left = self.live("n_tokens") + self.live("n_windows")
        return 1.0 - left / max(self.n_tokens + self.n_windows, 1)


@dataclass(frozen=True)
class Tuning:
    """How the operating points were found.

    `queries` is "given queries" or "sampled documents", `truth` is "rows" where recall was measured
    against the original rows and "stored" where against the best that segments keep of them.
    """

    queries: str
    n_queries: int
    n_tokens: int
    truth: str


@dataclass(frozen=True)
class Manifest:
    """What an index is at one generation."""

    generation: int
    config: IndexConfig
    encoder: EncoderInfo | None = None
    codec: CodecEntry | None = None
    segments: tuple[SegmentEntry, ...] = ()
    operating_points: tuple[OperatingPoint, ...] = ()
    tuning: Tuning | None = None
    files: Mapping[str, FileEntry] = field(default_factory=FrozenDict)

    @property
    def name(self) -> str:
        """The manifest's own file name."""
        return manifest_name(self.generation)

    @property
    def n_docs(self) -> int:
        """Documents, empty ones included and deleted ones not."""
        return sum(segment.live("n_docs") for segment in self.segments)

    @property
    def n_windows(self) -> int:
        """What documents are stored as: one window each, or several for long ones."""
        return sum(segment.live("n_windows") for segment in self.segments)

    @property
    def n_empty(self) -> int:
        """Documents without tokens."""
        return sum(segment.live("n_empty") for segment in self.segments)

    @property
    def n_tokens(self) -> int:
        """Token embeddings."""
        return sum(segment.live("n_tokens") for segment in self.segments)

    @property
    def n_deleted(self) -> int:
        """Documents that are deleted and still stored."""
        return sum(segment.n_docs for segment in self.segments) - self.n_docs

    @property
    def n_deleted_bytes(self) -> int:
        """What deleted documents take on disk, by their share of their segments."""
        return sum(
            round(segment.deleted_share * sum(self.files[name].size for name in segment.files))
            for segment in self.segments
        )

    @property
    def stale(self) -> bool:
        """Whether the index has outgrown its operating points, or shrunk as much."""
        if self.tuning is None:
            return False
        small, large = sorted((self.n_tokens, self.tuning.n_tokens))
        return large > small * defaults.stale_growth

    def next(self, generation: int, **changes: Any) -> Manifest:  # noqa: ANN401
        """Give the manifest of a later generation, naming only files that it uses."""
        made = replace(self, generation=generation, **changes)
        used = {file for segment in made.segments for file in segment.files}
        if made.codec is not None:
            used.add(made.codec.file)
        return replace(made, files=FrozenDict({name: made.files[name] for name in sorted(used)}))

    def to_bytes(self) -> bytes:
        """Give the contents of the manifest's file."""
        return _signed(
            {
                "format": FORMAT,
                "generation": self.generation,
                "config": self.config.to_json(),
                "encoder": None if self.encoder is None else self.encoder.to_json(),
                "fields": {
                    "multi": {
                        "codec": None if self.codec is None else vars(self.codec),
                        "segments": [asdict(segment) for segment in self.segments],
                    }
                },
                "operating_points": [point.to_json() for point in self.operating_points],
                "tuning": None if self.tuning is None else vars(self.tuning),
                "files": {name: vars(entry) for name, entry in self.files.items()},
            }
        )


def manifest_name(generation: int) -> str:
    """Give the file name of a generation's manifest."""
    return f"manifest-{generation:06d}.json"


def _canonical(value: object) -> bytes:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _signed(body: object) -> bytes:
    data = _canonical(body)
    return b'{"body":%b,"checksum":"%08x"}\n' % (data, crc32c(data))


def parse(data: bytes, name: str) -> Manifest:
    """Read the contents of a manifest's file, which must be so to the byte.

    Raises
    ------
    CorruptIndexError
        Not JSON, a wrong checksum, or a field that cannot be.
    IncompatibleIndexError
        Written by a newer version.
    """
    try:
        body = json.loads(data)["body"]
        _require_format(body["format"], name)
        manifest = _parse_body(body) if data == _signed(body) else None
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError) as error:
        raise _corrupt(name, f"{type(error).__name__}: {error}") from error
    if manifest is None:
        raise _corrupt(name, "its checksum is not that of its contents")
    return manifest


def _require_format(found: object, name: str) -> None:
    if isinstance(found, int) and found > FORMAT:
        raise IncompatibleIndexError(
            f"{name}: format {found} was written by a newer weft, "
            f"this version reads format {FORMAT}; upgrade weft",
            found,
            FORMAT,
        )


def _corrupt(name: str, what: str) -> CorruptIndexError:
    return CorruptIndexError(f"{name}: damaged manifest ({what})", name)


def _parse_body(body: dict[str, Any]) -> Manifest:
    multi = body["fields"]["multi"]
    codec = None if multi["codec"] is None else CodecEntry(**multi["codec"])
    encoder = None if body["encoder"] is None else EncoderInfo(**body["encoder"])
    tuning = None if body["tuning"] is None else Tuning(**body["tuning"])
    segments = tuple(_parse_segment(segment) for segment in multi["segments"])
    files = {name: FileEntry(**entry) for name, entry in body["files"].items()}
    points = tuple(
        OperatingPoint(**{**point, "params": SearchParams(**point["params"])})
        for point in body["operating_points"]
    )
    manifest = Manifest(
        generation=body["generation"],
        config=IndexConfig(**body["config"]),
        encoder=encoder,
        codec=codec,
        segments=segments,
        operating_points=points,
        tuning=tuning,
        files=FrozenDict(files),
    )
    _check(manifest)
    return manifest


def _parse_segment(found: dict[str, Any]) -> SegmentEntry:
    segment = SegmentEntry(**found)  # indexes from before there were tombstones say nothing of them
    if segment.tombstones is None:
        return segment
    return replace(segment, tombstones=TombstonesEntry(**found["tombstones"]))


def _check(manifest: Manifest) -> None:
    """Raise ValueError for what the types alone let through."""
    counts: list[tuple[str, object]] = [("generation", manifest.generation)]
    for segment in manifest.segments:
        counts += [(f"{segment.name}.{n}", getattr(segment, n)) for n in _SEGMENT_COUNTS]
        if segment.n_docs > segment.n_windows or segment.n_empty > segment.n_docs:
            raise ValueError(f"{segment.name}: more documents than it can hold")
        if (deleted := segment.tombstones) is not None:
            counts += [(f"{deleted.file}.{n}", getattr(deleted, n)) for n in _SEGMENT_COUNTS]
            if any(segment.live(n) < 0 for n in _SEGMENT_COUNTS):
                raise ValueError(f"{deleted.file}: deletes more than there is in the segment")
            if not deleted.file.startswith(f"{segment.name}.del-"):
                raise ValueError(f"{deleted.file}: not of {segment.name}")
    if manifest.codec is not None:
        counts += [(f"codec.{n}", getattr(manifest.codec, n)) for n in _CODEC_COUNTS]
    if manifest.tuning is not None:
        counts.append(("tuning.n_tokens", manifest.tuning.n_tokens))
    for name, entry in manifest.files.items():
        counts.append((f"{name}.size", entry.size))
        if not _FILE.fullmatch(name) or not _CHECKSUM.fullmatch(entry.checksum):
            raise ValueError(f"{name!r}: not a file of an index, or not a checksum")
    for what, value in counts:
        if type(value) is not int or value < 0:
            raise ValueError(f"{what}={value!r}: expected an integer >= 0")
    named = {file for segment in manifest.segments for file in segment.files}
    if manifest.codec is not None:
        named.add(manifest.codec.file)
    if named != set(manifest.files):
        raise ValueError("the files it lists are not those of its segments and codec")
    for point in manifest.operating_points:
        if type(point.k) is not int or not isinstance(point.target, float):
            raise ValueError(f"operating point for k={point.k!r}, recall {point.target!r}")


_SEGMENT_COUNTS = ("n_docs", "n_windows", "n_empty", "n_tokens")
_CODEC_COUNTS = ("n_coarse", "n_fine", "n_tokens")


def generations(directory: Directory) -> list[int]:
    """Give the generations whose manifests are in the folder, oldest first."""
    found = (_MANIFEST.fullmatch(name) for name in directory.list())
    return sorted(int(match.group(1)) for match in found if match)


def load(directory: Directory, generation: int | None = None) -> Manifest:
    """Read the newest manifest, or that of one generation.

    Raises
    ------
    NotFoundError
        No index there, or no such generation.
    CorruptIndexError
        The manifest is damaged; names it, and the newest generation that is not.
    """
    if not directory.path.is_dir():
        raise NotFoundError(f"{directory.path}: no index there")
    present = generations(directory)
    if not present:
        raise NotFoundError(f"{directory.path}: no index there (no manifest in the folder)")
    if generation is not None and generation not in present:
        raise NotFoundError(
            f"{directory.path}: no generation {generation!r}; there are "
            f"{', '.join(map(str, present))}"
        )
    wanted = present[-1] if generation is None else generation
    try:
        return read(directory, wanted)
    except CorruptIndexError as error:
        good = newest_readable(directory, [g for g in present if g != wanted])
        remedy = (
            "no other generation is left; restore the file or rebuild the index"
            if good is None
            else f"generation {good} is whole: Index.open(path, generation={good}) goes on from it"
        )
        raise CorruptIndexError(
            f"{directory.path}: {error}; {remedy}", str(directory.path / manifest_name(wanted))
        ) from error


def read(directory: Directory, generation: int) -> Manifest:
    """Read the manifest of one generation, which must be there."""
    name = manifest_name(generation)
    manifest = parse(directory.read(name), name)
    if manifest.generation != generation:
        raise _corrupt(name, f"it says that it is generation {manifest.generation}")
    return manifest


def newest_readable(directory: Directory, candidates: Iterable[int]) -> int | None:
    """Give the highest of some generations whose manifest is whole, or None."""
    for generation in sorted(candidates, reverse=True):
        try:
            return read(directory, generation).generation
        except (CorruptIndexError, IncompatibleIndexError, StorageError):
            continue
    return None


def garbage(directory: Directory) -> list[str]:
    """Give the files of ours that none of the generations to keep names, build folders included.

    While any manifest is damaged, nothing but build folders and temporary files is garbage, since
    the files of that generation are not known.
    """
    present = generations(directory)
    kept = present[-defaults.generations_kept :]
    names: set[str] = {manifest_name(generation) for generation in kept}
    whole = True
    for generation in kept:
        try:
            names.update(read(directory, generation).files)
        except (CorruptIndexError, IncompatibleIndexError):
            whole = False
    return [
        name
        for name in directory.list()
        if _OURS.fullmatch(name)
        and name not in names
        and (whole or name.startswith(("build-", "tmp-")))
    ]


def publish(directory: Directory, manifest: Manifest) -> None:
    """Make a manifest the newest: the commit. What it names must be synced already.

    Raises
    ------
    StorageError
        Either nothing has changed, or only the last step, syncing the folder, failed: then the
        manifest is there, but may not outlive a power cut.
    """
    temporary = f"tmp-{uuid.uuid4().hex}.json"
    try:
        fd = directory.create(temporary)
        try:
            directory.write(fd, manifest.to_bytes(), temporary)
            directory.sync(fd, temporary)
        finally:
            os.close(fd)
        directory.publish(temporary, manifest.name)
    except BaseException:
        with contextlib.suppress(StorageError):
            directory.remove(temporary)
        raise
    directory.sync_directory()


def is_published(directory: Directory, manifest: Manifest) -> bool:
    """Tell whether exactly this manifest has become part of the index."""
    try:
        return directory.read(manifest.name) == manifest.to_bytes()
    except StorageError:
        return False


def check_generation(generation: object) -> int:
    """Refuse what cannot be the number of a generation."""
    if type(generation) is not int or not 1 <= generation <= MAX_GENERATION:
        raise InvalidArgumentError(
            f"generation={generation!r}: expected an integer in 1..{MAX_GENERATION}"
        )
    return generation
