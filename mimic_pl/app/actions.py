"""What the buttons of the page do. Each returns HTML; what goes wrong is said there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from mimic_pl.app.error_browser import AT_ONCE, ErrorBrowser, ErrorFilter
from mimic_pl.app.mention_form import image_content, mention_record
from mimic_pl.app.rendering import (
    comparison_html,
    errors_html,
    explanation_html,
    heading_html,
    links_html,
    note_html,
    problem_html,
)
from mimic_pl.errors import DataError, MimicError
from mimic_pl.escaping import printable, shortened
from mimic_pl.links import Links
from mimic_pl.serve.limits import Limits
from mimic_pl.serve.served_linker import ServedLinker

TOP_K = 10
"""Candidates that are shown."""

_LABEL = 32
"""Maximum number of characters of a name in a list to choose from."""


class Form(NamedTuple):
    """What was typed, marked and dropped.

    Attributes:
        sentence: The sentence.
        mention: The mention.
        start: Where it was marked.
        image: Its image, as a ``data:`` URI.
    """

    sentence: str = ""
    mention: str = ""
    start: float | None = None
    image: str | None = None


class Linked(NamedTuple):
    """Links on the page.

    Attributes:
        html: The candidates, or what went wrong.
        choices: Label and id of each candidate, for explanations.
    """

    html: str
    choices: list[tuple[str, str]]


class Actions:
    """The actions of the page.

    Args:
        linker: The linker.
        other: Another one to compare with.
        errors: Errors of a test run.
        limits: What is accepted.
    """

    def __init__(
        self,
        linker: ServedLinker,
        other: ServedLinker | None = None,
        errors: ErrorBrowser | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.linker = linker
        self.other = other
        self.errors = errors
        self.limits = limits or Limits()

    @property
    def fields(self) -> list[str]:
        """Text fields of entities, besides id and name."""
        return [name for name in self.linker.knowledge_base.columns if name not in ("id", "name")]

    def heading(self) -> str:
        """The top of the page."""
        units = list(self.linker.linker.model.matcher.units)
        return heading_html(title_of(self.linker), len(self.linker.knowledge_base), units)

    def link(self, form: Form) -> Linked:
        """Link the mention."""
        try:
            links = self._links(self.linker, self._record(form))
            return Linked(links_html(self.linker.linker, links), _choices(links))
        except MimicError as error:
            return Linked(problem_html(str(error)), [])

    def explain(self, form: Form, entity: str) -> str:
        """Explain the rank of an entity for the mention."""
        return _answered(lambda: explanation_html(self.linker.explain(self._record(form), entity, TOP_K)))

    def compare(self, form: Form) -> str:
        """Link the mention with both models."""

        def compared() -> str:
            record = self._record(form)
            return comparison_html(
                [
                    (title_of(served), served.linker, self._links(served, record))
                    for served in (self.linker, self.other)
                    if served is not None
                ]
            )

        return _answered(compared)

    def add(self, id: str, name: str, texts: Sequence[str], image: str | None, form: Form) -> str:
        """Add an entity, and link the mention, if there is one, against it."""
        return _answered(partial(self._added, id.strip(), name.strip(), texts, image, form))

    def _added(self, id: str, name: str, texts: Sequence[str], image: str | None, form: Form) -> str:
        self.limits.require_texts((id, name, *texts))
        if not id or not name:
            raise DataError("An entity needs an id and a name.")
        if self.linker.entity(id) is not None:
            raise DataError(f"There is an entity with the id {id!r} already. Choose another id.")
        record = self._record(form) if form.mention.strip() else None  # raises before anything is added
        content = image_content(image, self.limits)
        entity = {**dict(zip(self.fields, texts, strict=True)), "id": id, "name": name}
        self.linker.put(entity, [] if content is None else [content])
        message = f"{name} ({id}) is added; there are {len(self.linker.knowledge_base):,} entities now."
        if record is None:
            return note_html(f"{message} Mark a mention to link against it.")
        links = self._links(self.linker, record)
        if all(link.entity.id != id for link in links):
            rank = self.linker.explain(record, id, 0).rank
            message += f" For the mention it has rank {rank:,}."
        return note_html(message) + links_html(self.linker.linker, links, id)

    def browse(self, chosen: ErrorFilter, start: int) -> tuple[str, int, int]:
        """Show errors of the test run.

        Args:
            chosen: Which ones.
            start: How many of them to skip.

        Returns:
            The errors as HTML, how many of them were skipped, and how many there are.
        """
        assert self.errors is not None
        start = max(0, start)
        cases, count = self.errors.find(chosen, start)
        return errors_html(self.errors.loaded, cases, start), start, count

    def _record(self, form: Form) -> dict[str, Any]:
        return mention_record(*form, self.limits)

    def _links(self, served: ServedLinker, record: dict[str, Any]) -> Links:
        (links,) = served.link([record], TOP_K)
        if links.error is not None:
            raise links.error
        return links


def title_of(served: ServedLinker) -> str:
    """Name of a knowledge base."""
    return printable(served.knowledge_base.folder.resolve().name)


def position(start: int, count: int) -> str:
    """Which errors are shown."""
    return f"{start + 1:,} to {min(start + AT_ONCE, count):,} of {count:,}" if count else "No such errors"


def _choices(links: Links) -> list[tuple[str, str]]:
    return [
        (f"{rank}. {shortened(printable(link.entity.name), _LABEL)}", link.entity.id)
        for rank, link in enumerate(links, start=1)
    ]


def _answered(action: Callable[[], str]) -> str:
    try:
        return action()
    except MimicError as error:
        return problem_html(str(error))
