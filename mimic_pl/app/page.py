"""The page in Gradio, and the application that serves it."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from mimic_pl.app.actions import Actions, Form, position, title_of
from mimic_pl.app.error_browser import AT_ONCE, ErrorBrowser, ErrorFilter
from mimic_pl.app.page_guard import PageGuard
from mimic_pl.app.rendering import image_input, note_html, script, style
from mimic_pl.serve.limits import Limits

_SESSIONS = 16
"""Visitors whose last values are kept in memory."""

_QUEUE = 16
"""Clicks that wait at the same time."""

_MARK = """() => {
    const area = document.querySelector("#sentence textarea"), text = area.value;
    const marked = text.slice(area.selectionStart, area.selectionEnd), word = marked.trim();
    const before = text.slice(0, area.selectionStart + marked.indexOf(word));
    return [word, Array.from(before).length];
}"""
"""What is selected in the sentence, without spaces around it, and its place in characters, which Python counts."""

_FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
_MONO = ["ui-monospace", "Consolas", "monospace"]

_QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

_MODEL: dict[str, Any] = {
    "api_visibility": "private",
    "show_progress": "minimal",
    "concurrency_id": "model",  # one at a time: torch uses all cores for it
    "concurrency_limit": 1,
}


def create_app(
    actions: Actions, writable: bool = False, host: str = "127.0.0.1", ending: Callable[[], bool] = lambda: False
) -> FastAPI:
    """The application, for any ASGI server.

    Args:
        actions: What the page does.
        writable: Whether entities can be added.
        host: Address that it listens on. On one that only this machine reaches, requests for other names are refused.
        ending: Whether the server is to end; streams of open pages are ended then.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(PageGuard, limits=actions.limits, ending=ending)
    if is_local(host):
        # A page of another host, whose name was made to mean this machine, cannot use it.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]"])
    return gr.mount_gradio_app(
        app,
        create_page(actions, writable),
        path="/",
        server_name=host,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=_theme(),
        head=f"<style>{style()}</style>",  # Gradio's own css drops rules that it does not know
    )


def _theme() -> gr.themes.Base:
    """Fonts of the system, since Gradio's own come from another host, and colours with enough contrast."""
    strong = {
        f"{name}{mode}": colour
        for names, colours in (
            (("body_text_color_subdued", "block_info_text_color"), ("*neutral_600", "*neutral_300")),
            (("button_primary_background_fill",), ("*primary_600", "*primary_600")),
        )
        for name in names
        for mode, colour in zip(("", "_dark"), colours, strict=True)
    }
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=_FONT, font_mono=_MONO).set(**strong)


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def create_page(actions: Actions, writable: bool = False) -> gr.Blocks:
    """The page.

    Args:
        actions: What it does.
        writable: Whether entities can be added.
    """
    with gr.Blocks(title=f"mimic-pl: {title_of(actions.linker)}", analytics_enabled=False) as page:
        page.queue(max_size=_QUEUE)
        page.state_session_capacity = _SESSIONS
        _html(actions.heading)  # anew for each visit
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=300) as form:
                values, submitted = _form(actions.limits)
            with gr.Column(scale=9, min_width=300), gr.Tabs():
                with gr.Tab("Link") as link_tab:
                    linked = _link_tab(actions, values, submitted)
                tabs = [link_tab]
                if actions.other is not None:
                    with gr.Tab("Compare") as compare_tab:
                        compared = _html(note_html("Link a mention, and both models are asked."), "compared")
                    linked.then(lambda *form: actions.compare(Form(*form)), values, compared, **_MODEL)
                    tabs.append(compare_tab)
                if writable:
                    with gr.Tab("Add") as add_tab:
                        _add_tab(actions, values)
                    tabs.append(add_tab)
                if actions.errors is not None:
                    with gr.Tab("Errors") as errors_tab:
                        _errors_tab(actions, actions.errors, page)
                    # They are of other mentions than that of the form.
                    errors_tab.select(lambda: gr.Column(visible=False), outputs=form, **_QUIET)
                    for tab in tabs:
                        tab.select(lambda: gr.Column(visible=True), outputs=form, **_QUIET)
    return page


def _form(limits: Limits) -> tuple[list[Any], list[Any]]:
    """The components that hold the mention, and the events that link it."""
    sentence = gr.Textbox(
        label="Sentence",
        info="Select the mention in it, with the mouse or with Shift and the arrow keys.",
        placeholder="Jordan scored 30.",
        lines=3,
        max_lines=8,
        elem_id="sentence",
    )
    mention = gr.Textbox(label="Mention", info="What is selected; or type it.", elem_id="mention")
    start = gr.Number(visible=False)
    sentence.select(fn=None, outputs=[mention, start], js=_MARK, **_QUIET)
    image = _image("Image of the mention", "mention-image", limits)
    button = gr.Button("Link", variant="primary", elem_id="link")
    return [sentence, mention, start, image], [button.click, mention.submit, sentence.submit]


def _link_tab(actions: Actions, values: list[Any], submitted: list[Any]) -> Any:
    """Candidates, and the explanation of one of them; returns the event after which both are there."""
    hint = "Type a sentence, select the mention in it, add its image if there is one, and press Link."
    candidates = _html(note_html(hint), "candidates")
    chosen = gr.Radio([], label="Why this rank?", visible=False, elem_id="chosen")
    explanation = _html("", "explanation")
    state = gr.State(Form())

    def link(*form: Any) -> tuple[Any, ...]:
        found = actions.link(Form(*form))
        first = found.choices[0][1] if found.choices else None
        return found.html, gr.Radio(found.choices, value=first, visible=bool(found.choices)), "", Form(*form)

    def explain(entity: str | None, form: Form) -> str:
        return "" if entity is None else actions.explain(form, entity)

    linked = gr.on(submitted, link, values, [candidates, chosen, explanation, state], **_MODEL)
    chosen.input(explain, [chosen, state], explanation, **_MODEL)
    return linked.then(explain, [chosen, state], explanation, **_MODEL)


def _add_tab(actions: Actions, values: list[Any]) -> None:
    """The form of an entity, and the mention linked against it."""
    with gr.Row():
        id = gr.Textbox(label="Id", elem_id="new-id", min_width=140)
        name = gr.Textbox(label="Name", elem_id="new-name", min_width=140, scale=2)
    texts = [gr.Textbox(label=field, lines=1, max_lines=6, elem_id=f"new-{field}") for field in actions.fields]
    image = _image("Image of the entity", "new-image", actions.limits)
    button = gr.Button("Add and link", variant="primary", elem_id="add")
    added = _html(note_html("The entity is kept in the knowledge base."), "added")

    def add(id: str, name: str, image: str | None, *rest: Any) -> str:
        return actions.add(id, name, rest[: len(texts)], image, Form(*rest[len(texts) :]))

    button.click(add, [id, name, image, *texts, *values], added, **_MODEL)


def _errors_tab(actions: Actions, errors: ErrorBrowser, page: gr.Blocks) -> None:
    """Errors of a test run, some at a time."""
    units = [("any", "")]
    for name in errors.units:
        units += [(f"{name} alone is right", f"right:{name}"), (f"{name} alone is wrong", f"wrong:{name}")]
    groups = [("any", ""), *((f"{name} in training", name) for name in errors.groups)]
    settings: dict[str, Any] = {"filterable": False, "min_width": 140}
    with gr.Row():
        unit = gr.Dropdown(units, value="", label="Unit", elem_id="unit", **settings)
        group = gr.Dropdown(groups, value="", label="Gold", elem_id="gold", visible=len(groups) > 1, **settings)
    with gr.Row(elem_id="pager"):
        previous = gr.Button("Previous", size="sm", min_width=90, elem_id="previous")
        place = _html("", "place")
        following = gr.Button("Next", size="sm", min_width=90, elem_id="next")
    start = gr.Number(0, visible=False)
    shown = _html("", "errors")

    def browse(chosen: str, seen: str, start: float) -> tuple[Any, ...]:
        kind, _, name = chosen.partition(":")
        own = {kind: name} if name else {}
        html, first, count = actions.browse(ErrorFilter(**own, group=seen), int(start))
        return (
            html,
            note_html(position(first, count)),
            first,
            gr.Button(interactive=first > 0),
            gr.Button(interactive=first + AT_ONCE < count),
        )

    outputs: list[Any] = [shown, place, start, previous, following]
    inputs: list[Any] = [unit, group, start]
    gr.on([unit.input, group.input], lambda unit, group: browse(unit, group, 0), [unit, group], outputs, **_MODEL)
    previous.click(lambda unit, group, start: browse(unit, group, start - AT_ONCE), inputs, outputs, **_MODEL)
    following.click(lambda unit, group, start: browse(unit, group, start + AT_ONCE), inputs, outputs, **_MODEL)
    page.load(browse, inputs, outputs, **_MODEL)


def _html(value: str | Callable[[], str], name: str | None = None) -> gr.HTML:
    return gr.HTML(value, apply_default_css=False, elem_id=name, elem_classes=["mimic"])


def _image(label: str, name: str, limits: Limits) -> gr.HTML:
    """An input for an image whose value is the content of the file; Gradio's own would write it to a folder."""
    return gr.HTML(
        None,
        html_template=image_input(label, limits),
        js_on_load=script(),
        apply_default_css=False,
        elem_id=name,
        elem_classes=["mimic"],
    )
