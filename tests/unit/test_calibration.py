# SPDX-License-Identifier: Apache-2.0
"""Languages moved over each other: an example where each stage helps, and what is refused."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest

from weft.encoders.calibration import STAGES, Calibration
from weft.errors import InvalidArgumentError, NotFoundError

DIM = 24


def turned(random, degrees):
    """A rotation by so many degrees in each of some random planes that are at right angles."""
    axes = np.linalg.qr(random.normal(size=(DIM, DIM)))[0]
    inner = np.eye(DIM)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    for i in range(0, DIM, 2):
        inner[i : i + 2, i : i + 2] = [[c, -s], [s, c]]
    return axes @ inner @ axes.T


@pytest.fixture(scope="module")
def example():
    """Documents of a pivot, and queries that are the same turned, stretched and moved."""
    random = np.random.default_rng(5)
    pivot = random.normal(size=(3_500, DIM))
    stretch = np.exp(random.normal(scale=0.9, size=DIM))
    moved = (pivot @ turned(random, 48)) * stretch + 4.0 * random.normal(size=DIM)
    moved += 0.02 * random.normal(size=moved.shape) * stretch
    return moved[:3_000], pivot[:3_000], moved[3_000:], pivot[3_000:]


def accuracy(queries, documents):
    scores = queries @ documents.T
    return float((scores.argmax(axis=1) == np.arange(len(queries))).mean())


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("with_pairs", [True, False])
def test_each_stage_helps(example, with_pairs):
    foreign, pivot, queries, documents = example
    found = [accuracy(unit(queries), unit(documents))]
    for stage in STAGES:
        pairs = {"xx": (foreign, pivot)} if with_pairs and stage.endswith("rotate") else None
        fitted = Calibration.fit({"xx": foreign, "en": pivot}, pivot="en", stage=stage, pairs=pairs)
        own, other = fitted.apply(queries, "xx", "query"), fitted.apply(documents, "en")
        found.append(accuracy(unit(own), unit(other)))
    assert found[0] < 0.1
    assert all(after > before + 0.05 for before, after in pairwise(found))
    assert found[-1] == 1.0
    assert fitted.method == ("pairs" if with_pairs else "neighbours")


def test_the_formula(example):
    foreign, pivot, queries, _ = example
    fitted = Calibration.fit(
        {"xx": foreign, "en": pivot}, pivot="en", stage="shift_scale_rotate",
        pairs={"xx": (foreign, pivot)},
    )  # fmt: skip

    def standard(rows, of):
        return (rows - of.mean(axis=0)) / of.std(axis=0)

    left, _, right = np.linalg.svd(standard(pivot, pivot).T @ standard(foreign, foreign))
    expected = np.array([left @ right @ row for row in standard(queries, foreign)])
    np.testing.assert_allclose(fitted.apply(queries, "xx"), expected, atol=1e-4)
    rotation = fitted._maps["xx"].rotation.astype(np.float64)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(DIM), atol=1e-6)
    assert fitted._maps["en"].rotation is None
    longest = [
        np.linalg.norm(fitted.apply(rows, name), axis=1).max()
        for name, rows in (("xx", foreign), ("en", pivot))
    ]
    assert fitted.longest == pytest.approx(max(longest), rel=1e-6)


def test_an_offset_matters_on_the_side_of_the_queries_only(example, rng):
    """An offset of all documents adds the same to each inner product with a query."""
    _, _, queries, documents = example
    shift = 5.0 * rng.normal(size=DIM)
    plain = (queries @ documents.T).argsort(axis=1)
    np.testing.assert_array_equal((queries @ (documents + shift).T).argsort(axis=1), plain)
    assert ((queries + shift) @ documents.T).argsort(axis=1).tolist() != plain.tolist()


def test_the_same_again_to_the_bit(example, tmp_path):
    foreign, pivot, queries, _ = example
    one, two = (
        Calibration.fit({"xx": foreign, "en": pivot}, pivot="en", stage="shift_scale_rotate")
        for _ in range(2)
    )
    assert one.to_json() == two.to_json()
    one.save(tmp_path / "made.json")
    again = Calibration.load(tmp_path / "made.json")
    np.testing.assert_array_equal(again.apply(queries, "xx"), one.apply(queries, "xx"))
    assert (again.languages, again.dim, again.stage) == (("en", "xx"), DIM, "shift_scale_rotate")


def test_a_map_for_each_tower(rng):
    samples = {
        ("de", "query"): rng.normal(3.0, size=(1_200, 4)),
        ("de", "document"): rng.normal(-3.0, size=(1_200, 4)),
        "en": rng.normal(size=(1_200, 4)),
    }
    fitted = Calibration.fit(samples, pivot="en", stage="shift")
    for side in ("query", "document"):
        moved = fitted.apply(samples["de", side], "de", side)
        np.testing.assert_allclose(moved.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_array_equal(
        fitted.apply(samples["en"], "en", "query"), fitted.apply(samples["en"], "en", "document")
    )
    only = Calibration.fit(
        {("de", "query"): samples["de", "query"], "en": samples["en"]}, pivot="en", stage="shift"
    )
    with pytest.raises(InvalidArgumentError, match="none for such a document"):
        only.apply(samples["en"], "de", "document")


def test_a_dimension_without_variance(rng):
    rows = rng.normal(size=(1_200, 4))
    rows[:, 2] = 0.25
    moved = Calibration.fit({"en": rows}, pivot="en", stage="shift_scale").apply(rows, "en")
    assert np.isfinite(moved).all()
    assert not moved[:, 2].any()


ROWS = np.random.default_rng(0).normal(size=(1_000, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "rotate"}, "stage='rotate': expected one of shift, shift_scale"),
        ({"pivot": "fr"}, "pivot='fr': no vectors of it; expected one of de, en"),
        ({"samples": {"en": ROWS, "de": ROWS[:, :3]}}, r"vectors of \[3, 4\] values"),
        ({"samples": {"en": ROWS, "de": ROWS[0]}}, r"de: an array of shape \(4,\)"),
        ({"samples": {"en": ROWS, "de": ROWS * np.inf}}, "expected finite vectors"),
        ({"samples": {"en": ROWS, "de": ROWS[:0]}}, "de: no vectors; expected at least 1000"),
        ({"samples": {"en": ROWS, ("de", "doc"): ROWS}}, r"key \('de', 'doc'\); expected"),
        ({"pairs": {"de": (ROWS, ROWS)}, "stage": "shift"}, "'shift' has no use for them"),
        ({"pairs": {}}, "pairs: none of de"),
        ({"pairs": {"de": (ROWS, ROWS[:9])}}, r"\(1000, 4\) and \(9, 4\); expected row for row"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    given = {"samples": {"en": ROWS, "de": ROWS}, "pivot": "en", "stage": "shift_scale_rotate"}
    given |= options
    with pytest.raises(InvalidArgumentError, match=message):
        Calibration.fit(given.pop("samples"), **given)


def test_few_vectors_are_warned_of(caplog):
    Calibration.fit({"en": ROWS, "de": ROWS[:999]}, pivot="en", stage="shift")
    assert "the statistics of de come from 999 vectors only" in caplog.text
    assert "statistics of en" not in caplog.text


def test_files(tmp_path):
    with pytest.raises(NotFoundError, match=r"calibration .*: no such file"):
        Calibration.load(tmp_path / "none.json")
    path = tmp_path / "made.json"
    path.write_text("{")
    with pytest.raises(InvalidArgumentError, match="not JSON"):
        Calibration.load(path)
    good = Calibration.fit({"en": ROWS}, pivot="en", stage="shift_scale").to_json()
    for change in (
        {"maps": {}} | {"stage": 1},
        {"maps": {"en": {"n": 1, "mean": "?"}}},
        {"longest": None},
    ):
        broken = json.loads(json.dumps(good))
        broken |= change
        path.write_text(json.dumps(broken))
        with pytest.raises(InvalidArgumentError, match="calibration: cannot be read"):
            Calibration.load(path)
