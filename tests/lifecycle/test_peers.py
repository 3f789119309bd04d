# SPDX-License-Identifier: Apache-2.0
"""Beside the engines themselves: their folders are read, and weft's classes stand in for theirs.

Their environments come from `make bench-peers`; without `pytest --peers FOLDER` all is skipped.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

import peer_script
import weft
from helpers import assert_ranking, exact, ragged_docs
from weft import _native
from weft.exporting import stored_rows

pytestmark = pytest.mark.peers
ENVIRONMENTS = {"fast-plaid": "torch", "weft-fast-plaid": "torch"}
DIM = 64


@pytest.fixture(scope="module")
def corpus():
    rng = np.random.default_rng(11)
    docs = ragged_docs(rng, 150, DIM, shortest=5, longest=20)
    return docs, [doc[:5] for doc in ragged_docs(rng, 4, DIM, shortest=5)]


@pytest.fixture
def run(request, corpus, tmp_path, peers_folder):
    """Let a class do its calls in its environment: (folder, answers)."""
    site = tmp_path / "site" / "weft"  # weft alone: no package of this environment goes along
    site.mkdir(parents=True)
    for path in Path(weft.__file__).parent.iterdir():
        (site / path.name).symlink_to(path)
    native = Path(_native.__file__)
    if not (site / native.name).exists():
        (site / native.name).symlink_to(native)

    def made(name):
        python = peers_folder / ENVIRONMENTS.get(name, "pylate") / "bin" / "python"
        if not python.exists():
            pytest.skip(f"{python}: not there; make bench-peers makes it")
        folder = tmp_path / name
        folder.mkdir()
        for file, arrays in zip(("docs", "queries"), corpus, strict=True):
            np.savez(folder / f"{file}.npz", *arrays)
        done = subprocess.run(
            [python, peer_script.__file__, name, folder],
            env={**os.environ, "PYTHONPATH": str(site.parent), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return folder, json.loads((folder / "answers.json").read_text())

    return made


def kept(docs):
    return [doc for i, doc in enumerate(docs) if i not in peer_script.REMOVED]


def pairs(answers):
    return [[(hit["id"], hit["score"]) for hit in hits] for hits in answers]


def assert_same_scores(answers, expected):
    """The same documents in the same order, but for scores that float16 cannot tell apart."""
    for found, wanted in zip(answers, expected, strict=True):
        scores = [score for _, score in found]
        assert scores == pytest.approx([score for _, score in wanted], abs=0.02)
        assert found[0][0] == wanted[0][0]


def test_fast_plaid_folder(run, corpus, tmp_path):
    folder, answers = run("fast-plaid")
    done = weft.import_index(tmp_path / "new.index", folder / "index")
    assert (done.source, done.n_docs) == ("fast-plaid", 146)
    index = weft.Index.open(tmp_path / "new.index")
    rows = peer_script.load(folder / "rows.npz")
    found = stored_rows(index.searcher(), [str(number) for number in answers["rows"]])
    for ours, theirs in zip(found, rows, strict=True):
        assert np.abs(ours - theirs).max() < 2e-3
    ours = [[(int(h.id), h.score) for h in index.search(q, k=5)] for q in corpus[1]]
    assert_same_scores(ours, answers["search"])
    years = [2000 + i % 7 for i in range(150) if i not in peer_script.REMOVED]
    found = [d.metadata["year"] for d in index.documents([str(i) for i in range(146)])]
    assert found == years


@pytest.mark.parametrize("name", ["pylate", "stanford"])
def test_pylate_folders(run, corpus, tmp_path, name):
    docs, queries = corpus
    folder, answers = run(name)
    done = weft.import_index(tmp_path / "new.index", folder / "index")
    assert (done.source, done.n_docs) == ("pylate", 146)
    index = weft.Index.open(tmp_path / "new.index")
    ids = [f"doc-{i}" for i in range(150) if i not in peer_script.REMOVED]
    found = np.concatenate(stored_rows(index.searcher(), ids))
    assert (found * np.concatenate(kept(docs))).sum(axis=1).mean() > 0.98
    if name == "stanford":
        (theirs,) = peer_script.load(folder / "rows.npz")
        assert np.abs(found - theirs).max() < 2e-3
    ours = [[(hit.id, hit.score) for hit in index.search(query, k=5)] for query in queries]
    assert_same_scores(ours, pairs(answers["call"]))


def shape(value):
    """The types of a result, with one entry for a list whose entries agree."""
    if isinstance(value, dict):
        return {name: shape(entry) for name, entry in value.items()}
    if isinstance(value, list):
        shapes = [shape(entry) for entry in value]
        return shapes[:1] if all(s == shapes[0] for s in shapes) else shapes
    return type(value).__name__


@pytest.mark.parametrize("name", ["fast-plaid", "pylate"])
def test_the_classes_stand_in_for_theirs(run, corpus, name):
    docs, queries = corpus
    _, theirs = run(name)
    _, ours = run(f"weft-{name}")
    assert shape({**ours, "rows": []}) == shape({**theirs, "rows": []})
    assert {name: len(found) for name, found in ours.items() if name != "rows"} == {
        name: len(found) for name, found in theirs.items() if name != "rows"
    }
    left = [i for i in range(150) if i not in peer_script.REMOVED]
    if name == "pylate":
        found, ids = pairs(ours["retrieve"]), [f"doc-{i}" for i in left]
    else:
        found, ids = [[(str(n), s) for n, s in hits] for hits in ours["search"]], map(str, left)
    ids = list(ids)
    for hits, query in zip(found, queries, strict=True):
        assert_ranking([weft.Hit(i, s) for i, s in hits], exact(query, kept(docs), ids))
