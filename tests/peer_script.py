# SPDX-License-Identifier: Apache-2.0
"""Runs in the environment of another engine: the same calls to its class, or to weft's.

    python peer_script.py CLASS FOLDER

CLASS is a name in `CLASSES`; FOLDER holds `docs.npz` and `queries.npz`. The index comes to
`FOLDER/index`, the answers to `answers.json`, the rows as the engine decodes them to `rows.npz`.
"""

import importlib
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

REMOVED = [3, 70, 71, 149]
ADDED_LATER = 30


def load(path):
    found = np.load(path)
    return [found[f"arr_{i}"] for i in range(len(found.files))]


def fast_plaid(kind, folder, docs, queries):
    """Create, update, delete and search; numbers are those after the deletion."""
    tensors = [torch.from_numpy(doc) for doc in docs]
    fields = [{"year": 2000 + i % 7, "score": i / 3} for i in range(len(docs))]
    index = kind(index=str(folder / "index"), device="cpu")
    index.create(documents_embeddings=tensors[:-ADDED_LATER], metadata=fields[:-ADDED_LATER])
    index.update(documents_embeddings=tensors[-ADDED_LATER:], metadata=fields[-ADDED_LATER:])
    index.delete(REMOVED)
    index = kind(index=str(folder / "index"), device="cpu")
    padded = torch.stack(queries)
    answers = {
        "search": index.search(padded, top_k=5, show_progress=False),
        "list": index.search(queries, top_k=5, show_progress=False),
        "subset": index.search(padded, top_k=5, subset=[0, 1, 2], show_progress=False),
        "subsets": index.search(
            padded, top_k=5, subset=[[0], *[[1, 2]] * (len(queries) - 1)], show_progress=False
        ),
    }
    token_scores = index.search_token_scores(padded, top_k=2, show_progress=False)
    answers["token_scores"] = [
        [(number, score, list(table.shape)) for number, score, table in hits]
        for hits in token_scores
    ]
    kept = sorted({number for hits in answers["search"] for number, _ in hits})
    rows = index.get_embeddings(kept)
    assert all(isinstance(found, torch.Tensor) for found in rows)
    np.savez(folder / "rows.npz", *(found.float().numpy() for found in rows))
    answers["rows"] = kept
    return answers


def pylate(kind, folder, docs, queries):
    """Add, add again, remove and search, also by PyLate's retriever."""
    from pylate import retrieve

    def opened():
        return kind(
            index_folder=str(folder), index_name="index", nbits=2, show_progress=False, device="cpu"
        )

    ids = [f"doc-{i}" for i in range(len(docs))]
    index = opened()
    index.add_documents(ids[:-ADDED_LATER], [torch.from_numpy(d) for d in docs[:-ADDED_LATER]])
    index.add_documents(ids[-ADDED_LATER:], [torch.from_numpy(d) for d in docs[-ADDED_LATER:]])
    index.remove_documents([ids[i] for i in REMOVED])
    index = opened()
    retriever = retrieve.ColBERT(index=index)
    return {
        "call": index(torch.stack(queries), k=5),
        "retrieve": retriever.retrieve(queries_embeddings=queries, k=5),
        "subset": retriever.retrieve(queries_embeddings=queries, k=5, subset=["doc-1", "doc-2"]),
        "one": retriever.retrieve(queries_embeddings=torch.stack(queries[:1]), k=1),
    }


def stanford(kind, folder, docs, queries):
    """The same with the older backend of PyLate; its rows as its own codec decodes them."""
    from pylate.indexes.stanford_nlp.indexing.codecs.residual_embeddings import ResidualEmbeddings

    def opened():
        return kind(
            index_folder=str(folder), index_name="index", nbits=2, embedding_size=docs[0].shape[1],
            ndocs=len(docs), ncells=64, centroid_score_threshold=0.0,
        )  # fmt: skip

    ids = [f"doc-{i}" for i in range(len(docs))]
    index = opened()
    index.add_documents(ids[:-ADDED_LATER], docs[:-ADDED_LATER])
    index.add_documents(ids[-ADDED_LATER:], docs[-ADDED_LATER:])
    index.remove_documents([ids[i] for i in REMOVED])
    index = opened()
    chunk = ResidualEmbeddings.load(str(folder / "index"), 0)
    np.savez(folder / "rows.npz", index.searcher.ranker.codec.decompress(chunk).numpy())
    return {"call": index([query.numpy() for query in queries], k=5)}


CLASSES = {
    "fast-plaid": ("fast_plaid.search", "FastPlaid", fast_plaid),
    "weft-fast-plaid": ("weft.integrations.fast_plaid", "FastPlaid", fast_plaid),
    "pylate": ("pylate.indexes", "PLAID", pylate),
    "weft-pylate": ("weft.integrations.pylate", "PLAID", pylate),
    "stanford": ("pylate.indexes.stanford_plaid", "StanfordPLAID", stanford),
}


def main():
    name, folder = sys.argv[1], Path(sys.argv[2])
    module, attribute, calls = CLASSES[name]
    kind = getattr(importlib.import_module(module), attribute)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    queries = [torch.from_numpy(query) for query in load(folder / "queries.npz")]
    answers = calls(kind, folder, load(folder / "docs.npz"), queries)
    (folder / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
