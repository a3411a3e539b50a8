"""A share of the training mentions, and which golds were seen in training."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic_pl.data import Mention
from mimic_pl.data.training_split import seeded_fold, seeded_fraction
from mimic_pl.errors import ConfigError

MENTIONS = [Mention(str(i), "m", "s", (f"Q{i % 9}",)) for i in range(200)]


@given(st.integers(0, 2**31), st.lists(st.floats(0.001, 1.0), min_size=2, max_size=5))
def test_shares_are_nested_and_depend_on_nothing_else(seed, shares):
    random.random()  # the global random state has no effect
    parts = {share: [mention.id for mention in seeded_fraction(MENTIONS, share, seed)] for share in shares}
    for share in reversed(shares):
        part = [mention.id for mention in seeded_fraction(MENTIONS, share, seed)]
        assert part == parts[share]
        assert len(part) == max(1, round(share * 200))
        assert part == sorted(part, key=int)
    ordered = sorted(shares)
    assert all(set(parts[low]) <= set(parts[high]) for low, high in itertools.pairwise(ordered))


def test_seeds_draw_different_shares():
    assert seeded_fraction(MENTIONS, 0.1, 1) != seeded_fraction(MENTIONS, 0.1, 2)
    assert seeded_fraction(MENTIONS, 1.0, 1) == MENTIONS


def test_training_uses_only_the_share(folder):
    module = folder.module(train_fraction=0.4)
    module.setup("fit")
    assert [mention.id for mention in module.mentions["train"]] == [
        mention.id for mention in seeded_fraction(folder.module().read_mentions("train"), 0.4, 43)
    ]
    assert sorted(i for batch in module.train_dataloader() for i in batch["index"].tolist()) == [0, 1, 2, 3]
    assert len(module.mentions["val"]) == 5  # the other splits are complete


@given(st.integers(0, 2**31), st.integers(2, 7), st.integers(0, 200))
def test_folds_are_parts_of_equal_size(seed, folds, count):
    mentions = MENTIONS[:count]
    parts = [seeded_fold(mentions, fold, folds, seed) for fold in range(folds)]
    assert sorted((m for _, own in parts for m in own), key=lambda m: int(m.id)) == mentions
    assert max(len(own) for _, own in parts) - min(len(own) for _, own in parts) <= 1
    for others, own in parts:
        assert sorted(others + own, key=lambda m: int(m.id)) == mentions
        assert own == [mention for mention in mentions if mention in own]


def test_training_leaves_out_a_fold(folder):
    modules = [folder.module(left_out_fold=(fold, 2)) for fold in range(2)]
    for module in modules:
        module.setup("fit")
    trained, left_out = (
        [{m.id for m in own} for own in sides]
        for sides in (
            [module.mentions["train"] for module in modules],
            [module.left_out_mentions() for module in modules],
        )
    )
    assert trained == left_out[::-1] and not trained[0] & trained[1]
    assert trained[0] | trained[1] == {mention.id for mention in folder.module().read_mentions("train")}
    assert folder.module().left_out_mentions() == []


@pytest.mark.parametrize("fold", [(2, 2), (-1, 2), (0, 1)])
def test_invalid_folds_are_rejected(folder, fold):
    with pytest.raises(ConfigError, match="left_out_fold"):
        folder.module(left_out_fold=fold)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_invalid_shares_are_rejected(folder, share):
    with pytest.raises(ConfigError, match="train_fraction"):
        folder.module(train_fraction=share)


def seen(module):
    module.setup("test")
    batches = list(module.test_dataloader())
    return [number for batch in batches for number in batch["seen"].tolist()] if "seen" in batches[0] else None


def test_seen_golds_are_flagged(folder):
    for row in folder.splits["train"]:
        row["answer"] = ["Q1", "Q98"] if row["answer"] == "Q1" else "Q2"
    rows = folder.splits["test"]  # golds Q0 .. Q5, Q0
    rows[3]["answer"], rows[4]["answer"], rows[5]["answer"] = "nil", ["Q5", "Q2"], "Q98"
    assert seen(folder.module()) == [0, 1, 1, -1, 1, 1, 0]
    assert seen(folder.module(train_fraction=0.01)) == [0, 0, 1, -1, 1, 0, 0]  # trained on Q2 alone


def test_seen_flags_need_a_training_file_and_a_test_split(folder):
    module = folder.module()
    module.setup("validate")
    assert all("seen" not in batch for batch in module.val_dataloader())
    module = folder.module()
    (folder.root / "Set_train.json").unlink()
    assert seen(module) is None
