# SPDX-License-Identifier: Apache-2.0
"""The manifest comes back as it was written, and any damage is told."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import weft
from weft.arrays import crc32c
from weft.checks import FrozenDict
from weft.errors import (
    CorruptIndexError,
    IncompatibleIndexError,
    InvalidArgumentError,
    NotFoundError,
    StorageError,
)
from weft.lifecycle import manifest as m
from weft.lifecycle.storage import Directory

SEGMENT = "seg-" + "0a" * 16
CODEC = "codec-" + "1b" * 16 + ".weft"
ENCODER = "encoder-" + "2c" * 16 + ".json"


def full_manifest(generation=17):
    segment = m.SegmentEntry(SEGMENT, 3, 5, 1, 40, documents=True)
    params = weft.SearchParams(budget=10_000)
    point = weft.OperatingPoint(10, 0.95, 0.97, True, params, None, "sampled documents", 0.123)
    return m.Manifest(
        generation,
        weft.IndexConfig(dim=96),
        weft.EncoderInfo("model", "st", 96, "f00", 32, None, {"prompt": "q: ", "lengths": [1, 2]}),
        m.CodecEntry(CODEC, 16, 64, 200_000, 100_000),
        (segment,),
        (point,),
        m.Tuning("sampled documents", 64, 200_000, "rows"),
        FrozenDict(
            {
                CODEC: m.FileEntry(100, "0badf00d"),
                segment.file: m.FileEntry(1_000, "deadbeef"),
                segment.documents_file: m.FileEntry(10, "00000000"),
                ENCODER: m.FileEntry(5_000, "00c0ffee"),
            }
        ),
        encoder_file=ENCODER,
    )


@pytest.fixture
def directory(tmp_path):
    return Directory(tmp_path)


def sign(body):
    data = m.canonical(body)
    return b'{"body":%b,"checksum":"%08x"}' % (data, crc32c(data))


def body_of(manifest):
    return json.loads(manifest.to_bytes())["body"]


@pytest.mark.parametrize("made", [full_manifest(), m.Manifest(1, weft.IndexConfig())])
def test_it_comes_back_as_it_was(made):
    assert m.parse(made.to_bytes(), made.name) == made


def test_it_is_canonical():
    data = full_manifest().to_bytes()
    body = data[len(b'{"body":') : data.rindex(b',"checksum"')]
    assert body == m.canonical(json.loads(body))
    assert json.loads(data)["checksum"] == f"{crc32c(body):08x}"
    assert full_manifest().name == "manifest-000017.json"


@given(st.data())
def test_any_edit_is_told(data):
    """A changed byte is an error; only white space between the tokens of JSON may differ."""
    good = full_manifest()
    raw = bytearray(good.to_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != raw[at]))
    try:
        found = m.parse(bytes(raw), good.name)
    except (CorruptIndexError, IncompatibleIndexError):
        return
    assert found == good


@given(st.integers(0, len(full_manifest().to_bytes()) - 2))
def test_a_torn_manifest_is_told(size):
    with pytest.raises(CorruptIndexError, match=r"manifest-000017\.json: damaged"):
        m.parse(full_manifest().to_bytes()[:size], full_manifest().name)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.sampled_from([None, *body_of(full_manifest())]),
)
def test_whatever_is_signed_is_read_as_hostile(value, key):
    body = value if key is None else {**body_of(full_manifest()), key: value}
    try:
        data = sign(body)
    except ValueError:  # a lone surrogate has no UTF-8
        return
    with contextlib.suppress(CorruptIndexError, IncompatibleIndexError):
        m.parse(data, "manifest-000017.json")


def test_deep_nesting_is_no_crash():
    with pytest.raises(CorruptIndexError):
        m.parse(b'{"body":' + b"[" * 100_000, "manifest-000001.json")


def test_a_newer_format_is_not_damage():
    body = {"format": 2, "unknown": True}
    with pytest.raises(IncompatibleIndexError, match=r"newer weft.*upgrade") as caught:
        m.parse(sign(body), "manifest-000001.json")
    assert (caught.value.found, caught.value.supported) == (2, 1)


@pytest.mark.parametrize(
    "name",
    [
        "../" + SEGMENT + ".multi.weft",
        "/etc/passwd",
        "seg-0.multi.weft",
        "manifest-000001.json",
        SEGMENT + ".multi.weft\n",
    ],
)
def test_it_names_no_file_outside(name):
    body = body_of(full_manifest())
    body["files"][name] = {"size": 1, "checksum": "00000000"}
    with pytest.raises(CorruptIndexError):
        m.parse(sign(body), "manifest-000017.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["files"].popitem(),
        lambda body: body["files"][CODEC].update(size=-1),
        lambda body: body["files"][CODEC].update(size=1.5),
        lambda body: body["files"][CODEC].update(checksum="xyz"),
        lambda body: body["fields"]["multi"]["segments"][0].update(n_docs=6),
        lambda body: body["fields"]["multi"]["segments"][0].update(n_tokens=True),
        lambda body: body["fields"]["multi"].update(codec=None),
        lambda body: body["config"].update(dim=0),
        lambda body: body["operating_points"][0]["params"].update(nprobe=0),
        lambda body: body["operating_points"][0].update(k="10"),
        lambda body: body.update(generation=-1),
    ],
)
def test_values_that_cannot_be(change):
    body = body_of(full_manifest())
    change(body)
    with pytest.raises(CorruptIndexError, match="damaged manifest"):
        m.parse(sign(body), "manifest-000017.json")


def test_publish_and_load(directory):
    for generation in (1, 2, 3):
        m.publish(directory, m.Manifest(generation, weft.IndexConfig()))
    assert directory.list() == [f"manifest-00000{g}.json" for g in (1, 2, 3)]
    assert m.load(directory).generation == 3
    assert m.load(directory, 2).generation == 2
    assert m.is_published(directory, m.Manifest(3, weft.IndexConfig()))
    assert not m.is_published(directory, m.Manifest(3, weft.IndexConfig(dim=7)))
    assert not m.is_published(directory, m.Manifest(4, weft.IndexConfig()))
    with pytest.raises(NotFoundError, match="no generation 9; there are 1, 2, 3"):
        m.load(directory, 9)


def test_a_generation_is_published_once(directory):
    m.publish(directory, m.Manifest(1, weft.IndexConfig()))
    with pytest.raises(StorageError, match="File exists"):
        m.publish(directory, m.Manifest(1, weft.IndexConfig(dim=7)))
    assert directory.list() == ["manifest-000001.json"]
    assert m.load(directory).config == weft.IndexConfig()


def test_generations_are_ordered_as_numbers(directory):
    for generation in (999_999, 1_000_000):
        m.publish(directory, m.Manifest(generation, weft.IndexConfig()))
    assert m.load(directory).generation == 1_000_000


def test_a_damaged_newest_manifest_is_named_with_the_way_on(directory):
    for generation in (1, 2, 3):
        m.publish(directory, m.Manifest(generation, weft.IndexConfig()))
    (directory.path / "manifest-000003.json").write_bytes(b"{}")
    with pytest.raises(CorruptIndexError) as caught:
        m.load(directory)
    assert "manifest-000003.json" in str(caught.value)
    assert f"Index.open({directory.path}, generation=2)".replace(
        str(directory.path), "path"
    ) in str(caught.value)
    assert caught.value.path == str(directory.path / "manifest-000003.json")
    for generation in (1, 2):
        (directory.path / f"manifest-00000{generation}.json").write_bytes(b"")
    with pytest.raises(CorruptIndexError, match="no other generation is left"):
        m.load(directory)


def test_a_manifest_under_the_wrong_name(directory):
    m.publish(directory, m.Manifest(1, weft.IndexConfig()))
    (directory.path / "manifest-000001.json").rename(directory.path / "manifest-000002.json")
    with pytest.raises(CorruptIndexError, match="says that it is generation 1"):
        m.load(directory)


def test_no_index(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(NotFoundError, match="no index there"):
            m.load(Directory(path))


def test_garbage_is_what_the_last_two_generations_do_not_name(directory):
    made = full_manifest(3)
    m.publish(directory, m.Manifest(1, weft.IndexConfig()))
    m.publish(directory, m.Manifest(2, weft.IndexConfig()))
    m.publish(directory, made)
    theirs = ["notes.txt", "seg.weft.bak", "manifest.json", "LOCK"]
    ours = ["seg-" + "ff" * 16 + ".multi.weft", "tmp-1.json", "codec-" + "ff" * 16 + ".weft"]
    for name in [*theirs, *ours, *made.files]:
        (directory.path / name).touch()
    directory.make_folder("build-" + "ee" * 16)
    assert m.garbage(directory) == sorted([*ours, "build-" + "ee" * 16, "manifest-000001.json"])
    (directory.path / made.name).write_bytes(b"damaged")
    assert m.garbage(directory) == ["build-" + "ee" * 16, "tmp-1.json"]


@pytest.mark.parametrize("generation", [0, -1, "1", 1.0, True, 10**9])
def test_numbers_that_are_no_generation(generation):
    with pytest.raises(InvalidArgumentError, match="generation="):
        m.check_generation(generation)
