"""Products of the lexicon's sparse vectors are BM25 scores."""

import bm25s
import pytest
import torch

from mimic_pl.data import BM25Lexicon
from mimic_pl.errors import ConfigError
from mimic_pl.processor.words import content_words as words
from tests import reference

TEXTS = ["fountain pen [SEP] ink, pen", "ball pen", "", "garden fountain water water water", "écriture 2nd_hand"]
QUERIES = ["pen pen fountain", "water", "nothing known here", "Écriture PEN", ""]


def dense(vectors, size=500):
    rows = torch.zeros(len(vectors["ids"]), size)
    return rows.scatter_add_(1, vectors["ids"], vectors["weights"])


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.5, 0.0), (2.0, 1.0)])
def test_products_are_bm25(k1, b):
    lexicon = BM25Lexicon(k1, b).fit(TEXTS)
    scores = dense(lexicon.sparse_mentions(QUERIES)) @ dense(lexicon.sparse_entities(TEXTS)).T
    documents = [words(text) for text in TEXTS]
    expected = [reference.bm25(words(query), documents, k1, b) for query in QUERIES]
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_ngrams_match_misspellings():
    plain, grams = BM25Lexicon(), BM25Lexicon(ngrams=3)
    for lexicon, meets in ((plain, False), (grams, True)):
        texts = ["fountain", "garden"]
        fitted = lexicon.fit(texts)
        scores = dense(fitted.sparse_mentions(["fountians"])) @ dense(fitted.sparse_entities(texts)).T
        assert bool(scores[0, 0] > scores[0, 1]) is meets


def test_only_the_heaviest_terms_are_kept(caplog):
    texts = ["common rare rarest", "common rare", "common"]
    lexicon = BM25Lexicon(max_terms=2).fit(texts)
    assert "Of 3 entities, 1 have more than 2 distinct terms" in caplog.text
    entities, mentions = dense(lexicon.sparse_entities(texts)), dense(lexicon.sparse_mentions(texts))
    assert (entities > 0).sum(dim=1).tolist() == (mentions > 0).sum(dim=1).tolist() == [2, 2, 1]
    common = dense(lexicon.sparse_mentions(["common"]))[0].nonzero().item()
    assert not entities[0, common] and not mentions[0, common], "the most frequent term is left out"
    assert "A mention has more than 2 distinct terms" in caplog.text


def test_products_equal_those_of_bm25s():
    """Against a second library, which indexes the whole corpus rather than single texts."""
    lexicon = BM25Lexicon().fit(TEXTS)
    scores = dense(lexicon.sparse_mentions(QUERIES)) @ dense(lexicon.sparse_entities(TEXTS)).T
    retriever = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    retriever.index([words(text) for text in TEXTS], create_empty_token=False, show_progress=False)
    for query, own in zip(QUERIES, scores, strict=True):
        known = [word for word in words(query) if word in retriever.vocab_dict]
        if known:
            torch.testing.assert_close(own, torch.from_numpy(retriever.get_scores(known)).float(), rtol=1e-5, atol=1e-6)
        else:
            assert not own.any()


def test_the_vector_of_an_entity_does_not_depend_on_its_batch():
    lexicon = BM25Lexicon().fit(TEXTS)
    together = dense(lexicon.sparse_entities(TEXTS))
    alone = torch.cat([dense(lexicon.sparse_entities([text])) for text in TEXTS])
    assert torch.equal(together, alone)


def test_an_unfitted_lexicon_says_what_to_do():
    with pytest.raises(ConfigError, match=r"model\.processor\.fit"):
        BM25Lexicon().sparse_mentions(["pen"])


def test_batches_carry_the_terms_of_their_texts(folder):
    module = folder.module(features={"lexical": BM25Lexicon()})
    module.setup("fit")
    for batch in module.val_dataloader():
        side = module.processor.finish(batch)["mentions"]
        assert side["lexical.ids"].shape == side["lexical.weights"].shape
        assert (side["lexical.weights"] > 0).any(dim=1).all()  # each mention's name is an entity's
    plain = folder.module()
    plain.setup("fit")
    assert "lexical.ids" not in next(iter(plain.val_dataloader()))["mentions"]
