"""Texts are tokenized once into compact arrays, and loaded by length on request."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mimic_pl.data import Entity, MELDataModule
from mimic_pl.data.dataset import TokenTable
from mimic_pl.data.table import EntityTable
from mimic_pl.errors import ConfigError
from tests.data.conftest import word_processor


class Numbers:
    """A tokenizer of numbers, which are their own ids, with padding to a given width."""

    def __init__(self, width=3):
        self.width = width

    def __call__(self, texts):
        width = self.width(texts) if callable(self.width) else self.width
        ids, mask = torch.zeros(2, len(texts), width, dtype=torch.int64)
        for row, text in enumerate(texts):
            numbers = torch.tensor([int(number) for number in text.split()], dtype=torch.int64)
            ids[row, : len(numbers)], mask[row, : len(numbers)] = numbers, 1
        return ids, mask


@pytest.mark.parametrize(
    ("largest", "type_"),
    [(255, np.uint8), (256, np.uint16), (49_407, np.uint16), (65_535, np.uint16), (65_536, np.uint32)],
)
@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.parametrize("place", [0, 4])
def test_ids_in_the_smallest_integers(largest, type_, chunk, place):
    texts = ["1 2 3", "4", "", "5 6", "7"]
    texts[place] = str(largest)
    for table in (
        TokenTable(texts, Numbers(), "texts", chunk=chunk),
        TokenTable((text for text in texts), Numbers(), "texts", len(texts), chunk),
    ):
        assert table.ids.dtype == type_ and table.lengths.dtype == np.uint8 and table.ids.shape == (5, 3)
        for row, (ids, mask) in enumerate(zip(*Numbers()(texts), strict=True)):
            assert torch.equal(table[row][0], ids) and torch.equal(table[row][1], mask)


def test_long_texts():
    table = TokenTable([" ".join("9" * 300)], Numbers(300), "texts")
    assert int(table.lengths[0]) == 300 and table[0][1].sum() == 300


@pytest.mark.parametrize(
    ("full", "said"), [(1, []), (2, ["40% of the texts of names fill all 3 tokens"]), (5, ["100% of"])]
)
def test_many_texts_that_are_cut_are_logged(full, said, caplog):
    caplog.set_level("INFO", "mimic_pl")
    TokenTable(["1 2 3"] * full + ["1 2"] * (5 - full), Numbers(), "names", chunk=2)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(said) and all(map(str.startswith, messages, said))


def test_a_tokenizer_that_pads_to_the_longest_of_a_chunk():
    longest = Numbers(lambda texts: max(len(text.split()) for text in texts))
    with pytest.raises(ConfigError, match="some texts to 1 tokens and others to 2"):
        TokenTable(["1", "2", "3 4"], longest, "texts", chunk=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_sorted_by_length(folder, workers):
    words = [3, 0, 5, 3, 9, 1]  # nine words are truncated to 8 tokens
    for entity, count in zip(folder.entities, words, strict=True):
        entity["attr"] = " ".join(f"w{i}" for i in range(count))
    module = folder.module(entity_template="{attr}", entity_batch_size=2, num_workers=workers)
    module.setup("test")
    in_order = list(module.entity_dataloader())
    ids, mask, pixels = (
        torch.cat([batch["entities"][name] for batch in in_order]) for name in ("input_ids", "attention_mask", "pixels")
    )
    assert torch.cat([batch["index"] for batch in in_order]).tolist() == list(range(6)) and ids.shape == (6, 8)
    batches = list(module.entity_dataloader(by_length=True))
    assert [batch["index"].tolist() for batch in batches] == [[4, 2], [0, 3], [5, 1]]
    assert [batch["entities"]["input_ids"].shape[1] for batch in batches] == [8, 3, 1]
    for batch in batches:
        side, index = batch["entities"], batch["index"]
        width = side["input_ids"].shape[1]
        assert index.dtype == torch.int64 and side["input_ids"].is_contiguous()
        for name, whole in (("input_ids", ids), ("attention_mask", mask)):
            padded = torch.nn.functional.pad(side[name], (0, 8 - width))
            assert torch.equal(padded, whole[index])
        assert torch.equal(side["pixels"], pixels[index])


def test_empty_texts_keep_one_column(folder):
    for entity in folder.entities:
        entity["attr"] = ""
    module = folder.module(entity_template="{attr}")
    module.setup("test")
    assert all(batch["entities"]["input_ids"].shape[1] == 1 for batch in module.entity_dataloader(by_length=True))


def test_a_custom_reader_may_return_a_list(folder):
    class Listed(MELDataModule):
        def read_entities(self):
            return [Entity("Q1", "one", {"attr": "a"}, ("Q1_0.png",)), Entity("Q2", "two", {"attr": "b"})]

    folder.write()
    module = Listed(str(folder.root), name="Set", num_workers=0)
    module.processor = word_processor()
    module.setup("test")
    assert isinstance(module.entities, EntityTable) and module.entities == module.read_entities()
    (batch,) = module.test_dataloader()
    assert batch["gold"].flatten().tolist() == [-1, 0, 1, -1, -1, -1, -1]
    (batch,) = module.entity_dataloader()
    assert batch["entities"]["has_image"].tolist() == [True, False]
