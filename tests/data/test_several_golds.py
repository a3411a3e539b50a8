"""Training on mentions with several golds: one is drawn per epoch, all are in the batch."""

from collections import Counter

import torch

from mimic_pl.data.sampler import draw


def epochs_of(module, count):
    loader = module.train_dataloader()
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        yield list(loader)


def with_several(folder):
    rows = folder.splits["train"]
    rows[0]["answer"] = ["Q2", "Q99", "Q5", "Q1"]  # Q99 is not in the knowledge base
    rows[7]["answer"] = ["Q4", "Q3"]
    return folder


def test_every_gold_is_drawn_and_its_entity_is_the_column(folder):
    module = with_several(folder).module()
    module.setup("fit")
    drawn = Counter()
    for batches in epochs_of(module, 60):
        for batch in batches:
            for row, index in enumerate(batch["index"].tolist()):
                gold = int(batch["columns"][row])
                golds = {0: [2, 5, 1], 7: [4, 3, -1]}.get(index, [index % 6, -1, -1])
                assert batch["gold"][row].tolist() == golds
                assert gold in golds and gold >= 0
                ids, _ = module.entity_dataset.side.tokens[gold]
                assert torch.equal(batch["entities"]["input_ids"][row], ids)
                drawn[index, gold] += 1
    assert all(10 <= drawn[0, gold] <= 32 for gold in (2, 5, 1))  # 20 expected, standard deviation 3.7
    assert all(18 <= drawn[7, gold] <= 42 for gold in (4, 3))  # 30 expected, standard deviation 3.9
    assert "gold_count" not in batch


def test_the_draw_depends_on_seed_epoch_and_mention_alone(folder):
    module, again = with_several(folder).module(batch_size=4), folder.module(batch_size=11)

    def golds(module):
        module.setup("fit")
        return [
            sorted((i, g) for b in batches for i, g in zip(b["index"].tolist(), b["columns"].tolist(), strict=True))
            for batches in epochs_of(module, 5)
        ]

    assert golds(module) == golds(again)
    assert golds(folder.module(seed=44)) != golds(module)


def test_gold_and_image_are_drawn_independently():
    pairs = Counter(
        (draw(2, 44, epoch, index), draw(2, 43, epoch, index)) for epoch in range(20) for index in range(40)
    )
    assert all(130 < pairs[pair] < 270 for pair in [(0, 0), (0, 1), (1, 0), (1, 1)])  # 200 expected


def test_images_of_every_gold_are_checked_by_the_policy_drop(folder):
    (folder.root / "kb_image" / "Q4_0.png").unlink()
    module = with_several(folder).module(image_policy="drop")
    module.setup("fit")
    kept = set(module.training_dataset().kept)
    assert kept == set(range(11)) - {4, 7, 10}  # of gold Q4, alone or among others


def test_single_golds_add_nothing_to_a_batch(folder):
    module = folder.module()
    module.setup("fit")
    (batches,) = epochs_of(module, 1)
    assert set(batches[0]) == {"mentions", "entities", "gold", "columns", "index", "failures"}
    module.setup("test")
    assert "gold_count" not in next(iter(module.test_dataloader()))
