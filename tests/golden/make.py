# SPDX-License-Identifier: Apache-2.0
"""What the golden indexes hold, and how they were made: `python tests/golden/make.py FOLDER`.

Everything comes from Python's own generator, whose numbers are the same in every release, and from
square roots and divisions, which are the same on every machine. The answers in expected.json come
from the definition of MaxSim (tests/reference.py) in float64: over the rows as they were given, and
over the rows as docs/format.md says how to read them from the files (tests/format_reader.py).

Files of a format that was released are never made again: a new format gets a folder of its own.
"""

import dataclasses
import json
import random
import sys
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import weft
from format_reader import decode, meta, read, rotation_matrix
from reference import maxsim
from weft.types import defaults

KINDS = {
    "rows": (weft.IndexConfig(dim=48), False),
    "plane": (weft.IndexConfig(dim=48, nbits=4, kmeans_iterations=3, seed=5), True),
    "eight": (weft.IndexConfig(dim=32, nbits=8, kmeans_iterations=3, seed=6), True),
    "two": (weft.IndexConfig(dim=32, nbits=2, rerank="f16", kmeans_iterations=3), True),
}
"""Name -> configuration, and whether there are enough tokens for a codec."""
WITH_TEXTS = 48
"""Of this dim documents have texts, metadata, spans and windows; of another they are bare rows."""

N_DOCS = 60
N_FIRST = 45
"""Documents of the first commit; the second one uses its codec."""
N_QUERIES = 5
SYLLABLES = ["ba", "lo", "ne", "ri", "tu", "ké", "ßo", "語", "ma", "wi"]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents of one or more windows; the tokens of document 7 are none."""

    ids: list[str]
    windows: list[np.ndarray]
    parents: list[int]
    texts: list[str]
    metadata: list[dict]
    spans: list[np.ndarray]
    queries: list[np.ndarray]


def unit(numbers):
    """A float32 vector of unit length."""
    row = np.array(numbers, np.float64)
    return (row / np.sqrt((row * row).sum())).astype(np.float32)


def corpus(dim):
    """The documents of an index of so many dimensions, and queries beside them."""
    draw = random.Random(dim)

    def near(centre, spread):
        return unit([c + spread * (draw.random() + draw.random() - 1) for c in centre])

    centres = [near([0.0] * dim, 1.0).tolist() for _ in range(24)]
    found = Corpus([], [], [], [], [], [], [])
    for number in range(N_DOCS):
        words, places = [], []
        for window in range(3 if number % 10 == 3 and dim == WITH_TEXTS else 1):
            n_tokens = 0 if number == 7 else 4 + draw.randrange(9)
            rows = [near(draw.choice(centres), 0.4) for _ in range(n_tokens)]
            found.windows.append(np.array(rows, np.float32).reshape(-1, dim))
            found.parents.append(number)
            for _ in range(n_tokens):
                word = "".join(draw.choice(SYLLABLES) for _ in range(2 + window))
                start = sum(len(word) + 1 for word in words)
                words.append(word)
                places.append((start, start + len(word)))
            found.spans.append(np.array(places[len(places) - n_tokens :], int).reshape(-1, 2))
        found.ids.append(f"doc/{number:02d}" if number % 4 else f"日本 {number}")
        found.texts.append(" ".join(words))
        found.metadata.append({"number": number, "half": number / 2, "even": number % 2 == 0})
    for number in range(N_QUERIES):
        source = found.windows[11 * number + 2]
        found.queries.append(np.array([near(row.tolist(), 0.3) for row in source[:6]]))
    return found


def build(kind, folder):
    """Make the index of one kind: two commits."""
    config, has_codec = KINDS[kind]
    given = corpus(config.dim)
    few = dataclasses.replace(defaults, codec_tokens=300 if has_codec else 10**6, tuning_queries=8)
    index = weft.Index.create(folder, config)
    cut = given.parents.index(N_FIRST)
    with mock.patch("weft.lifecycle.builder.defaults", few), mock.patch("weft.tuner.defaults", few):
        for docs, windows in (
            (slice(0, N_FIRST), slice(0, cut)),
            (slice(N_FIRST, None), slice(cut, None)),
        ):
            more = {
                "texts": given.texts[docs],
                "metadata": given.metadata[docs],
                "spans": given.spans[windows],
                "parents": [parent - docs.start for parent in given.parents[windows]],
            }
            more = more if config.dim == WITH_TEXTS else {}
            index.add(given.ids[docs], given.windows[windows], **more)
    return index


def stored_windows(index):
    """The rows of every window, read from the files by the page alone; {stored id: rows}."""
    codec, found = None, {}
    body = json.loads(max(index.path.glob("manifest-*.json")).read_bytes())["body"]
    if (entry := body["fields"]["multi"]["codec"]) is not None:
        codec, _ = read(index.path / entry["file"])
        numbers = meta(codec, "Codec meta")
        turned = rotation_matrix(numbers["padded_dim"], numbers["seed"] % 2**64).T
    for path in sorted(index.path.glob("seg-*.weft")):
        arrays, _ = read(path)
        if "rows" in arrays:
            rows = arrays["rows"].astype(np.float64)
        else:
            nbits = meta(arrays, "Segment meta")["nbits"]
            rows = (decode(arrays, codec, nbits) @ turned)[:, : index.config.dim]
        ends = arrays["id_offsets"].tolist()
        ids = [arrays["id_bytes"][a:b].tobytes().decode() for a, b in pairwise(ends)]
        bounds = pairwise(arrays["doc_offsets"].tolist())
        found |= {name: rows[a:b] for name, (a, b) in zip(ids, bounds, strict=True)}
    return found


def best(query, windows):
    """[[id, score], ...] of all documents that are not empty, best first, by the definition."""
    scores = {}
    for name, rows in windows:
        if len(rows):
            score = float(maxsim(query.astype(np.float64), rows.astype(np.float64)))
            scores[name] = max(score, scores.get(name, score))
    ranked = sorted(scores.items(), key=lambda found: (-found[1], found[0].encode()))
    return [[name, round(score, 6)] for name, score in ranked]


def main(folder):
    """Make every index and record the answers of the definition."""
    answers = {}
    for kind in KINDS:
        index = build(kind, folder / kind)
        (folder / kind / "LOCK").unlink()
        given = corpus(index.config.dim)
        names = [given.ids[parent] for parent in given.parents]
        as_given = list(zip(names, given.windows, strict=True))
        as_stored = [(n.partition("\x1f")[0], rows) for n, rows in stored_windows(index).items()]
        answers[kind] = [
            {"given": best(query, as_given)[:5], "stored": best(query, as_stored)[:5]}
            for query in given.queries
        ]
    text = json.dumps(answers, ensure_ascii=False, indent=1)
    (folder / "expected.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
