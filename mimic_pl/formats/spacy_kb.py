"""Writes a knowledge base for spaCy's entity linker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mimic_pl.errors import DataError
from mimic_pl.formats.aliases import EntitiesByName
from mimic_pl.formats.optional_package import optional_package
from mimic_pl.records import Entity


def write_spacy_kb(
    folder: str | Path,
    entities: Iterable[Entity],
    vectors: npt.NDArray[np.floating] | None = None,
    frequencies: Sequence[float] | None = None,
    aliases: Mapping[str, Mapping[str, float]] | None = None,
) -> int:
    """Write entities as spaCy's ``InMemoryLookupKB``.

    Args:
        folder: The folder; ``InMemoryLookupKB(vocab, entity_vector_length).from_disk(folder)`` reads it.
        entities: The entities. spaCy keeps their ids; names and fields are not part of its knowledge base.
        vectors: A vector for each entity, ``[entities, dimensions]``, such as its global feature; by default a single
            zero.
        frequencies: How often each entity occurs in a corpus; by default 1.
        aliases: Ids and priors by alias; by default the names and ``aliases`` of the entities, where entities with the
            same one share it equally.

    Returns:
        The number of entities.

    Raises:
        ConfigError: The package spacy is not installed.
        DataError: Two entities have one id, an alias means an unknown entity or its priors sum to more than 1, or the
            numbers of entities, vectors and frequencies differ.
    """
    kb_module = optional_package("spacy.kb", "Writing a knowledge base for spaCy")
    vocab_module = optional_package("spacy.vocab", "Writing a knowledge base for spaCy")
    ids: dict[str, None] = {}
    names = EntitiesByName()
    for entity in entities:
        if entity.id in ids:
            raise DataError(f"Two entities have the id {entity.id!r}. Keep one of them.")
        ids[entity.id] = None
        if aliases is None:
            names.add(entity)
    vectors = np.zeros((len(ids), 1), np.float32) if vectors is None else np.asarray(vectors, np.float32)
    frequencies = [1.0] * len(ids) if frequencies is None else list(frequencies)
    if not len(ids) == len(vectors) == len(frequencies) or vectors.ndim != 2:
        raise DataError(
            f"There are {len(ids):,} entities, vectors of the shape {vectors.shape} and {len(frequencies):,} "
            "frequencies. Each entity needs one of both."
        )
    kb = kb_module.InMemoryLookupKB(vocab_module.Vocab(), vectors.shape[1])
    kb.set_entities(list(ids), frequencies, list(vectors))
    for alias, priors in (names.priors() if aliases is None else aliases).items():
        unknown = next((entity_id for entity_id in priors if entity_id not in ids), None)
        if not alias or unknown is not None or sum(priors.values()) > 1 + 1e-5:
            reason = "is empty" if not alias else "has priors that sum to more than 1"
            reason = reason if unknown is None else f"means {unknown!r}, which is not among the entities"
            raise DataError(f"The alias {alias!r} {reason}.")
        kb.add_alias(alias, list(priors), list(priors.values()))
    Path(folder).mkdir(parents=True, exist_ok=True)
    kb.to_disk(folder)
    return len(ids)
