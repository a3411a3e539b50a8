"""Name similarity and BM25 against literal formulas, and against known metrics of two data sets."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic_pl.baselines import BM25, ExactName, NameSimilarity
from mimic_pl.data.reader import read_entities, read_mentions
from mimic_pl.processor.words import words
from mimic_pl.records import Entity, Mention
from tests import reference
from tests.shared import SHARED, needs_shared


def entities(*names):
    return [Entity(f"Q{i}", name) for i, name in enumerate(names)]


def mentions(*names):
    return [Mention(str(i), name, "") for i, name in enumerate(names)]


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4), (1.2, 0.0)])
def test_bm25_equals_the_literal_sum(k1, b):
    rng = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(30)]
    documents = [" ".join(rng.choice(vocabulary, rng.integers(0, 25))) for _ in range(40)]
    queries = [" ".join(rng.choice([*vocabulary, "unheard"], 8)) for _ in range(12)]
    found = BM25(queries, documents, k1, b)(slice(2, 12))
    expected = [reference.bm25(query.split(), [d.split() for d in documents], k1, b) for query in queries[2:]]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_repeated_word_of_the_query_counts_twice_and_stop_words_not_at_all():
    documents = ["The Jaguar of the forest", "jaguar", "a car"]
    once, twice, stopped = BM25(["jaguar", "JAGUAR jaguar", "the of a"], documents)(slice(0, 3))
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)
    assert not stopped.any()
    # Without its stop words the first document is two words long.
    expected = reference.bm25(["jaguar"], [["jaguar", "forest"], ["jaguar"], ["car"]], 1.5, 0.75)
    np.testing.assert_allclose(once, expected, rtol=1e-6)


def test_texts_without_words_score_zero():
    assert not BM25(["", "?!", "jaguar"], ["jaguar", ""])(slice(0, 2)).any()
    assert BM25(["jaguar"], ["...", ""])(slice(0, 1)).tolist() == [[0, 0]]


def test_words_are_runs_of_word_characters_of_any_script():
    assert words("St. John's Café-Bar, 1952: Ćišinski 東京") == [
        *("st", "john", "s", "café", "bar", "1952", "ćišinski", "東京"),
    ]
    assert words("...") == []


def indel(left, right):
    """Indel similarity in percent, from the longest common subsequence by dynamic programming."""
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    total = len(left) + len(right)
    return 100 * 2 * table[-1][-1] / total if total else 100


names = st.lists(st.text(alphabet="abcéЖ東 B", max_size=9), min_size=1, max_size=6)


@given(names, names)
def test_name_similarity_equals_the_slow_reference(left, right):
    found = NameSimilarity(mentions(*left), entities(*right), workers=1)(slice(0, len(left)))
    expected = [[indel(a.lower(), b.lower()) for b in right] for a in left]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_exact_name_compares_every_character():
    scorer = ExactName(mentions("Jaguar", "jaguar", "Amazon", "Mercury"), entities("Jaguar", "Mercury", "Jaguar"))
    assert scorer(slice(0, 4)).tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert scorer(slice(3, 9)).tolist() == [[0, 1, 0]]


def tie_aware_metrics(scorer, golds):
    """H@1 with ties ranked before the gold, and MRR with the gold in the middle of its ties, in percent."""
    first, reciprocal = 0, 0.0
    for row, gold in zip(scorer(slice(0, len(golds))), golds, strict=True):
        better, tied = int((row > row[gold]).sum()), int((row == row[gold]).sum())
        first += better + tied == 1
        reciprocal += 1 / (better + (1 + tied) / 2)
    return 100 * first / len(golds), 100 * reciprocal / len(golds)


def read(name):
    root = SHARED / "data" / name
    known, found = read_entities(root / "kb_entity.json"), read_mentions(root / f"{name}_test.json")
    return known, found, [known.positions[mention.golds[0]] for mention in found]


@needs_shared("data", "RichpediaMEL")
def test_name_similarity_of_richpedia_gives_the_known_metrics():
    known, found, golds = read("RichpediaMEL")
    hits, mrr = tie_aware_metrics(NameSimilarity(found, known), golds)
    assert (round(hits, 1), round(mrr, 1)) == (52.8, 62.4)


@needs_shared("data", "EmojiMEL")
def test_baselines_of_emojimel_give_the_known_metrics():
    known, found, golds = read("EmojiMEL")
    hits, mrr = tie_aware_metrics(NameSimilarity(found, known), golds)
    assert (round(hits, 1), round(mrr, 1)) == (1.9, 5.6)
    queries = [f"{mention.mention} {mention.sentence}" for mention in found]
    documents = [f"{entity.name} {entity.fields['attr']}" for entity in known]
    # The known metrics ignore words of one character.
    queries, documents = ([re.sub(r"\b\w\b", " ", text) for text in texts] for texts in (queries, documents))
    hits, mrr = tie_aware_metrics(BM25(queries, documents), golds)
    assert (round(hits, 1), round(mrr, 1)) == (37.0, 55.8)
