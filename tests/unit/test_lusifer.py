# SPDX-License-Identifier: Apache-2.0
"""LUSIFER on tiny checkpoints in its layout, compared with the recipe written in loops."""

import json
import math
import shutil

import numpy as np
import pytest

import tiny_towers
import weft
from helpers import assert_ranking
from tiny_towers import N_LLM
from weft import encoders
from weft.errors import IncompatibleIndexError, InvalidArgumentError

INSTRUCTION = "Given a question, retrieve passages that answer the question."
TEXTS = ["the key", "Where is the door? It is behind the house.", "鍵は一度", "turned " * 5]
LONG = "rotate the signing key, then open the door of the house; " * 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint without added tokens."""
    return tiny_towers.write_lusifer(tmp_path_factory.mktemp("lusifer") / "model")


@pytest.fixture(scope="module")
def added(tmp_path_factory):
    """A checkpoint with one added token."""
    path = tmp_path_factory.mktemp("lusifer") / "added"
    return tiny_towers.write_lusifer(path, num_added_tokens=1)


def load(folder, **options):
    return encoders.load(folder, device="cpu", options=options)


def rows(encoder, texts, task="document"):
    if task == "query":
        found = encoder.encode_queries(texts)
    else:
        found = [pieces[0] for pieces in encoder.encode_documents(texts)]
    return np.concatenate([one.values for one in found])


class Plain:
    """The recipe, one text at a time, from plain weights; float64 behind XLM-R."""

    def __init__(self, **changes):
        self.config = {**tiny_towers.LUSIFER, **changes}
        state = tiny_towers.lusifer_weights(self.config, spelling="plain")
        self.learner = tiny_towers.xlmr(0)
        learner = {
            name.removeprefix("universal_learner."): value
            for name, value in state.items()
            if name.startswith("universal_learner.")
        }
        self.learner.load_state_dict(learner)
        self.weights = {name: value.double().numpy() for name, value in state.items()}

    def ids(self, text, task="document", *, instruction=INSTRUCTION, length=10_000):
        from tokenizers import Tokenizer

        middle = {"query": ".\n", "document": ". Candidate:\n"}[task]
        tokenizer = Tokenizer.from_str(tiny_towers.tokenizer_json())
        filled = f"<s>{instruction}{middle}{text}</s>"
        return tokenizer.encode(filled, add_special_tokens=False).ids[:length]

    def unit(self, ids, **options):
        vector = self.vector(ids, **options)
        return vector / math.sqrt((vector**2).sum())

    def vector(self, ids, *, padded=None, projected=True):
        import torch

        padded = padded or 8 * math.ceil(len(ids) / 8)
        with torch.no_grad():
            states = self.learner(torch.tensor([ids])).last_hidden_state[0].double().numpy()
        states = self.linear("connection_module.ff.0", states)
        if self.config["connection_type"] == "ff":
            states = self.linear("connection_module.ff.2", np.maximum(states, 0.0))
        else:
            chosen = np.exp(states - states.max(axis=1, keepdims=True))
            chosen /= chosen.sum(axis=1, keepdims=True)
            states = chosen @ self.weights["connection_module.embedding.weight"]
        positions = list(range(len(ids)))
        if self.config["num_added_tokens"]:
            states = np.concatenate([states, self.weights["connection_module.added_tokens"]])
            positions += [padded + i for i in range(self.config["num_added_tokens"])]
        states = self.llm(states, np.array(positions))
        weight = np.ones(len(states))
        if self.config["pooling_method"] == "weightedmean":
            weight = np.arange(1.0, len(states) + 1.0)
        elif self.config["pooling_method"] != "mean":
            weight = np.zeros(len(states))
            weight[0 if self.config["pooling_method"] == "cls" else -1] = 1.0
        vector = weight @ states / weight.sum()
        if projected:
            vector = np.maximum(self.linear("output_projection.0", vector), 0.0)
            vector = self.linear("output_projection.2", vector)
        return vector

    def linear(self, name, values):
        return values @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0)

    def norm(self, name, values):
        scale = np.sqrt((values**2).mean(axis=-1, keepdims=True) + 1e-6)
        return values / scale * self.weights[f"{name}.weight"]

    def llm(self, x, positions):
        for layer in ("encoder.model.layers.0.", "encoder.model.layers.1."):
            y = self.norm(f"{layer}input_layernorm", x)
            q, k, v = (
                self.linear(f"{layer}self_attn.{name}_proj", y).reshape(len(y), -1, 12)
                for name in "qkv"
            )
            q, k = turned(q, positions), turned(k, positions)
            heads = []
            for head in range(4):
                scores = q[:, head] @ k[:, head // 2].T / math.sqrt(12)
                scores = np.exp(scores - scores.max(axis=1, keepdims=True))
                heads.append(scores / scores.sum(axis=1, keepdims=True) @ v[:, head // 2])
            x = x + self.linear(f"{layer}self_attn.o_proj", np.concatenate(heads, axis=1))
            y = self.norm(f"{layer}post_attention_layernorm", x)
            gate = self.linear(f"{layer}mlp.gate_proj", y)
            up = self.linear(f"{layer}mlp.up_proj", y)
            x = x + self.linear(f"{layer}mlp.down_proj", gate / (1.0 + np.exp(-gate)) * up)
        return self.norm("encoder.model.norm", x)


def fixed(states):
    """A module that gives the same states for everything."""
    import torch

    class Module(torch.nn.Module):
        def forward(self, ids, attention_mask):
            return type("Output", (), {"last_hidden_state": states})

    return Module()


def turned(x, positions):
    """Rotary positions: pairs of components a half apart are turned by position / base^(2i/d)."""
    half = x.shape[2] // 2
    angles = positions[:, None] * 10_000.0 ** (-np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


@pytest.mark.parametrize("task", ["query", "document"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_added_tokens": 1},
        {"num_added_tokens": 2, "pooling_method": "weightedmean"},
        {"pooling_method": "cls"},
        {"num_added_tokens": 1, "pooling_method": "lasttoken"},
        {"pooling_method": "lasttoken"},
        {"connection_type": "embedding_table"},
        {"encoder_backbone_type": "llama"},
        {"encoder_backbone_type": "qwen2"},
    ],
    ids=str,
)
def test_the_recipe(tmp_path, changes, task):
    encoder = load(tiny_towers.write_lusifer(tmp_path / "model", **changes))
    plain = Plain(**changes)
    expected = np.array([plain.unit(plain.ids(text, task)) for text in TEXTS])
    np.testing.assert_allclose(rows(encoder, TEXTS, task), expected, atol=1e-5)
    assert (encoder.info.recipe, encoder.info.dim) == ("lusifer", N_LLM)


def test_every_token_sees_the_last_one(folder):
    import torch

    model = load(folder)._model
    ids, mask = torch.tensor([[0, 5, 6, 7, 8, 2]]), torch.ones(1, 6, dtype=torch.int64)
    states = torch.randn(1, 6, tiny_towers.N_HIDDEN)
    model.learner = fixed(states)  # the encoder sees both ways anyhow
    model._pooling = "cls"
    with torch.no_grad():
        before = model(ids, mask)
        states[0, -1] += 1.0
        assert (model(ids, mask) - before).abs().max() > 1e-3


def test_the_added_token_counts_in_the_mean(added):
    plain, ids = Plain(num_added_tokens=1), Plain().ids("the key")
    found = rows(load(added, use_projection=False), ["the key"])[0]
    with_it = plain.vector(ids, projected=False)
    np.testing.assert_allclose(found, with_it / np.sqrt((with_it**2).sum()), atol=1e-5)
    plain.weights["connection_module.added_tokens"] = np.full((1, N_LLM), 3.0)
    without = plain.unit(ids, projected=False)
    assert np.abs(found - without).max() > 1e-2


@pytest.mark.parametrize("instruction", ["", "Retrieve semantically similar text.", "no stop"])
def test_templates(folder, instruction):
    encoder, plain = load(folder, instruction=instruction), Plain()
    for task in ("query", "document"):
        expected = plain.unit(plain.ids("the key", task, instruction=instruction))
        np.testing.assert_allclose(rows(encoder, ["the key"], task)[0], expected, atol=1e-5)
    same = load(folder, instruction=instruction, document_template="query")
    as_query = plain.unit(plain.ids("the key", "query", instruction=instruction))
    np.testing.assert_allclose(rows(same, ["the key"])[0], as_query, atol=1e-5)


def test_a_text_that_is_cut_has_no_end(folder, caplog):
    encoder = encoders.load(
        folder, device="cpu", document_length=60, query_length=60, options={"on_long": "truncate"}
    )
    plain = Plain()
    for task in ("query", "document"):
        ids = plain.ids(LONG, task, length=60)
        assert ids[-1] != 2
        with caplog.at_level("WARNING", "weft"):
            found = rows(encoder, [LONG], task)[0]
        np.testing.assert_allclose(found, plain.unit(ids), atol=1e-5)
    assert "1 of 1 queries are longer than 60 tokens" in caplog.text
    assert "1 of 1 texts are longer than 60 tokens" in caplog.text
    assert (encoder.counts.n_cut_queries, encoder.counts.n_cut_texts) == (1, 1)
    [[one]] = encoder.encode_documents([LONG])
    assert 0 < one.spans[0, 1] < len(LONG)


def test_a_long_text_becomes_windows_that_keep_their_end(folder):
    encoder, plain = load(folder), Plain()
    [pieces] = encoder.encode_documents([LONG])
    assert len(pieces) > 1
    covered = set()
    for piece in pieces:
        [[start, end]] = piece.spans.tolist()
        covered |= set(range(start, end))
        ids = plain.ids(LONG[start:end])
        assert ids[-1] == 2
        assert len(ids) <= tiny_towers.N_POSITIONS
        np.testing.assert_allclose(piece.values[0], plain.unit(ids), atol=1e-5)
    assert covered >= {i for i, letter in enumerate(LONG) if letter != " "}
    assert encoder.counts.n_cut_texts == 0


def test_a_text_without_words_has_no_row(folder):
    encoder = load(folder)
    assert [len(pieces[0].values) for pieces in encoder.encode_documents(["", " \n"])] == [0, 0]
    assert encoder.count_tokens(["", "the key", LONG]) == [
        0,
        1,
        len(encoder.encode_documents([LONG])[0]),
    ]


def test_batches_change_vectors_only_as_in_the_original(folder, added):
    together = ["the key", LONG[:90]]
    for path, changes in ((folder, {}), (added, {"num_added_tokens": 1})):
        plain = Plain(**changes)
        exact, compat = load(path), load(path, compat_batch=2)
        alone = np.concatenate([rows(exact, [text]) for text in together])
        np.testing.assert_allclose(rows(exact, together), alone, atol=1e-5)
        ids = [plain.ids(text) for text in together]
        padded = 8 * math.ceil(max(map(len, ids)) / 8)
        assert padded > 8 * math.ceil(len(ids[0]) / 8)
        expected = np.array([plain.unit(one, padded=padded) for one in ids])
        np.testing.assert_allclose(rows(compat, together), expected, atol=1e-5)
        depends = np.abs(rows(compat, together)[0] - alone[0]).max()
        assert depends > 1e-4 if changes else depends < 1e-5


def test_compatible_batches_are_in_the_order_given(added):
    plain = Plain(num_added_tokens=1)
    texts = ["the key", "the lock", LONG[:90], "door", "the key"]
    ids = [plain.ids(text) for text in texts]
    expected = []
    for at in range(0, 5, 2):
        padded = 8 * math.ceil(max(map(len, ids[at : at + 2])) / 8)
        expected += [plain.unit(one, padded=padded) for one in ids[at : at + 2]]
    found = rows(load(added, compat_batch=2), texts)
    np.testing.assert_allclose(found, np.array(expected), atol=1e-5)


def test_projection_can_be_left_out(folder):
    plain = Plain()
    expected = plain.unit(plain.ids("the key"), projected=False)
    np.testing.assert_allclose(
        rows(load(folder, use_projection=False), ["the key"])[0], expected, atol=1e-5
    )


@pytest.mark.parametrize("file", ["model.safetensors", "trained.pt"])
def test_every_spelling_of_the_weights(tmp_path, folder, file):
    expected = rows(load(folder), TEXTS)
    other = tiny_towers.write_lusifer(tmp_path / "plain", spelling="plain", file=file)
    np.testing.assert_allclose(rows(load(other), TEXTS), expected, atol=1e-5)
    other = tiny_towers.write_lusifer(tmp_path / "adapter", file=file)
    np.testing.assert_allclose(rows(load(other), TEXTS), expected, atol=1e-6)


def test_bfloat16_is_close(folder):
    coarse = encoders.load(folder, device="cpu", dtype="bfloat16")
    assert (rows(coarse, TEXTS) * rows(load(folder), TEXTS)).sum(axis=1).min() > 0.98


def test_base_configurations_elsewhere(tmp_path, folder):
    other = tiny_towers.write_lusifer(tmp_path / "model", bases=False)
    with pytest.raises(InvalidArgumentError) as error:
        load(other)
    assert str(other / "universal_learner" / "config.json") in str(error.value)
    assert "expected that of nobody/xlm-aligned-for-mistral" in str(error.value)
    bases = tiny_towers.write_bases(tmp_path / "bases")
    found = load(other, base_configs=str(bases))
    np.testing.assert_array_equal(rows(found, TEXTS), rows(load(folder), TEXTS))
    assert found.info.settings == load(folder).info.settings
    shutil.rmtree(bases / "encoder")
    with pytest.raises(InvalidArgumentError, match="expected that of nobody/Mistral-7B"):
        load(other, base_configs=str(bases))
    (bases / "universal_learner" / "tokenizer.json").unlink()
    (bases / "universal_learner" / "tokenizer_config.json").unlink()
    tiny_towers.llm_config().save_pretrained(bases / "encoder")
    with pytest.raises(InvalidArgumentError, match="no tokenizer in"):
        load(other, base_configs=str(bases))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling_method": "latent"}, "pooling_method='latent'"),
        ({"encoder_backbone_type": "nvidia/NV-Embed-v2"}, "'nvidia/NV-Embed-v2'"),
        ({"universal_learner_backbone_type": "t5"}, "universal_learner_backbone_type='t5'"),
        ({"connection_type": "attn"}, "connection_type='attn'"),
        ({"loar_r": 8}, "rank 4, expected loar_r=8"),
        ({"num_added_tokens": 1}, "0 added tokens in its weights, but num_added_tokens=1"),
    ],
)
def test_what_is_not_known_is_refused_by_name(tmp_path, folder, changes, message):
    other = shutil.copytree(folder, tmp_path / "model")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(InvalidArgumentError, match=message):
        load(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("output_projection.2.bias"), "use_projection=false leaves it out"),
        (lambda s: s.pop("connection_module.ff.0.weight"), "connection_module.ff.0.weight: not in"),
        (
            lambda s: s.pop("encoder.base_model.model.model.norm.weight"),
            "1 weights are not in the checkpoint",
        ),
        (
            lambda s: s.pop(next(name for name in s if "lora_B" in name)),
            "do not fit; expected one, with its A, its B",
        ),
        (
            lambda s: s.update(
                {
                    name.replace("_lora.", "_other."): value
                    for name, value in list(s.items())
                    if "lora_A" in name
                }
            ),
            r"adapters \['learner_lora', 'learner_other'\] do not fit; expected one",
        ),
        (
            lambda s: s.update({"encoder.base_model.model.x.lora_magnitude_vector.a": s["x"]}),
            "an adapter of this kind is not supported",
        ),
    ],
)
def test_incomplete_weights_are_refused(tmp_path, folder, change, message):
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(folder, tmp_path / "model")
    state = load_file(other / "model.safetensors")
    state["x"] = state["output_projection.0.bias"].clone()
    change(state)
    state = {name: value.clone() for name, value in state.items()}
    save_file(state, str(other / "model.safetensors"))
    with pytest.raises(InvalidArgumentError, match=message):
        load(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compat_batch": -1}, "compat_batch=-1: expected 0 or more"),
        ({"compat_batch": "4"}, "compat_batch='4': expected a whole number"),
        ({"document_template": "title"}, "document_template='title'"),
        ({"prompt": "x"}, "it has no option 'prompt'"),
        ({"instruction": LONG}, r"query_length=128: expected \d+..128: more than the instruction"),
    ],
)
def test_wrong_options(folder, options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        load(folder, **options)
    with pytest.raises(InvalidArgumentError, match="dim=8: the model gives 48"):
        encoders.load(folder, device="cpu", dim=8)


def test_from_checkpoint_to_ranking(tmp_path, folder, caplog):
    retriever = weft.Retriever.create(tmp_path / "made.index", load(folder, instruction="Find it."))
    texts = [*TEXTS, *(f"{word} the door" for word in LONG.split()[:12])]
    documents = [weft.Document(f"d{i}", text) for i, text in enumerate(texts)]
    retriever.add(documents[:9])
    retriever.add(documents[9:])
    retriever.delete(["d3"])
    retriever.add(documents[3:4])
    again = weft.Retriever.open(tmp_path / "made.index", model=load(folder, instruction="Find it."))
    plain = Plain()
    query = plain.unit(plain.ids("open the door", "query", instruction="Find it."))
    scores = {
        document.id: float(
            query @ plain.unit(plain.ids(document.text, "document", instruction="Find it."))
        )
        for document in documents
    }
    assert_ranking(again.search("open the door", k=20), scores)
    with pytest.raises(
        IncompatibleIndexError, match=r"instruction is 'Given.* made with 'Find it."
    ):
        weft.Retriever.open(tmp_path / "made.index", model=load(folder))
    assert weft.Retriever.open(tmp_path / "made.index").search("open the door")[0].id
