"""Reranking of links: a second look at the candidates of the first stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from mimic_pl.errors import ConfigError, MimicError, NonFiniteScoreError
from mimic_pl.links import Link, Links
from mimic_pl.quoting import quoted
from mimic_pl.records import Mention

FIRST_STAGE = "first_stage"
"""Name under which a reranked link keeps its score of the first stage in :attr:`~mimic_pl.links.Link.units`."""


@runtime_checkable
class Reranker(Protocol):
    r"""Scores the candidates of a mention anew: a cross-encoder, a language model, or any function.

    It sees one mention and its candidates, best first by the first stage, and returns one number per candidate, higher
    is better. The candidates are then sorted by these numbers; those with equal numbers keep the first stage's order,
    so that a reranker without an opinion changes nothing. It is not called for a mention without candidates.

    The numbers become :attr:`~mimic_pl.links.Link.score`, and a calibration is fitted to them: on the scale of logits,
    as of a cross-encoder, they give probabilities.

    Example:
        A language model, asked for the number of the right candidate. ``ask`` is a function from a question to an
        answer, of the client of your choice.

        >>> from mimic_pl.records import Entity
        >>> def by_language_model(ask):
        ...     def reranker(mention, candidates):
        ...         entities = [link.entity for link in candidates]
        ...         choices = [f"{n}. {one.name}: {one.fields['attr']}" for n, one in enumerate(entities)]
        ...         question = f"{mention.sentence} Which number is {mention.mention}?"
        ...         answer = ask("\n".join([question, *choices])).strip()
        ...         return [10.0 * (answer == str(n)) + link.score for n, link in enumerate(candidates)]
        ...     return reranker
        >>> links = Links(
        ...     Mention.of({"mention": "Jordan", "sentence": "Jordan flows to the Dead Sea."}),
        ...     (
        ...         Link(Entity("Q1", "Michael Jordan", {"attr": "a basketball player"}), 2.0),
        ...         Link(Entity("Q2", "Jordan", {"attr": "a river"}), 1.5),
        ...     ),
        ... )
        >>> [link.entity.name for link in rerank(by_language_model(lambda question: "1"), links)]
        ['Jordan', 'Michael Jordan']
    """

    def __call__(self, mention: Mention, candidates: Sequence[Link]) -> Sequence[float]:
        """Return a score per candidate, higher is better."""


def rerank(reranker: Reranker, links: Links) -> Links:
    """Sort the candidates of a mention by a reranker's scores, best first.

    Each :attr:`~mimic_pl.links.Link.score` is then the reranker's; the first stage's is in ``units["first_stage"]``.

    Args:
        reranker: Scores the candidates.
        links: The candidates of a mention, best first. Probabilities, which belong to the first stage's scores, are
            removed.

    Raises:
        ConfigError: The reranker fails, or does not return one number per candidate.
        NonFiniteScoreError: A score is NaN or infinite.
    """
    mention, candidates = links.mention, links.candidates
    if mention is None or not candidates:
        return links
    scores = _scores(reranker, mention, candidates)
    reranked = [
        replace(link, score=score, probability=None, units={**link.units, FIRST_STAGE: link.score})
        for link, score in zip(candidates, scores, strict=True)
    ]
    reranked.sort(key=lambda link: link.score, reverse=True)  # a stable sort: ties keep their order
    return replace(links, candidates=tuple(reranked), nil_probability=None)


def _scores(reranker: Reranker, mention: Mention, candidates: tuple[Link, ...]) -> list[float]:
    """The checked scores of a reranker."""
    where = f"for the mention {quoted(mention.mention)}" + (f" (id {quoted(mention.id)})" if mention.id else "")
    name = getattr(reranker, "__name__", type(reranker).__name__)
    try:
        found = reranker(mention, candidates)
    except (MimicError, MemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ConfigError(f"The reranker {name} failed {where}: {reason}") from error
    try:
        scores = [float(score) for score in found]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"The reranker {name} returned {quoted(found)} {where}. Return a list of numbers, one per candidate."
        ) from error
    if len(scores) != len(candidates):
        raise ConfigError(
            f"The reranker {name} returned {len(scores)} scores {where}, which has {len(candidates)} candidates. "
            "Return one number per candidate, in their order."
        )
    for position, score in enumerate(scores):
        if not math.isfinite(score):
            raise NonFiniteScoreError(
                f"The reranker {name} returned {score} {where} and the entity "
                f"{quoted(candidates[position].entity.id)}. Scores must be finite to be ranked.",
                "reranker",
                entity=position,
                value=score,
            )
    return scores
