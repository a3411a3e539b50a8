"""Links, explanations, comparisons and errors as HTML. Values are escaped by the templates."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from mimic_pl.figures import COLOURS
from mimic_pl.linking import Linker
from mimic_pl.linking.explanation import LinkExplanation
from mimic_pl.linking.shares import shares_of
from mimic_pl.linking.thumbnails import data_uri, first_thumbnail, heat_map
from mimic_pl.links import Link, Links
from mimic_pl.records import Entity
from mimic_pl.report.errors_page import case_values
from mimic_pl.report.loaded import LoadedRun
from mimic_pl.report.page_parts import environment, excerpt, image_uri, marked, shaded
from mimic_pl.report.worst import Case
from mimic_pl.serve.limits import Limits

_SIDE = 320
"""Longer side of the images of an explanation, in pixels."""

_templates = environment("mimic_pl.app")


def style() -> str:
    """The style sheet of all that is rendered here."""
    return "".join(
        files(package).joinpath(f"templates/{name}").read_text(encoding="utf-8")
        for package, name in (("mimic_pl.report", "parts.css"), ("mimic_pl.app", "page.css"))
    )


def script() -> str:
    """The script of the image input."""
    return files("mimic_pl.app").joinpath("templates/image_input.js").read_text(encoding="utf-8")


def image_input(label: str, limits: Limits) -> str:
    """The image input; :func:`script` makes its value the content of the file, if that is not too large."""
    # The request has it in base64, beside texts, and may have two of them.
    return _rendered("image_input.html.jinja", label=label, megabytes=limits.body * 3 // 8 // 1_000_000)


def links_html(linker: Linker, links: Links, added: str | None = None) -> str:
    """The candidates of a mention, best first, with a bar for each unit.

    Args:
        linker: The linker that found them.
        links: The links.
        added: Id of an entity to emphasise.
    """
    return _rendered("links.html.jinja", **_verdict(links), candidates=_candidates(linker, links), added=added)


def comparison_html(found: Sequence[tuple[str, Linker, Links]]) -> str:
    """The links of one mention by two models, side by side.

    Args:
        found: Title, linker and links of each.
    """
    sides = []
    for number, (title, linker, links) in enumerate(found):
        others = {link.entity.id: rank for rank, link in enumerate(found[1 - number][2], start=1)}
        candidates = [{**candidate, "other": others.get(candidate["id"])} for candidate in _candidates(linker, links)]
        sides.append({"title": title, **_verdict(links), "candidates": candidates})
    best = [None if links.best is None else links.best.entity.id for _, _, links in found]
    return _rendered("comparison.html.jinja", sides=sides, agree=best[0] == best[1])


def explanation_html(explanation: LinkExplanation) -> str:
    """Why an entity has its rank: scores and ranks of the units, attention over words and image, gates."""
    image, patches = explanation.mention_image, explanation.patches
    before, word, after = marked(explanation.mention)
    return _rendered(
        "explanation.html.jinja",
        entity=explanation.entity,
        rank=explanation.rank,
        entities=explanation.ranking.num_entities,
        probability=explanation.probability,
        sentence=(before, word, after),
        image=_large(image),
        heat=None if image is None or patches is None else data_uri(heat_map(image, patches.grid, _SIDE), _SIDE),
        rest=0.0 if patches is None else patches.rest,
        entity_image=_large(explanation.entity_image),
        scores=explanation.ranking.scores,
        shares=explanation.shares,
        words=shaded(explanation.words),
        gates=explanation.gates,
        text=str(explanation),
    )


def errors_html(loaded: LoadedRun, cases: Sequence[Case], start: int) -> str:
    """Wrongly linked mentions, as on the errors page of a report.

    Args:
        loaded: The run.
        cases: The mentions.
        start: How many come before them.
    """
    shown = [case_values(loaded, case) for case in cases]
    return _rendered("errors_list.html.jinja", cases=shown, start=start)


def problem_html(message: str) -> str:
    """Why something could not be done."""
    return _rendered("message.html.jinja", message=message, kind="problem")


def note_html(message: str) -> str:
    """A message."""
    return _rendered("message.html.jinja", message=message, kind="note")


def heading_html(name: str, entities: int, units: Sequence[str]) -> str:
    """The top of the page: name and size of the knowledge base, names of the units."""
    return _rendered("heading.html.jinja", name=name, entities=entities, units=units)


def _rendered(template: str, **values: Any) -> str:
    return _templates.get_template(template).render(**values)


def _large(image: Any) -> str | None:
    return None if image is None else data_uri(image, _SIDE)


def _verdict(links: Links) -> dict[str, Any]:
    return {
        "sentence": None if links.mention is None else marked(links.mention),
        "best": links.best,
        "nil": links.is_nil,
        "nil_probability": links.nil_probability,
    }


def _candidates(linker: Linker, links: Links) -> list[dict[str, Any]]:
    """Values of the candidates.

    The bar of a unit is what it adds to the overall score, from the candidate to which it adds least: such differences
    can be compared, also between units (see :func:`~mimic_pl.linking.shares.shares_of`). If the overall score is no sum
    of the units', it is the unit's score instead, from the lowest.
    """
    parts = [_parts(linker, link) for link in links]
    names = list(parts[0]) if parts else []
    lowest = {name: min(own[name] for own in parts) for name in names}
    longest = max((own[name] - lowest[name] for own in parts for name in names), default=0.0)
    return [
        {
            "rank": rank,
            "id": link.entity.id,
            "name": link.entity.name,
            "text": excerpt(_texts(linker, link.entity)),
            "image": image_uri(first_thumbnail(link.entity.images)),
            "score": link.score,
            "probability": link.probability,
            "bars": [
                {
                    "unit": name,
                    "score": link.units.get(name),
                    "colour": COLOURS[number % len(COLOURS)],
                    "percent": 100 * (own[name] - lowest[name]) / longest if longest > 0 else 0.0,
                }
                for number, name in enumerate(names)
            ],
        }
        for rank, (link, own) in enumerate(zip(links, parts, strict=True), start=1)
    ]


def _texts(linker: Linker, entity: Entity) -> str:
    """What the model reads of an entity besides its name."""
    named = [name for name in linker.model.processor.entity_template.fields if name not in ("id", "name")]
    return " · ".join(entity.fields[name] for name in named if entity.fields.get(name))


def _parts(linker: Linker, link: Link) -> dict[str, float]:
    shares = shares_of(linker.model.matcher, {"overall": link.score, **link.units}) or link.units
    return {name: shares[name] for name in link.units}
