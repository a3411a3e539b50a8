"""Text from a data set cannot act on a terminal, in a spreadsheet or in Markdown."""

from __future__ import annotations

import csv
import io
import pickle
import sys
import unicodedata

import pytest
from markdown_it import MarkdownIt

from mimic_pl.callbacks.panels import sample_text
from mimic_pl.errors import LONGEST, DataError, NonFiniteScoreError
from mimic_pl.escaping import markdown_text, printable, shortened, spreadsheet
from mimic_pl.ranking.explain import ExplainedScore, Explanation
from mimic_pl.records import Entity, Mention
from mimic_pl.report.table import as_csv

BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def test_no_character_that_controls_a_terminal_is_left():
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    shown = printable(every)
    assert shown.encode("utf-8")  # no surrogates
    assert {c for c in shown if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs")} == {"\t", "\n"}
    assert not {unicodedata.bidirectional(c) for c in shown} & BIDI
    visible = "Zürich 東京 بيروت 👩‍👩‍👧 नमस्ते a\u200cb"  # joiners are part of words
    assert printable(visible) == visible


def test_a_shortened_text_keeps_both_ends():
    for length in (5, 6, 50):
        short = shortened("a" * 70 + "z" * 70, length)
        assert len(short) == length and short[0] == "a" and short[-1] == "z" and short.count("…") == 1
    assert shortened("abc", 3) == "abc"


HOSTILE = [
    "[click](https://evil.example)",
    "![image](https://evil.example/x.png)",
    "https://evil.example www.evil.example me@evil.example",
    "<script>alert(1)</script> <img src=x onerror=alert(1)> &lt;b&gt; &#x3c;",
    "`code` **bold** *it* _it_ __b__ ~~gone~~ $x^2$",
    "a | b | c \\| d \\",
    "two\n\n# lines\r\n| --- |",
    "[reference] [^1] [x]: y",
    "no_gate v1.2 (seed 3) C# A&B",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_the_text_and_nothing_else(text):
    """Against CommonMark's reference parser for Python, with the tables of GitHub."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = parser.parse(f"| a | b |\n|---|---|\n| {markdown_text(text)} | end |\n")
    cells = [token for token in tokens if token.type == "inline"]
    assert [cell.content for cell in cells[:2]] + [cells[-1].content] == ["a", "b", "end"] and len(cells) == 4
    pieces = cells[2].children or []
    assert {piece.type for piece in pieces} <= {"text", "text_special"}
    assert "".join(piece.content for piece in pieces) == " ".join(text.split())
    # GitHub makes addresses links, too.
    assert not any(start in markdown_text(text) for start in ("://", "www.", "@evil.example"))


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_of_a_table_is_a_formula(start):
    text = f'{start}HYPERLINK("https://evil.example","a")'
    rows = list(csv.reader(io.StringIO(as_csv([{"experiment": text, "mr": -1.5, "seeds": "43"}]), newline="")))
    assert rows == [["experiment", "mr", "seeds"], [f"'{text}", "-1.5", "43"]]
    assert spreadsheet(-3) == -3 and spreadsheet("a=b") == "a=b" and spreadsheet(None) is None


@pytest.mark.parametrize(
    "make", [DataError, lambda text: NonFiniteScoreError(text, "text", 1, 2, 3.0)], ids=["data", "score"]
)
def test_a_message_is_one_short_printable_paragraph(make):
    whole = "kb.json: \x1b[31mred\x07\u202e" + 2_000_000 * "x" + "\n\nerror: none. Fix it."
    error = make(whole)
    shown = str(error)
    assert len(shown) < LONGEST + 100 and shown.splitlines() == [shown] and shown.isprintable()
    assert shown.startswith("kb.json: \\x1b[31mred\\x07\\u202e") and shown.endswith("error: none. Fix it.")
    assert error.args[0] == whole and str(pickle.loads(pickle.dumps(error))) == shown


def test_an_explanation_is_printable():
    scores = {"overall": ExplainedScore(1.0, 0.0, 2.0, 1)}
    shown = str(Explanation("Q\x1b[2J", 2, scores, {"\u202eQ2": {"overall": 0.5}}))
    assert "Q\\x1b[2J: rank 1" in shown and "\\u202eQ2" in shown and printable(shown) == shown


def test_the_panel_of_a_sample_is_bounded_and_escaped():
    long = "n" * 1_000_000
    mention = Mention("m", f"[x](y)|{long}", f"<b>{long}", ("Q1",))
    candidate = {"qid": f"Q|{long}", "name": f"`{long}", "scores": {"overall": 1.0, f"|{long}": 2.0}}
    text = sample_text(mention, Entity("Q1", long, {}), 3, [candidate] * 5)
    assert len(text) < 3_000
    assert [token for token in MarkdownIt("commonmark").enable("table").parse(text) if token.type == "table_open"]
    assert "[x](y)" not in text and "<b>" not in text
