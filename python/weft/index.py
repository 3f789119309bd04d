# SPDX-License-Identifier: Apache-2.0
"""An index on disk: make it, open it, write to it, search it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.arrays import Embeddings
from weft.dense_vectors import DenseVectors
from weft.errors import (
    CorruptIndexError,
    IncompatibleIndexError,
    IndexExistsError,
    InvalidArgumentError,
    StorageError,
)
from weft.lifecycle.additions import held
from weft.lifecycle.encoder_files import encoder_of
from weft.lifecycle.first_generation import publish_first
from weft.lifecycle.inspection import describe
from weft.lifecycle.manifest import Manifest, check_generation, generations, load
from weft.lifecycle.planning import plan_addition
from weft.lifecycle.repair import repair
from weft.lifecycle.snapshot import Snapshot
from weft.lifecycle.storage import Directory
from weft.lifecycle.verification import verify
from weft.searcher import Searcher
from weft.sparse_vectors import SparseVectors
from weft.types import EncoderInfo, IndexConfig, defaults
from weft.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from weft.lifecycle.health import IndexInfo, Problem, Repair
    from weft.lifecycle.planning import Plan
    from weft.types import Alignment, Document, Hits, OperatingPoint, Progress, Scalar, SearchParams

OPEN_ATTEMPTS = 10
"""How often a snapshot is tried again when a writer has removed its files meanwhile."""


class Index:
    """A folder of documents, each a set of token embeddings, that can be searched by MaxSim.

    Make one with `create` or `open`. It stands for one generation; `refresh` adopts a newer one.

    Examples
    --------
    >>> import numpy as np, weft
    >>> index = weft.Index.create("papers.index", weft.IndexConfig(dim=4))
    >>> with index.writer() as writer:
    ...     writer.add(["p1", "p2"], [np.eye(4)[:2], np.eye(4)[1:]], texts=["one", "two"])
    >>> hits = index.search(np.eye(4)[:1], k=10)
    >>> [(hit.id, hit.score) for hit in hits]
    [('p1', 1.0), ('p2', 0.0)]
    >>> index.documents(["p2"])[0].text
    'two'
    """

    def __init__(self, directory: Directory, manifest: Manifest, *, pinned: bool = False) -> None:
        self._directory = directory
        self._manifest = manifest
        self._pinned = pinned
        self._searcher: Searcher | None = None
        self._encoder: tuple[str | None, EncoderInfo | None] | None = None
        self._mutex = threading.Lock()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        config: IndexConfig | None = None,
        *,
        encoder: object = None,
        exist_ok: bool = False,
    ) -> Index:
        """Make an empty index.

        Parameters
        ----------
        path
            A folder that does not exist or is empty.
        config
            None: the defaults, with the encoder's dim.
        encoder
            What will make the embeddings: its `EncoderInfo`, or an object with one as `info`. It is
            stored, so that queries can be held against it.
        exist_ok
            Open an index that is there already, if it has the same configuration and encoder.

        Raises
        ------
        IndexExistsError
            There is something at the path.
        IncompatibleIndexError
            With `exist_ok`: the index there was made with another configuration or encoder.
        """
        info = EncoderInfo.of(encoder)
        if config is None:
            config = IndexConfig() if info is None else IndexConfig(dim=info.dim)
        if not isinstance(config, IndexConfig):
            raise InvalidArgumentError(f"config={config!r}: expected weft.IndexConfig or None")
        if info is not None and info.dim != config.dim:
            raise InvalidArgumentError(
                f"dim={config.dim}: expected the encoder's, {info.dim} ({info.name})"
            )
        folder = Path(path)
        directory = Directory(folder)
        if folder.exists():
            found = directory.list() if folder.is_dir() else [folder.name]
            if folder.is_dir() and generations(directory):
                if not exist_ok:
                    raise IndexExistsError(
                        f"{folder}: an index is there already; open it, or choose another path"
                    )
                index = cls.open(folder)
                _require_same(folder, index, config, info)
                return index
            if found:
                raise IndexExistsError(
                    f"{folder}: there is something that is not an index; choose another path"
                )
        return cls(directory, publish_first(directory, config, info))

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, generation: int | None = None) -> Index:
        """Open an index at its newest generation, or at an older one that is still there.

        Raises
        ------
        NotFoundError
            There is no index, or no such generation.
        CorruptIndexError
            The manifest is damaged; says which generation to go on from.
        IncompatibleIndexError
            Written by a newer version.
        """
        directory = Directory(Path(path))
        if generation is not None:
            generation = check_generation(generation)
        for attempt in range(OPEN_ATTEMPTS):
            try:
                return cls(directory, load(directory, generation), pinned=generation is not None)
            except StorageError:  # removed between listing and reading
                if attempt == OPEN_ATTEMPTS - 1:
                    raise
        raise AssertionError

    @property
    def path(self) -> Path:
        """The folder."""
        return self._directory.path

    @property
    def generation(self) -> int:
        """The generation that this object stands for."""
        return self._manifest.generation

    @property
    def config(self) -> IndexConfig:
        """What the index is made of."""
        return self._manifest.config

    @property
    def info(self) -> IndexInfo:
        """What the index holds at this generation."""
        file = self._manifest.encoder_file
        if self._encoder is None or self._encoder[0] != file:
            self._encoder = file, encoder_of(self._directory, self._manifest)
        return describe(self.path, self._manifest, self._encoder[1])

    def __len__(self) -> int:
        """Count the documents."""
        return self._manifest.n_docs

    def __bool__(self) -> bool:
        """Be true even without documents."""
        return True

    def __repr__(self) -> str:
        """Name the folder and the generation."""
        return f"Index({str(self.path)!r}, generation={self.generation}, n_docs={len(self)})"

    def refresh(self) -> bool:
        """Adopt the newest generation; tell whether there was a newer one."""
        newest = Index.open(self.path)
        if newest.generation <= self.generation:
            return False
        self._adopt(newest._manifest)
        return True

    def _adopt(self, manifest: Manifest) -> None:
        with self._mutex:
            self._manifest, self._searcher, self._pinned = manifest, None, False

    def plan(
        self,
        *,
        n_docs: int,
        n_tokens: int,
        n_terms: int | None = None,
        max_ram: int | str | None = None,
    ) -> Plan:
        """Foretell what adding so many documents to the index takes; see `weft.plan`.

        What the index holds counts where a commit of that size trains its codec, or adds centroids
        to it.
        """
        return plan_addition(
            *(self.config, held(self._manifest)),
            n_docs=n_docs,
            n_tokens=n_tokens,
            n_terms=n_terms,
            max_ram=max_ram,
        )

    def writer(
        self,
        *,
        device: str = "cpu",
        threads: int | None = None,
        max_ram: int | str | None = None,
        progress: Progress | None = None,
        resume: bool = False,
    ) -> Writer:
        """Give the one writer of the index; it holds the lock until it is closed.

        Parameters
        ----------
        device
            "cpu"; "cuda" or "cuda:1", a GPU that encodes tokens and takes its part in training a
            codec; or "auto", decided here: the first GPU where there is one that works, else the
            CPU. The files are the same, byte for byte.
        threads
            None: as many as the process may use.
        max_ram
            Bytes that a build may plan with, or a text like "8GiB". None: half of the memory that
            is available, at most 3 GiB.
        progress
            Called with (stage, done, total).
        resume
            Keep what was added and not committed, however this writer ends, and go on from what
            another has kept so: batches that are added again, in the same order, are recognised.

        Raises
        ------
        IndexLockedError
            Another writer holds the lock; names its host and process.
        DeviceError
            The device cannot be had; `weft.info` tells why.
        """
        if not self._pinned:
            self.refresh()
        return Writer(
            self._directory,
            self._manifest,
            device=device,
            threads=threads,
            max_ram=max_ram,
            progress=progress,
            resume=resume,
            on_commit=self._adopt,
        )

    def searcher(self, *, device: str = "cpu", threads: int | None = None) -> Searcher:
        """Open every file of this generation for searching.

        Parameters
        ----------
        device
            "cpu"; "cuda" or "cuda:1", a GPU that holds codes and lists and searches them; or
            "auto", decided here: the first GPU where that works, else the CPU. Documents and scores
            are the same. The CPU reads what `rerank` stores, and single documents.

        Raises
        ------
        CorruptIndexError
            A file is missing or damaged.
        DeviceError
            The device cannot be had (`weft.info` tells why), or there are no codes yet.
        OutOfMemoryError
            The codes do not fit into its memory.
        """
        for attempt in range(OPEN_ATTEMPTS):
            manifest = self._manifest
            try:
                snapshot = Snapshot(self._directory, manifest)
                return Searcher(snapshot, device=device, threads=threads)
            except (CorruptIndexError, StorageError):
                if attempt == OPEN_ATTEMPTS - 1 or self._pinned:
                    raise
                self.refresh()
                if self._manifest is manifest:  # no writer has removed it, it is damaged
                    raise
        raise AssertionError

    def _current(self) -> Searcher:
        with self._mutex:
            searcher = self._searcher
        if searcher is None:
            searcher = self.searcher()
            with self._mutex:
                if searcher.generation == self._manifest.generation:  # not overtaken meanwhile
                    self._searcher = searcher
        return searcher

    def add(
        self,
        ids: Sequence[str],
        embeddings: Embeddings | None = None,
        *,
        texts: Sequence[str | None] | None = None,
        metadata: Sequence[Mapping[str, Scalar] | None] | None = None,
        spans: Sequence[Any] | None = None,
        lengths: object = None,
        parents: Sequence[int] | None = None,
        dense: DenseVectors | None = None,
        sparse: SparseVectors | None = None,
    ) -> int:
        """Add documents in one commit and give the generation; see `Writer.add`."""
        with self.writer() as writer:
            writer.add(
                ids,
                embeddings,
                texts=texts,
                metadata=metadata,
                spans=spans,
                lengths=lengths,
                parents=parents,
                dense=dense,
                sparse=sparse,
            )
            return writer.commit()

    def upsert(
        self,
        ids: Sequence[str],
        embeddings: Embeddings | None = None,
        *,
        texts: Sequence[str | None] | None = None,
        metadata: Sequence[Mapping[str, Scalar] | None] | None = None,
        spans: Sequence[Any] | None = None,
        lengths: object = None,
        parents: Sequence[int] | None = None,
        dense: DenseVectors | None = None,
        sparse: SparseVectors | None = None,
    ) -> int:
        """Add or replace documents in one commit and give the generation; see `Writer.upsert`."""
        with self.writer() as writer:
            writer.upsert(
                ids,
                embeddings,
                texts=texts,
                metadata=metadata,
                spans=spans,
                lengths=lengths,
                parents=parents,
                dense=dense,
                sparse=sparse,
            )
            return writer.commit()

    def delete(
        self, ids: Sequence[str] | None = None, *, where: Mapping[str, Any] | None = None
    ) -> int:
        """Delete documents in one commit; count those that were there. See `Writer.delete`."""
        with self.writer() as writer:
            return writer.delete(ids, where=where)

    def compact(self, *, retrain: bool = False) -> int:
        """Merge segments and drop what is deleted, in one commit; see `Writer.compact`.

        Gives the generation, which stays the same where there is nothing to gain.
        """
        with self.writer() as writer:
            writer.compact(retrain=retrain)
            return writer.commit()

    def tune(self, queries: Embeddings | None = None) -> tuple[OperatingPoint, ...]:
        """Find new operating points in one commit and give them; see `Writer.tune`.

        Empty for an index without a codec, where every search is exhaustive.
        """
        with self.writer() as writer:
            writer.tune(queries)
        return self._manifest.operating_points

    def search(
        self,
        query: object,
        k: int = defaults.k,
        *,
        recall: float | None = None,
        params: SearchParams | None = None,
        where: Mapping[str, Any] | None = None,
        allow: Iterable[str] | None = None,
    ) -> Hits:
        """Search this generation; see `Searcher.search`."""
        return self._current().search(
            query, k, recall=recall, params=params, where=where, allow=allow
        )

    def search_batch(
        self,
        queries: Embeddings,
        k: int = defaults.k,
        *,
        recall: float | None = None,
        params: SearchParams | None = None,
        where: Mapping[str, Any] | None = None,
        allow: Iterable[str] | None = None,
    ) -> tuple[Hits, ...]:
        """Answer many queries; see `Searcher.search_batch`."""
        return self._current().search_batch(
            queries, k, recall=recall, params=params, where=where, allow=allow
        )

    def exact_search(
        self,
        query: object,
        k: int = defaults.k,
        *,
        where: Mapping[str, Any] | None = None,
        allow: Iterable[str] | None = None,
    ) -> Hits:
        """Score every document; see `Searcher.exact_search`."""
        return self._current().exact_search(query, k, where=where, allow=allow)

    def score(self, query: object, ids: Sequence[str]) -> NDArray[Any]:
        """Score exactly these documents; see `Searcher.score`."""
        return self._current().score(query, ids)

    def explain(self, query: object, id: str) -> Alignment:
        """Tell why a document has its score; see `Searcher.explain`."""
        return self._current().explain(query, id)

    def documents(self, ids: Sequence[str]) -> tuple[Document, ...]:
        """Give texts and metadata; see `Searcher.documents`."""
        return self._current().documents(ids)

    def verify(self, *, deep: bool = False) -> tuple[Problem, ...]:
        """Check the files of this generation; empty if all is well.

        Parameters
        ----------
        deep
            Read everything: every checksum and every value. Otherwise sizes, headers and structure.
        """
        return verify(self._directory, self._manifest, deep=deep)

    @staticmethod
    def repair(path: str | os.PathLike[str], *, progress: Progress | None = None) -> Repair:
        """Read all of a damaged index and publish a new generation of what is whole.

        Nothing damaged is removed: it is kept in a folder of its own, with a list of the documents
        that are lost. A segment whose codes or ids are damaged is lost as a whole; damaged texts
        are left out, damaged lists made again. Where the newest manifest is damaged, the index goes
        back to the newest that is not. See docs/architecture.md for the rest.

        Parameters
        ----------
        path, progress
            The folder, which need not open; called with (stage, done, total).

        Raises
        ------
        NotFoundError, CorruptIndexError
            There is no index, or not one manifest is whole.
        IndexLockedError
            A writer is at work.
        """
        return repair(Directory(Path(path)), progress or (lambda _stage, _done, _total: None))


def _require_same(
    folder: Path, index: Index, config: IndexConfig, info: EncoderInfo | None
) -> None:
    for what, found, given in (
        ("configuration", index.config, config),
        ("encoder", index.info.encoder, info),
    ):
        if given is not None and found != given:
            raise IncompatibleIndexError(
                f"{folder}: the index there has another {what}: {found}, expected {given}",
                found,
                given,
            )
