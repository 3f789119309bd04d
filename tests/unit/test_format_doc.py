# SPDX-License-Identifier: Apache-2.0
"""Files of the engine, read by what docs/format.md says of them."""

import json
import re
import sqlite3
from itertools import pairwise

import numpy as np
import pytest

import weft
from format_reader import NUMPY, PAGE, crc32c, decode, meta, read, rotation_matrix, table
from weft import _native

DIM = 70  # padded to 96: blocks of 64 and 32
LENGTHS = [5, 0, 300, 1, 700, 94, 400, 500]
IDS = ["e", "ß", "a", "long " * 9, "日本", "Z", "b", "aa"]


def check_arrays(arrays, heading, present, names):
    """Names, order, dtypes and shapes are those of the page's table."""
    rows = [row for row in table(heading) if row["present"] in {"always", *present}]
    assert list(arrays) == [row["array"] for row in rows]
    for row in rows:
        array = arrays[row["array"]]
        shape = eval(row["shape"].replace("/", "//"), {}, names | arrays)
        assert (array.dtype, list(array.shape)) == (np.dtype("<" + NUMPY[row["dtype"]]), shape), row


@pytest.fixture(scope="module")
def rows():
    values = np.random.default_rng(1).normal(size=(sum(LENGTHS), DIM)).astype(np.float32)
    return _native.normalize_rows(values)[0]


@pytest.fixture(scope="module", params=[4, 1, 2, 8], ids="nbits={}".format)
def codec(request, rows):
    return _native.Codec.train(
        rows, nbits=request.param, n_coarse=16, n_fine=40, iterations=2, seed=2**63 + 5,
        max_sample_bytes=1 << 20, threads=1, progress=None,
    )  # fmt: skip


def write_codec(codec, folder):
    path = folder / "codec.weft"
    with path.open("wb+") as file:
        checksum = codec.write(file.fileno(), str(path))
    arrays, found = read(path)
    assert found == checksum
    return arrays, meta(arrays, "Codec meta")


def write_segment(codec, rows, rerank, folder):
    path = folder / f"{rerank}.weft"
    encoded = [id.encode() for id in IDS]
    with path.open("wb+") as file:
        stats = _native.write_segment(
            file.fileno(), str(path), codec, rows, offsets_of(LENGTHS),
            np.frombuffer(b"".join(encoded), np.uint8), offsets_of(map(len, encoded)),
            rerank, 1, None,
        )  # fmt: skip
    arrays, checksum = read(path)
    assert (checksum, path.stat().st_size) == (stats["checksum"], stats["bytes"])
    return arrays, meta(arrays, "Segment meta"), _native.Segment.open(str(path), codec)


def offsets_of(lengths):
    return np.concatenate([[0], np.cumsum(list(lengths))]).astype(np.uint64)


def test_checksum():
    assert crc32c(b"123456789") == 0xE3069283 == _native.crc32c(b"123456789")
    assert "`123456789` is `e3069283`" in PAGE


def test_codec(codec, tmp_path):
    arrays, numbers = write_codec(codec, tmp_path)
    check_arrays(arrays, "Codec", set(), numbers)
    assert (numbers["version"], numbers["nbits"]) == (3, codec.nbits)
    assert (numbers["dim"], numbers["padded_dim"]) == (DIM, 96)
    assert np.uint64(numbers["seed"] % 2**64) == 2**63 + 5
    assert checksum_of(arrays, numbers) == codec.checksum


def checksum_of(arrays, numbers):
    head = [numbers["dim"], numbers["nbits"], numbers["seed"] % 2**64]
    head += [*arrays["scales"].view("<u4").tolist(), *arrays["error"].tolist()]
    crc = crc32c(np.array(head, "<u8").tobytes())
    for name in ("child_offsets", "coarse", "fine"):
        crc = crc32c(arrays[name].tobytes(), crc)
    for ancestor, children in zip(arrays["ancestors"], arrays["ancestor_children"], strict=True):
        crc = crc32c(children.tobytes(), crc32c(ancestor.tobytes(), crc))
    return crc


def test_grown_codec(codec, rows, tmp_path):
    """Its file, and an older segment read with it, as the page says."""
    trained, _ = write_codec(codec, tmp_path)
    segment, _, _ = write_segment(codec, rows, "none", tmp_path)
    grown = codec.grow(
        rows, n_more=25, iterations=2, n_tokens=5_000, max_sample_bytes=1 << 20, threads=1,
        used=[], progress=None,
    )  # fmt: skip
    arrays, numbers = write_codec(grown, tmp_path)
    check_arrays(arrays, "Codec", set(), numbers)
    assert (numbers["n_ancestors"], numbers["n_fine"]) == (1, 65)
    assert checksum_of(arrays, numbers) == grown.checksum
    assert arrays["ancestors"].tolist() == [codec.checksum]
    assert np.array_equal(arrays["ancestor_children"][0], np.diff(trained["child_offsets"]))
    opened = _native.Segment.open(str(tmp_path / "none.weft"), grown)
    opened.verify()
    found = np.concatenate([opened.rows(doc) for doc in range(len(LENGTHS))])
    x = decode(segment, arrays, codec.nbits)
    matrix = rotation_matrix(96, numbers["seed"] % 2**64)
    assert np.allclose(found, (x @ matrix.T)[:, :DIM], atol=1e-5)


@pytest.mark.parametrize("rerank", ["none", "plane", "f16"])
def test_segment(codec, rows, rerank, tmp_path):
    if rerank == "plane" and codec.nbits != 4:
        rerank = "none"  # planes need 4 bits
    trained, codec_numbers = write_codec(codec, tmp_path)
    arrays, numbers, segment = write_segment(codec, rows, rerank, tmp_path)
    width = 2 if numbers["n_docs"] <= 65_536 else 3
    names = numbers | {"n_fine": codec.n_fine, "width": width}
    names["n_id_bytes"] = int(arrays["id_offsets"][-1])
    check_arrays(arrays, "Segment", {"codes", rerank}, names)
    assert numbers["codec_checksum"] == codec.checksum
    assert numbers["rerank"] == ["none", "plane", "f16"].index(rerank)
    check_ids(arrays)
    check_lists(arrays, trained, width)

    x = decode(arrays, trained, numbers["nbits"])
    inverse = rotation_matrix(numbers["padded_dim"], codec_numbers["seed"] % 2**64).T
    tokens = (x @ inverse)[:, :DIM]
    if rerank == "f16":
        assert np.array_equal(arrays["rows"], rows)
        tokens = arrays["rows"]
    for doc, (first, last) in enumerate(pairwise(arrays["doc_offsets"])):
        np.testing.assert_allclose(segment.rows(doc), tokens[first:last], rtol=0, atol=2e-6)
    if codec.nbits >= 4:
        np.testing.assert_allclose(tokens, rows, rtol=0, atol=0.08)


def check_ids(arrays):
    raw, ends = arrays["id_bytes"].tobytes(), arrays["id_offsets"].tolist()
    ids = [raw[a:b] for a, b in pairwise(ends)]
    assert [id.decode() for id in ids] == IDS
    assert [ids[doc] for doc in arrays["id_order"]] == sorted(ids)
    assert np.array_equal(arrays["doc_offsets"], offsets_of(LENGTHS))


def check_lists(arrays, trained, width):
    fine = trained["child_offsets"][arrays["parents"]] + arrays["children"]
    docs = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    padded = arrays["postings"]
    assert not padded[-4:].any()
    postings = padded[:-4].reshape(-1, width) @ (256 ** np.arange(width))
    ends = arrays["list_offsets"].tolist()
    for centroid, (begin, end) in enumerate(pairwise(ends)):
        assert postings[begin:end].tolist() == sorted(set(docs[fine == centroid].tolist()))


def test_segment_without_codes(rows, tmp_path):
    arrays, numbers, segment = write_segment(None, rows, "none", tmp_path)
    check_arrays(arrays, "Segment", {"f16"}, numbers | {"n_id_bytes": arrays["id_bytes"].size})
    assert (numbers["nbits"], numbers["padded_dim"], numbers["codec_checksum"]) == (0, 0, 0)
    assert numbers["rerank"] == 2
    assert np.array_equal(arrays["rows"], rows)
    assert not segment.has_codes


def test_tombstones(tmp_path):
    index = weft.Index.create(tmp_path / "a.index", weft.IndexConfig(dim=4))
    index.add([f"d{i}" for i in range(130)], [np.eye(4)] * 130)
    index.delete(["d0", "d5", "d64", "d129"])
    (path,) = index.path.glob("seg-*.del-*.weft")
    arrays, checksum = read(path)
    numbers = meta(arrays, "Tombstones meta")
    check_arrays(arrays, "Tombstones", set(), numbers)
    assert numbers == {"version": 1, "n_docs": 130}
    assert arrays["deleted"].tolist() == [1 + 2**5, 1, 2]
    body = json.loads(max(index.path.glob("manifest-*.json")).read_bytes())["body"]
    assert body["files"][path.name]["checksum"] == f"{checksum:08x}"
    (segment,) = body["fields"]["multi"]["segments"]
    counts = {"n_docs": 4, "n_windows": 4, "n_empty": 0, "n_tokens": 16}
    assert segment["tombstones"] == {"file": path.name, **counts}
    assert sorted(segment) == [
        "dense_drift",
        "documents",
        "drift",
        "fields",
        *sorted(counts),
        "name",
        "tombstones",
    ]


@pytest.mark.parametrize("impacts", [False, True])
def test_sparse(tmp_path, impacts):
    field = weft.SparseConfig(impacts=impacts)
    index = weft.Index.create(tmp_path / "a.index", weft.IndexConfig(sparse=field))
    vectors = [{7: 0.5, 3: 1.25}, {}, {7: 2.0}]
    index.add(["a", "b", "c"], sparse=vectors)
    (path,) = index.path.glob("seg-*.sparse.weft")
    arrays, _ = read(path)
    numbers = meta(arrays, "Sparse meta")
    assert numbers == {"version": 1, "n_docs": 3}
    if impacts:
        assert arrays["weights"].dtype == np.int32
        arrays["weights"] = (arrays["weights"] / 100).astype(np.float32)
    sizes = {"n_terms": 2, "n_postings": 3}
    check_arrays(arrays, "Sparse vectors", set(), numbers | sizes)
    lists = {
        int(term): dict(zip(arrays["docs"][a:b].tolist(), arrays["weights"][a:b], strict=True))
        for term, (a, b) in zip(arrays["terms"], pairwise(arrays["offsets"]), strict=True)
    }
    assert lists == {3: {0: 1.25}, 7: {0: 0.5, 2: 2.0}}
    assert arrays["lengths"].tolist() == [2, 0, 1]


@pytest.fixture
def index(tmp_path):
    made = weft.Index.create(tmp_path / "notes.index", weft.IndexConfig(dim=4))
    with made.writer() as writer:
        writer.add(
            ["a"], [np.eye(4, dtype=np.float32)[:3]], texts=["añb c"],
            metadata=[{"year": 2024}], spans=[np.array([[3, 5], [1, 3], [0, 5]])],
        )  # fmt: skip
    return made


def test_manifest(index, tmp_path):
    path = max((tmp_path / "notes.index").glob("manifest-*.json"))
    outer = json.loads(path.read_bytes())
    assert set(outer) == {"body", "checksum"}
    body = outer["body"]
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert outer["checksum"] == f"{crc32c(canonical.encode()):08x}"
    assert sorted(body) == [row["field"] for row in table("Manifest")]
    assert (body["format"], list(body["fields"])) == (1, ["multi"])
    assert re.fullmatch(r"manifest-\d{6,}\.json", path.name)
    assert int(path.stem.split("-")[1]) == body["generation"]
    for name, entry in body["files"].items():
        file = path.parent / name
        data = file.read_bytes()
        assert set(entry) == {"size", "checksum"}
        found = read(file)[1] if file.suffix == ".weft" else crc32c(data)
        assert (entry["size"], entry["checksum"]) == (len(data), f"{found:08x}")


def test_documents(index, tmp_path):
    (path,) = (tmp_path / "notes.index").glob("seg-*.docs.sqlite")
    statements = re.search(r"```sql\n(.*?)```", PAGE, re.DOTALL)[1]
    expected, found = sqlite3.connect(":memory:"), sqlite3.connect(path)
    expected.executescript(statements)
    schema = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
    assert found.execute(schema).fetchall() == expected.execute(schema).fetchall()
    assert found.execute("PRAGMA user_version").fetchone() == (1,)
    assert found.execute("SELECT * FROM document").fetchall() == [(0, 1, "añb c")]
    assert found.execute("SELECT * FROM metadata").fetchall() == [(0, "year", "int", 2024)]
    (blob,) = found.execute("SELECT places FROM spans WHERE window = 0").fetchone()
    assert blob == bytes([1, 6, 2, 3, 2, 1, 5])  # +3 and 2 long, -2 and 2, -1 and 5
