# SPDX-License-Identifier: Apache-2.0
"""The Stanford recipe on tiny checkpoints in its layout, compared with the recipe in loops."""

import importlib.util
import json
import math
import string

import numpy as np
import pytest

import tiny_colbert
import weft
from helpers import assert_ranking, stored
from tiny_colbert import ID, METADATA
from weft import encoders
from weft.encoders.lengths import expanded_length
from weft.errors import IncompatibleIndexError, InvalidArgumentError, NotFoundError

QUERY_MARKER, DOCUMENT_MARKER = ID["[unused0]"], ID["[unused1]"]
CLS, SEP, MASK, UNK = ID["[CLS]"], ID["[SEP]"], ID["[MASK]"], ID["[UNK]"]
QUERIES = [
    "the key",
    "lock, the door!",
    "a ~ ü key",
    "the key of the lock is lost in the door again",
]
DOCUMENTS = [
    "The key: lock (door).",
    "a~b, ü the 東京 year",
    "key lock door the key lock door the key lock door the key",
    "[SEP] the door [PAD] key",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_colbert.write_stanford(tmp_path_factory.mktemp("stanford") / "model")


@pytest.fixture(scope="module")
def encoder(folder):
    return encoders.load(folder, device="cpu", options={"on_long": "truncate"})


def pieces_of(text):
    """Token numbers of a text by longest match first, word by word; no special tokens added."""
    for special in tiny_colbert.SPECIAL:
        before, found, after = text.partition(special)
        if found:
            return [*pieces_of(before), ID[special], *pieces_of(after)]
    words, word = [], ""
    for letter in text.lower() + " ":
        if letter.isalnum() and letter.isascii():
            word += letter
            continue
        if word:
            words.append(word)
        word = ""
        if letter == "ü":  # accents are taken off
            word = "u"
        elif not letter.isspace():
            words.append(letter)
    result = []
    for word in words:
        at, pieces = 0, []
        while at < len(word):
            for end in range(len(word), at, -1):
                piece = word[at:end] if at == 0 else "##" + word[at:end]
                if piece in ID:
                    pieces.append(ID[piece])
                    at = end
                    break
            else:
                pieces = [UNK]
                break
        result += pieces
    return result


def query_input(text, length, *, attend=False):
    ids = [CLS, QUERY_MARKER, *pieces_of(text)[: length - 3], SEP]
    ids = [MASK if token == ID["[PAD]"] else token for token in ids]
    attention = [1] * len(ids)
    while len(ids) < length:
        ids.append(MASK)
        attention.append(1 if attend else 0)
    return ids, attention


def document_input(text, length):
    ids = [CLS, DOCUMENT_MARKER, *pieces_of(text)[: length - 3], SEP]
    return ids, [1] * len(ids)


def rows_of(folder, ids, attention):
    """Projected states at unit length, one text at a time: float64 after the model."""
    import torch
    from safetensors.numpy import load_file
    from transformers import BertModel

    weights = load_file(folder / "model.safetensors")
    model = tiny_colbert.bert(len(ID))
    inner = {
        name[5:]: torch.from_numpy(value) for name, value in weights.items() if name[:5] == "bert."
    }
    BertModel.load_state_dict(model, inner)
    with torch.no_grad():
        states = model(torch.tensor([ids]), attention_mask=torch.tensor([attention]))
    result = []
    for state in states.last_hidden_state[0].double().numpy():
        row = [float(np.dot(state, axis)) for axis in weights["linear.weight"].astype(np.float64)]
        length = math.sqrt(sum(value * value for value in row))
        result.append([value / length for value in row])
    return np.array(result)


def skipped():
    """The first token of each punctuation mark: [UNK] too, since the vocabulary has no ~."""
    return {pieces_of(symbol)[0] for symbol in string.punctuation} | {ID["[PAD]"]}


def expected_query(folder, text, length=12, **more):
    return rows_of(folder, *query_input(text, length, **more))


def expected_document(folder, text, length=16, skip=None):
    ids, attention = document_input(text, length)
    dropped = skipped() if skip is None else skip
    keep = [i for i, token in enumerate(ids) if token not in dropped]
    return rows_of(folder, ids, attention)[keep]


def input_of(encoder, text, task):
    split = encoder._queries if task == "query" else encoder._documents
    return encoder.sequence(split.first([text])[0], task)


def test_token_numbers(encoder):
    """J1, written out: short, exactly fitting, truncated."""
    the, key, lock, door, comma = (ID[word] for word in ("the", "key", "lock", "door", ","))
    ids, attention = input_of(encoder, "the key", "query")
    assert ids == [CLS, QUERY_MARKER, the, key, SEP] + [MASK] * 7
    assert attention == [1] * 5 + [0] * 7
    nine = "the key lock door the key lock door the"
    fits = [the, key, lock, door, the, key, lock, door, the]
    ids, attention = input_of(encoder, nine, "query")
    assert (ids, attention) == ([CLS, QUERY_MARKER, *fits, SEP], [1] * 12)
    assert input_of(encoder, nine + " key lock", "query")[0] == ids
    ids, attention = input_of(encoder, "the key, lock", "document")
    assert ids == [CLS, DOCUMENT_MARKER, the, key, comma, lock, SEP]
    assert attention == [1] * 7
    thirteen = " ".join(["door"] * 13)
    ids, _ = input_of(encoder, thirteen, "document")
    assert ids == [CLS, DOCUMENT_MARKER] + [door] * 13 + [SEP]
    assert input_of(encoder, thirteen + " the key", "document")[0] == ids


def test_inputs_equal_the_recipe(encoder):
    for text in QUERIES:
        assert input_of(encoder, text, "query") == query_input(text, 12)
    for text in DOCUMENTS:
        assert input_of(encoder, text, "document") == document_input(text, 16)


@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_vectors_equal_the_recipe(folder, batch_tokens):
    """J4, alone and in padded batches."""
    encoder = encoders.load(
        folder, device="cpu", batch_tokens=batch_tokens, options={"on_long": "truncate"}
    )
    for text, found in zip(QUERIES, encoder.encode_queries(QUERIES), strict=True):
        assert found.values.shape == (12, 16)
        np.testing.assert_allclose(found.values, expected_query(folder, text), atol=1e-5)
    for text, [found] in zip(DOCUMENTS, encoder.encode_documents(DOCUMENTS), strict=True):
        np.testing.assert_allclose(found.values, expected_document(folder, text), atol=1e-5)
        assert len(found.spans) == len(found.values)
    assert encoder.count_tokens(DOCUMENTS) == [
        len(expected_document(folder, text)) for text in DOCUMENTS
    ]


def test_one_vector_is_exact_to_six_digits(folder, encoder):
    [found] = encoder.encode_queries(["the key"])
    np.testing.assert_allclose(found.values, expected_query(folder, "the key"), atol=1e-6)


def test_masks_that_are_attended_to_change_the_words(folder, encoder):
    """J2."""
    attending = encoders.load(folder, device="cpu", options={"attend": True})
    [one], [other] = encoder.encode_queries(["the key"]), attending.encode_queries(["the key"])
    np.testing.assert_allclose(
        other.values, expected_query(folder, "the key", attend=True), atol=1e-5
    )
    assert np.abs(one.values[:5] - other.values[:5]).max() > 1e-2


def test_skiplists(folder):
    """J3: unknown words go with the rule "stanford", since ~ is unknown, and stay with "st"."""
    text = "a~b, ü the 鍵"
    ids, _ = document_input(text, 16)
    rows = {
        rule: encoders.load(folder, device="cpu", options={"skiplist": rule})
        .encode_documents([text])[0][0]
        .values
        for rule in ("stanford", "pylate", "st", "none")
    }
    symbols = {ID[letter] for letter in string.punctuation if letter in ID}
    assert UNK in ids
    everything = rows_of(folder, ids, [1] * len(ids))
    for rule, dropped in (
        ("stanford", symbols | {UNK}),
        ("pylate", symbols | {UNK}),
        ("st", symbols),
        ("none", set()),
    ):
        keep = [i for i, token in enumerate(ids) if token not in dropped]
        np.testing.assert_allclose(rows[rule], everything[keep], atol=1e-5)
        assert {0, 1, len(ids) - 1} <= set(keep)


def test_what_sentence_transformers_does_otherwise(folder, encoder):
    """S1: without unknown words it gives the same rows; with them it keeps theirs, no more."""
    pytest.importorskip("sentence_transformers")
    st = encoders.load(folder, device="cpu", recipe="st")
    for text in ["the key: lock (door).", "a~b, ü the 鍵"]:
        ids, attention = document_input(text, 16)
        symbols = {ID[letter] for letter in string.punctuation if letter in ID}
        keep = [i for i, token in enumerate(ids) if token not in symbols]
        [[theirs]], [[ours]] = st.encode_documents([text]), encoder.encode_documents([text])
        np.testing.assert_allclose(theirs.values, rows_of(folder, ids, attention)[keep], atol=1e-5)
        assert len(theirs.values) - len(ours.values) == ids.count(UNK)
        [one], [two] = st.encode_queries([text]), encoder.encode_queries([text])
        np.testing.assert_allclose(one.values, two.values, atol=1e-5)


def test_more_characters_on_the_skiplist(folder):
    text = "東京、大学。the"
    ids, attention = document_input(text, 16)
    encoder = encoders.load(folder, device="cpu", options={"skiplist_extra": "、。"})
    [[found]] = encoder.encode_documents([text])
    keep = [i for i, token in enumerate(ids) if token not in {ID["、"], ID["。"]}]
    assert len(keep) == len(ids) - 2
    np.testing.assert_allclose(found.values, rows_of(folder, ids, attention)[keep], atol=1e-5)
    with pytest.raises(InvalidArgumentError, match="skiplist_extra: '።' is no token"):
        encoders.load(folder, device="cpu", options={"skiplist_extra": "።"})


@pytest.mark.parametrize(
    ("policy", "lengths"),
    [
        ("dynamic32a", [32, 64, 64, 64]),
        ("dynamic32b", [32, 33, 40, 64]),
        ("jqara", [16, 32, 40, 48]),
        ("fixed", [32, 32, 32, 32]),
        ("min", [32, 32, 32, 40]),
        ("none", [8, 25, 32, 40]),
    ],
)
def test_query_lengths(policy, lengths):
    """J5: the lengths of queries of 8, 25, 32 and 40 tokens."""
    cut = [min(n, 32) if policy == "fixed" else n for n in (8, 25, 32, 40)]
    assert [expanded_length(policy, n, 32, 512) for n in cut] == lengths


@pytest.mark.parametrize("policy", ["min", "dynamic32a", "dynamic32b", "jqara", "none"])
def test_vectors_of_dynamic_queries(folder, policy):
    encoder = encoders.load(folder, device="cpu", options={"query_policy": policy})
    cut = 12 if policy == "none" else 96
    lengths = {"min": max, "dynamic32a": lambda n, _: 32 * math.ceil((n + 8) / 32)}
    lengths["dynamic32b"] = lambda n, _: max(32 * math.ceil(n / 32), n + 8)
    lengths["jqara"] = lambda n, _: n + 8 if n % 32 <= 8 else 32 * math.ceil(n / 32)
    lengths["none"] = lambda n, _: n
    for text, found in zip(QUERIES, encoder.encode_queries(QUERIES), strict=True):
        ids, _ = query_input(text, min(len(pieces_of(text)) + 3, cut))
        expected = (
            expected_query(folder, text, lengths[policy](len(ids), 12))
            if (policy != "none")
            else rows_of(folder, ids, [1] * len(ids))
        )
        np.testing.assert_allclose(found.values, expected, atol=1e-5)


def test_metadata(tmp_path, folder):
    """J7: nested, flat, extended and missing metadata; stale names in it are never looked up."""
    nested = tiny_colbert.write_stanford(tmp_path / "nested", nested=True)
    flat, other = (encoders.load(path, device="cpu") for path in (folder, nested))
    assert (other.info.query_length, other.info.document_length) == (12, 16)
    one, two = (each.encode_documents(DOCUMENTS[:1])[0][0].values for each in (flat, other))
    np.testing.assert_array_equal(one, two)
    silent = encoders.load(
        tiny_colbert.write_stanford(tmp_path / "silent", metadata=None), device="cpu",
        document_length=90,
    )  # fmt: skip
    assert silent.info.query_length == 32
    assert silent.info.settings["skiplist"] == "stanford"
    assert silent.info.settings["markers"] == ("[unused0]", "[unused1]")
    assert not silent.info.settings["attend"]
    with pytest.raises(InvalidArgumentError, match=r"document_length=220: expected 4\.\.96"):
        encoders.load(tmp_path / "silent", device="cpu")
    plain = {**METADATA, "mask_punctuation": False}
    every = encoders.load(
        tiny_colbert.write_stanford(tmp_path / "plain", metadata=plain), device="cpu"
    )
    assert every.info.settings["skiplist"] == "none"
    odd = {**METADATA, "interaction": "flipr"}
    with pytest.raises(InvalidArgumentError, match="interaction 'flipr' is not supported"):
        encoders.load(tiny_colbert.write_stanford(tmp_path / "odd", metadata=odd), device="cpu")


def test_a_dnn_file(tmp_path, folder):
    path = tiny_colbert.write_dnn(tmp_path / "dnn", arguments={**METADATA, "model": "no/such"})
    encoder, other = (encoders.load(each, device="cpu") for each in (path, folder))
    assert (encoder.info.recipe, encoder.info.document_length) == ("stanford", 16)
    for one, two in zip(
        encoder.encode_queries(QUERIES), other.encode_queries(QUERIES), strict=True
    ):
        np.testing.assert_array_equal(one.values, two.values)
    (path.parent / "config.json").unlink()
    with pytest.raises(NotFoundError, match=r"no config\.json"):
        encoders.load(path, device="cpu")


class Trap:
    def __reduce__(self):
        return (print, ("read",))


def test_a_pickle_with_code_in_it_is_refused(tmp_path, capsys):
    import torch

    path = tiny_colbert.write_dnn(tmp_path / "dnn", arguments={})
    torch.save({"model_state_dict": {}, "arguments": Trap()}, path)
    with pytest.raises(InvalidArgumentError, match="not a file of tensors alone"):
        encoders.load(path, device="cpu")
    assert "read" not in capsys.readouterr().out


def test_a_missing_tokenizer(tmp_path):
    folder = tiny_colbert.write_stanford(tmp_path / "model")
    for name in ("vocab.txt", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(InvalidArgumentError, match=r"no tokenizer in .*copied from the model"):
        encoders.load(folder, device="cpu")


def test_a_marker_that_is_not_in_the_vocabulary(tmp_path):
    odd = {**METADATA, "doc_token_id": "[文書]"}
    folder = tiny_colbert.write_stanford(tmp_path / "model", metadata=odd)
    with pytest.raises(InvalidArgumentError, match=r"marker '\[文書\]' is not in its vocabulary"):
        encoders.load(folder, device="cpu")


def test_long_texts_are_split_or_cut_and_counted(folder, caplog):
    long = " ".join(f"the key, lock door {letter}" for letter in "abcdefg")
    splitting = encoders.load(folder, device="cpu")
    assert splitting.info.settings["on_long"] == "split"
    windows = splitting.encode_documents([long, "key"])[0]
    assert (splitting.counts.n_split_texts, splitting.counts.n_cut_texts) == (1, 0)
    for window in windows:
        inside = window.spans[window.spans[:, 1] > window.spans[:, 0]].astype(int)
        begin, end = inside[0, 0], inside[-1, 1]
        parts = {long[max(begin - back, 0) : end + more] for back in (0, 1, 2) for more in (0, 1)}
        expected = [expected_document(folder, part) for part in parts if len(pieces_of(part)) <= 13]
        assert any(
            rows.shape == window.values.shape and np.abs(rows - window.values).max() < 1e-5
            for rows in expected
        )
    cutting = encoders.load(folder, device="cpu", options={"on_long": "truncate"})
    with caplog.at_level("WARNING", "weft"):
        [[found], _] = cutting.encode_documents([long, "key"])
    np.testing.assert_allclose(found.values, expected_document(folder, long), atol=1e-5)
    n_all = len(pieces_of(long))
    assert (cutting.counts.n_texts, cutting.counts.n_cut_texts) == (2, 1)
    assert cutting.counts.n_cut_tokens == n_all - 13
    assert (cutting.counts.n_words, cutting.counts.n_tokens) == (36, n_all + 1)
    assert f"1 of 2 texts are longer than 16 tokens; up to {n_all - 13} tokens" in caplog.text


def test_padding_is_counted(folder):
    encoder = encoders.load(folder, device="cpu")
    encoder.encode_documents(["the key lock door the", "key lock door the", "key"])
    assert encoder.counts.n_read == 8 + 8 + 4  # the last is run alone, it is too short for them
    assert encoder.counts.n_padding == 1


def test_half_precision_is_close(folder, encoder):
    half = encoders.load(folder, device="cpu", options={"amp": True})
    [[one]], [[other]] = (each.encode_documents(DOCUMENTS[:1]) for each in (encoder, half))
    assert (one.values * other.values).sum(axis=1).min() > 0.999
    np.testing.assert_array_equal(other.values, other.values.astype(np.float16))
    assert not np.array_equal(one.values, other.values)


def test_clipping_at_zero():
    """J6: a document without a good match scores 0, not less, where the CPU runtime clips."""
    rng = np.random.default_rng(3)
    query = rng.normal(size=(5, 8)).astype(np.float32)
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    docs = [-query[:2] * 3 - query[2:4], rng.normal(size=(6, 8)).astype(np.float32), -query[4:]]
    for clip in (False, True):
        expected = []
        for doc in docs:
            total = 0.0
            for row in query.astype(np.float64):
                best = 0.0 if clip else -math.inf
                for other in doc.astype(np.float64):
                    best = max(best, float(np.dot(row, other)))
                total += best
            expected.append(total)
        found = weft.maxsim(query, docs, clip_negative=clip)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(weft.maxsim(query, docs), weft.maxsim(query, docs, clip_negative=True))


@pytest.mark.skipif(
    importlib.util.find_spec("fugashi") is None or importlib.util.find_spec("unidic_lite") is None,
    reason="needs weft[ja]",
)
def test_japanese_punctuation_of_full_width(tmp_path):
    """J8: MeCab reads （！？： as ASCII, which the skiplist has; it leaves 、。「」 as they are."""
    folder = tiny_colbert.write_stanford(tmp_path / "ja", mecab=True)
    encoder = encoders.load(folder, device="cpu")
    ids = [CLS, DOCUMENT_MARKER]
    ids += [ID[word] for word in ("東京", "(", "大学", ")", "へ", "行く", "、", "!", "。")] + [SEP]
    assert input_of(encoder, "東京（大学）へ行く、！。", "document") == (ids, [1] * len(ids))
    keep = [i for i, token in enumerate(ids) if token not in {ID["("], ID[")"], ID["!"]}]
    [[found]] = encoder.encode_documents(["東京（大学）へ行く、！。"])
    expected = rows_of(folder, ids, [1] * len(ids))[keep]
    np.testing.assert_allclose(found.values, expected, atol=1e-5)
    assert found.spans is None


def test_index_and_search_equal_brute_force(tmp_path, folder, encoder):
    """J10 and E1: encode, add, reopen, search exhaustively."""
    words = ["the", "key", "lock", "door", "year", "東京", "大学", "a1", "b2", ","]
    rng = np.random.default_rng(0)
    texts = {f"d{i}": " ".join(rng.choice(words, rng.integers(1, 13))) for i in range(40)}
    retriever = weft.Retriever.create(tmp_path / "made.index", encoder)
    retriever.add([weft.Document(name, text) for name, text in texts.items()])
    with pytest.raises(IncompatibleIndexError, match=r"attend is True, .* made with False"):
        weft.Retriever.open(
            tmp_path / "made.index",
            model=encoders.load(
                folder, device="cpu", options={"attend": True, "on_long": "truncate"}
            ),
        )
    again = weft.Retriever.open(tmp_path / "made.index", model=folder, encoder_device="cpu")
    assert again.encoder.info == encoder.info
    for query in QUERIES[:3]:
        rows = expected_query(folder, query)
        hits = again.search(query, 10, recall=1.0)
        scores = {}
        for name, text in texts.items():
            [document] = stored([expected_document(folder, text)])
            scores[name] = sum(max(float(np.dot(q, d)) for d in document) for q in rows)
        assert len(hits) == 10
        assert_ranking(hits, scores, tolerance=1e-4)


def test_options_are_checked(folder):
    for options, message in (
        ({"skiplists": "none"}, "no option 'skiplists'; expected query_policy, attend"),
        ({"skiplist": "all"}, "skiplist='all': expected 'stanford' or 'pylate'"),
        ({"attend": "yes"}, "attend='yes': expected true or false"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            encoders.load(folder, device="cpu", options=options)
    with pytest.raises(InvalidArgumentError, match=r"dim=8: .* gives 16, its checkpoint lists 16"):
        encoders.load(folder, device="cpu", dim=8)
    with pytest.raises(InvalidArgumentError, match=r"query_length=97: expected 4\.\.96"):
        encoders.load(folder, device="cpu", query_length=97)
    json.dumps(encoders.load(folder, device="cpu").info.to_json())
