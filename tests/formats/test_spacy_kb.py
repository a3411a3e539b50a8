"""spaCy reads the knowledge base with its own class: ids, vectors, frequencies, aliases with priors."""

from __future__ import annotations

import numpy as np
import pytest

from mimic_pl import Entity
from mimic_pl.errors import DataError
from mimic_pl.formats import EntitiesByName, write_spacy_kb

pytest.importorskip("spacy")
JORDAN = Entity("Q41421", "Michael Jordan", {"aliases": "Jordan | MJ | مايكل"})
COUNTRY = Entity("Q810", "Jordan", {"aliases": ""})
OTHER = Entity("Ü 1", "MJ")
ALL = [JORDAN, COUNTRY, OTHER]


def read(folder, dimensions):
    from spacy.kb import InMemoryLookupKB
    from spacy.vocab import Vocab

    kb = InMemoryLookupKB(Vocab(), dimensions)
    kb.from_disk(folder)
    return kb


def candidates(kb, alias):
    return {found.entity_: found.prior_prob for found in kb.get_alias_candidates(alias)}


def test_round_trip(tmp_path):
    vectors = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    assert write_spacy_kb(tmp_path / "kb", ALL, vectors, frequencies=[5, 2, 1]) == 3
    kb = read(tmp_path / "kb", 4)
    assert set(kb.get_entity_strings()) == {entity.id for entity in ALL}
    for entity, vector in zip(ALL, vectors, strict=True):
        assert np.array_equal(kb.get_vector(entity.id), vector)
    assert set(kb.get_alias_strings()) == {"Michael Jordan", "Jordan", "MJ", "مايكل"}
    assert candidates(kb, "Jordan") == {"Q41421": 0.5, "Q810": 0.5}
    assert candidates(kb, "مايكل") == {"Q41421": 1.0}
    assert {found.entity_: found.entity_freq for found in kb.get_alias_candidates("MJ")} == {"Q41421": 5, "Ü 1": 1}


def test_given_priors(tmp_path):
    write_spacy_kb(tmp_path / "kb", iter(ALL), aliases={"Air": {"Q41421": 0.75, "Q810": 0.125}})
    kb = read(tmp_path / "kb", 1)
    assert candidates(kb, "Air") == {"Q41421": 0.75, "Q810": 0.125} and candidates(kb, "Jordan") == {}
    assert kb.get_vector("Q810") == [0.0]


@pytest.mark.parametrize(
    ("entities", "options", "says"),
    [
        ([JORDAN, JORDAN], {}, "Two entities have the id 'Q41421'"),
        (ALL, {"vectors": np.zeros((2, 4))}, r"3 entities, vectors of the shape \(2, 4\) and 3 frequencies"),
        (ALL, {"frequencies": [1]}, "and 1 frequencies"),
        (ALL, {"aliases": {"x": {"Q9": 1}}}, "The alias 'x' means 'Q9', which is not among the entities"),
        (ALL, {"aliases": {"x": {"Q810": 0.8, "Q41421": 0.7}}}, "has priors that sum to more than 1"),
        (ALL, {"aliases": {"": {"Q810": 1}}}, "The alias '' is empty"),
    ],
)
def test_what_spacy_does_not_take(tmp_path, entities, options, says):
    with pytest.raises(DataError, match=says):
        write_spacy_kb(tmp_path / "kb", entities, **options)
    assert not (tmp_path / "kb").exists()


def test_a_table_of_aliases():
    table = EntitiesByName()
    for entity in ALL:
        table.add(entity)
    rows = [(row["alias"], row["id"], row["prior"]) for row in table.rows()]
    assert rows == [
        *(("Michael Jordan", "Q41421", 1.0), ("Jordan", "Q41421", 0.5), ("Jordan", "Q810", 0.5)),
        *(("MJ", "Q41421", 0.5), ("MJ", "Ü 1", 0.5), ("مايكل", "Q41421", 1.0)),
    ]
