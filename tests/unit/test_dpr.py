# SPDX-License-Identifier: Apache-2.0
"""Two towers in the layout of DPR and CCP, compared with the recipe written in loops."""

import dataclasses
import io
import json
import math
import pickle
import shutil
import zipfile

import numpy as np
import pytest

import tiny_towers
import weft
from helpers import assert_ranking
from tiny_towers import N_HIDDEN
from weft import encoders
from weft.errors import IncompatibleIndexError, InvalidArgumentError

QUERIES = ["where is the door?", "  the key ", "鍵は一度"]
PASSAGES = [
    "The door\nIt is behind the house.",
    "no title here",
    "Das Schloss\n  die Tür ist alt  ",
    "the key\n" + "rotate the signing key, " * 9,
    "a long title of " * 9 + "\n" + "the lock is turned once every year " * 9,
    "\nan empty title",
]
LONG = "the key\n" + "rotate the signing key, then open the door of the house; " * 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_towers.write_dpr(tmp_path_factory.mktemp("dpr") / "model")


def load(folder, **options):
    return encoders.load(folder, device="cpu", options=options)


def rows(encoder, texts):
    return np.concatenate([pieces[0].values for pieces in encoder.encode_documents(texts)])


def text_ids(text):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tiny_towers.tokenizer_json())
    return tokenizer.encode(text, add_special_tokens=False).ids


def pair_ids(title, text, length=40):
    """<s> A </s></s> B </s>, the longer one cut first; without a title a single sequence."""
    b = text_ids(text.strip())
    if not title:
        return [0, *b[: length - 2], 2]
    a, room = text_ids(title), length - 4
    while len(a) + len(b) > room:
        (a if len(a) > len(b) else b).pop()
    return [0, *a, 2, 2, *b, 2]


def parts(document):
    title, found, text = document.partition("\n")
    return (title, text) if found else ("", document)


def plain_vector(side, ids, *, pooling="cls", length=40, state=None):
    """Padded to the full length, as the original does."""
    import torch

    state = state or tiny_towers.dpr_weights()
    prefix = f"{side}_model.backbone."
    tower = tiny_towers.xlmr(0)
    tower.load_state_dict(
        {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)},
        strict=False,
    )
    padded = torch.tensor([ids + [1] * (length - len(ids))])
    with torch.no_grad():
        output = tower(padded, attention_mask=(padded != 1).long())
    if pooling == "cls_pooler":
        return output.pooler_output[0].double().numpy()
    states = output.last_hidden_state[0].double().numpy()
    return states[0] if pooling == "cls" else states[: len(ids)].mean(axis=0)


def query_vector(text, **options):
    return plain_vector("question", pair_ids("", text), **options)


def passage_vector(document, **options):
    return plain_vector("ctx", pair_ids(*parts(document)), **options)


def assert_products(hits, scores, longest):
    """Compare hits with inner products of at most `longest`: rows are stored with errors of their
    own length."""
    scaled = hits.replace(dataclasses.replace(hit, score=hit.score / longest) for hit in hits)
    assert_ranking(scaled, {name: score / longest for name, score in scores.items()})


@pytest.mark.parametrize("pooling", [None, "cls", "cls_pooler", "avg"])
def test_the_recipe(folder, pooling):
    options = {} if pooling is None else {"pooling": pooling}
    encoder = load(folder, on_long="truncate", **options)
    pooling = pooling or "cls"
    norm = encoder.info.settings["max_norm"]
    assert encoder.info.dim == N_HIDDEN + 1
    found = np.concatenate([one.values for one in encoder.encode_queries(QUERIES)])
    expected = np.array([query_vector(text, pooling=pooling) for text in QUERIES])
    np.testing.assert_allclose(found[:, :-1] / norm, expected, atol=1e-5)
    assert not found[:, -1].any()
    found = rows(encoder, PASSAGES)
    expected = np.array([passage_vector(text, pooling=pooling) for text in PASSAGES])
    np.testing.assert_allclose(found[:, :-1] * norm, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)
    for side, texts, plain in (
        ("query", QUERIES, query_vector),
        ("document", PASSAGES, passage_vector),
    ):
        expected = np.array([plain(text, pooling=pooling) for text in texts])
        np.testing.assert_allclose(encoder.plain_vectors(texts, side), expected, atol=1e-5)


def test_the_layout_of_the_checkpoint(tmp_path):
    encoder = load(tiny_towers.write_dpr(tmp_path / "one", pooling="avg", sequence_length=24))
    assert encoder.info.settings["pooling"] == "avg"
    assert encoder.lengths == (24, 24)
    by_file = load(tmp_path / "one" / "best.pt")
    np.testing.assert_array_equal(rows(by_file, PASSAGES), rows(encoder, PASSAGES))
    state = tiny_towers.dpr_weights(pooler=False)
    bare = tiny_towers.write_dpr(tmp_path / "two", state=state)
    expected = np.array([passage_vector(PASSAGES[0], state=state)])
    np.testing.assert_allclose(
        load(bare).plain_vectors(PASSAGES[:1], "document"), expected, atol=1e-5
    )
    with pytest.raises(InvalidArgumentError, match=r"no question_model.backbone.pooler\* in its"):
        load(bare, pooling="cls_pooler")
    with pytest.raises(InvalidArgumentError, match="pooling 'max' in its encoder_params"):
        load(tiny_towers.write_dpr(tmp_path / "three", pooling="max"))


def test_titles(folder):
    document = "The key\n\nIt is old.\n\nIt opens a door."
    for options, title, text in (
        ({}, "The key", "It is old.\n\nIt opens a door."),
        ({"title": "blank_line"}, "The key", "It is old.\n\nIt opens a door."),
        ({"title": "blank_line", "rest": "drop"}, "The key", "It is old."),
        ({"title": "none"}, "", document),
    ):
        found = load(folder, **options).plain_vectors([document], "document")[0]
        np.testing.assert_allclose(found, plain_vector("ctx", pair_ids(title, text)), atol=1e-5)
    untitled = load(folder, title="blank_line").plain_vectors(["It is\nold."], "document")[0]
    np.testing.assert_allclose(untitled, plain_vector("ctx", pair_ids("", "It is old.")), atol=1e-5)


def test_spans_and_what_is_cut(folder, caplog):
    encoder = load(folder, on_long="truncate")
    [[one], [cut]] = encoder.encode_documents([PASSAGES[2], LONG])
    assert PASSAGES[2][slice(*one.spans[0])] == PASSAGES[2].strip()
    n_all = len(text_ids("the key")) + len(text_ids(LONG.partition("\n")[2])) + 4
    assert encoder.counts.n_cut_texts == 1
    assert encoder.counts.n_cut_tokens == n_all - 40
    assert "1 of 2 texts are longer than 40 tokens" in caplog.text
    assert 0 < cut.spans[0, 1] < len(LONG)
    encoder.encode_queries([LONG])
    assert encoder.counts.n_cut_queries == 1


def test_windows_have_the_title(folder):
    encoder = load(folder)
    [pieces] = encoder.encode_documents([LONG])
    assert len(pieces) > 3
    assert encoder.counts.n_cut_texts == 0
    covered = set()
    norm = encoder.info.settings["max_norm"]
    splitter = encoder._documents
    for piece, read in zip(pieces, splitter.split([LONG])[0], strict=True):
        assert LONG[read.start :].startswith(read.text)
        inside = read.spans[read.of_text & (read.spans[:, 0] >= read.start)]
        covered |= set(range(inside[0, 0], inside[-1, 1]))
        expected = plain_vector("ctx", pair_ids("the key", read.text))
        np.testing.assert_allclose(piece.values[0, :-1] * norm, expected, atol=1e-5)
    assert covered >= {i for i, letter in enumerate(LONG) if i > 8 and letter != " "}
    assert encoder.count_tokens([LONG, "", "\n"]) == [len(pieces), 0, 0]
    assert [len(one[0].values) for one in encoder.encode_documents(["", " \n "])] == [0, 0]


def test_inner_product_and_cosine_differ_and_the_index_follows_the_former(tmp_path, folder):
    retriever = weft.Retriever.create(tmp_path / "made.index", load(folder))
    texts = [*PASSAGES[:4], *(f"{word} the door" for word in LONG.split()[:14])]
    documents = [weft.Document(f"d{i}", text) for i, text in enumerate(texts)]
    retriever.add(documents[:9])
    retriever.add(documents[9:])
    retriever.delete(["d3"])
    retriever.add(documents[3:4])
    again = weft.Retriever.open(tmp_path / "made.index", model=load(folder))
    encoder = load(folder, on_long="truncate")
    vectors = {d.id: passage_vector(d.text) for d in documents if len(text_ids(d.text)) < 30}
    allowed = sorted(vectors)
    orders = []
    for query in QUERIES:
        q = query_vector(query)
        scores = {name: float(q @ vector) for name, vector in vectors.items()}
        hits = again.search(query, k=len(allowed), allow=allowed)
        assert_products(hits, scores, np.linalg.norm(q) * encoder.info.settings["max_norm"])
        cosines = {name: scores[name] / np.linalg.norm(v) for name, v in vectors.items()}
        orders.append(sorted(scores, key=scores.get) == sorted(cosines, key=cosines.get))
    assert not any(orders)
    with pytest.raises(IncompatibleIndexError, match="on_long is 'truncate'"):
        weft.Retriever.open(tmp_path / "made.index", model=encoder)


def test_documents_of_very_different_lengths(tmp_path):
    state = tiny_towers.dpr_weights()
    state["ctx_model.backbone.encoder.layer.1.output.LayerNorm.weight"] *= 8.0
    state["ctx_model.backbone.encoder.layer.1.output.LayerNorm.weight"][3:] *= 0.02
    encoder = load(tiny_towers.write_dpr(tmp_path / "model", state=state))
    texts = [f"{word} {word} key" for word in sorted(set(LONG.split()))]
    vectors = np.array([passage_vector(text, state=state) for text in texts])
    lengths = np.linalg.norm(vectors, axis=1)
    assert lengths.max() > 1.5 * lengths.min()
    assert lengths.max() <= encoder.info.settings["max_norm"]
    index = weft.Index.create(tmp_path / "made.index", weft.IndexConfig(dim=N_HIDDEN + 1))
    index.add(
        [str(i) for i in range(len(texts))],
        [one[0].values for one in encoder.encode_documents(texts)],
    )
    for query in QUERIES:
        q = query_vector(query, state=state)
        scores = {str(i): float(q @ v) for i, v in enumerate(vectors)}
        hits = index.search(encoder.encode_queries([query])[0].values, k=len(texts))
        assert_products(hits, scores, np.linalg.norm(q) * encoder.info.settings["max_norm"])


def test_swapping_the_towers_changes_the_ranking(tmp_path, folder):
    state = tiny_towers.dpr_weights()
    other = {"question": "ctx", "ctx": "question"}
    swapped = {
        f"{other[name.partition('_')[0]]}_{name.partition('_')[2]}": v for name, v in state.items()
    }
    one, two = load(folder), load(tiny_towers.write_dpr(tmp_path / "swapped", state=swapped))
    orders = []
    for encoder in (one, two):
        products = (
            encoder.plain_vectors(QUERIES, "query") @ encoder.plain_vectors(PASSAGES, "document").T
        )
        orders.append(products.argsort(axis=1))
    assert (orders[0] != orders[1]).any()
    np.testing.assert_allclose(
        two.plain_vectors(["the key"], "query"),
        one.plain_vectors(["the key"], "document"),
        atol=1e-5,
    )


def test_beside_token_embeddings(tmp_path, folder):
    encoder = load(folder)
    both = encoders.fields_of(encoder)
    texts = PASSAGES[:3]
    config = both.config(["dense"])
    retriever = weft.HybridRetriever.create(tmp_path / "made.index", both, config=config)
    retriever.add(weft.Document(f"d{i}", text) for i, text in enumerate(texts))
    for query in QUERIES:
        products = [float(query_vector(query) @ passage_vector(text)) for text in texts]
        best = sorted(range(3), key=lambda i: -products[i])
        assert [hit.id for hit in retriever.search(query)] == [f"d{i}" for i in best]


def test_from_the_command_line(tmp_path, folder):
    from typer.testing import CliRunner

    from weft.cli import app

    def write(name, lines):
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")

    texts = [*PASSAGES[:3], *(f"{word}\nopen the door" for word in LONG.split()[:20])]
    write("corpus.jsonl", [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts)])
    write("queries.jsonl", [{"_id": f"q{i}", "text": text} for i, text in enumerate(QUERIES)])
    (tmp_path / "qrels").mkdir()
    grades = "".join(f"q{i}\td{i}\t1\n" for i in range(3))
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + grades)
    index = str(tmp_path / "made.index")
    for words in (
        [
            "build",
            index,
            str(tmp_path / "corpus.jsonl"),
            "--model",
            str(folder),
            "--option",
            "max_norm=60.5",
        ],
        ["eval", index, "--data", str(tmp_path), "--json"],
    ):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.stderr
    ranks = []
    for i, query in enumerate(QUERIES):
        products = [float(query_vector(query) @ passage_vector(text)) for text in texts]
        ranks.append(1 + sum(other > products[i] for other in products))
    expected = sum(1 / rank if rank <= 10 else 0.0 for rank in ranks) / len(ranks)
    assert f'"RR@10": {expected:.3f}'[:-1] in done.stdout
    assert weft.Index.open(index).info.encoder.settings["max_norm"] == 60.5


def test_too_long_a_vector_is_refused(folder):
    with pytest.raises(InvalidArgumentError, match=r"length .* at most max_norm=2.5; build"):
        rows(load(folder, max_norm=2.5), PASSAGES)
    assert load(folder, max_norm=50).info.settings["max_norm"] == 50.0
    for wrong in (0, -1.0):
        with pytest.raises(InvalidArgumentError, match=f"max_norm={wrong}: expected a number"):
            load(folder, max_norm=wrong)
    with pytest.raises(InvalidArgumentError, match="max_norm='much': expected a number"):
        load(folder, max_norm="much")


def test_cosine(folder):
    encoder = load(folder, similarity="cosine")
    assert encoder.info.dim == N_HIDDEN
    expected = np.array([query_vector(text) for text in QUERIES])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = np.concatenate([one.values for one in encoder.encode_queries(QUERIES)])
    np.testing.assert_allclose(found, expected, atol=1e-5)


class Runs:
    """Something that a pickle can name and call."""

    def __reduce__(self):
        return (print, ("ran",))


def as_zip(data):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as file:
        file.writestr("best/data.pkl", data)
        file.writestr("best/version", "3\n")
        file.writestr("best/byteorder", "little")
    return held.getvalue()


@pytest.mark.parametrize("wrapped", [bytes, as_zip], ids=["plain", "zip"])
@pytest.mark.parametrize(
    "held",
    [
        Runs(),
        {"model_dict": Runs()},
        {"model_dict": {}, "optimizer_dict": [Runs()]},
        {"model_dict": {}, "encoder_params": {"pooling": io.BytesIO}},
        [1, 2],
    ],
    ids=["call", "weights", "optimiser", "class", "list"],
)
def test_hostile_pickles_are_refused(tmp_path, capsys, wrapped, held):
    folder = tiny_towers.write_dpr(tmp_path / "model")
    (folder / "best.pt").write_bytes(wrapped(pickle.dumps(held, protocol=2)))
    for path in (folder, folder / "best.pt"):
        with pytest.raises(
            InvalidArgumentError, match=r"best.pt: (not a file of tensors|a list)"
        ) as e:
            encoders.load(path, device="cpu", recipe="dpr")
        assert "\n" not in str(e.value)
    assert capsys.readouterr().out == ""


def test_damaged_pickles_are_refused(tmp_path, folder, rng):
    other = shutil.copytree(folder, tmp_path / "model")
    data = (folder / "best.pt").read_bytes()
    with zipfile.ZipFile(folder / "best.pt") as file:
        head = next(file.read(name) for name in file.namelist() if name.endswith("data.pkl"))
    for _ in range(60):
        broken = bytearray(head)
        for at in rng.integers(0, len(head), 2):
            broken[at] = rng.integers(0, 256)
        held = [bytes(broken), as_zip(bytes(broken)), data[: rng.integers(0, len(data))]]
        (other / "best.pt").write_bytes(held[int(rng.integers(0, 3))])
        with pytest.raises(InvalidArgumentError):
            encoders.load(other / "best.pt", device="cpu", recipe="dpr")


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("ctx_model.", r"no ctx_model.backbone.\* in its model_dict; expected a tower"),
        ("question_model.backbone.embeddings.word", "1 weights are not in the checkpoint"),
    ],
)
def test_incomplete_towers_are_refused(tmp_path, drop, message):
    state = {k: v for k, v in tiny_towers.dpr_weights().items() if not k.startswith(drop)}
    with pytest.raises(InvalidArgumentError, match=message):
        load(tiny_towers.write_dpr(tmp_path / "model", state=state))


def test_lengths(folder):
    with pytest.raises(InvalidArgumentError, match=r"query_length=999: expected 8\.\.128"):
        encoders.load(folder, device="cpu", query_length=999)
    with pytest.raises(InvalidArgumentError, match="dim=16: the model gives 32, its rows are 33"):
        encoders.load(folder, device="cpu", dim=16)
    assert math.isclose(np.linalg.norm(rows(load(folder), ["the key"])), 1.0, abs_tol=1e-6)
