"""What the page shows is what the linker returns; what it is sent is checked, and what it shows is escaped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mimic_pl.app.actions import Form, position
from mimic_pl.app.error_browser import AT_ONCE, ErrorBrowser, ErrorFilter
from mimic_pl.app.mention_form import mention_record
from mimic_pl.app.rendering import links_html
from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.linking.thumbnails import data_uri as thumbnail_uri
from mimic_pl.linking.thumbnails import heat_map
from mimic_pl.report import open_finished
from mimic_pl.report.worst import worst_cases
from mimic_pl.serve.limits import Limits
from tests.app.parts import actions, data_uri, opened, other, png
from tests.html_page import Page
from tests.report.conftest import IMAGE_INJECTION, SCRIPT_INJECTION, malicious_run  # noqa: F401
from tests.results import read_jsonl

SENTENCE = "the jaguar runs in the forest"
FORM = Form(SENTENCE, "jaguar", 4, data_uri(png()))
RECORD = {"sentence": SENTENCE, "start": 4, "end": 10, "image": png()}


def ids(html: str) -> list[str]:
    return [item["data-id"] for item in Page(html).all("li") if "data-id" in item]


def items(html: str) -> list[str]:
    """Text of each candidate."""
    return [" ".join(Page(part).text.split()) for part in html.split("<li data-id")[1:]]


@pytest.mark.own_process
def test_candidates_are_those_of_the_linker_with_a_bar_for_each_unit(tmp_path):
    linker = opened(tmp_path, calibrated=True)
    found = actions(linker).link(FORM)
    links = linker.link(RECORD, top_k=10)
    assert ids(found.html) == [link.entity.id for link in links] and len(links) == 9
    assert [id for _, id in found.choices] == ids(found.html)
    units = list(links[0].units)
    assert units == ["text", "vision", "cross_modal"]
    lowest = {unit: min(link.units[unit] for link in links) for unit in units}
    # Each of three units counts a third of the overall score.
    longest = max(link.units[unit] - lowest[unit] for link in links for unit in units)
    bars = iter(Page(found.html).all("span", "bar"))
    for link, item in zip(links, items(found.html), strict=True):
        for shown in (link.entity.name, link.entity.id, link.entity.fields["attr"], f"{link.probability:.1%}"[:-1]):
            assert shown in item
        assert f"score {link.score:.3f}" in item
        for unit in units:
            assert f"{unit} {link.units[unit]:.2f}" in item
            width = float(next(bars)["style"].partition("width: ")[2].partition("%")[0])
            assert width == pytest.approx(100 * (link.units[unit] - lowest[unit]) / longest, abs=0.1)
    images = [image for image in Page(found.html).all("img") if image["src"].startswith("data:image/jpeg")]
    assert len(images) == 1, "Q0 alone has an image"
    nil = f"{100 * links.nil_probability:.1f} %"
    assert f"None of these (NIL): {nil}" in " ".join(Page(found.html).text.split())


@pytest.mark.own_process
def test_nil_and_models_without_probabilities(tmp_path):
    linker = opened(tmp_path)
    assert "The model is not calibrated" in Page(actions(linker).link(FORM).html).text
    links = linker.link(RECORD, top_k=3)
    html = links_html(linker, type(links)(links.mention, (), nil_probability=0.9))
    assert "NIL: none of the entities" in Page(html).text and not ids(html)


@pytest.mark.own_process
def test_explanations_are_those_of_the_linker(tmp_path):
    linker = opened(tmp_path, calibrated=True)
    for entity in ("Q0", "Q5"):
        html = actions(linker).explain(FORM, entity)
        expected, page = linker.explain(RECORD, entity, top_k=10), Page(html.replace("</td>", " </td>"))
        text = " ".join(page.text.split())
        assert f"Rank {expected.rank} of 9 entities, probability {100 * expected.probability:.1f} %" in text
        for name, own in expected.ranking.scores.items():
            share = f" {expected.shares[name]:+.3f}" if name in expected.shares else ""
            assert f"{name} {own.rank} {own.score:.3f}{share}" in text
        tokens = [span["title"] for span in page.all("span", "token")]
        assert tokens == [f"{100 * token.weight:.1f} %" for token in expected.words]
        heat = thumbnail_uri(heat_map(expected.mention_image, expected.patches.grid, 320), 320)
        assert heat in [image["src"] for image in page.all("img")]
        assert all(f"{name} {value:+.2f}" in text for name, value in expected.gates.items())
        assert str(expected) in page.text
    assert "no entity" in Page(actions(linker).explain(FORM, "nobody")).text.lower()


def test_the_place_of_a_mention_counts_only_where_the_mention_is():
    limits = Limits()
    twice = "jaguar and jaguar"
    assert mention_record(twice, "jaguar", 11, None, limits)["start"] == 11
    assert "start" not in mention_record(twice, "jaguar", 5, None, limits), "the sentence was changed since"
    assert "start" not in mention_record(twice, "jaguar", None, None, limits), "it was typed"
    assert mention_record("😀 jaguar", "jaguar", 2, "", limits) == {
        "sentence": "😀 jaguar", "mention": "jaguar", "start": 2, "end": 8, "image": None
    }  # fmt: skip


@pytest.mark.own_process
def test_two_models_are_compared(tmp_path):
    first, second = opened(tmp_path / "a", calibrated=True), other(tmp_path / "b")
    html = actions(first, second).compare(FORM)
    links = [linker.link(RECORD, top_k=10) for linker in (first, second)]
    expected = [[link.entity.id for link in each] for each in links]
    assert ids(html) == [*expected[0], *expected[1]] and expected[0] != expected[1]
    ranks = [expected[1 - side].index(id) + 1 for side in range(2) for id in expected[side]]
    assert [item.partition("other model: ")[2].split()[0] for item in items(html)] == [str(rank) for rank in ranks]
    same = [None if each.best is None else each.best.entity.id for each in links]
    assert ("Both models say the same." in Page(html).text) == (same[0] == same[1])
    assert "Both models say the same." in Page(actions(first, first).compare(FORM)).text


@pytest.mark.own_process
def test_an_entity_is_added_and_linked_at_once(tmp_path):
    linker = opened(tmp_path)
    page = actions(linker)
    assert page.fields == ["attr", "type"]
    html = page.add("N1", "jaguar", ["a car", ""], data_uri(png()), FORM)
    (entity,) = (kb := KnowledgeBase(tmp_path / "kb")).known(["N1"]).values()
    assert len(kb) == 10 and entity.name == "jaguar" and entity.fields["attr"] == "a car"
    assert Path(entity.images[0]).read_bytes() == png()
    links = linker.with_knowledge_base(tmp_path / "kb").link(RECORD, top_k=10)
    assert ids(html) == [link.entity.id for link in links]
    assert [item["data-id"] for item in Page(html).all("li", "added")] == ["N1"]
    assert "jaguar (N1) is added; there are 10 entities now." in Page(html).text
    assert "10 entities" in page.heading()
    again = page.add("N1", "jaguar", ["", ""], None, FORM)
    assert "There is an entity with the id 'N1' already" in Page(again).text
    assert "needs an id and a name" in Page(page.add(" ", "jaguar", ["", ""], None, FORM)).text
    assert "is unreadable" in page.add("N2", "x", ["", ""], None, FORM._replace(image=data_uri(b"none")))
    assert "is unreadable" in page.add("N2", "x", ["", ""], data_uri(b"none"), FORM)
    assert len(KnowledgeBase(tmp_path / "kb")) == 10, "nothing is added where something is wrong"
    assert "Mark a mention" in page.add("N2", "amazon", ["", ""], None, Form())
    for number in range(3, 14):  # beyond the candidates that are shown
        html = page.add(f"N{number}", "winter since", ["again", ""], None, FORM)
    if f"N{number}" not in ids(html):
        rank = linker.with_knowledge_base(tmp_path / "kb").explain(RECORD, f"N{number}").rank
        assert f"For the mention it has rank {rank}." in Page(html).text


REFUSED = [
    (Form(SENTENCE, " "), "Nothing is marked"),
    (Form("x" * 20_001, "x"), "20,001 characters; at most 20,000"),
    (FORM._replace(image="/etc/passwd"), "Paths and addresses are never opened"),
    (FORM._replace(image="http://127.0.0.1/a.png"), "Paths and addresses are never opened"),
    (FORM._replace(image="data:image/png;base64,***"), "not encoded as base64"),
    (FORM._replace(image=data_uri(b"no image")), "of 8 bytes> is unreadable"),
    (FORM._replace(image=data_uri(png((5001, 5000)))), "is oversized: 5001 x 5000 pixels"),
]


@pytest.mark.own_process
def test_what_is_refused(tmp_path):
    linker = opened(tmp_path)
    page = actions(linker, linker)
    for form, message in REFUSED:
        for html in (page.link(form).html, page.explain(form, "Q0"), page.compare(form)):
            assert [each.get("role") for each in Page(html).all("p")] == ["alert"]
            assert message in Page(html).text, (message, html)
        assert page.link(form).choices == []


@pytest.mark.own_process
def test_texts_of_a_knowledge_base_and_of_requests_are_escaped(tmp_path):
    linker = opened(tmp_path)
    evil = f"{SCRIPT_INJECTION}{IMAGE_INJECTION}"
    page = actions(linker, linker)
    form = Form(f"{evil} jaguar {evil}", f"jaguar {evil}", None, None)
    shown = [
        page.add(evil, f"jaguar {evil}", [evil, evil], None, form),
        page.link(form).html,
        page.explain(form, evil),
        page.compare(form),
        page.explain(form, "unknown" + evil),
        page.add(evil, evil, ["", ""], None, form),
    ]
    for html in shown:
        tags = {tag for tag, _ in Page(html).elements}
        assert "script" not in tags and SCRIPT_INJECTION in Page(html).text
        for tag, attributes in Page(html).elements:
            assert not [name for name in attributes if name.startswith("on")], tag
            assert tag != "img" or attributes["src"].startswith("data:image/jpeg;base64,")


def seen_in_training(root: Path) -> set[str]:
    return {mention["answer"] for mention in json.loads((root / "Tiny_train.json").read_text())}


def test_errors_are_filtered_and_shown_in_parts(malicious_run):  # noqa: F811
    browser = ErrorBrowser(open_finished(malicious_run))
    records = read_jsonl(malicious_run / "predictions.jsonl")
    wrong = {record["id"]: record for record in records if record["rank"]["overall"] > 1}
    seen = seen_in_training(malicious_run.parents[1] / "Tiny")
    assert sorted(browser.units) == ["cross_modal", "text", "vision"] and browser.groups == ("seen", "unseen")
    filters = [
        (ErrorFilter(), lambda record: True),
        (ErrorFilter(group="seen"), lambda record: record["golds"][0]["qid"] in seen),
        (ErrorFilter(group="unseen"), lambda record: record["golds"][0]["qid"] not in seen),
        *((ErrorFilter(right=unit), lambda r, unit=unit: r["rank"][unit] == 1) for unit in browser.units),
        *((ErrorFilter(wrong=unit), lambda r, unit=unit: r["rank"][unit] > 1) for unit in browser.units),
    ]
    order = [case.mention.id for case in worst_cases(browser.loaded, 99)]
    sizes = []
    for chosen, wanted in filters:
        expected = [id for id in order if wanted(wrong[id])]
        found = []
        for start in range(0, len(expected) + 2, 2):
            cases, count = browser.find(chosen, start, 2)
            assert count == len(expected) and len(cases) <= 2
            found += [case.mention.id for case in cases]
        assert found == expected
        sizes.append(len(expected))
    assert sizes[0] == len(wrong) > 3 and 0 < sizes[1] < sizes[0] and sizes[1] + sizes[2] == sizes[0]


@pytest.mark.own_process
def test_errors_look_as_in_the_report(malicious_run, tmp_path):  # noqa: F811
    page = actions(opened(tmp_path), errors=ErrorBrowser(open_finished(malicious_run)))
    html, start, count = page.browse(ErrorFilter(), 3)
    shown = Page(html).all("section")
    assert start == 3 and 0 < len(shown) == min(AT_ONCE, count - 3)
    assert "4. " in Page(html).text and not Page(html).all("script")
    assert page.browse(ErrorFilter(), -3)[1] == 0
    assert position(3, 10) == "4 to 8 of 10" and position(8, 10) == "9 to 10 of 10"
    assert position(0, 0) == "No such errors"
