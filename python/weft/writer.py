# SPDX-License-Identifier: Apache-2.0
"""Changing an index: check, spool, note what is deleted, and commit one new generation.

A commit writes new files under names of their own, syncs them and the folder, and publishes a
manifest; that is the one step that counts. Whatever fails before it leaves the previous generation
as it was, and what has been added stays in the spool, so that the commit can be tried again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from weft.arrays import Embeddings, check_threads
from weft.dense_vectors import DenseVectors
from weft.errors import (
    IndexLockedError,
    InvalidArgumentError,
    StorageError,
    WeftError,
    WriterClosedError,
)
from weft.installation import build_device
from weft.lifecycle.batches import check_batch, check_each_id, check_ids
from weft.lifecycle.bitmaps import as_mask
from weft.lifecycle.builder import Build
from weft.lifecycle.compaction import worth_merging
from weft.lifecycle.filters import Windows, evaluate, parse, require_fields
from weft.lifecycle.manifest import (
    Manifest,
    garbage,
    generations,
    is_published,
    newest_readable,
    publish,
)
from weft.lifecycle.planning import parse_ram
from weft.lifecycle.snapshot import Place, Snapshot
from weft.lifecycle.spool import Spool
from weft.lifecycle.spool_tables import Mark
from weft.lifecycle.tombstones import Deletions
from weft.sparse_vectors import SparseVectors
from weft.tuner import TuningQueries
from weft.types import Scalar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from weft.lifecycle.filters import Filter
    from weft.lifecycle.storage import Directory
    from weft.types import Document, IndexConfig, Progress

logger = logging.getLogger("weft")

EMPTY = Mark(0, 0, 0, 0, has_documents=False)


class Writer:
    """The one writer of an index; holds its lock until it is closed.

    As a context manager it commits when the block ends, and rolls back if the block fails. Made by
    `Index.writer`.

    Examples
    --------
    >>> import numpy as np, weft
    >>> index = weft.Index.create("written.index", weft.IndexConfig(dim=4))
    >>> with index.writer() as writer:
    ...     writer.add(["a"], [np.eye(4)], texts=["four words in all"])
    >>> len(index), index.generation
    (1, 2)
    """

    def __init__(
        self,
        directory: Directory,
        base: Manifest,
        *,
        device: str = "cpu",
        threads: int | None = None,
        max_ram: int | str | None = None,
        progress: Progress | None = None,
        resume: bool = False,
        on_commit: Callable[[Manifest], None] | None = None,
    ) -> None:
        self._device = build_device(device)
        self._threads = check_threads(threads)
        self._max_ram = parse_ram(max_ram)
        self._progress = progress or (lambda _stage, _done, _total: None)
        self._on_commit = on_commit or (lambda _manifest: None)
        self._directory = directory
        self._queries: TuningQueries | None = None
        self._tune_asked = self._compact_asked = self._retrain_asked = False
        self._resume = resume
        self._spool: Spool | None = None
        self._lock = directory.lock()
        try:
            self._check_newest(base)
            if resume:
                self._spool = Spool.left_behind(directory, base.config.dim, base.generation)
            self._clean()
            self._snapshot = Snapshot(directory, base)
            self._deletions = Deletions(self._snapshot.segments)
            if self._spool is None:
                self._spool = Spool(
                    directory, base.config.dim, base=base.generation if resume else 0
                )
        except BaseException:
            self._lock.release()
            raise

    def _check_newest(self, base: Manifest) -> None:
        newest = newest_readable(self._directory, generations(self._directory))
        if newest != base.generation:
            raise InvalidArgumentError(
                f"{self._directory.path}: generation {base.generation} is not the newest, which is "
                f"{newest}; refresh() the index, or open it without generation="
            )

    @property
    def generation(self) -> int:
        """The generation that was committed last."""
        return self._snapshot.manifest.generation

    @property
    def device(self) -> str:
        """What tokens are encoded on and codecs trained with: "cpu", or a GPU as "cuda:0"."""
        return "cpu" if self._device is None else self._device.name

    @property
    def _config(self) -> IndexConfig:
        return self._snapshot.manifest.config

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
    ) -> None:
        """Add documents; they are searchable after `commit`. All of them are added, or none.

        Parameters
        ----------
        ids
            One per document: 1 to 1,024 bytes of UTF-8 without U+0000 and U+001F, not in the index.
        embeddings
            One `(n_tokens, dim)` array per document; or packed `(values, offsets)`; or padded 3-D
            with `lengths`. numpy, torch or anything with DLPack, any float type, in host memory or
            on a GPU, from where each array is copied once. Rows are scaled to unit length and kept
            as float16. A document may have no rows: it is counted and never found. None: documents
            of the other fields alone.
        texts
            One per document, or None for those without.
        metadata
            One dictionary per document: field -> str, int, float or bool.
        spans
            One per embedding array: integers `(n_tokens, 2)`, start and end of each token in code
            points of the document's text; or None.
        lengths
            Rows that count in each document of a padded array.
        parents
            For long documents in several windows: for each embedding array, the position in `ids`
            of its document, in ascending order. A document is found by its best window.
        dense
            One vector per document, an array `(n, dim)` of the field's dim; or a sequence with None
            for documents without.
        sparse
            One vector per document: a scipy.sparse matrix, a row each; or mappings, term -> weight,
            where a term is an integer or its digits. Weights of 0 are left out.

        Raises
        ------
        InvalidArgumentError
            Something cannot be right; the message names the document.
        StorageError
            The disk is full, or the like.
        """
        spool = self._open_spool()
        checked = check_ids(ids)
        for doc_id in checked:
            if self._find(doc_id) is not None:
                raise InvalidArgumentError(
                    f"id {doc_id!r}: in the index already, expected a new one; upsert replaces it"
                )
        spool.append(
            *check_batch(
                *(checked, embeddings, self._config, texts, metadata, spans, lengths, parents),
                *(dense, sparse),
            )
        )

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
    ) -> None:
        """Add documents, or replace those that have their ids; searchable after `commit`.

        A document is replaced as a whole, all its windows, its text and metadata. The parameters
        and errors are those of `add`; where one is raised, nothing is replaced.
        """
        spool = self._open_spool()
        checked = check_ids(ids)
        batch, blocks = check_batch(
            *(checked, embeddings, self._config, texts, metadata, spans, lengths, parents),
            *(dense, sparse),
        )
        spool.append(batch, blocks, replace=True)
        for doc_id in checked:
            self._delete_committed(doc_id)

    def unspooled(
        self, documents: Iterable[Document], fields: Sequence[str] = ("multi",)
    ) -> Iterator[Document]:
        """Leave out the documents that an interrupted writer has added, if they are still the same.

        For a writer that was opened with `resume`: what comes out is to be added, after that the
        commit is the same as if nothing had happened. `fields` are those that will be given.
        """
        return self._open_spool().unspooled(documents, fields)

    def _find(self, doc_id: str) -> Place | None:
        """Give the place of a committed document that is not deleted, by us or before."""
        return self._snapshot.find(doc_id, self._deletions.words)

    def delete(
        self, ids: Sequence[str] | None = None, *, where: Mapping[str, Any] | None = None
    ) -> int:
        """Delete documents, committed ones and ones just added; they are gone after `commit`.

        Parameters
        ----------
        ids
            A long document goes with all its windows. An unknown id is no error, so that a
            deletion may be repeated.
        where
            Delete what a filter finds instead; see `Searcher.search`.

        Returns
        -------
        How many documents there were to delete.

        Raises
        ------
        InvalidArgumentError
            Something that cannot be an id or a filter, both or neither; then nothing is deleted.
        """
        spool = self._open_spool()
        if (ids is None) == (where is None):
            raise InvalidArgumentError("ids and where: expected one of them")
        if ids is None:
            return self._delete_matching(spool, parse(where))
        checked = dict.fromkeys(check_each_id(ids))
        n_deleted = spool.drop(list(checked))
        for doc_id in checked:
            n_deleted += self._delete_committed(doc_id)
        return n_deleted

    def _delete_matching(self, spool: Spool, found: Filter) -> int:
        segments = [Windows(segment) for segment in self._snapshot.segments]
        require_fields(found, [spool, *(windows.table for windows in segments)])
        masks = [windows.matching(found) for windows in segments]
        spooled = evaluate(found, spool, spool.n_windows)
        n_deleted = spool.drop(
            [doc_id for doc, doc_id in spool.select("SELECT doc, id FROM ids") if spooled[doc]]
        )
        for number, (windows, mask) in enumerate(zip(segments, masks, strict=True)):
            left = mask & ~as_mask(self._deletions.words[number], windows.n)
            firsts, counts = windows.documents(left)
            for first, n_windows in zip(firsts.tolist(), counts.tolist(), strict=True):
                self._deletions.add(Place(number, first, n_windows))
            n_deleted += len(firsts)
        return n_deleted

    def _delete_committed(self, doc_id: str) -> bool:
        place = self._find(doc_id)
        if place is not None:
            self._deletions.add(place)
        return place is not None

    def tune(self, queries: Embeddings | None = None) -> None:
        """Find new operating points at the next commit.

        Parameters
        ----------
        queries
            Query embeddings, as for `Searcher.search_batch`: what will be asked. None: neighbouring
            tokens of sampled documents.

        Notes
        -----
        A commit that trains the codec tunes in any case. Below the size at which there is a codec,
        every search is exhaustive and there is nothing to tune.
        """
        self._open_spool()
        dim = self._config.dim
        self._queries = None if queries is None else TuningQueries.given(queries, dim)
        self._tune_asked = True

    def compact(self, *, retrain: bool = False) -> None:
        """Merge segments at the next commit, and drop from them what is deleted.

        Segments that have tombstones or are small are written anew, as few as their largest size
        allows; documents keep ids, codes and scores. What is added in the same commit makes a
        segment of its own. Readers keep the generation they have; its files go when two newer ones
        are there, and the space when the last reader has closed.

        Parameters
        ----------
        retrain
            Train the codec anew, for as many tokens as there are, and encode all of them again. The
            rows are the best that is stored, so where that is codes alone, a little is lost.

        Notes
        -----
        The segments are read in full; damage in one is a `CorruptIndexError` of the commit.
        """
        self._open_spool()
        self._compact_asked, self._retrain_asked = True, retrain

    def commit(self) -> int:
        """Make everything added and deleted so far durable and visible; give the generation.

        Without anything new it does nothing. Otherwise segments of which more than a fifth is
        deleted are written anew, and the smallest are merged where there are 16 or more. Once the
        index has doubled since its codec was trained, all of it is encoded anew, with another.

        Raises
        ------
        OutOfMemoryError
            By its plan the build does not fit in `max_ram`; raised before it starts.
        StorageError
            The disk is full, or the like.

        Notes
        -----
        Whatever is raised, the index is as it was, what was added and deleted is kept, and `commit`
        may be called again.
        """
        spool = self._settled_spool()
        codecs = (self._snapshot.codec, self._snapshot.dense_codec)
        has_codec = any(codec is not None for codec in codecs)
        tunes = self._tune_asked and has_codec
        compacts = self._compact_asked and bool(
            worth_merging(self._snapshot.manifest.segments, self._max_ram)
        )
        retrains = self._retrain_asked and has_codec
        mark = spool.given()
        if not (mark.n_docs > 0 or self._deletions.changed or tunes or compacts or retrains):
            self._compact_asked = self._retrain_asked = False
            spool.forget_the_rest()
            return self.generation
        build = Build(
            self._directory,
            self._snapshot,
            spool,
            self._deletions,
            device=self._device,
            threads=self._threads,
            max_ram=self._max_ram,
            progress=self._progress,
        )
        made = None
        try:
            made = build.run(
                generations(self._directory)[-1] + 1,
                compact=self._compact_asked,
                retrain=self._retrain_asked,
                tune=self._tune_asked,
                queries=self._queries,
            )
            self._progress("commit", 0, 1)
            publish(self._directory, made)
            self._progress("commit", 1, 1)
        except BaseException:
            if made is not None and is_published(self._directory, made):
                self._adopt(made)
            else:
                if not self._resume:
                    build.discard()
                self._rewind(mark, keep=self._resume)
            raise
        self._adopt(made)
        self._clean()
        return made.generation

    def _adopt(self, manifest: Manifest) -> None:
        self._queries = None
        self._tune_asked = self._compact_asked = self._retrain_asked = False
        self._rewind(EMPTY)
        self._snapshot = Snapshot(self._directory, manifest)
        self._deletions = Deletions(self._snapshot.segments)
        self._on_commit(manifest)

    def _rewind(self, mark: Mark, *, keep: bool = False) -> None:
        """Take back what the spool has got since; where it cannot, the writer is at its end.

        With `keep` it is set aside, for a commit that is tried again.
        """
        try:
            if self._spool is not None and not self._spool.closed:
                (self._spool.set_aside if keep else self._spool.rewind)(mark)
        except WeftError:
            logger.exception("what was added cannot be taken back; the writer is closed")
            self.close()

    def rollback(self) -> None:
        """Forget everything added and deleted since the last commit."""
        self._queries = None
        self._tune_asked = self._compact_asked = self._retrain_asked = False
        self._open_spool().rewind(EMPTY)
        self._deletions = Deletions(self._snapshot.segments)

    def _clean(self) -> None:
        """Remove what dead writers and old generations left; what cannot go, stays for the next."""
        ours = set() if self._spool is None else {self._spool.name, *self._spool.all_made()}
        for name in garbage(self._directory):
            if name in ours:
                continue
            try:
                lock = self._directory.lock(name) if name.startswith("build-") else None
                try:
                    self._directory.remove(name)
                finally:
                    if lock is not None:
                        lock.release()
            except IndexLockedError:  # a build of its own is running in there
                continue
            except StorageError as error:
                logger.warning("left over: %s", error)

    def _settled_spool(self) -> Spool:
        """Give the spool, without the rows of what was added and then deleted or replaced."""
        spool = self._open_spool()
        if spool.n_dropped > 0:
            spool.forget_the_rest()
            fresh = Spool(self._directory, self._config.dim)
            try:
                fresh.refill(spool)
            except BaseException:
                fresh.close()
                raise
            self._spool = fresh
            spool.close()
        return self._open_spool()

    def _open_spool(self) -> Spool:
        if self._spool is None or self._spool.closed:
            raise WriterClosedError("the writer is closed; open another with index.writer()")
        return self._spool

    def close(self) -> None:
        """Forget what was not committed and let others write.

        A writer that was opened with `resume` leaves it to the next one.
        """
        if self._spool is not None:
            self._spool.close(keep=self._resume and self._spool.n_docs > 0)
            self._spool = None
        self._lock.release()

    def __enter__(self) -> Writer:
        """Give the writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Commit, unless the block failed; then close."""
        try:
            if kind is None and self._spool is not None:
                self.commit()
        finally:
            self.close()
