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
from weft.errors import IndexLockedError, InvalidArgumentError

DIM = 8
TOLERANCE = 0.12  # of scores from 4-bit codes at this small dim


class IndexMachine(RuleBasedStateMachine):
    """The model is {id: windows} at the last commit, and the same with what is not committed."""

    @initialize()
    def create(self):
        self.folder = Path(tempfile.mkdtemp())
        self.index = weft.Index.create(self.folder / "a.index", weft.IndexConfig(dim=DIM))
        self.writer = None
        self.committed, self.pending = {}, {}
        self.random = np.random.default_rng(3)
        self.names = iter(range(10**6))

    def teardown(self):
        if getattr(self, "writer", None) is not None:
            self.writer.close()
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    @precondition(lambda self: self.writer is None)
    @rule()
    def open_writer(self):
        self.writer = self.index.writer()
        self.pending = dict(self.committed)

    @precondition(lambda self: self.writer is not None)
    @rule(counts=st.lists(st.integers(1, 3), max_size=30), shortest=st.integers(0, 3))
    def add(self, counts, shortest):
        ids = [f"d{next(self.names)}" for _ in counts]
        windows = ragged_docs(self.random, sum(counts), DIM, shortest=shortest)
        parents = np.repeat(np.arange(len(ids)), counts).tolist()
        self.writer.add(ids, windows, parents=parents, texts=[f"text of {i}" for i in ids])
        for window, parent in zip(windows, parents, strict=True):
            self.pending.setdefault(ids[parent], []).append(window)

    @precondition(lambda self: self.writer is not None and self.pending)
    @rule(data=st.data())
    def add_again(self, data):
        doc_id = data.draw(st.sampled_from(sorted(self.pending)))
        with pytest.raises(InvalidArgumentError, match=doc_id):
            self.writer.add(["fresh", doc_id], [np.eye(DIM)] * 2)

    @precondition(lambda self: self.writer is not None)
    @rule()
    def commit(self):
        before = self.index.generation
        changed = self.pending.keys() != self.committed.keys()
        assert self.writer.commit() == before + changed
        self.committed = dict(self.pending)

    @precondition(lambda self: self.writer is not None)
    @rule()
    def rollback(self):
        self.writer.rollback()
        self.pending = dict(self.committed)

    @precondition(lambda self: self.writer is not None)
    @rule(commits=st.booleans())
    def close_writer(self, commits):
        if commits:
            self.commit()
        self.writer.close()
        self.writer = None

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
        query = unit_rows(self.random, 3, DIM)
        scores = {
            doc_id: max(maxsim(query.astype(np.float64), rows) for rows in windows if len(rows))
            for doc_id, windows in self.committed.items()
            if any(map(len, windows))
        }
        hits = self.index.exact_search(query, k=k)
        assert len(hits) == min(k, len(scores))
        assert hits.n_matching == len(scores)
        assert_ranking(hits, scores, TOLERANCE)
        assert self.index.search(query, k=k, recall=1.0).n_matching == len(scores)

    @invariant()
    def the_index_holds_what_was_committed(self):
        if not hasattr(self, "index"):
            return
        assert len(self.index) == len(self.committed)
        found = self.index.documents(sorted(self.committed))
        assert all(document.text == f"text of {document.id}" for document in found)


@pytest.mark.usefixtures("small_codec")
class TestIndex(IndexMachine.TestCase):
    settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
