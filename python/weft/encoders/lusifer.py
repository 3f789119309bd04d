# SPDX-License-Identifier: Apache-2.0
"""LUSIFER: a multilingual encoder that a language model reads (Man et al. 2025).

XLM-R reads the text inside an instruction, a connector turns its states into inputs of a language
model that attends both ways, and the mean of what that gives is one vector per text. Rows are
scaled to unit length, since the published score is the cosine.

Some checkpoints put trained inputs behind the *padded* sequence. How far they are from the text
then depends on how much padding there is, hence on what else is in the batch. Unless `compat_batch`
is set, each text is padded to its own multiple of 8, which is what the original gives for a single
text, and only texts of equal padded length share a batch.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch.nn.functional import normalize

from weft.encoders.loading import load_tokenizer, model_window
from weft.encoders.lusifer_model import LusiferModel, build
from weft.encoders.settings import Setting, check_settings
from weft.encoders.vectors import VectorEncoder, padded
from weft.encoders.windowed import OVERLAP
from weft.encoders.windows import Piece, Splitter
from weft.errors import InvalidArgumentError
from weft.types import EncoderInfo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from weft.encoders.checkpoint import Checkpoint
    from weft.encoders.windowed import Options

LENGTH = 512
"""Most tokens of a text with its instruction, where nothing else is asked for."""

STEP = 8
"""Sequences are padded to multiples of it."""

BEGIN, END = "<s>", "</s>"
"""Marks of XLM-R, which the original writes into the text."""

SETTINGS = (
    Setting("base_configs"),
    Setting("instruction"),
    Setting("document_template", choices=("candidate", "query")),
    Setting("use_projection", bool),
    Setting("compat_batch", int),
    Setting("on_long", choices=("split", "truncate")),
)
"""What a user can change; all but the first are stored with the index.

base_configs
    Folder with `universal_learner/` (config.json and tokenizer) and `encoder/` (config.json), which
    the published checkpoint only names. None means the folder of the checkpoint.
instruction
    Put before queries and documents; may be empty.
document_template
    "candidate" is that of `encode_corpus`, "query" that of the model's card.
use_projection
    Whether vectors go through the output projection, as the code does since the published numbers.
compat_batch
    0, or so many texts at once in the order given, as the original batches.
on_long
    Whether a long document becomes windows or loses its end, as in the original.
"""

DEFAULTS = {
    "instruction": "Given a question, retrieve passages that answer the question.",
    "document_template": "candidate",
    "use_projection": True,
    "compat_batch": 0,
    "on_long": "split",
}


class _Template(Splitter):
    """Texts in their instruction; the marks of begin and end are part of the string.

    What is too long loses its last tokens, that of the end among them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: str, max_tokens: int) -> None:
        super().__init__(tokenizer, prompt, max_tokens, OVERLAP)
        self._before = BEGIN + prompt

    def first(self, texts: Sequence[str]) -> list[Piece]:
        return [piece for piece, _ in self._filled([(text, 0) for text in texts])]

    def split(self, texts: Sequence[str]) -> list[list[Piece]]:
        groups = []
        for piece, n_lost in self._filled([(text, 0) for text in texts]):
            if not n_lost:
                groups.append([piece])
                continue
            parts = [(part.text, part.start) for part in super().split([piece.text])[0]]
            groups.append([part for part, _ in self._filled(parts)])
        return groups

    def _filled(self, parts: list[tuple[str, int]]) -> list[tuple[Piece, int]]:
        """Give the piece of each part, and how many of all its tokens are beyond the length."""
        if not parts:
            return []
        encoded = self._tokenizer(
            [self._before + text + END for text, _ in parts],
            add_special_tokens=False, truncation=False, verbose=False, return_offsets_mapping=True,
        )  # fmt: skip
        filled = []
        for row, (text, start) in enumerate(parts):
            ids = encoded["input_ids"][row]
            spans = np.asarray(encoded["offset_mapping"][row], np.int64).reshape(-1, 2)
            spans = (spans - len(self._before)).clip(0, len(text))
            of_text = (spans[:, 1] > spans[:, 0]) & bool(text.strip())
            places = (np.where(of_text[:, None], spans, 0) + start).astype(np.uint32)
            n, n_cut = self._max_tokens, int(np.count_nonzero(of_text[self._max_tokens :]))
            piece = Piece(text, start, ids[:n], places[:n], of_text[:n], 0, n_cut)
            filled.append((piece, max(len(ids) - n, 0)))
        return filled


class LusiferEncoder(VectorEncoder):
    """A LUSIFER checkpoint, run by the recipe of its authors."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: LusiferModel,
        tokenizer: PreTrainedTokenizerBase,
        options: Options,
        info: EncoderInfo | None,
        settings: Mapping[str, Any],
    ) -> None:
        longest = model_window(model.learner)
        usual = min(LENGTH, longest)
        lengths = options.lengths(info, (usual, usual))
        super().__init__(tokenizer, ("", ""), lengths, options, on_long=settings["on_long"])
        ask, candidate = f"{settings['instruction']}.\n", f"{settings['instruction']}. Candidate:\n"
        prompts = (ask, candidate if settings["document_template"] == "candidate" else ask)
        for name, length, prompt in zip(_LENGTHS, lengths, prompts, strict=True):
            least = len(tokenizer(prompt)["input_ids"]) + 4
            if not least <= length <= longest:
                raise InvalidArgumentError(
                    f"{name}={length}: expected {least}..{longest}: more than the instruction, at "
                    f"most the model's window"
                )
        self._queries = _Template(tokenizer, prompts[0], lengths[0])
        self._documents = _Template(tokenizer, prompts[1], lengths[1])
        self._pad = int(tokenizer.pad_token_id)
        self._compat_batch = int(settings["compat_batch"])
        self._model = model.to(self.device)
        self._info = EncoderInfo(
            name=checkpoint.name,
            recipe="lusifer",
            dim=model.width,
            fingerprint=checkpoint.fingerprint(),
            query_length=lengths[0],
            document_length=lengths[1],
            settings={**settings, "overlap": OVERLAP},
        )

    @property
    def info(self) -> EncoderInfo:
        """What an index stores."""
        return self._info

    def n_read(self, piece: Piece, task: str) -> int:
        """Give how many tokens the model reads for a piece, padded to a multiple of 8."""
        del task
        return -(-len(piece.ids) // STEP) * STEP

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Put texts of equal padded length together; with `compat_batch`, as they come."""
        if self._compat_batch:
            step = self._compat_batch
            return [
                list(range(len(lengths)))[at : at + step] for at in range(0, len(lengths), step)
            ]
        grouped: list[list[int]] = []
        for at in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            same = bool(grouped) and lengths[grouped[-1][0]] == lengths[at]
            if same and (len(grouped[-1]) + 1) * lengths[at] <= self._batch_tokens:
                grouped[-1].append(at)
            else:
                grouped.append([at])
        return grouped

    def no_rows(self) -> NDArray[np.float32]:
        """Give an array of no rows."""
        return np.zeros((0, self._model.width), np.float32)

    def vectors(self, pieces: list[Piece], task: str) -> NDArray[np.float32]:
        """Give one row for each piece, `[n, dim]`."""
        del task
        ids, mask = padded(pieces, self._pad, STEP)
        found = self._model(ids.to(self.device), mask.to(self.device)).float()
        rows: NDArray[np.float32] = normalize(found, dim=-1).cpu().numpy()
        return rows


_PARTS = ("universal_learner", "encoder")
_LENGTHS = ("query_length", "document_length")


def load(checkpoint: Checkpoint, options: Options, info: EncoderInfo | None) -> LusiferEncoder:
    """Load a folder with `config.json` and the weights.

    Raises
    ------
    InvalidArgumentError
        If a base configuration or the tokenizer is not there; nothing is fetched.
    """
    check_settings("lusifer", options.settings, SETTINGS)
    stored = {} if info is None else {name: info.settings[name] for name in DEFAULTS}
    settings = {**DEFAULTS, **stored, **options.settings}
    bases = Path(settings.pop("base_configs", checkpoint.folder))
    config = checkpoint.json("config.json")
    for part in _PARTS:
        if not (bases / part / "config.json").is_file():
            base = config.get(f"{part}_name_or_path")
            raise InvalidArgumentError(
                f"model {checkpoint.name}: no {bases / part / 'config.json'}; expected that of "
                f"{base}, which the checkpoint names and weft does not fetch; "
                f"--option base_configs=FOLDER names another place"
            )
    if settings["compat_batch"] < 0:
        raise InvalidArgumentError(f"compat_batch={settings['compat_batch']}: expected 0 or more")
    settings["bases"] = _digest(bases)
    tokenizer = load_tokenizer(checkpoint, bases / "universal_learner")
    model = build(checkpoint, bases, options, projected=settings["use_projection"])
    if options.dim not in {None, model.width}:
        raise InvalidArgumentError(f"dim={options.dim}: the model gives {model.width}")
    return LusiferEncoder(checkpoint, model, tokenizer, options, info, settings)


def _digest(bases: Path) -> str:
    """Tell base configurations and tokenizers from others, wherever they lie."""
    digest = hashlib.sha256()
    for path in sorted(path for part in _PARTS for path in (bases / part).iterdir()):
        if path.suffix in {".json", ".model"}:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:32]
