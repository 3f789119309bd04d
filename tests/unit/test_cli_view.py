# SPDX-License-Identifier: Apache-2.0
"""How the command line writes numbers, hits and progress."""

import io

import pytest

from weft.cli.hits import best_window, matched_words, snippet, whole_word
from weft.cli.view import _Lines, console, duration
from weft.lifecycle.planning import size
from weft.types import Hit, Match


class TestText:
    def test_numbers_for_people(self):
        assert size(100) == "100 B"
        assert size(3 << 20) == "3.0 MiB"
        assert size(5 << 30) == "5.00 GiB"
        assert duration(3.21) == "3.2 s"
        assert duration(125) == "2 min 05 s"
        assert duration(3 * 3600 + 120) == "3 h 2 min"

    @pytest.mark.parametrize(
        ("text", "start", "end", "word"),
        [
            ("tokenizers split", 0, 5, "tokenizers"),
            ("tokenizers split", 5, 10, "tokenizers"),
            ("a-b", 0, 1, "a"),
            ("naïve café", 6, 8, "café"),
            ("wait!", 4, 5, "!"),
        ],
    )
    def test_pieces_become_words(self, text, start, end, word):
        begin, stop = whole_word(text, start, end)
        assert text[begin:stop] == word

    def test_a_snippet_holds_the_best_matches(self):
        text = "x " * 300 + "the needle is here " + "y " * 300
        at = text.index("needle")
        hit = Hit("a", 1.0, text=text, matches=(Match(0, 3, 0.9, at, at + 3),))
        assert matched_words(hit) == {(at, at + 6): 0.9}
        begin, end = best_window(text, matched_words(hit))
        assert begin <= at < end
        shown = snippet(hit)
        assert "needle" in shown.plain
        assert shown.plain.startswith("… ")
        assert shown.plain.endswith(" …")
        (span,) = shown.spans
        assert shown.plain[span.start : span.end] == "needle"

    def test_markup_in_a_document_stays_text(self):
        hit = Hit("a", 1.0, text="[bold]not markup[/bold] \x1b[31m", matches=())
        assert snippet(hit).plain == "[bold]not markup[/bold]  [31m"


class TestProgress:
    def lines(self, calls, monkeypatch):
        """What is written for (stage, done, total, seconds since the start)."""
        now = [0.0]
        monkeypatch.setattr("weft.cli.view.time.monotonic", lambda: now[0])
        stream = io.StringIO()
        report = _Lines(console(stream))
        for stage, done, total, seconds in calls:
            now[0] = seconds
            report(stage, done, total)
        report.finish()
        return stream.getvalue().splitlines()

    def test_a_line_for_each_stage_and_one_every_ten_seconds(self, monkeypatch):
        calls = [("encode", done, 100, done / 4) for done in range(0, 101, 2)]
        calls += [("write", done, 10, 25 + done / 10) for done in range(11)]
        written = self.lines(calls, monkeypatch)
        assert [line.split(":")[0] for line in written] == ["encode", "encode", "encode", "write"]
        assert written[0].startswith("encode: 40/100, 4/s, 10.0 s, about 15.0 s left")
        assert written[2].startswith("encode: 100/100")
        assert written[3].startswith("write: 10/10")

    def test_nothing_is_said_twice(self, monkeypatch):
        calls = [("tune", 1, 2, 0.0), ("tune", 2, 2, 30.0)]
        assert len(self.lines(calls, monkeypatch)) == 1
