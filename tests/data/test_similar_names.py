"""Mentions that may mean each other's golds are trained on in the same batch."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic_pl.data.similar_names import shared_words
from mimic_pl.processor.words import term_id

WORDS = ["ada", "berg", "cole", "dana", "the"]
texts = st.lists(st.sampled_from(WORDS), max_size=3).map(" ".join)


def relevant(mention, name):
    """The words of the name that the mention contains, or all of them, without stop words."""
    own = {word for word in name.split() if word in mention.split() and word != "the"}
    return own or {*name.split()} - {"the"}


@given(st.lists(st.tuples(texts, texts), max_size=8), st.integers(1, 5))
def test_words_are_those_that_several_but_not_too_many_mentions_share(pairs, most):
    found = shared_words([mention for mention, _ in pairs], [name for _, name in pairs], most)
    words = [relevant(*pair) for pair in pairs]
    for own, ids in zip(words, found, strict=True):
        wanted = {word for word in own if 1 < sum(word in other for other in words) <= most}
        assert ids == sorted(map(term_id, wanted))


@pytest.mark.parametrize("workers", [0, 2])
def test_mentions_of_one_name_follow_each_other(folder, workers):
    for number, entity in enumerate(folder.entities):
        entity["entity_name"] = f"Jordan of {number}" if number % 2 else f"lonely{number}"
    for mention in folder.splits["train"]:
        mention["mentions"] = "Jordan"
    module = folder.module(batching="similar_names", batch_size=8, num_workers=workers)
    module.setup("fit")
    data = module.training_dataset()
    names = dict(zip(data.kept, data.mentions_and_names()[1], strict=True))
    loader, orders = module.train_dataloader(), set()
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        order = [int(index) for batch in loader for index in batch["index"]]
        assert sorted(order) == sorted(data.kept)
        # A group of Jordans, and one for each gold of another name.
        runs = [name for name, _ in groupby(names[index].partition(" ")[0] for index in order)]
        assert len(runs) == len({*runs}) > 2
        orders.add(tuple(order))
    assert len(orders) == 3
