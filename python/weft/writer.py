# SPDX-License-Identifier: Apache-2.0
"""Adding to an index: check, spool, and commit one new generation.

A commit writes new files under names of their own, syncs them and the folder, and publishes a
manifest; that is the one step that counts. Whatever fails before it leaves the previous generation
as it was, and what has been added stays in the spool, so that the commit can be tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.arrays import Embeddings, check_threads, normalized, query_rows, ragged
from weft.builder import Build
from weft.checks import check_device, check_int
from weft.documents import check_metadata, check_spans, check_text, encode_spans
from weft.errors import (
    IndexLockedError,
    InvalidArgumentError,
    StorageError,
    WeftError,
    WriterClosedError,
)
from weft.manifest import (
    Manifest,
    garbage,
    generations,
    is_published,
    newest_readable,
    publish,
)
from weft.planning import parse_ram
from weft.searcher import Snapshot
from weft.spool import WINDOW_MARK, Batch, Mark, Spool
from weft.tuner import TuningQueries
from weft.types import Scalar, defaults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from weft.arrays import Ragged
    from weft.storage import Directory
    from weft.types import Progress

logger = logging.getLogger("weft")

EMPTY = Mark(0, 0, 0, has_documents=False)


def check_id(doc_id: object) -> str:
    """Give a document id, or refuse what cannot be one."""
    if not isinstance(doc_id, str):
        raise InvalidArgumentError(
            f"id {doc_id!r}: {type(doc_id).__name__}, expected a string; use str(id)"
        )
    check_text(doc_id, f"id {doc_id!r}")
    size = len(doc_id.encode())
    if not 1 <= size <= defaults.id_bytes:
        raise InvalidArgumentError(
            f"id {doc_id[:40]!r}: {size} bytes of UTF-8, expected 1..{defaults.id_bytes}"
        )
    if "\0" in doc_id or WINDOW_MARK in doc_id:
        raise InvalidArgumentError(f"id {doc_id!r}: expected no U+0000 and no U+001F in it")
    return doc_id


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
        on_commit: Callable[[Manifest], None] | None = None,
    ) -> None:
        check_device(device)
        self._threads = check_threads(threads)
        self._max_ram = parse_ram(max_ram)
        self._progress = progress or (lambda _stage, _done, _total: None)
        self._on_commit = on_commit or (lambda _manifest: None)
        self._directory = directory
        self._queries: TuningQueries | None = None
        self._tune_asked = False
        self._spool: Spool | None = None
        self._lock = directory.lock()
        try:
            self._check_newest(base)
            self._clean()
            self._snapshot = Snapshot(directory, base)
            self._spool = Spool(directory, base.config.dim)
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
    def _dim(self) -> int:
        return self._snapshot.manifest.config.dim

    def add(
        self,
        ids: Sequence[str],
        embeddings: Embeddings,
        *,
        texts: Sequence[str | None] | None = None,
        metadata: Sequence[Mapping[str, Scalar] | None] | None = None,
        spans: Sequence[Any] | None = None,
        lengths: object = None,
        parents: Sequence[int] | None = None,
    ) -> None:
        """Add documents; they are searchable after `commit`. All of them are added, or none.

        Parameters
        ----------
        ids
            One per document: 1 to 1,024 bytes of UTF-8 without U+0000 and U+001F, not in the index.
        embeddings
            One `(n_tokens, dim)` array per document; or packed `(values, offsets)`; or padded 3-D
            with `lengths`. numpy, torch or anything with DLPack, any float type, host memory. Rows
            are scaled to unit length and kept as float16. A document may have no rows: it is
            counted and never found.
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

        Raises
        ------
        InvalidArgumentError
            Something cannot be right; the message names the document.
        StorageError
            The disk is full, or the like.
        """
        spool = self._open_spool()
        ids = self._check_ids(ids)
        n_windows = _windows_per_document(parents, len(ids))
        owners = np.repeat(np.arange(len(ids)), n_windows)
        first_windows = np.cumsum([0, *n_windows])

        def name(window: int) -> str:
            if window >= len(owners):
                return f"embedding {window}"
            doc = int(owners[window])
            if n_windows[doc] == 1:
                return f"document {ids[doc]!r}"
            return f"document {ids[doc]!r}, window {window - int(first_windows[doc])}"

        found = ragged(embeddings, self._dim, name=name, lengths=lengths)
        if len(found) != len(owners):
            raise InvalidArgumentError(
                f"embeddings: found {len(found)} of them, expected {len(owners)}, "
                f"one for each {'id' if parents is None else 'entry of parents'}"
            )
        self._check_sizes(found, owners, ids)
        checked_texts = _per_document("texts", texts, len(ids))
        for doc_id, text in zip(ids, checked_texts, strict=True):
            if text is not None:
                check_text(text, f"document {doc_id!r}: text")
        checked_metadata = [
            {} if given is None else check_metadata(given, f"document {doc_id!r}")
            for doc_id, given in zip(
                ids, _per_document("metadata", metadata, len(ids)), strict=True
            )
        ]
        bounds = found.offsets.astype(np.int64)
        token_counts = bounds[1:] - bounds[:-1]
        places = [
            None
            if given is None
            else encode_spans(check_spans(given, int(n), checked_texts[owner], name(window)))
            for window, (given, n, owner) in enumerate(
                zip(
                    _per_document("spans", spans, len(owners)),
                    token_counts,
                    owners.tolist(),
                    strict=True,
                )
            )
        ]
        batch = Batch(ids, n_windows, token_counts, checked_texts, checked_metadata, places)
        spool.append(batch, _unit_rows(found, name))

    def _check_ids(self, ids: Sequence[str]) -> list[str]:
        if isinstance(ids, (str, bytes)):
            raise InvalidArgumentError(f"ids={ids!r}: expected a sequence of ids; use [id]")
        checked = [check_id(doc_id) for doc_id in ids]
        seen: set[str] = set()
        for doc_id in checked:
            if doc_id in seen:
                raise InvalidArgumentError(f"id {doc_id!r}: twice in one call, expected it once")
            seen.add(doc_id)
            if self._snapshot.find(doc_id) is not None:
                raise InvalidArgumentError(
                    f"id {doc_id!r}: in the index already, expected a new one"
                )
        return checked

    def _check_sizes(self, found: Ragged, owners: NDArray[np.int64], ids: list[str]) -> None:
        ends = np.flatnonzero(np.diff(owners, append=-1)) + 1
        sizes = np.diff(found.offsets[ends].astype(np.int64), prepend=0)
        if len(sizes) and sizes.max() > defaults.segment_tokens:
            doc = int(sizes.argmax())
            raise InvalidArgumentError(
                f"document {ids[doc]!r}: {sizes[doc]} token embeddings, "
                f"expected at most {defaults.segment_tokens}"
            )

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
        if queries is not None:
            dim = self._dim
            found = ragged(queries, dim, name=lambda i: f"query {i}")
            if len(found) == 0:
                raise InvalidArgumentError("queries: found none, expected at least one, or None")
            values = np.ascontiguousarray(found.packed(dim), np.float32)
            for i, (first, last) in enumerate(pairwise(found.offsets.tolist())):
                query_rows(values[first:last], dim, f"query {i}")
            self._queries = TuningQueries(values, found.offsets, None)
        else:
            self._queries = None
        self._tune_asked = True

    def commit(self) -> int:
        """Make everything added so far durable and searchable; give the generation.

        Without anything new it does nothing.

        Raises
        ------
        OutOfMemoryError
            By its plan the build does not fit in `max_ram`; raised before it starts.
        StorageError
            The disk is full, or the like.

        Notes
        -----
        Whatever is raised, the index is as it was, what was added is kept, and `commit` may be
        called again.
        """
        spool = self._open_spool()
        if spool.n_docs == 0 and not (self._tune_asked and self._snapshot.codec is not None):
            return self.generation
        mark = spool.mark()
        build = Build(
            self._directory,
            self._snapshot,
            spool,
            threads=self._threads,
            max_ram=self._max_ram,
            progress=self._progress,
        )
        made = None
        try:
            made = build.run(
                generations(self._directory)[-1] + 1, tune=self._tune_asked, queries=self._queries
            )
            self._progress("commit", 0, 1)
            publish(self._directory, made)
            self._progress("commit", 1, 1)
        except BaseException:
            if made is not None and is_published(self._directory, made):
                self._adopt(made)
            else:
                build.discard()
                self._rewind(mark)
            raise
        self._adopt(made)
        self._clean()
        return made.generation

    def _adopt(self, manifest: Manifest) -> None:
        self._queries, self._tune_asked = None, False
        self._rewind(EMPTY)
        self._snapshot = Snapshot(self._directory, manifest)
        self._on_commit(manifest)

    def _rewind(self, mark: Mark) -> None:
        """Take back what the spool has got since; where it cannot, the writer is at its end."""
        try:
            if self._spool is not None and not self._spool.closed:
                self._spool.rewind(mark)
        except WeftError:
            logger.exception("what was added cannot be taken back; the writer is closed")
            self.close()

    def rollback(self) -> None:
        """Forget everything added since the last commit."""
        self._queries, self._tune_asked = None, False
        self._open_spool().rewind(EMPTY)

    def _clean(self) -> None:
        """Remove what dead writers and old generations left; what cannot go, stays for the next."""
        for name in garbage(self._directory):
            if self._spool is not None and name == self._spool.name:
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

    def _open_spool(self) -> Spool:
        if self._spool is None or self._spool.closed:
            raise WriterClosedError("the writer is closed; open another with index.writer()")
        return self._spool

    def close(self) -> None:
        """Forget what was not committed and let others write."""
        if self._spool is not None:
            self._spool.close()
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


def _windows_per_document(parents: Sequence[int] | None, n_docs: int) -> list[int]:
    if parents is None:
        return [1] * n_docs
    numbers = [check_int(f"parents[{i}]", parent, 0) for i, parent in enumerate(parents)]
    counts = np.bincount(numbers, minlength=n_docs).tolist() if numbers else [0] * n_docs
    if numbers != sorted(numbers) or len(counts) != n_docs or 0 in counts:
        raise InvalidArgumentError(
            f"parents: expected positions in ids, 0..{n_docs - 1}, ascending, each at least once"
        )
    return counts


def _per_document(name: str, given: Sequence[Any] | None, n: int) -> list[Any]:
    if given is None:
        return [None] * n
    if isinstance(given, (str, bytes, Mapping)):
        raise InvalidArgumentError(
            f"{name}: found {type(given).__name__}, expected a sequence of {n}"
        )
    found = list(given)
    if len(found) != n:
        raise InvalidArgumentError(f"{name}: found {len(found)} of them, expected {n}")
    return found


def _unit_rows(found: Ragged, name: Callable[[int], str]) -> Iterator[NDArray[np.float16]]:
    """Walk over the rows as float16 of unit length; refuse the first that has none."""
    first = 0
    for block in found.blocks():
        rows, bad, reason = normalized(block)
        if bad >= 0:
            window = int(np.searchsorted(found.offsets, first + bad, side="right")) - 1
            row = first + bad - int(found.offsets[window])
            raise InvalidArgumentError(
                f"{name(window)}, row {row}: {reason}, "
                f"expected finite values, not all zero; drop the row"
            )
        yield rows
        first += len(rows)
