# SPDX-License-Identifier: Apache-2.0
"""How many centroids a codec has, and when an index that grows needs more, or another codec."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from weft.types import defaults

if TYPE_CHECKING:
    from weft.lifecycle.entries import CodecEntry
    from weft.types import IndexConfig

MAX_COARSE = 65_536
TOKENS_PER_FINE = 50
CHILDREN_BY_RULE = 128
MAX_CHILDREN = 256
STRANGE_SHARE = 0.25


def tree_size(config: IndexConfig, n_tokens: int) -> tuple[int, int]:
    """Give the numbers of coarse and fine centroids for so many tokens.

    Coarse: the power of two nearest to the square root, 16 to 65,536, doubled until it has at most
    128 fine centroids each. Fine: a fiftieth of the tokens.
    """
    wanted = config.n_fine or n_tokens // TOKENS_PER_FINE
    coarse = config.n_coarse
    if coarse is None:
        power = round(math.log2(math.sqrt(max(n_tokens, 1))))
        coarse = min(max(2**power, 16), MAX_COARSE)
        while coarse < MAX_COARSE and wanted > CHILDREN_BY_RULE * coarse:
            coarse *= 2
        if config.n_fine is not None:
            coarse = min(coarse, config.n_fine)
    if config.n_fine is not None:
        return coarse, config.n_fine
    return coarse, min(max(wanted, coarse), CHILDREN_BY_RULE * coarse)


def outgrown(config: IndexConfig, codec: CodecEntry, n_tokens: int, n_strange: int = 0) -> bool:
    """Tell whether a commit that makes it so many tokens trains another codec.

    Each time there are a fixed number of times as many tokens as before, so that however long an
    index lives, what is encoded again is less than twice what it holds; sooner where many of them
    are strange, that is came in commits that did not fit the codec. Codes of 4 bits alone lose a
    little by it, and wait longer; those of 1 and 2 bits would lose too much.
    """
    if config.rerank is not None or config.nbits == 8:
        most = defaults.retrain_growth * codec.n_trained
        return n_tokens >= most or n_strange >= STRANGE_SHARE * codec.n_trained
    return config.nbits == 4 and n_tokens >= defaults.retrain_growth**2 * codec.n_trained


def n_more_centroids(
    config: IndexConfig, codec: CodecEntry, *, n_tokens: int, n_new: int, drift: float
) -> int:
    """Say how many fine centroids a codec is to get.

    Parameters
    ----------
    config, codec
        Of the index; where the configuration names a number of fine centroids, it stays.
    n_tokens, n_new
        Tokens of the index with those of the commit, and those of the commit.
    drift
        Share of the new tokens that lie beyond the error that the codec was trained to.
    """
    if config.n_fine is not None:
        return 0
    room = MAX_CHILDREN * codec.n_coarse - codec.n_fine
    by_size = tree_size(config, n_tokens)[1] - codec.n_fine
    if by_size >= defaults.fine_growth * codec.n_fine:
        return min(by_size, room)
    if drift > defaults.drift:
        return min(max(by_size, n_new // TOKENS_PER_FINE), room)
    return 0
