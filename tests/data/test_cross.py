"""Training on two sets and testing on a third: which mentions and which knowledge base each stage uses."""

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from mimic_pl import MIMIC, CrossDataModule, MELDataModule
from mimic_pl.data.sampler import MultiDatasetSampler, TrainSampler
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.errors import ConfigError
from mimic_pl.units import GlobalCosine
from tests import tiny
from tests.data.conftest import Folder, epoch_of, word_processor
from tests.training import make_trainer


@pytest.fixture
def cross(tmp_path):
    """Three sets with distinguishable texts and positions: set n has entities Qn0, Qn1, ..., in reverse if n > 0."""

    built = []

    def build(**options):
        built.append(options)
        modules = []
        for number in range(3):
            folder = Folder(tmp_path / f"build{len(built)}" / f"set{number}")
            for entity in folder.entities:
                entity["qid"] = f"Q{number}{entity['id']}"
                entity["entity_name"] = f"entity{number}{entity['id']}"
                entity["id"] = 5 - entity["id"] if number else entity["id"]
            for row in chain(*folder.splits.values()):
                row["answer"] = f"Q{number}{row['answer'][1:]}"
                row["sentence"] = f"set{number} {row['sentence']}"
            folder.splits["train"] = folder.splits["train"][: 11 - 2 * number]
            modules.append(folder.module(batch_size=4 - number))
        data = CrossDataModule(modules[:2], modules[2], **options)
        data.processor = word_processor()
        return data

    return build


def test_a_training_batch_comes_from_one_set_and_its_knowledge_base(cross):
    data = cross()
    data.setup("fit")
    batches = epoch_of(data, 0)
    seen = []
    for batch in batches:
        index = batch["index"].tolist()
        numbers = {
            number
            for number in (0, 1)
            if torch.equal(
                batch["mentions"]["input_ids"],
                word_processor().tokenizer([f"name{i % 6} [SEP] set{number} train sentence {i}" for i in index])[0],
            )
        }
        (number,) = numbers
        own = data.training_sets[number]
        assert [own.entities[gold].id for gold in batch["columns"].tolist()] == [f"Q{number}{i % 6}" for i in index]
        expected, _ = word_processor().tokenizer([f"entity{number}{i % 6} [SEP] a{i % 6}" for i in index])
        assert torch.equal(batch["entities"]["input_ids"], expected)
        seen += [(number, i) for i in index]
        assert len(index) <= (4, 3)[number]
    assert sorted(seen) == [(0, i) for i in range(11)] + [(1, i) for i in range(9)]
    assert len(batches) == 3 + 3


def test_order_depends_on_seed_and_epoch(cross):
    def order(data, epoch):
        data.setup("fit")
        return [batch["index"].tolist() for batch in epoch_of(data, epoch)]

    assert order(cross(), 3) == order(cross(), 3)
    assert order(cross(), 3) != order(cross(), 4)
    assert order(cross(), 3) != order(cross(seed=1), 3)


@given(st.lists(st.tuples(st.integers(3, 30), st.integers(1, 7)), min_size=1, max_size=3), st.integers(1, 3))
def test_processes_partition_the_items_and_work_on_the_same_set_at_a_time(sets, processes):
    parts = []
    for rank in range(processes):
        own = [TrainSampler(range(size), batch, processes, rank, seed=5) for size, batch in sets]
        sampler = MultiDatasetSampler(own, seed=7)
        sampler.set_epoch(2)
        parts.append(list(sampler))
        assert len(parts[-1]) == len(sampler)
    for steps in zip(*parts, strict=True):
        assert len({number for number, _ in steps}) == 1
        lengths = [len(addresses) for _, addresses in steps]
        assert max(lengths) - min(lengths) <= 1
    for number, (size, batch) in enumerate(sets):
        addresses = [a for part in parts for n, batch_of in part if n == number for a in batch_of]
        assert {a // size for a in addresses} == {2}
        assert {a % size for a in addresses} == set(range(size))
        assert all(len(batch_of) <= batch + 1 for part in parts for n, batch_of in part if n == number)


@pytest.mark.parametrize("validate_on", [0, 1])
def test_each_stage_ranks_over_the_knowledge_base_of_its_set(cross, validate_on):
    data = cross(validate_on=validate_on)
    for stage, number, split in (("fit", validate_on, "val"), ("test", 2, "test"), ("validate", validate_on, "val")):
        data.setup(stage)
        assert data.ranked.entities[0].id[:2] == f"Q{number}"
        assert all(mention.sentence.startswith(f"set{number} ") for mention in data.ranked.mentions[split])
        texts, _ = word_processor().tokenizer([f"{e.name} [SEP] {e.fields['attr']}" for e in data.ranked.entities])
        ids = torch.cat([batch["entities"]["input_ids"] for batch in data.ranked.entity_dataloader()])
        assert torch.equal(ids, texts)
        loader = data.val_dataloader() if split == "val" else data.test_dataloader()
        golds = torch.cat([batch["gold"] for batch in loader])[:, 0].tolist()
        assert [data.ranked.entities[gold].id for gold in golds] == [m.golds[0] for m in data.ranked.mentions[split]]
    assert "test" not in data.training_sets[validate_on].mentions
    assert "val" not in data.target.mentions, "the target is not used to choose a checkpoint"


def test_golds_count_as_seen_if_a_training_set_has_them(cross):
    data = cross()
    data.training_sets[1].seen_golds = frozenset({"Q21", "Q24"})
    data.setup("test")
    seen = torch.cat([batch["seen"] for batch in data.test_dataloader()]).tolist()
    assert seen == [int(mention.golds[0] in ("Q21", "Q24")) for mention in data.ranked.mentions["test"]]
    assert sum(seen) == 2


def test_invalid_combinations_of_sets(tmp_path):
    one, two = MELDataModule(str(tmp_path / "1")), MELDataModule(str(tmp_path / "2"))
    with pytest.raises(ConfigError, match="at least one"):
        CrossDataModule([], one)
    with pytest.raises(ConfigError, match="target set and also a training set"):
        CrossDataModule([one, two], MELDataModule(f"{tmp_path}/../{tmp_path.name}/2"))
    with pytest.raises(ConfigError, match="from 0 to 0"):
        CrossDataModule([one], two, validate_on=1)


def test_a_resumed_run_equals_an_uninterrupted_one_and_tests_on_the_target_alone(tmp_path):
    roots = [str(tiny.write_set(tmp_path / name, "Tiny")) for name in ("one", "two", "three")]
    options = {"name": "Tiny", "batch_size": 8, "num_workers": 0, "image_cache": None}

    def build():
        parts = [MELDataModule(root, seed=number, **options) for number, root in enumerate(roots)]
        return CrossDataModule(parts[:2], parts[2])

    def fit(folder, epochs, ckpt_path=None):
        seed_everything(7)
        model = MIMIC(CLIPEncoder(**tiny.ENCODER), units={"cosine": GlobalCosine})
        model.optimizer = lambda params: torch.optim.AdamW(params, lr=1e-3)
        checkpoint = ModelCheckpoint(folder, save_last=True)
        trainer = make_trainer(folder, checkpoint, max_epochs=epochs, enable_checkpointing=True)
        trainer.fit(model, build(), ckpt_path=ckpt_path)
        return model

    whole = fit(tmp_path / "whole", 3)
    fit(tmp_path / "part", 1)
    resumed = fit(tmp_path / "part", 3, tmp_path / "part" / "last.ckpt")
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())

    (across,) = make_trainer(tmp_path).test(whole, build(), verbose=False)
    (alone,) = make_trainer(tmp_path).test(whole, MELDataModule(roots[2], **options), verbose=False)
    assert {n: v for n, v in across.items() if "seen" not in n} == {n: v for n, v in alone.items() if "seen" not in n}
