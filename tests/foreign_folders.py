# SPDX-License-Identifier: Apache-2.0
"""Index folders as other engines write them, made value by value from their published layouts."""

import json
import pickle
import sqlite3

import numpy as np

from helpers import unit_rows


class Quantised:
    """Documents as a PLAID engine stores them, and the rows that it would decode."""

    def __init__(self, docs, nbits, seed=5, n_centroids=12):
        random = np.random.default_rng(seed)
        self.docs, self.nbits, self.dim = docs, nbits, docs[0].shape[1]
        self.centroids = unit_rows(random, n_centroids, self.dim).astype(np.float16)
        levels = (np.arange(2**nbits) + 0.5) / 2**nbits - 0.5
        self.weights = (0.8 * levels).astype(np.float32)
        self.cutoffs = ((self.weights[1:] + self.weights[:-1]) / 2).astype(np.float32)
        self.lengths = [len(doc) for doc in docs]
        self.codes, self.residuals, self.decoded = [], [], []
        for doc in docs:
            rows = [self._encode(row) for row in doc]
            self.codes.append(np.array([code for code, _, _ in rows], np.int64))
            packed = [bits for _, bits, _ in rows]
            width = self.dim * nbits // 8
            self.residuals.append(np.array(packed, np.uint8).reshape(len(doc), width))
            decoded = np.array([values for _, _, values in rows]).reshape(len(doc), self.dim)
            lengths = np.linalg.norm(decoded, axis=1, keepdims=True)
            self.decoded.append(decoded / lengths)

    def _encode(self, row):
        """Nearest centroid; the bucket of each value, low bits first, bytes filled from the top."""
        code = int(np.argmax(self.centroids.astype(np.float64) @ row))
        cutoffs, weights = self.cutoffs.tolist(), self.weights.tolist()
        bits, values = [], []
        for value, centre in zip(row.tolist(), self.centroids[code].tolist(), strict=True):
            bucket = sum(value - centre > cutoff for cutoff in cutoffs)
            bits += [(bucket >> b) & 1 for b in range(self.nbits)]
            values.append(centre + weights[bucket])
        packed = [
            sum(bit << (7 - place) for place, bit in enumerate(bits[i : i + 8]))
            for i in range(0, len(bits), 8)
        ]
        return code, packed, values

    def chunks(self, size):
        """(number, documents of it, codes, residuals) of each chunk."""
        for number, first in enumerate(range(0, len(self.docs), size)):
            some = slice(first, first + size)
            codes, residuals = self.codes[some], self.residuals[some]
            yield number, some, np.concatenate(codes), np.concatenate(residuals)

    def header(self, size, **more):
        n_chunks = -(-len(self.docs) // size)
        n_tokens = sum(self.lengths)
        return {
            "num_chunks": n_chunks, "nbits": self.nbits, "num_documents": len(self.docs),
            "num_embeddings": n_tokens, "avg_doclen": n_tokens / len(self.docs),
            "num_partitions": len(self.centroids), **more,
        }  # fmt: skip


def write_npy_folder(folder, found, size=7, *, merged=False, **header):
    """fast-plaid: a file for each chunk, or since 1.7 one for all, longer than its rows."""
    folder.mkdir(parents=True)
    np.save(folder / "centroids.npy", found.centroids)
    np.save(folder / "bucket_cutoffs.npy", found.cutoffs)
    np.save(folder / "bucket_weights.npy", found.weights)
    np.save(folder / "avg_residual.npy", np.zeros(found.dim, np.float16))
    write_json(folder / "metadata.json", found.header(size, **header))
    rows = {"codes": {}, "residuals": {}}
    for number, some, codes, residuals in found.chunks(size):
        write_json(folder / f"doclens.{number}.json", found.lengths[some])
        for name, array in (("codes", codes), ("residuals", residuals)):
            rows[name][f"{number}.{name}.npy"] = array
    for name, arrays in rows.items():
        if merged:
            whole = np.concatenate([*arrays.values(), *([[arrays[f"0.{name}.npy"][0]] * 5])])
            np.save(folder / f"merged_{name}.npy", whole)
            entries = {
                key: {"rows": len(array), "merged": True, "mtime": None}
                for key, array in arrays.items()
            }
            write_json(folder / f"merged_{name}.manifest.json", entries)
        else:
            for key, array in arrays.items():
                np.save(folder / key, array)
    return folder


def write_next_plaid(folder, found, size=7, *, rows=False):
    """next-plaid: as fast-plaid, but f32 centroids, a stamp, and the rows while it is small."""
    write_npy_folder(folder, found, size, next_plaid_compatible=True)
    np.save(folder / "centroids.npy", found.centroids.astype(np.float32))
    if rows:
        np.save(folder / "embeddings.npy", np.concatenate(found.docs).astype(np.float32))
        write_json(folder / "embeddings_lengths.json", found.lengths)
    return folder


def write_colbert(folder, found, size=7):
    """ColBERT: the same numbers as files of torch."""
    import torch

    folder.mkdir(parents=True)
    config = {"dim": found.dim, "nbits": found.nbits, "checkpoint": "colbert-ir/colbertv2.0"}
    header = {"config": config, "num_chunks": -(-len(found.docs) // size)}
    write_json(folder / "metadata.json", header)
    torch.save(torch.from_numpy(found.centroids), folder / "centroids.pt")
    torch.save(tuple(map(torch.from_numpy, (found.cutoffs, found.weights))), folder / "buckets.pt")
    torch.save(torch.tensor([0.1]), folder / "avg_residual.pt")
    for number, some, codes, residuals in found.chunks(size):
        write_json(folder / f"doclens.{number}.json", found.lengths[some])
        torch.save(torch.from_numpy(codes.astype(np.int32)), folder / f"{number}.codes.pt")
        torch.save(torch.from_numpy(residuals), folder / f"{number}.residuals.pt")
    return folder


def write_id_maps(folder, ids, *, protocol=4):
    """PyLate's two pickles; `ids`: {number: id}."""
    for name, found in (
        ("documents_ids_to_plaid_ids", {doc_id: number for number, doc_id in ids.items()}),
        ("plaid_ids_to_documents_ids", ids),
    ):
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(found, protocol))


def write_metadata(folder, columns, rows):
    """The SQLite table of fast-plaid and next-plaid."""
    connection = sqlite3.connect(folder / "metadata.db")
    names = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
    connection.execute(f'CREATE TABLE METADATA ("_subset_" INTEGER PRIMARY KEY, {names})')
    marks = ", ".join("?" * (len(columns) + 1))
    connection.executemany(
        f"INSERT INTO METADATA VALUES ({marks})",
        [(number, *(row.get(name) for name in columns)) for number, row in enumerate(rows)],
    )
    connection.commit()
    connection.close()


def write_json(path, value):
    path.write_text(json.dumps(value))
