# SPDX-License-Identifier: Apache-2.0
"""How a checkpoint's rows are made from a text: which recipe is its own, and where that is written.

`RECIPES` is the whole of it. The first recipe that recognises a checkpoint is its own, since some
layouts are marked twice: BGE-M3 has a modules.json for its dense part, and some ColBERT models have
the files of PyLate and of Stanford's runtime. A recipe's module is imported when it is used and has
a function `load(checkpoint, options, info)` that gives an `Encoder`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weft.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from weft.encoders.checkpoint import Checkpoint

logger = logging.getLogger("weft")

_PYLATE_KEYS = {
    "query_prefix", "document_prefix", "query_length", "document_length", "skiplist_words",
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """One way to make rows from a text.

    Attributes
    ----------
    name
        What an index stores and `recipe=` takes.
    recognises
        Whether a checkpoint is laid out for it.
    module
        Where it is written.
    gives
        The field its vectors are for: "multi", "dense" (documents of one row), "sparse" or "all".
    """

    name: str
    recognises: Callable[[Checkpoint], bool]
    module: str
    gives: str = "multi"


def _is_m3(checkpoint: Checkpoint) -> bool:
    heads = ("colbert_linear.pt", "sparse_linear.pt")  # one alone is a damaged one
    return any((checkpoint.folder / head).is_file() for head in heads)


def _is_lusifer(checkpoint: Checkpoint) -> bool:
    return "universal_learner_name_or_path" in checkpoint.json("config.json")


def _is_dpr(checkpoint: Checkpoint) -> bool:
    """Look for `model_dict` in pickled weights; a folder may hold pickles that cannot be read."""
    from weft.encoders.loading import unpickled

    for path in checkpoint.weights():
        if path.suffix == ".pt":
            try:
                if "model_dict" in unpickled(path, "meta"):
                    return True
            except InvalidArgumentError:
                if path == checkpoint.file:
                    raise
    return False


def _is_pylate(checkpoint: Checkpoint) -> bool:
    saved = checkpoint.json("config_sentence_transformers.json")
    marked = saved.get("model_type") == "ColBERT" or bool(_PYLATE_KEYS & saved.keys())
    return marked and (checkpoint.folder / "modules.json").is_file()


def _is_stanford(checkpoint: Checkpoint) -> bool:
    return (
        (checkpoint.file is not None and checkpoint.file.suffix == ".dnn")
        or "HF_ColBERT" in (checkpoint.json("config.json").get("architectures") or [])
        or (checkpoint.folder / "artifact.metadata").is_file()
    )


def _is_splade(checkpoint: Checkpoint) -> bool:
    return any(part.get("type", "").endswith("SpladePooling") for part in checkpoint.modules())


def _is_multi_vector(checkpoint: Checkpoint) -> bool:
    saved = checkpoint.json("config_sentence_transformers.json")
    return saved.get("model_type") in {"ColBERT", "MultiVectorEncoder"}


def _is_any(checkpoint: Checkpoint) -> bool:
    del checkpoint
    return True


def _is_asked_for(checkpoint: Checkpoint) -> bool:
    del checkpoint
    return False


RECIPES = (
    Recipe("m3", _is_m3, "weft.encoders.m3", "all"),
    Recipe("lusifer", _is_lusifer, "weft.encoders.lusifer", "dense"),
    Recipe("dpr", _is_dpr, "weft.encoders.dpr", "dense"),
    Recipe("pylate", _is_pylate, "weft.encoders.pylate"),
    Recipe("stanford", _is_stanford, "weft.encoders.stanford"),
    Recipe("splade", _is_splade, "weft.encoders.splade", "sparse"),
    Recipe("st", _is_multi_vector, "weft.encoders.sentence_transformers"),
    Recipe("tokens", _is_any, "weft.encoders.tokens"),
    Recipe("dense", _is_asked_for, "weft.encoders.dense", "dense"),
)


def recipe_of(checkpoint: Checkpoint) -> Recipe:
    """Give a checkpoint's own recipe; where it could be two, it is logged which one won."""
    fitting = [recipe for recipe in RECIPES if recipe.recognises(checkpoint)]
    others = [recipe.name for recipe in fitting[1:] if recipe.name not in {"st", "tokens"}]
    if others:
        logger.info(
            "model %s: laid out for %s and for %s; %s is used, recipe= takes another",
            checkpoint.name, fitting[0].name, " and for ".join(others), fitting[0].name,
        )  # fmt: skip
    return fitting[0]


def recipe_named(name: str) -> Recipe:
    """Give a recipe by its name.

    Raises
    ------
    InvalidArgumentError
        If there is none of that name.
    """
    for recipe in RECIPES:
        if recipe.name == name:
            return recipe
    names = ", ".join(recipe.name for recipe in RECIPES)
    raise InvalidArgumentError(f"recipe={name!r}: expected one of {names}")
