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

from weft.arrays import crc32c
from weft.checks import FrozenDict
from weft.errors import (
    CorruptIndexError,
    IncompatibleIndexError,
    InvalidArgumentError,
    NotFoundError,
    StorageError,
)
from weft.fields import FIELDS
from weft.lifecycle.entries import (
    CodecEntry,
    DenseEntry,
    FileEntry,
    SegmentEntry,
    TombstonesEntry,
    Tuning,
)
from weft.types import EncoderInfo, IndexConfig, OperatingPoint, SearchParams, defaults

if TYPE_CHECKING:
    from collections.abc import Iterable

    from weft.lifecycle.storage import Directory

FORMAT = 1
MAX_GENERATION = 999_999_999
_MANIFEST = re.compile(r"manifest-([0-9]{6,9})\.json")
_FILE = re.compile(
    r"(codec-[0-9a-f]{32}|seg-[0-9a-f]{32}\.(multi|dense|sparse|del-[0-9a-f]{32}))\.weft"
    r"|seg-[0-9a-f]{32}\.docs\.sqlite|encoder-[0-9a-f]{32}\.json"
)
_OURS = re.compile(r"(manifest|codec|seg|encoder|tmp)-.*\.(json|weft|sqlite)|build-[0-9a-f]{32}")
_CHECKSUM = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True)
class Manifest:
    """What an index is at one generation.

    `encoder` is without the settings that lie in `encoder_file`; see `encoder_files.encoder_of`.
    """

    generation: int
    config: IndexConfig
    encoder: EncoderInfo | None = None
    codec: CodecEntry | None = None
    segments: tuple[SegmentEntry, ...] = ()
    operating_points: tuple[OperatingPoint, ...] = ()
    tuning: Tuning | None = None
    files: Mapping[str, FileEntry] = field(default_factory=FrozenDict)
    dense: DenseEntry = field(default_factory=DenseEntry)
    encoder_file: str | None = None

    @property
    def name(self) -> str:
        """The manifest's own file name."""
        return manifest_name(self.generation)

    @property
    def codecs(self) -> tuple[CodecEntry, ...]:
        """The codecs of all fields."""
        return tuple(codec for codec in (self.codec, self.dense.codec) if codec is not None)

    @property
    def own_files(self) -> tuple[str, ...]:
        """The files that are of no segment."""
        encoder = () if self.encoder_file is None else (self.encoder_file,)
        return (*(codec.file for codec in self.codecs), *encoder)

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
        used.update(made.own_files)
        return replace(made, files=FrozenDict({name: made.files[name] for name in sorted(used)}))

    def to_bytes(self) -> bytes:
        """Give the contents of the manifest's file."""
        return _signed(
            {
                "format": FORMAT,
                "generation": self.generation,
                "config": self.config.to_json(),
                "encoder": self._encoder_to_json(),
                "fields": {
                    "multi": {
                        "codec": None if self.codec is None else vars(self.codec),
                        "segments": [asdict(segment) for segment in self.segments],
                    },
                    **{field: self._field_to_json(field) for field in self.config.fields},
                },
                "operating_points": [point.to_json() for point in self.operating_points],
                "tuning": None if self.tuning is None else vars(self.tuning),
                "files": {name: vars(entry) for name, entry in self.files.items()},
            }
        )

    def _encoder_to_json(self) -> dict[str, Any] | None:
        if self.encoder is None:
            return None
        file = {} if self.encoder_file is None else {"file": self.encoder_file}
        return {**self.encoder.to_json(), **file}

    def _field_to_json(self, field: str) -> dict[str, Any]:
        return self.dense.to_json() if field == "dense" else {}


def manifest_name(generation: int) -> str:
    """Give the file name of a generation's manifest."""
    return f"manifest-{generation:06d}.json"


def canonical(value: object) -> bytes:
    """Give JSON values as bytes: keys sorted, no spaces, UTF-8."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _signed(body: object) -> bytes:
    data = canonical(body)
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
    dense = body["fields"].get("dense", {})
    encoder = dict(body["encoder"] or {})
    encoder_file = encoder.pop("file", None)
    segments = tuple(_parse_segment(segment) for segment in multi["segments"])
    files = {name: FileEntry(**entry) for name, entry in body["files"].items()}
    manifest = Manifest(
        generation=body["generation"],
        config=IndexConfig(**body["config"]),
        encoder=None if body["encoder"] is None else EncoderInfo(**encoder),
        codec=_parse_codec(multi["codec"]),
        segments=segments,
        operating_points=_parse_points(body["operating_points"]),
        tuning=_parse_tuning(body["tuning"]),
        dense=DenseEntry(
            _parse_codec(dense.get("codec")),
            _parse_points(dense.get("operating_points", ())),
            _parse_tuning(dense.get("tuning")),
        ),
        files=FrozenDict(files),
        encoder_file=encoder_file,
    )
    _check(manifest)
    return manifest


def _parse_codec(found: dict[str, Any] | None) -> CodecEntry | None:
    if found is None:
        return None
    return CodecEntry(**{"n_trained": found["n_tokens"], **found})  # older indexes do not say


def _parse_tuning(found: dict[str, Any] | None) -> Tuning | None:
    return None if found is None else Tuning(**found)


def _parse_points(found: Iterable[dict[str, Any]]) -> tuple[OperatingPoint, ...]:
    return tuple(
        OperatingPoint(**{**point, "params": SearchParams(**point["params"])}) for point in found
    )


def _parse_segment(found: dict[str, Any]) -> SegmentEntry:
    # Older indexes say nothing of tombstones or fields.
    segment = SegmentEntry(**{**found, "fields": tuple(found.get("fields", ()))})
    if any(field not in FIELDS for field in segment.fields):
        raise ValueError(f"{segment.name}: unknown fields {segment.fields}")
    if segment.tombstones is None:
        return segment
    return replace(segment, tombstones=TombstonesEntry(**found["tombstones"]))


def _check(manifest: Manifest) -> None:
    """Raise ValueError for what the types alone let through."""
    counts: list[tuple[str, object]] = [("generation", manifest.generation)]
    for segment in manifest.segments:
        counts += [(f"{segment.name}.{n}", getattr(segment, n)) for n in _SEGMENT_COUNTS]
        for drift in (segment.drift, segment.dense_drift):
            if drift is not None and not (isinstance(drift, float) and 0.0 <= drift <= 1.0):
                raise ValueError(f"{segment.name}: drift {drift!r}, expected a number from 0 to 1")
        if segment.n_docs > segment.n_windows or segment.n_empty > segment.n_docs:
            raise ValueError(f"{segment.name}: more documents than it can hold")
        if (deleted := segment.tombstones) is not None:
            counts += [(f"{deleted.file}.{n}", getattr(deleted, n)) for n in _SEGMENT_COUNTS]
            if any(segment.live(n) < 0 for n in _SEGMENT_COUNTS):
                raise ValueError(f"{deleted.file}: deletes more than there is in the segment")
            if not deleted.file.startswith(f"{segment.name}.del-"):
                raise ValueError(f"{deleted.file}: not of {segment.name}")
    for codec in manifest.codecs:
        counts += [(f"codec.{n}", getattr(codec, n)) for n in _CODEC_COUNTS]
    for tuning in (manifest.tuning, manifest.dense.tuning):
        if tuning is not None:
            counts.append(("tuning.n_tokens", tuning.n_tokens))
    if not (manifest.encoder_file or "encoder-").startswith("encoder-"):
        raise ValueError(f"{manifest.encoder_file!r}: not a file of an encoder")
    for name, entry in manifest.files.items():
        counts.append((f"{name}.size", entry.size))
        if not _FILE.fullmatch(name) or not _CHECKSUM.fullmatch(entry.checksum):
            raise ValueError(f"{name!r}: not a file of an index, or not a checksum")
    for what, value in counts:
        if type(value) is not int or value < 0:
            raise ValueError(f"{what}={value!r}: expected an integer >= 0")
    named = {file for segment in manifest.segments for file in segment.files}
    named.update(manifest.own_files)
    if named != set(manifest.files):
        raise ValueError("the files it lists are not those of its segments, codecs and encoder")
    for point in (*manifest.operating_points, *manifest.dense.operating_points):
        if type(point.k) is not int or not isinstance(point.target, float):
            raise ValueError(f"operating point for k={point.k!r}, recall {point.target!r}")


_SEGMENT_COUNTS = ("n_docs", "n_windows", "n_empty", "n_tokens")
_CODEC_COUNTS = ("n_coarse", "n_fine", "n_tokens", "n_trained")


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
