"""Filters select exactly what Python selects, and errors say which columns there are."""

from __future__ import annotations

import tempfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_pl.errors import DataError
from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.ranking.text_columns import column_of, field_of
from mimic_pl.records import Entity
from tests.knowledge_base.parts import DESCRIPTION, add, created, record

pytestmark = pytest.mark.own_process


def test_texts_and_nulls(tmp_path):
    kb = created(tmp_path, record("Q1", type="person", born="1879"), record("Q2", type="city"), record("Q3"))
    kb = add(kb, record("Q4", type="person", born="1962", **{"My field": "x", "a.b": "y", "order": "z"}))
    for expression, numbers in {
        "type = 'person'": [0, 3],
        "type = 'person' and name like '%Q1'": [0],
        "type is null": [2],
        "type != 'city'": [0, 3],
        "cast(born as int) > 1900": [3],
        "`My field` = 'x'": [3],
        "`a%2Eb` = 'y' or id = 'Q2'": [1, 3],
        "`order` = 'z'": [3],
        "id in ('Q3', 'Q1', 'Q9')": [0, 2],
        "lower(type) = 'CITY'": [],
        "starts_with(name, 'name')": [0, 1, 2, 3],
    }.items():
        assert kb.where(expression).tolist() == numbers, expression
    assert kb.columns == ("id", "name", "born", "group", "type", "My field", "a%2Eb", "order")
    assert kb.where("id = 'Q1'").dtype == torch.int64


def test_errors_name_the_columns(tmp_path):
    kb = created(tmp_path, record("Q1", type="person"))
    for expression in (
        "kind = 'person'",
        "type =",
        "",
        "name",
        "1",
        "select 1",
        "type = 'person",
        "sum(name) = 'a'",
        "id = 5",
        "nowhere(name)",
        "id = (select 1)",
        "length(name) / 0 = 1",
        "cast(type as int) = 1",
    ):
        with pytest.raises(DataError, match="cannot be evaluated") as caught:
            kb.where(expression)
        message = str(caught.value)
        assert repr(expression) in message and "columns id, name, group, type," in message, message
        assert ".rs" not in message


FIELDS = st.text(st.sampled_from("aB .`%/#\"'_é\n"), max_size=4) | st.sampled_from(
    ["id", "ID", "name", "#order", "_rowid", "images", "text/column", "_score", "%"]
)


@settings(max_examples=200)
@given(FIELDS)
def test_columns_of_fields_are_distinct(field):
    assert field_of(column_of(field)) == field


@settings(max_examples=10)
@given(st.lists(st.dictionaries(FIELDS, st.text(max_size=4), max_size=3), min_size=1, max_size=6))
def test_any_text_field_is_kept_and_found(records):
    with tempfile.TemporaryDirectory() as folder:
        entities = [Entity(f"Q{n}", "", fields) for n, fields in enumerate(records)]
        kb = KnowledgeBase.create(folder, DESCRIPTION)
        kb = kb.add(entities, {"text": {"column": torch.zeros(len(entities), 5)}})
        assert kb.entities(torch.arange(len(entities))) == entities
        for field in {field for fields in records for field in fields}:
            value = next(fields[field] for fields in records if field in fields)
            quoted = value.replace("'", "''")
            expected = [n for n, fields in enumerate(records) if fields.get(field) == value]
            assert kb.where(f"`{column_of(field)}` = '{quoted}'").tolist() == expected
