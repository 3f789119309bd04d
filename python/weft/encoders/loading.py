# SPDX-License-Identifier: Apache-2.0
"""Parts of a checkpoint into memory: tokenizer, transformer, tensors; nothing in it is ever run."""

from __future__ import annotations

import json
import pickle
import re
import struct
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from weft.errors import InvalidArgumentError, MissingExtraError, WeftError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from weft.encoders.checkpoint import Checkpoint
    from weft.encoders.windowed import Options

_UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, TypeError, LookupError,
    AttributeError, AssertionError, struct.error, zipfile.BadZipFile,
)  # fmt: skip
"""What the reader of pickles raises on damaged ones."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Load without progress bars, and report what goes wrong as one clear error."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except WeftError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise InvalidArgumentError(f"model {name}: cannot be loaded: {first[0]}") from error
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def load_tokenizer(checkpoint: Checkpoint, folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies in a folder.

    Raises
    ------
    InvalidArgumentError
        If there is none.
    MissingExtraError
        If it needs a morphological analyser that is not installed.
    """
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise InvalidArgumentError(
            f"model {checkpoint.name}: no tokenizer in {folder}; expected tokenizer_config.json "
            f"and what it names, which can be copied from the model that it was trained from"
        )
    with loading(checkpoint.name):
        try:
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "fugashi", "ja") from error


def load_model(checkpoint: Checkpoint, folder: Path, options: Options) -> PreTrainedModel:
    """Load the transformer that lies in a folder; one without all its weights is refused."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it tells of weights that are not used
    try:
        with loading(checkpoint.name):
            model, report = AutoModel.from_pretrained(
                str(folder), local_files_only=True, dtype=options.torch_dtype(),
                output_loading_info=True,
            )  # fmt: skip
    finally:
        transformers_logging.set_verbosity(verbosity)
    require_complete(checkpoint, report["missing_keys"])
    return model


def build_model(
    checkpoint: Checkpoint, folder: Path, weights: dict[str, torch.Tensor], options: Options
) -> PreTrainedModel:
    """Make the transformer that a folder's config.json describes from weights that lie elsewhere.

    Raises
    ------
    InvalidArgumentError
        If there is no such file, or weights are missing.
    """
    with loading(checkpoint.name):
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
        with torch.device("meta"):
            kind = type(AutoModel.from_config(config))
        model, report = kind.from_pretrained(
            None, config=config, state_dict=weights, dtype=options.torch_dtype(),
            output_loading_info=True,
        )  # fmt: skip
    require_complete(checkpoint, report["missing_keys"])
    return model


def require_complete(checkpoint: Checkpoint, missing: Iterable[str]) -> None:
    """Refuse a checkpoint without weights that the rows depend on; a pooler is none of them."""
    absent = sorted(key for key in missing if "pooler" not in key)
    if absent:
        raise InvalidArgumentError(
            f"model {checkpoint.name}: {len(absent)} weights are not in the checkpoint ("
            f"{absent[0]} first) and would be random; expected a complete one"
        )


def model_window(model: PreTrainedModel) -> int:
    """Give the most tokens that a model has positions for."""
    n_positions = int(model.config.max_position_embeddings)
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    # RoBERTa and its kin start counting after the padding index.
    return n_positions if padding is None else n_positions - padding - 1


def check_cut(checkpoint: Checkpoint, width: int, dim: int, *, force: bool) -> None:
    """Refuse to cut rows to a width that a model was not trained for.

    Matryoshka models list theirs: `matryoshka_dims` in a configuration, or in the card that
    sentence-transformers writes (Kusupati et al. 2022).
    """
    listed = matryoshka_dims(checkpoint)
    if dim == width or (dim < width and (force or dim in listed)):
        return
    which = ", ".join(str(size) for size in sorted({width, *listed}))
    hint = "" if dim > width else "; the option force_dim=true cuts it anyway"
    raise InvalidArgumentError(
        f"dim={dim}: the model {checkpoint.name} gives {width}, its checkpoint lists {which}{hint}"
    )


def matryoshka_dims(checkpoint: Checkpoint) -> list[int]:
    """Give the widths that a checkpoint says its rows can be cut to."""
    for name in ("config_sentence_transformers.json", "config.json"):
        saved = checkpoint.json(name).get("matryoshka_dims")
        if isinstance(saved, list):
            return [int(size) for size in saved]
    card = checkpoint.folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    found = re.search(r'"matryoshka_dims":\s*(\[[\d,\s]*\])', text)
    return [] if found is None else [int(size) for size in json.loads(found.group(1))]


def read_weights(path: Path, wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    """Read the tensors of a file whose names are wanted; a pickle holds nothing else.

    Raises
    ------
    InvalidArgumentError
        If it cannot be read.
    """
    with loading(str(path)):
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(str(path), framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys() if wanted(name)}  # noqa: SIM118
        held: dict[str, Any] = unpickled(path)
        return {name: value for name, value in held.items() if wanted(name)}


def unpickled(path: Path, device: str = "cpu") -> dict[str, Any]:
    """Read a pickle of tensors, numbers and texts; anything else in it is refused.

    On the device "meta" tensors come without their values.

    Raises
    ------
    InvalidArgumentError
        If it holds anything else, or is no pickle.
    """
    try:
        # What is not used, such as the state of an optimiser, is then never read.
        mapped = device == "cpu" and zipfile.is_zipfile(path)
        held = torch.load(path, map_location=device, weights_only=True, mmap=mapped)
    except _UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidArgumentError(f"{path}: not a file of tensors alone: {reason}") from error
    if not isinstance(held, dict):
        raise InvalidArgumentError(f"{path}: a {type(held).__name__}, expected a dictionary")
    return held
