"""Products of the lexicon's sparse vectors are BM25 scores, also after any change of the knowledge base."""

import bm25s
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mimic_pl.data import BM25Lexicon
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.processor import Processor
from mimic_pl.processor.words import content_words as words
from mimic_pl.processor.words import term_id
from mimic_pl.records import Entity, Mention
from tests import reference

TEXTS = ["fountain pen [SEP] ink, pen", "ball pen", "", "garden fountain water water water", "écriture 2nd_hand"]
QUERIES = ["pen pen fountain", "water", "nothing known here", "Écriture PEN", ""]


def rows(vectors):
    """Weight of each term, one dictionary per text."""
    return [
        {term: weight for term, weight in zip(ids, weights, strict=True) if weight}
        for ids, weights in zip(vectors["ids"].tolist(), vectors["weights"].tolist(), strict=True)
    ]


def products(lexicon, mentions=QUERIES, entities=TEXTS):
    sides = rows(lexicon.sparse_mentions(mentions)), rows(lexicon.sparse_entities(entities))
    return torch.tensor([[sum(w * e.get(t, 0.0) for t, w in m.items()) for e in sides[1]] for m in sides[0]])


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.5, 0.0), (2.0, 1.0)])
def test_products_are_bm25(k1, b):
    documents = [words(text) for text in TEXTS]
    expected = [reference.bm25(words(query), documents, k1, b) for query in QUERIES]
    torch.testing.assert_close(
        products(BM25Lexicon(k1, b).fit(TEXTS)), torch.tensor(expected).float(), rtol=1e-5, atol=1e-6
    )


def test_ngrams_match_misspellings():
    for lexicon, meets in ((BM25Lexicon(), False), (BM25Lexicon(ngrams=3), True)):
        texts = ["fountain", "garden"]
        scores = products(lexicon.fit(texts), ["fountians"], texts)
        assert bool(scores[0, 0] > scores[0, 1]) is meets


def test_mentions_keep_the_heaviest_terms_and_entities_the_first_ones(caplog):
    texts = ["common rare rarest", "common rare", "common"]
    lexicon = BM25Lexicon(max_terms=2).fit(texts)
    assert "Of 3 entities, 1 have more than 2 distinct terms" in caplog.text
    entities, mentions = rows(lexicon.sparse_entities(texts)), rows(lexicon.sparse_mentions(texts))
    assert [list(map(len, side)) for side in (entities, mentions)] == [[2, 2, 1], [2, 2, 1]]
    assert entities[0].keys() == {term_id("common"), term_id("rare")}
    assert mentions[0].keys() == {term_id("rare"), term_id("rarest")}
    assert "A mention has more than 2 distinct terms" in caplog.text


def test_products_equal_those_of_bm25s():
    """Against a second library, which indexes the whole corpus rather than single texts."""
    retriever = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    retriever.index([words(text) for text in TEXTS], create_empty_token=False, show_progress=False)
    for query, own in zip(QUERIES, products(BM25Lexicon().fit(TEXTS)), strict=True):
        known = [word for word in words(query) if word in retriever.vocab_dict]
        if known:
            torch.testing.assert_close(own, torch.from_numpy(retriever.get_scores(known)).float(), rtol=1e-5, atol=1e-6)
        else:
            assert not own.any()


def test_names_alone_are_compared_with_names():
    """Through the processor, fitted, encoded and changed: what the templates leave out counts for nothing."""
    entities = [
        Entity("Q1", "Ada Lovelace", {"attr": "countess"}),
        Entity("Q2", "Byron", {"attr": "father of Ada Lovelace"}),
        Entity("Q3", "Ada", {"attr": "programming language"}),
    ]
    mentions = [Mention("m", "Ada", "Lovelace met Byron."), Mention("n", "Byron", "Ada knew him.")]
    names = BM25Lexicon(mention_template="{mention}", entity_template="{name}")
    processor = Processor(features={"names": names, "lexical": BM25Lexicon()}).fit(entities[:2])
    processor = processor.updated(added=entities[2:])
    again, known = processor.recounted(entities).statistics(), processor.statistics()
    assert again.keys() == known.keys() and all(np.array_equal(again[name], known[name]) for name in known)
    sides = processor.mention_features(mentions), processor.entity_features(entities)
    found = {
        name: torch.tensor(
            [
                [sum(w * e.get(t, 0.0) for t, w in m.items()) for e in rows(_of(sides[1], name))]
                for m in rows(_of(sides[0], name))
            ]
        )
        for name in ("names", "lexical")
    }
    documents = [words(entity.name) for entity in entities]
    # The mean length is that of the fit, 1.5 words.
    idf = [np.log1p((3 - df + 0.5) / (df + 0.5)) for df in (2, 1)]
    norm = [1.5 * (0.25 + 0.75 * len(document) / 1.5) for document in documents]
    expected = torch.tensor([[idf[0] / (1 + norm[0]), 0, idf[0] / (1 + norm[2])], [0, idf[1] / (1 + norm[1]), 0]])
    torch.testing.assert_close(found["names"], expected.float(), rtol=1e-5, atol=1e-6)
    assert (found["lexical"] > 0).sum() > 4
    assert "{name}" in names.describe() and names.describe() != BM25Lexicon().describe()
    nothing = Processor(features={"names": names}, modalities="images").fit(entities)
    assert not nothing.entity_features(entities)["names.weights"].any()


def _of(features, name):
    return {part: features[f"{name}.{part}"] for part in ("ids", "weights")}


def test_the_vector_of_an_entity_does_not_depend_on_its_batch():
    lexicon = BM25Lexicon().fit(TEXTS)
    together = lexicon.sparse_entities(TEXTS)
    for name, tensor in together.items():
        assert torch.equal(tensor, torch.cat([lexicon.sparse_entities([text])[name] for text in TEXTS]))


def test_an_unfitted_lexicon_says_what_to_do():
    for call in (BM25Lexicon().sparse_mentions, BM25Lexicon().sparse_entities, BM25Lexicon().updated):
        with pytest.raises(ConfigError, match=r"model\.processor\.fit"):
            call(["pen"])


# ---- a knowledge base that changes ----------------------------------------------------------------------------------

texts = st.lists(st.lists(st.sampled_from(["pen", "ink", "water", "nib", "cap"]), max_size=5).map(" ".join), max_size=8)


def same_statistics(one, other, but=()):
    assert one.keys() == other.keys()
    for name in one.keys() - set(but):
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@given(texts, st.lists(st.tuples(texts, st.randoms(use_true_random=False)), max_size=4))
def test_after_any_history_frequencies_are_those_of_a_fresh_fit(start, changes):
    lexicon, present = BM25Lexicon(ngrams=2).fit(start), list(start)
    for added, random in changes:
        removed = random.sample(present, random.randint(0, len(present)))
        for text in removed:
            present.remove(text)
        present += added
        lexicon = lexicon.updated(added, removed)
    fresh = BM25Lexicon(ngrams=2).fit(reversed(present))
    same_statistics(lexicon.statistics(), fresh.statistics(), but=["mean_length"])
    assert lexicon.statistics()["mean_length"] == BM25Lexicon(ngrams=2).fit(start).statistics()["mean_length"]
    found, expected = lexicon.sparse_mentions(QUERIES), fresh.sparse_mentions(QUERIES)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_vectors_of_entities_survive_a_change():
    fitted = BM25Lexicon().fit(TEXTS)
    changed = fitted.updated(["pen " * 50, "another water"], ["ball pen"])
    for name, tensor in fitted.sparse_entities(TEXTS).items():
        assert torch.equal(tensor, changed.sparse_entities(TEXTS)[name])
    assert changed.describe() == fitted.describe(), "an index of it remains valid"
    assert fitted.describe() != BM25Lexicon().fit(TEXTS[:2]).describe()
    assert not torch.equal(fitted.sparse_mentions(["pen"])["weights"], changed.sparse_mentions(["pen"])["weights"])


def test_drift_is_the_change_of_the_mean_length():
    fitted = BM25Lexicon().fit(["one two", "one two three four"])  # 3 on average
    assert fitted.drift == 0
    assert fitted.updated(removed=["one two"]).drift == pytest.approx(1 / 3)
    assert fitted.updated(["word " * 12]).drift == pytest.approx(1)
    processor = Processor(entity_template="{name}", features={"lexical": BM25Lexicon()})
    processor = processor.fit([Entity("Q1", "one two"), Entity("Q2", "one two three four")])
    assert processor.drifted == {}
    assert processor.updated(added=[Entity("Q3", "word " * 12)]).drifted == {"lexical": pytest.approx(1)}


def test_a_processor_is_fitted_from_stored_statistics(tmp_path):
    entities = [Entity(str(number), text, {"attr": "x"}) for number, text in enumerate(TEXTS)]
    processor = Processor(features={"words": BM25Lexicon(), "letters": BM25Lexicon(ngrams=3)})
    fitted = processor.fit(entities)
    np.savez(tmp_path / "statistics.npz", **fitted.statistics())
    with np.load(tmp_path / "statistics.npz") as stored:
        again = processor.with_statistics(dict(stored))
    same_statistics(again.statistics(), fitted.statistics())
    assert again.describe() == fitted.describe()
    changed = again.updated(entities[:1], entities[1:2])
    same_statistics(
        changed.statistics(),
        processor.fit([*entities[2:], entities[0], entities[0]]).statistics(),
        but=["words.mean_length", "letters.mean_length"],
    )


def test_wrong_statistics_are_refused():
    lexicon = BM25Lexicon().fit(TEXTS)
    with pytest.raises(DataError, match="was not counted"):
        lexicon.updated(removed=["never seen"])
    good = lexicon.statistics()
    for damage in (
        {"terms": good["terms"][:-1]},
        {"terms": good["terms"][::-1]},
        {"texts": np.zeros(2)},
        {"mean_length": np.zeros(())},
    ):
        with pytest.raises(DataError, match="stored"):
            BM25Lexicon().with_statistics({**good, **damage})
    with pytest.raises(DataError, match="stored"):
        BM25Lexicon().with_statistics({})
    with pytest.raises(DataError, match="features 'words', which the processor lacks"):
        Processor().with_statistics({"words.terms": good["terms"]})


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
