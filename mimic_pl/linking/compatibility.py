"""Whether a model and a knowledge base belong together: what a knowledge base keeps of the model that built it."""

from __future__ import annotations

from collections.abc import Mapping

from mimic_pl.errors import DataError, StoreError
from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.model import MIMIC
from mimic_pl.processor import Processor
from mimic_pl.processor.decoding import fingerprint as preprocessing
from mimic_pl.ranking import fingerprint
from mimic_pl.ranking.lance_rows import differences

STATISTICS = "processor"
"""Name under which a knowledge base keeps the statistics of the processor's features."""

SOURCE = "source"
"""Name under which it keeps where the model was loaded from, for information."""


def describe(model: MIMIC, processor: Processor, weights: str) -> dict[str, str]:
    """What the states of a knowledge base depend on, and what mentions must have in common with it."""
    return {
        "model": weights,
        "precision": str(next(model.parameters()).dtype).removeprefix("torch."),
        "mention template": processor.mention_template.template,
        **processor.describe(),
        "image preprocessing": preprocessing(processor.image_processor, processor.reduced_decoding),
    }


def weights_of(model: MIMIC) -> str:
    """Fingerprint of the weights on which the states of entities depend."""
    return fingerprint(model.encoder, model.matcher, of_entities=True)


def source_of(knowledge_base: KnowledgeBase) -> str | None:
    """Where the model of a knowledge base was loaded from when it was built, if known."""
    return (knowledge_base.statistics(SOURCE) or {}).get("model")


def fitted(processor: Processor, knowledge_base: KnowledgeBase) -> Processor:
    """The processor with the statistics of a knowledge base; the processor itself if they are of other features."""
    try:
        return processor.with_statistics(knowledge_base.statistics(STATISTICS) or {})
    except DataError:
        return processor  # and so the descriptions differ


def require_same(knowledge_base: KnowledgeBase, description: Mapping[str, str]) -> None:
    """Check that a knowledge base was built with the same weights, templates and settings of the processor.

    Raises:
        StoreError: It was not; the message says what differs.
    """
    if other := differences(knowledge_base.description, description):
        raise StoreError(
            f"The knowledge base in {knowledge_base.folder} was built for {other}. Link with the model that it was "
            "built with, or index its entities again in another folder."
        )
