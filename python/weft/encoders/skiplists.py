# SPDX-License-Identifier: Apache-2.0
"""Which rows of a document are left out: those of tokens that say nothing, as punctuation.

There are three rules for one list of symbols, and they differ where a vocabulary lacks one of them.
"""

from __future__ import annotations

import logging
import string
from typing import TYPE_CHECKING

from weft.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("weft")

RULES = ("stanford", "pylate", "st", "none")
PUNCTUATION = tuple(string.punctuation)
_PLACES = ("", " ", "a")
"""What a character can stand behind: nothing, a blank, a letter."""


def skipped_ids(
    tokenizer: PreTrainedTokenizerBase, rule: str, words: Sequence[str], extra: str
) -> set[int]:
    """Give the token numbers whose rows are left out.

    Parameters
    ----------
    tokenizer
        Of the model.
    rule
        "stanford": the first token that each word is split into. "pylate": each word looked up in
        the vocabulary. Both take [UNK] for a word that is not in it, so that the rows of all
        unknown words are left out. "st": as "pylate", without such words. "none": none.
    words
        The words of the checkpoint, mostly punctuation.
    extra
        More characters: their rows are left out wherever they are a token of their own, alone or as
        part of a word. None of them stands for [UNK].

    Raises
    ------
    InvalidArgumentError
        If one of `extra` is never a token.
    """
    unknown = tokenizer.unk_token_id
    found: set[int] = set()
    if rule == "stanford":
        split = [tokenizer.encode(word, add_special_tokens=False) for word in words]
        found = {ids[0] for ids in split if ids}
    elif rule in {"pylate", "st"}:
        ids = {word: tokenizer.convert_tokens_to_ids(word) for word in words}
        absent = [word for word in words if ids[word] in {None, unknown}]
        found = {token for token in ids.values() if token is not None}
        if rule == "st" and absent:
            found -= {unknown}
            logger.warning(
                "not in the vocabulary, so not on the skiplist: %s", " ".join(map(repr, absent))
            )
    return found | _ids_of_characters(tokenizer, extra)


def _ids_of_characters(tokenizer: PreTrainedTokenizerBase, characters: str) -> set[int]:
    found: set[int] = set()
    for character in characters:
        ids = set()
        for place in _PLACES:
            last = tokenizer.encode(place + character, add_special_tokens=False)[-1:]
            if tokenizer.decode(last).removeprefix("##").strip() == character:
                ids.update(last)
        if not ids:
            raise InvalidArgumentError(
                f"skiplist_extra: {character!r} is no token of this vocabulary; "
                f"expected characters that are"
            )
        found |= ids
    return found
