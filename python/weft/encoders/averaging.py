# SPDX-License-Identifier: Apache-2.0
"""Weighted averages of checkpoints, the last step of JaColBERTv2.5 and of Granite Embedding."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from weft.errors import IndexExistsError, InvalidArgumentError, MissingExtraError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    Place = tuple[str, str]

_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".dnn", ".onnx")


def average_checkpoints(
    folders: Sequence[str | Path], out: str | Path, *, weights: Sequence[float] | None = None
) -> Path:
    """Write a checkpoint whose every tensor is the weighted mean of those of several.

    Parameters
    ----------
    folders
        Checkpoints of one model: the same tensors of the same shapes in their .safetensors files.
        What is no tensor is copied from the first.
    out
        Folder to make.
    weights
        One for each folder, divided by their sum; None means equal ones. Sums are in float64, the
        result has the type of the first checkpoint.

    Returns
    -------
    The new folder.

    Raises
    ------
    InvalidArgumentError
        If the checkpoints do not have the same tensors, or the weights no finite sum but 0.
    NotFoundError
        If a folder has no .safetensors file.
    IndexExistsError
        If there is something at `out`.
    """
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise MissingExtraError(error.name or "safetensors", "encode") from error

    paths, out = [Path(folder) for folder in folders], Path(out)
    shares = _shares(len(paths), weights)
    if out.exists():
        raise IndexExistsError(f"{out}: exists already; expected a new path")
    places = [_places(path) for path in paths]
    for path, found in zip(paths[1:], places[1:], strict=True):
        _require_same_keys(paths[0], set(places[0]), path, set(found))
    beside = out.with_name(f"{out.name}.averaging")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(paths[0], beside)
    for file in sorted(set(places[0].values())):
        merged = {}
        for place in (place for place, held in places[0].items() if held == file):
            files = [path / found[place] for path, found in zip(paths, places, strict=True)]
            merged[place[1]] = _mean(place[1], files, shares)
        save_file(merged, str(beside / file), metadata={"format": "pt"})
    beside.rename(out)
    return out


def _mean(name: str, files: list[Path], shares: list[float]) -> torch.Tensor:
    from safetensors import safe_open

    tensors = []
    for file in files:
        with safe_open(str(file), framework="pt") as opened:
            tensors.append(opened.get_tensor(name))
    first = tensors[0]
    for file, tensor in zip(files, tensors, strict=True):
        if tensor.shape != first.shape:
            raise InvalidArgumentError(
                f"{file}: {name} is {tuple(tensor.shape)}, expected {tuple(first.shape)} as in "
                f"{files[0]}"
            )
    if first.is_floating_point():
        total = first.double() * shares[0]
        for tensor, share in zip(tensors[1:], shares[1:], strict=True):
            total += tensor.double() * share
        return total.to(first.dtype).contiguous()
    for file, tensor in zip(files, tensors, strict=True):
        if not tensor.equal(first):
            raise InvalidArgumentError(
                f"{file}: {name} holds whole numbers that are not those of {files[0]}"
            )
    return first


def _shares(n: int, weights: Sequence[float] | None) -> list[float]:
    given = [1.0] * n if weights is None else [float(weight) for weight in weights]
    total = sum(given)
    if n == 0 or len(given) != n or not math.isfinite(total) or total == 0:
        raise InvalidArgumentError(
            f"weights {given}: expected {n} numbers, one a checkpoint, with a sum that is not 0"
        )
    return [weight / total for weight in given]


def _places(folder: Path) -> dict[Place, str]:
    """Give the file of each tensor, by the folder inside the checkpoint and the tensor's name."""
    from safetensors import safe_open

    found: dict[Place, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix in _OTHER_WEIGHTS:
            raise InvalidArgumentError(f"{path}: cannot be averaged, expected .safetensors only")
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118
                    found[(Path(name).parent.as_posix(), key)] = name
    if not found:
        raise NotFoundError(f"{folder}: no .safetensors file, expected a checkpoint")
    return found


def _require_same_keys(first: Path, expected: set[Place], path: Path, found: set[Place]) -> None:
    for here, there, absent in ((first, path, expected - found), (path, first, found - expected)):
        if absent:
            raise InvalidArgumentError(
                f"{there}: no tensor {min(absent)[1]}, which {here} has; expected the same tensors"
            )
