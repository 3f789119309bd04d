# SPDX-License-Identifier: Apache-2.0
"""How results look on a terminal: snippets with their matched words, and explanations."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from weft.types import Hit, Hits, Match

SNIPPET_CHARACTERS = 220
STRONG, WEAK = 0.85, 0.65
"""Shares of a hit's best similarity from which a word is shown as a strong or a weak match."""
SHORT_WORD = 3
STYLES = {"strong": "bold black on yellow", "weak": "bold yellow"}
BAR_WIDTH = 20
EIGHTHS = " ▏▎▍▌▋▊▉█"
WORD = re.compile(r"\w+")
CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), " ")
"""Characters that could move the cursor or colour the terminal; texts are shown without them."""


def hit_to_json(hit: Hit, *, explain: bool) -> dict[str, Any]:
    """Give a hit as JSON values, with its matches where they were asked for."""
    document: dict[str, Any] = {
        "id": hit.id,
        "score": hit.score,
        "scores": None if hit.scores is None else dict(hit.scores),
        "passage": hit.passage,
        "text": hit.text,
        "metadata": None if hit.metadata is None else dict(hit.metadata),
    }
    if explain and hit.matches is not None:
        document["matches"] = [
            {
                "query_token": match.text if match.text is not None else match.query_token,
                "token": match.token,
                "start": match.start,
                "end": match.end,
                "similarity": match.similarity,
            }
            for match in hit.matches
        ]
    return document


def hits_to_json(hits: Hits, *, explain: bool) -> dict[str, Any]:
    """Give a whole answer as JSON values."""
    return {
        "generation": hits.generation,
        "n_matching": hits.n_matching,
        "hits": [hit_to_json(hit, explain=explain) for hit in hits],
        "operating_point": hits.operating_point.to_json(),
        "timings_ms": dict(hits.timings_ms),
        "device": hits.device,
    }


def show_hits(hits: Hits, *, explain: bool, metadata: bool = False) -> Iterator[Any]:
    """Give what to print for an answer: rank, score, id and a snippet, then the explanation."""
    for rank, hit in enumerate(hits, start=1):
        title = Text.assemble((f"{rank:>2}  ", "dim"))
        title.append(f"{hit.score:.2f}  ", style="cyan")
        title.append(hit.id.translate(CONTROLS), style="bold")
        if hit.passage:
            title.append(f"  passage {hit.passage + 1}", style="dim")
        if hit.scores:
            title.append("  " + "  ".join(f"{n} {s:.3f}" for n, s in hit.scores.items()), "dim")
        yield title
        if metadata and hit.metadata:
            fields = "  ".join(f"{name}={value!r}" for name, value in hit.metadata.items())
            yield Padding(Text(fields.translate(CONTROLS), style="dim"), (0, 0, 0, 4), expand=False)
        if hit.text:
            yield Padding(snippet(hit), (0, 0, 0, 4), expand=False)
        if explain and hit.matches:
            yield explanation(hit)
        yield Text()


def show_summary(hits: Hits, encoded_on: str | None) -> Text:
    """Say in one line how the answer was found, and where its query was encoded, where known."""
    point = hits.operating_point
    how = f"{point.path or 'searched'} on {hits.device}"
    parts = [f"{len(hits)} of {hits.n_matching:,} documents", how]
    if point.path == "pruned" and point.measured is not None:
        parts.append(f"recall@{point.k} {point.measured:.3f} on {point.tuned_on}")
        if not point.reached:
            parts.append(f"below the target of {point.target}")
        if point.stale:
            parts.append("measured before the index grew")
    if encoded_on is not None:
        parts.append(f"encoded on {encoded_on}")
    total = sum(hits.timings_ms.values())
    stages = ", ".join(f"{name} {value:.1f}" for name, value in hits.timings_ms.items())
    parts.append(f"{total:.1f} ms ({stages})")
    return Text(" · ".join(parts), style="dim")


def matched_words(hit: Hit) -> dict[tuple[int, int], float]:
    """Give the words of the text that won for some query token, each with its best similarity."""
    text = hit.text or ""
    words: dict[tuple[int, int], float] = {}
    for match in hit.matches or ():
        if match.start is None or match.end is None or match.start >= match.end:
            continue
        start, end = whole_word(text, match.start, match.end)
        if WORD.search(text, start, end):
            words[start, end] = max(words.get((start, end), 0.0), match.similarity)
    return words


def whole_word(text: str, start: int, end: int) -> tuple[int, int]:
    """Widen the place of a token to the word that it is a piece of."""
    while start > 0 and WORD.match(text[start - 1]) and WORD.match(text[start]):
        start -= 1
    while end < len(text) and WORD.match(text[end]) and WORD.match(text[end - 1]):
        end += 1
    return start, end


def snippet(hit: Hit) -> Text:
    """Cut the part of the text with the best matches, and mark the matched words in it."""
    text, words = (hit.text or "").translate(CONTROLS), matched_words(hit)
    begin, end = best_window(text, words)
    shown = Text(text[begin:end])
    best = max(words.values(), default=0.0)
    for (start, stop), similarity in words.items():
        strong = similarity >= STRONG * best
        weak = similarity >= WEAK * best and not is_short(text[start:stop])
        if (strong or weak) and begin <= start and stop <= end:
            shown.stylize(STYLES["strong" if strong else "weak"], start - begin, stop - begin)
    return Text.assemble("… " if begin else "", shown, " …" if end < len(text) else "")


def is_short(word: str) -> bool:
    """Whether a word is so short that a weak match with it says nothing: a, it, the."""
    return word.isascii() and len(word) <= SHORT_WORD


def best_window(text: str, words: dict[tuple[int, int], float]) -> tuple[int, int]:
    """Give the part of at most `SNIPPET_CHARACTERS` whose matched words add up to the most."""
    if len(text) <= SNIPPET_CHARACTERS:
        return 0, len(text)

    def inside(begin: int) -> float:
        end = begin + SNIPPET_CHARACTERS
        return sum(
            value for (start, stop), value in words.items() if begin <= start and stop <= end
        )

    starts = [0, *(max(0, start - 20) for start, _ in sorted(words))]
    begin = max(starts, key=lambda start: (inside(start), -start))
    if begin:
        begin = text.find(" ", begin) + 1 or begin
    end = min(len(text), begin + SNIPPET_CHARACTERS)
    if end < len(text):
        cut = text.rfind(" ", begin + SNIPPET_CHARACTERS // 2, end)
        end = cut if cut > 0 else end
    return begin, end


def explanation(hit: Hit) -> Table:
    """Show for each query token the word that it matched best, and how well; the parts add up."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=True)
    table.add_column("    query token", style="magenta", header_style="dim")
    table.add_column("best match", style="bold yellow", header_style="dim", overflow="ellipsis")
    table.add_column("similarity", justify="right", header_style="dim")
    table.add_column("", style="green")
    for match in hit.matches or ():
        name = match.text if match.text is not None else f"#{match.query_token}"
        table.add_row(
            f"    {name}",
            matched_text(hit, match),
            f"{match.similarity:.2f}",
            bar(match.similarity),
        )
    return table


def matched_text(hit: Hit, match: Match) -> str:
    """Name the document token of a match: its word where the text is known, else its number."""
    if not hit.text or match.start is None or match.end is None:
        return f"#{match.token}"
    start, end = whole_word(hit.text, match.start, match.end)
    return hit.text[start:end] if start < end else f"#{match.token}"


def bar(value: float) -> str:
    """Draw a similarity between 0 and 1 as a bar."""
    eighths = round(min(max(value, 0.0), 1.0) * BAR_WIDTH * 8)
    return (EIGHTHS[8] * (eighths // 8) + EIGHTHS[eighths % 8]).rstrip()
