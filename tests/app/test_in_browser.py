"""The page in a real Chromium: with the mouse, with the keyboard alone, on a phone, in the dark. Nothing leaves the
machine."""

from __future__ import annotations

import re
from contextlib import contextmanager

import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")
from playwright import sync_api

from mimic_pl.app.actions import TOP_K
from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.report import open_finished
from mimic_pl.report.loaded import LoadedRun
from mimic_pl.report.worst import worst_cases
from tests.app.parts import CHROMIUM, opened, other, png
from tests.app.served import Served
from tests.report.conftest import IMAGE_INJECTION, SCRIPT_INJECTION, malicious_run  # noqa: F401

pytestmark = [
    pytest.mark.slow,
    pytest.mark.own_process,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]

sync_api.expect.set_options(timeout=30_000)  # a busy machine may take longer than the default of 5 seconds

SENTENCE = "😀 the jaguar runs in the forest"
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


@contextmanager
def opened_page(served: Served, **settings):
    """The page in a browser that may reach only this machine; checks its requests, scripts and errors."""
    requests, problems = [], []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(**settings).new_page()
        page.set_default_timeout(30_000)
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
        page.goto(served.url)
        page.wait_for_selector("header h1")
        page.wait_for_selector("#mention-image input")
        yield page
        browser.close()
    outside = [url for url in requests if not url.startswith((f"{served.url}/", "data:", "blob:"))]
    assert not outside and len(requests) > 5
    assert not problems, problems


def ids(page, place: str) -> list[str]:
    return [item.get_attribute("data-id") for item in page.locator(f"{place} li[data-id]").all()]


def scores(page, place: str) -> list[str]:
    texts = page.locator(f"{place} .figures").all_inner_texts()
    return [re.search(r"score (-?[\d.]+)", " ".join(text.split())).group(1) for text in texts]


def links_of(linker, **record):
    return linker.link({"sentence": SENTENCE, "start": 6, "end": 12, **record}, top_k=TOP_K)


def fits(page) -> bool:
    """Whether nothing is beyond the right border."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def brightness(page) -> float:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


def select_jaguar(page) -> None:
    """Select the word, again if the page did not listen yet."""
    mention = page.locator("#mention input, #mention textarea")
    for _ in range(5):
        drag_over_jaguar(page)
        try:
            return sync_api.expect(mention).to_have_value("jaguar", timeout=5000)
        except AssertionError:
            continue
    raise AssertionError("the selected word has not become the mention")


def drag_over_jaguar(page) -> None:
    """Drag the mouse over the word, where the browser has drawn it."""
    area = page.locator("#sentence textarea")
    area.fill(SENTENCE)
    # A text field does not tell where its letters are: the same text in the same font does.
    start, end = area.evaluate(
        """(area) => {
            const style = getComputedStyle(area), canvas = document.createElement("canvas").getContext("2d");
            canvas.font = style.font;
            const left = parseFloat(style.paddingLeft) + parseFloat(style.borderLeftWidth);
            return ["😀 the ", "😀 the jaguar"].map((text) => left + canvas.measureText(text).width);
        }"""
    )
    box = area.bounding_box()
    page.mouse.move(box["x"] + start + 1, box["y"] + 18)
    page.mouse.down()
    page.mouse.move(box["x"] + (start + end) / 2, box["y"] + 18)
    page.mouse.move(box["x"] + end + 1, box["y"] + 18)
    page.mouse.up()


def test_with_the_mouse(tmp_path, malicious_run):  # noqa: F811
    linker, second = opened(tmp_path / "a", calibrated=True), other(tmp_path / "b")
    expected = links_of(linker, image=png())
    options = ["--compare", str(tmp_path / "b/kb"), "--errors", str(malicious_run), "--writable"]
    (tmp_path / "image.png").write_bytes(png())
    with Served(tmp_path / "a", *options) as served, opened_page(served) as page:
        select_jaguar(page)
        mention = page.locator("#mention input, #mention textarea")
        sync_api.expect(mention).to_have_value("jaguar")
        page.locator("#mention-image input").set_input_files(tmp_path / "image.png")
        sync_api.expect(page.locator("#mention-image img")).to_be_visible()
        page.locator("#link").click()
        page.wait_for_selector("#explanation section")
        assert ids(page, "#candidates") == [link.entity.id for link in expected]
        assert scores(page, "#candidates") == [f"{link.score:.3f}" for link in expected]
        assert page.locator("#candidates mark").inner_text() == "jaguar"
        assert f"{100 * expected.nil_probability:.1f} %" in page.locator("#candidates .chance").inner_text()

        def explained(rank):
            entity = expected[rank - 1].entity.id
            text = str(linker.explain({"sentence": SENTENCE, "start": 6, "end": 12, "image": png()}, entity, TOP_K))
            sync_api.expect(page.locator("#explanation h2 small")).to_have_text(entity)
            return page.locator("#explanation pre").text_content().strip() == text.strip()

        assert explained(1)
        page.locator("#chosen label").nth(4).click()
        assert explained(5)

        page.get_by_role("tab", name="Compare").click()
        sync_api.expect(page.locator("#compared .side")).to_have_count(2)
        both = [*expected, *links_of(second, image=png())]
        assert ids(page, "#compared") == [link.entity.id for link in both]
        assert scores(page, "#compared") == [f"{link.score:.3f}" for link in both]

        page.get_by_role("tab", name="Add", exact=True).click()
        for place, text in (("id", "N1"), ("name", "jaguar"), ("attr", "a car")):
            page.locator(f"#new-{place}").locator("input, textarea").fill(text)
        page.locator("#new-image input").set_input_files(tmp_path / "image.png")
        page.locator("#add").click()
        page.wait_for_selector("#added li.added")
        anew = linker.with_knowledge_base(tmp_path / "a/kb")
        assert len(KnowledgeBase(tmp_path / "a/kb")) == 10
        assert ids(page, "#added") == [link.entity.id for link in links_of(anew, image=png())]

        page.get_by_role("tab", name="Errors").click()
        sync_api.expect(page.locator("#sentence")).to_be_hidden()
        loaded = LoadedRun(open_finished(malicious_run))
        wrong = [case.mention.id for case in worst_cases(loaded, 99)]
        shown = page.locator("#errors section h2 small")
        sync_api.expect(shown).to_have_text(wrong[:5])
        sync_api.expect(page.locator("#place")).to_contain_text(f"1 to {min(5, len(wrong))} of {len(wrong)}")
        page.get_by_label("Gold").click()
        page.get_by_role("option", name="unseen in training").click()
        index = {mention.id: number for number, mention in enumerate(loaded.data.mentions["test"])}
        unseen = [id for id in wrong if loaded.seen(index[id]) is False]
        sync_api.expect(shown).to_have_text(unseen[:5])
        assert page.evaluate("document.querySelectorAll('#errors script, #errors [onerror]').length") == 0

        page.get_by_role("tab", name="Link", exact=True).click()
        sync_api.expect(page.locator("#sentence")).to_be_visible()


def test_an_image_is_dropped_and_removed(tmp_path):
    linker = opened(tmp_path)
    with Served(tmp_path) as served, opened_page(served) as page:
        page.locator("#sentence textarea").fill(SENTENCE)
        page.locator("#mention").locator("input, textarea").fill("jaguar")

        def drop(bytes):
            page.evaluate(
                """(bytes) => {
                    const data = new DataTransfer();
                    data.items.add(new File([new Uint8Array(bytes)], "a.png", {type: "image/png"}));
                    const event = new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
                    document.querySelector("#mention-image .drop").dispatchEvent(event);
                }""",
                bytes,
            )

        drop(13_000_000)  # as many zeros
        sync_api.expect(page.locator("#mention-image .hint")).to_have_text(re.compile("larger than 12 MB"))
        drop(list(png()))
        sync_api.expect(page.locator("#mention-image img")).to_be_visible()

        def linked(image):
            page.locator("#link").click()
            expected = linker.link({"sentence": SENTENCE, "mention": "jaguar", "image": image}, top_k=TOP_K)
            wanted = [f"score {link.score:.3f}" for link in expected]
            sync_api.expect(page.locator("#candidates .figures small")).to_have_text(wanted)
            return wanted

        with_image = linked(png())
        page.get_by_role("button", name="Remove the image").click()
        assert linked(None) != with_image
        page.locator("#mention").locator("input, textarea").fill("")
        page.locator("#link").click()
        sync_api.expect(page.locator("#candidates [role=alert]")).to_contain_text("Nothing is marked")
        sync_api.expect(page.locator("#chosen")).to_be_hidden()


def focused(page) -> str:
    """Role and type of the focused element, its id and those around it."""
    return page.evaluate(
        """() => {
            const focused = document.activeElement, around = [];
            for (let each = focused; each; each = each.parentElement) if (each.id) around.push(each.id);
            return `role=${focused.getAttribute("role")} type=${focused.type} ${around.join(" ")}`;
        }"""
    )


def test_with_the_keyboard_alone(tmp_path):
    linker = opened(tmp_path)
    expected = linker.link({"sentence": "see the jaguar", "start": 8, "end": 14}, top_k=TOP_K)
    with Served(tmp_path, "--compare", str(tmp_path / "kb")) as served, opened_page(served) as page:

        def tab_to(*words):
            for _ in range(30):
                page.keyboard.press("Tab")
                if all(word in focused(page) for word in words):
                    return
            raise AssertionError(f"{words} cannot be reached")

        tab_to("sentence")
        page.keyboard.type("see the jaguar")
        page.keyboard.press("Control+Shift+ArrowLeft")
        tab_to("mention")
        sync_api.expect(page.locator("#mention").locator("input, textarea")).to_have_value("jaguar")
        tab_to("type=file", "mention-image")
        tab_to("link")
        page.keyboard.press("Enter")
        page.wait_for_selector("#explanation section")
        assert ids(page, "#candidates") == [link.entity.id for link in expected]
        tab_to("role=tab")
        tab_to("type=radio", "chosen")
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        sync_api.expect(page.locator("#explanation h2 small")).to_have_text(expected[1].entity.id)
        page.locator("#link").focus()
        tab_to("role=tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        sync_api.expect(page.locator("#compared .side").first).to_be_visible()


def test_on_a_phone_in_the_light_and_in_the_dark(tmp_path, malicious_run):  # noqa: F811
    linker = opened(tmp_path)
    evil = SCRIPT_INJECTION + IMAGE_INJECTION + "${alert(1)}{{alert}}"
    long = "x" * 300
    linker.add_entities([{"id": f"E{long}", "name": f"jaguar {evil} {long}", "attr": f"a cat {long}", "type": ""}])
    options = ["--compare", str(tmp_path / "kb"), "--errors", str(malicious_run), "--writable"]
    with Served(tmp_path, *options) as served:
        for scheme, bright in (("light", True), ("dark", False)):
            with opened_page(served, color_scheme=scheme, **PHONE) as page:
                assert (brightness(page) > 200) == bright and (brightness(page) < 60) == (not bright)
                page.locator("#sentence textarea").fill(f"the jaguar {evil} {long}")
                page.locator("#mention").locator("input, textarea").fill("jaguar")
                page.locator("#link").tap()
                page.wait_for_selector("#explanation section")
                assert any(evil in text for text in page.locator("#candidates .who").all_inner_texts())
                for tab, wanted in (
                    ("Link", "#candidates li"),
                    ("Compare", "#compared .side"),
                    ("Add", "#new-id"),
                    ("Errors", "#errors section"),
                ):
                    page.get_by_role("tab", name=tab, exact=True).tap()
                    sync_api.expect(page.locator(wanted).first).to_be_visible()
                    assert fits(page), f"{tab}, {scheme}"
                ink = page.evaluate("getComputedStyle(document.querySelector('#errors section')).color")
                assert (sum(map(float, re.findall(r"[\d.]+", ink)[:3])) < 300) == bright
