# SPDX-License-Identifier: Apache-2.0
"""Any sequence of operations leaves an index equal to a dictionary of what was committed."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import weft
from helpers import assert_ranking, ragged_docs, unit_rows
from reference import maxsim
from weft.errors import IndexLockedError, InvalidArgumentError, NotFoundError

DIM = 8
TOLERANCE = 0.12  # of scores from 4-bit codes at this small dim
ENDS = st.sampled_from(["keep", "commit", "commit", "commit and close", "close", "roll back"])


def is_odd(doc_id):
    """What the metadata of a document say."""
    return doc_id[-1] in "13579"


class IndexMachine(RuleBasedStateMachine):
    """The model is {id: windows} at the last commit, and the same with what is not committed.

    What was not written since is the same list in both.
    """

    @initialize(n_docs=st.sampled_from([0, 3, 40, 90]))
    def create(self, n_docs):
        self.folder = Path(tempfile.mkdtemp())
        self.index = weft.Index.create(self.folder / "a.index", weft.IndexConfig(dim=DIM))
        self.writer, self.compacts = None, False
        self.committed, self.pending = {}, {}
        self.snapshots = []  # of some generations, with what they hold
        self.random = np.random.default_rng(3)
        self.names = iter(range(10**6))
        self.add([1] * n_docs, shortest=1, end="commit")

    def teardown(self):
        if getattr(self, "writer", None) is not None:
            self.writer.close()
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def open_writer(self):
        if self.writer is None:
            self.writer = self.index.writer()
        return self.writer

    def end(self, how):
        """Leave what was done for later, commit it, or forget it."""
        if "commit" in how:
            ids = self.pending.keys() | self.committed.keys()
            changed = any(self.pending.get(i) is not self.committed.get(i) for i in ids)
            info = self.index.info
            changed |= self.compacts and (info.n_segments > 1 or info.n_deleted > 0)
            assert self.writer.commit() == info.generation + changed == self.index.generation
            self.committed = dict(self.pending)
            if self.compacts:
                assert self.index.info.n_deleted == 0
                assert self.index.info.n_segments <= 2
        if how != "keep":
            self.compacts = False
        if how == "roll back":
            self.writer.rollback()
            self.pending = dict(self.committed)
        if "close" in how:
            self.writer.close()
            self.writer = None
            self.pending = dict(self.committed)

    def documents(self, ids, counts, shortest):
        """Arguments of `add` for new documents of so many windows, put into the model."""
        windows = ragged_docs(self.random, sum(counts), DIM, shortest=shortest)
        parents = np.repeat(np.arange(len(ids)), counts).tolist()
        self.pending = {i: found for i, found in self.pending.items() if i not in ids}
        for window, parent in zip(windows, parents, strict=True):
            self.pending.setdefault(ids[parent], []).append(window)
        texts, metadata = [f"text of {i}" for i in ids], [{"odd": is_odd(i)} for i in ids]
        return ids, windows, {"parents": parents, "texts": texts, "metadata": metadata}

    def known(self):
        """Ids that are there, were there, or never were."""
        return [*sorted(self.pending.keys() | self.committed.keys()), "never"]

    @rule(counts=st.lists(st.integers(1, 3), max_size=30), shortest=st.integers(0, 3), end=ENDS)
    def add(self, counts, shortest, end):
        writer = self.open_writer()
        ids = [f"d{next(self.names)}" for _ in counts]
        ids, windows, more = self.documents(ids, counts, shortest)
        writer.add(ids, windows, **more)
        self.end(end)

    @rule(data=st.data(), counts=st.lists(st.integers(1, 3), max_size=20), end=ENDS)
    def upsert(self, data, counts, end):
        writer = self.open_writer()
        known = st.sampled_from(self.known())
        old = data.draw(st.lists(known, unique=True, max_size=len(counts)))
        ids = old + [f"d{next(self.names)}" for _ in counts[len(old) :]]
        ids, windows, more = self.documents(ids, counts, 0)
        writer.upsert(ids, windows, **more)
        self.end(end)

    @rule(data=st.data(), count=st.sampled_from([1, 5, 20, 10_000]), end=ENDS)
    def delete(self, data, count, end):
        writer = self.open_writer()
        ids = data.draw(st.permutations(self.known()))[:count]
        there = self.pending.keys() & set(ids)
        assert writer.delete(ids + ids[:2]) == len(there)
        self.pending = {i: found for i, found in self.pending.items() if i not in there}
        self.end(end)

    @precondition(lambda self: self.pending)
    @rule(odd=st.booleans(), end=ENDS)
    def delete_where(self, odd, end):
        writer = self.open_writer()
        there = {doc_id for doc_id in self.pending if is_odd(doc_id) == odd}
        assert writer.delete(where={"odd": odd}) == len(there)
        self.pending = {i: found for i, found in self.pending.items() if i not in there}
        self.end(end)

    @rule(end=ENDS)
    def compact(self, end):
        self.open_writer().compact()
        self.compacts = True
        self.end(end)

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def refused(self, data):
        writer = self.open_writer()
        doc_id = data.draw(st.sampled_from(sorted(self.pending)))
        with pytest.raises(InvalidArgumentError, match=doc_id):
            writer.add(["fresh", doc_id], [np.eye(DIM)] * 2)
        with pytest.raises(InvalidArgumentError, match=f"'{doc_id}', row 0: NaN"):
            writer.upsert(["fresh", doc_id], [np.eye(DIM), np.full((1, DIM), np.nan)])
        with pytest.raises(InvalidArgumentError, match="id 5"):
            writer.delete([doc_id, 5])

    @precondition(lambda self: self.writer is not None)
    @rule()
    def second_writer(self):
        with pytest.raises(IndexLockedError):
            weft.Index.open(self.index.path).writer()

    @rule()
    def reopen(self):
        assert self.writer is None or self.index.generation == self.writer.generation
        again = weft.Index.open(self.index.path)
        assert again.generation == self.index.generation
        assert again.verify(deep=True) == ()
        if self.writer is None:
            self.index = again

    @rule(k=st.sampled_from([1, 5, 1_000]))
    def search(self, k):
        self.check_search(self.index, self.committed, k)
        query = unit_rows(self.random, 3, DIM)
        n_matching = self.index.exact_search(query, k=k).n_matching
        assert self.index.search(query, k=k, recall=1.0).n_matching == n_matching
        pruned = weft.SearchParams(ncandidates=1_000, nskim=1_000, nrefine=1_000, nrerank=0)
        assert set(self.index.search(query, k=k, params=pruned).ids) <= self.committed.keys()

    @rule()
    def keep_a_snapshot(self):
        self.snapshots = [*self.snapshots[-2:], (self.index.searcher(), dict(self.committed))]

    @precondition(lambda self: self.snapshots)
    @rule()
    def search_snapshots(self):
        for searcher, documents in self.snapshots:
            self.check_search(searcher, documents, 1_000)
            self.check_documents(searcher, documents)

    def check_search(self, searcher, documents, k):
        query = unit_rows(self.random, 3, DIM)
        scores = {
            doc_id: max(maxsim(query.astype(np.float64), rows) for rows in windows if len(rows))
            for doc_id, windows in documents.items()
            if any(map(len, windows))
        }
        hits = searcher.exact_search(query, k=k)
        assert len(hits) == min(k, len(scores))
        assert hits.n_matching == len(scores)
        assert_ranking(hits, scores, TOLERANCE)
        if documents:
            odd = {doc_id: score for doc_id, score in scores.items() if is_odd(doc_id)}
            hits = searcher.exact_search(query, k=k, where={"odd": True})
            assert (len(hits), hits.n_matching) == (min(k, len(odd)), len(odd))
            assert_ranking(hits, odd, TOLERANCE)

    def check_documents(self, searcher, documents):
        assert len(searcher) == len(documents)
        found = searcher.documents(sorted(documents))
        assert all(document.text == f"text of {document.id}" for document in found)

    @invariant()
    def the_index_holds_what_was_committed(self):
        if not hasattr(self, "index"):
            return
        self.check_documents(self.index, self.committed)
        assert self.index.info.n_windows == sum(map(len, self.committed.values()))
        for doc_id in [*sorted(self.pending.keys() - self.committed.keys())[:3], "never-was"]:
            with pytest.raises(NotFoundError):
                self.index.documents([doc_id])


@pytest.mark.usefixtures("small_codec")
class TestIndex(IndexMachine.TestCase):
    settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
