"""The lexicon's products are BM25 as its authors wrote it down."""

import math
from collections import Counter

import pytest
import torch

from mimic_pl.data import BM25Lexicon
from mimic_pl.processor.words import content_words as words
from mimic_pl.errors import ConfigError

TEXTS = ["fountain pen [SEP] ink, pen", "ball pen", "", "garden fountain water water water", "écriture 2nd_hand"]
QUERIES = ["pen pen fountain", "water", "nothing known here", "Écriture PEN", ""]


def literal_bm25(query, document, documents, k1, b):
    """Lucene's variant (Kamphuis et al. 2020), term by term in plain Python."""
    counts = [Counter(d) for d in documents]
    average = sum(map(len, documents)) / len(documents)
    score = 0.0
    for term in query:
        owners = sum(term in c for c in counts)
        idf = math.log(1 + (len(documents) - owners + 0.5) / (owners + 0.5))
        tf = Counter(document)[term]
        score += tf and idf * tf / (tf + k1 * (1 - b + b * len(document) / average))
    return score


def dense(table, size=500):
    rows = torch.zeros(len(table), size)
    ids, weights = table[range(len(table))]
    return rows.scatter_add_(1, ids, weights)


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.5, 0.0), (2.0, 1.0)])
def test_products_are_bm25(k1, b):
    lexicon = BM25Lexicon(k1, b)
    entities = dense(lexicon.fit(TEXTS))
    scores = dense(lexicon.mentions(QUERIES)) @ entities.T
    documents = [words(text) for text in TEXTS]
    expected = [[literal_bm25(words(q), d, documents, k1, b) for d in documents] for q in QUERIES]
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_ngrams_let_misspellings_meet():
    plain, grams = BM25Lexicon(), BM25Lexicon(ngrams=3)
    for lexicon, meets in ((plain, False), (grams, True)):
        entities = dense(lexicon.fit(["fountain", "garden"]))
        scores = dense(lexicon.mentions(["fountians"])) @ entities.T
        assert bool(scores[0, 0] > scores[0, 1]) is meets


def test_of_too_many_terms_the_heaviest_are_kept(caplog):
    wide, narrow = BM25Lexicon(), BM25Lexicon(max_terms=2)
    texts = ["common rare rarest", "common rare", "common"]
    whole, kept = dense(wide.fit(texts)), dense(narrow.fit(texts))
    assert (kept > 0).sum(dim=1).tolist() == [2, 2, 1]
    assert torch.equal(kept[0], whole[0].where(whole[0] > whole[0][whole[0] > 0].min(), torch.zeros(())))
    assert "Of 3 entities 1 have more than 2 different terms" in caplog.text


@pytest.mark.parametrize("options", [{"k1": -1}, {"b": 1.5}, {"ngrams": -1}, {"max_terms": 0}])
def test_parameters_outside_of_their_range(options):
    with pytest.raises(ConfigError, match="BM25Lexicon takes"):
        BM25Lexicon(**options)


def test_batches_carry_the_terms_of_their_texts(folder):
    module = folder.module(lexicon=BM25Lexicon())
    module.setup("fit")
    for batch in module.val_dataloader():
        side = module.on_after_batch_transfer(batch, 0)["mentions"]
        assert side["term_ids"].shape == side["term_weights"].shape
        assert (side["term_weights"] > 0).any(dim=1).all()  # each mention's name is an entity's
    plain = folder.module()
    plain.setup("fit")
    assert "term_ids" not in next(iter(plain.val_dataloader()))["mentions"]
