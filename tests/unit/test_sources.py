# SPDX-License-Identifier: Apache-2.0
"""Files to documents and to embeddings: what is read, what is refused, what is counted."""

import gzip
import json
import struct
from itertools import pairwise

import numpy as np
import pytest

from weft import sources
from weft.errors import InvalidArgumentError, NotFoundError


def read(source):
    return {document.id: document for document in source}


def write_lines(path, lines):
    data = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_folder(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / "b" / "c" / "notes.md").write_text("Schlüssel 鍵\r\nzwei", newline="")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfwith a mark")
    (tmp_path / "empty.rst").touch()
    (tmp_path / "left-out.html").write_text("<p>")
    (tmp_path / ".git" / "hidden.txt").write_text("no")
    source = sources.folder(tmp_path)
    documents = read(source)
    assert list(documents) == ["a.txt", "b/c/notes.md", "empty.rst"]
    assert documents["a.txt"].text == "with a mark"
    assert documents["b/c/notes.md"].text == "Schlüssel 鍵\r\nzwei"
    assert documents["empty.rst"].text == ""
    assert source.n_bytes == source.n_bytes_read > 0
    assert source.n_read == 3
    assert source.n_skipped == 0


def test_folder_without_texts(tmp_path):
    with pytest.raises(NotFoundError, match=r"no \.txt, \.md, \.rst files"):
        sources.folder(tmp_path)
    with pytest.raises(NotFoundError, match="no such folder"):
        sources.folder(tmp_path / "absent")


def test_a_file_that_is_not_utf8(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    (tmp_path / "good.txt").write_text("tea")
    with pytest.raises(InvalidArgumentError, match=r"bad\.txt: not UTF-8 \(byte 3\)"):
        list(sources.folder(tmp_path))
    source = sources.folder(tmp_path, on_error="skip")
    assert list(read(source)) == ["good.txt"]
    assert (source.n_read, source.n_skipped) == (1, 1)
    assert "bad.txt" in source.messages[0]


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_beir(tmp_path, name):
    rows = [
        {"_id": "a", "title": "Keys", "text": "Rotate them.", "year": 2024, "score": 0.5},
        {"id": 7, "text": "no title", "metadata": {"lang": "en", "tags": ["x"]}, "gone": None},
        {"_id": "c", "title": " ", "text": "", "draft": True, "id": "second"},
    ]
    path = write_lines(tmp_path / name, [json.dumps(row) for row in rows] + ["", "  "])
    source = sources.read(tmp_path)
    documents = read(source)
    assert documents["a"].text == "Keys\nRotate them."
    assert documents["a"].metadata == {"year": 2024, "score": 0.5}
    assert documents["7"].text == "no title"
    assert documents["7"].metadata == {"lang": "en"}
    assert documents["c"].text == ""
    assert documents["c"].metadata == {"draft": True, "id": "second"}
    assert source.dropped_fields == {"tags": 1}
    assert source.n_bytes == source.n_bytes_read == path.stat().st_size
    assert read(sources.read(path)) == documents


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"x\.jsonl:2: not JSON"),
        (b"[1]", r"x\.jsonl:2: list, expected an object"),
        (b'{"text": "t"}', r"x\.jsonl:2: no _id or id"),
        (b'{"_id": "a"}', r"x\.jsonl:2: no text"),
        (b'{"_id": "a", "text": null}', r"x\.jsonl:2: no text"),
        (b'{"_id": 1.5, "text": "t"}', r"x\.jsonl:2: _id=1\.5: expected a string"),
        (b'{"_id": true, "text": "t"}', r"x\.jsonl:2: _id=True: expected a string"),
        (b'{"_id": "a", "text": ["t"]}', r"x\.jsonl:2: text: list, expected a string"),
        (b'{"_id": "a", "title": 3, "text": "t"}', r"x\.jsonl:2: title: int, expected a string"),
        (b'{"_id": "\xff", "text": "t"}', r"x\.jsonl:2: not UTF-8"),
    ],
)
def test_a_line_that_cannot_be_used(tmp_path, line, message):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"_id": "0", "text": "t"}\n' + line + b'\n{"_id": "9", "text": "t"}\n')
    with pytest.raises(InvalidArgumentError, match=message):
        list(sources.read(path))
    source = sources.read(path, on_error="skip")
    assert list(read(source)) == ["0", "9"]
    assert source.n_skipped == 1
    assert len(source.messages) == 1
    assert list(read(source)) == ["0", "9"]  # a second round starts afresh
    assert source.n_skipped == 1


def test_damaged_gzip(tmp_path):
    row = json.dumps({"_id": "a", "text": "t" * 10_000})
    path = write_lines(tmp_path / "x.jsonl.gz", [row])
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(InvalidArgumentError, match=r"x\.jsonl\.gz: damaged gzip data"):
        list(sources.read(path))
    path.write_bytes(b"not gzip at all")
    with pytest.raises(InvalidArgumentError, match=r"x\.jsonl\.gz: damaged gzip data"):
        list(sources.read(path, on_error="skip"))


def test_tsv(tmp_path):
    path = write_lines(tmp_path / "x.tsv", ["id\ttext\ttitle", 'a\tsays "no"', "b\ttext\tTitle"])
    documents = read(sources.read(path))
    assert {name: document.text for name, document in documents.items()} == {
        "a": 'says "no"',
        "b": "Title\ntext",
    }
    write_lines(path, ["a\tfine", "alone"])
    with pytest.raises(InvalidArgumentError, match=r"x\.tsv:2: 1 columns, expected id, text"):
        list(sources.read(path))


def test_reading_is_lazy(tmp_path):
    lines = [json.dumps({"_id": str(i), "text": "word " * 200}) for i in range(2_000)]
    source = sources.read(write_lines(tmp_path / "x.jsonl", lines))
    next(iter(source))
    assert 0 < source.n_bytes_read < source.n_bytes / 4


def test_unknown_kinds(tmp_path):
    (tmp_path / "x.pdf").touch()
    with pytest.raises(InvalidArgumentError, match=r"x\.pdf: expected a folder, or a file"):
        sources.read(tmp_path / "x.pdf")
    for name in ("absent", "absent.jsonl", "absent.tsv"):
        with pytest.raises(NotFoundError, match="no such file"):
            sources.read(tmp_path / name)
    with pytest.raises(InvalidArgumentError, match="on_error='ignore'"):
        sources.folder(tmp_path.parent, on_error="ignore")


def packed(n_docs=40, dim=8, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 9, n_docs)
    offsets = np.r_[0, np.cumsum(lengths)]
    return rng.standard_normal((offsets[-1], dim)).astype(np.float32), offsets


def gathered(source):
    """All of a source: ids, and one matrix per document."""
    ids, matrices = [], []
    for names, (values, offsets) in source:
        assert offsets[0] == 0
        assert len(values) == offsets[-1]
        ids += names
        matrices += [np.asarray(values[a:b]) for a, b in pairwise(offsets)]
    return ids, matrices


def write_safetensors(path, **tensors):
    names = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int64": "I64"}
    header, data = {"__metadata__": {"by": "test"}}, b""
    for name, array in tensors.items():
        raw = array.tobytes()
        header[name] = {
            "dtype": names[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)
    return path


@pytest.mark.parametrize("block", [1, 7, 65_536])
def test_npy(tmp_path, monkeypatch, block):
    monkeypatch.setattr(sources, "_BLOCK_TOKENS", block)
    values, offsets = packed()
    np.save(tmp_path / "values.npy", values.astype(np.float16))
    np.save(tmp_path / "offsets.npy", offsets.astype(np.uint64))
    source = sources.embeddings(tmp_path / "values.npy")
    assert (source.dim, source.n_docs, source.n_tokens) == (8, 40, len(values))
    ids, matrices = gathered(source)
    assert ids == [str(i) for i in range(40)]
    for i, matrix in enumerate(matrices):
        np.testing.assert_array_equal(matrix, values[offsets[i] : offsets[i + 1]].astype("f2"))
    (tmp_path / "ids.txt").write_text("".join(f"p {i}\u2028\n" for i in range(40)))
    assert gathered(sources.embeddings(tmp_path / "values.npy"))[0][3] == "p 3\u2028"


def test_safetensors(tmp_path):
    values, offsets = packed()
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    expected = (bits.astype(np.uint32) << 16).view(np.float32)
    for stored, wanted in ((values, values), (bits, expected)):
        path = write_safetensors(tmp_path / "x.safetensors", values=stored, offsets=offsets)
        _, matrices = gathered(sources.embeddings(path))
        np.testing.assert_array_equal(np.concatenate(matrices), wanted)


def test_embeddings_that_cannot_be_used(tmp_path):
    values, offsets = packed()
    np.save(tmp_path / "v.npy", values)
    with pytest.raises(NotFoundError, match=r"offsets\.npy: no such file"):
        sources.embeddings(tmp_path / "v.npy")
    for bad in (offsets + 1, offsets[::-1], offsets.astype(float), offsets[:-2], offsets[None]):
        np.save(tmp_path / "offsets.npy", bad)
        with pytest.raises(InvalidArgumentError, match="offsets"):
            sources.embeddings(tmp_path / "v.npy")
    np.save(tmp_path / "offsets.npy", offsets)
    (tmp_path / "few.txt").write_text("a\nb\n")
    with pytest.raises(InvalidArgumentError, match="2 ids, expected 40"):
        sources.embeddings(tmp_path / "v.npy", ids=tmp_path / "few.txt")
    np.save(tmp_path / "int.npy", np.zeros((3, 4), np.uint16))
    with pytest.raises(InvalidArgumentError, match="uint16, expected float16"):
        sources.embeddings(tmp_path / "int.npy")
    np.save(tmp_path / "pickle.npy", np.array([{"no": 1}], object), allow_pickle=True)
    with pytest.raises(InvalidArgumentError, match=r"not a \.npy array"):
        sources.embeddings(tmp_path / "pickle.npy")
    path = write_safetensors(tmp_path / "x.safetensors", values=values)
    with pytest.raises(InvalidArgumentError, match="no tensor 'offsets'"):
        sources.embeddings(path)


def test_damaged_safetensors(tmp_path):
    values, offsets = packed(n_docs=3)
    path = write_safetensors(tmp_path / "x.safetensors", values=values, offsets=offsets)
    whole = path.read_bytes()
    header = json.loads(whole[8 : 8 + struct.unpack("<Q", whole[:8])[0]])
    header["values"]["data_offsets"][1] += 8
    head = json.dumps(header).encode()
    for data in (
        b"", whole[:5], whole[:-1], struct.pack("<Q", 2**40) + whole[8:],
        struct.pack("<Q", 4) + b"null", struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 2) + b"{x",
        struct.pack("<Q", len(head)) + head + whole[-values.nbytes :],
    ):  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(InvalidArgumentError, match=r"x\.safetensors: (not a|no tensor)"):
            sources.embeddings(path)
