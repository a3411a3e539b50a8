"""From a folder to batches: golds, images, workers, epochs."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch

from mimic_pl.data import Entity, MELDataModule, Mention
from mimic_pl.data import folder as folder_module
from mimic_pl.data.dataset import TokenTable
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.processor.template import TextTemplate
from tests.data.conftest import BatchRecorder, WordTokenizer, epoch_of, word_processor
from tests.training import make_trainer


def test_training_batches(folder):
    folder.splits["train"][3]["answer"] = "nil"
    folder.splits["train"][4]["answer"] = "Q99"
    module = folder.module()
    module.setup("fit")
    assert "test" not in module.mentions
    batches = epoch_of(module, 0)
    assert [len(batch["index"]) for batch in batches] == [4, 4, 1]
    index = torch.cat([batch["index"] for batch in batches]).tolist()
    assert sorted(index) == [0, 1, 2, 5, 6, 7, 8, 9, 10]
    assert torch.cat([batch["gold"] for batch in batches]).flatten().tolist() == [i % 6 for i in index]
    assert torch.cat([batch["columns"] for batch in batches]).tolist() == [i % 6 for i in index]
    batch = module.processor.finish(batches[0])
    assert set(batch) == {"mentions", "entities", "gold", "columns", "index"}
    ids, mask = word_processor().tokenizer([f"name{i % 6} [SEP] a{i % 6}" for i in batch["index"].tolist()])
    assert torch.equal(batch["entities"]["input_ids"], ids)
    assert torch.equal(batch["entities"]["attention_mask"], mask)
    without = batch["columns"] % 3 == 0
    assert not batch["entities"]["pixel_values"][without].any()
    assert batch["entities"]["pixel_values"][~without].flatten(1).any(1).all()


def test_evaluation_keeps_every_mention(folder):
    folder.splits["test"][0]["answer"] = ["Q5", "Q99", "Q2"]
    folder.splits["test"][1]["answer"] = "nil"
    module = folder.module()
    module.setup("test")
    batches = list(module.test_dataloader())
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(7))
    assert torch.cat([batch["gold"] for batch in batches])[:3].tolist() == [[5, 2], [-1, -1], [2, -1]]
    entities = list(module.entity_dataloader())
    assert torch.cat([batch["index"] for batch in entities]).tolist() == list(range(6))


def test_images_depend_on_epoch_and_not_on_workers(folder):
    alone = folder.module(batch_size=3)
    alone.setup("fit")
    with_workers = folder.module(batch_size=3, num_workers=2)
    with_workers.setup("fit")
    loader = with_workers.train_dataloader()  # one loader with persistent workers for all epochs
    epochs = []
    for epoch in (0, 1, 2):
        loader.sampler.set_epoch(epoch)
        for ours, theirs in zip(epoch_of(alone, epoch), loader, strict=True):
            assert torch.equal(ours["index"], theirs["index"])
            assert torch.equal(ours["entities"]["pixels"], theirs["entities"]["pixels"])
        drawn = {}
        for batch in epoch_of(alone, epoch):
            drawn.update(zip(batch["index"].tolist(), batch["entities"]["pixels"], strict=True))
        epochs.append(drawn)
    assert any(not torch.equal(epochs[0][i], epochs[e][i]) for i in epochs[0] for e in (1, 2))


@pytest.mark.parametrize("policy", ["blank", "drop", "error"])
def test_image_policies(folder, policy, caplog):
    (folder.root / "mention_images" / "train2.jpg").write_bytes(b"no image")
    for name in ("Q5_0.png", "Q4_0.png"):  # Q5 has another image, Q4 does not
        (folder.root / "kb_image" / name).unlink()
    module = folder.module(image_policy=policy)
    module.setup("fit")
    if policy == "error":
        with pytest.raises(DataError, match="Fix the file"):
            epoch_of(module, 0)
        return
    batches = [module.processor.finish(batch) for batch in epoch_of(module, 0)]
    index = sorted(torch.cat([batch["index"] for batch in batches]).tolist())
    assert index == [i for i in range(11) if policy == "blank" or i not in (2, 4, 10)]
    module.teardown("fit")
    *dropped, report = (record.message for record in caplog.records)
    assert dropped == (["3 of 11 training mentions are dropped: unusable images."] if policy == "drop" else [])
    assert f"Policy '{policy}': {'items without' if policy == 'blank' else 'training excludes'}" in report


def test_drop_keeps_mentions_without_an_image_name_and_all_evaluation_mentions(folder):
    folder.splits["train"][0]["imgPath"] = ""  # Q0 has no image either
    for path in sorted((folder.root / "mention_images").glob("test*.jpg"))[1:]:
        path.unlink()
    module = folder.module(image_policy="drop")
    module.setup("fit")
    module.setup("test")
    assert sorted(module.train_dataloader().dataset.kept) == list(range(11))
    assert sum(len(batch["index"]) for batch in module.test_dataloader()) == 7
    assert sum(len(batch["index"]) for batch in module.entity_dataloader()) == 6


def test_dropping_every_mention_is_an_error(folder):
    for path in (folder.root / "mention_images").iterdir():
        path.write_bytes(b"no image")
    module = folder.module(image_policy="drop")
    module.setup("fit")
    with pytest.raises(DataError, match="All training mentions"):
        module.train_dataloader()


def test_workers_report_each_failure_once(folder, caplog):
    (folder.root / "mention_images" / "train2.jpg").write_bytes(b"no image")
    (folder.root / "kb_image" / "Q4_0.png").unlink()
    module = folder.module(num_workers=2)
    module.setup("fit")
    for epoch in (0, 1):
        for batch in epoch_of(module, epoch):
            module.processor.finish(batch)
    with caplog.at_level(logging.WARNING):
        module.teardown("fit")
        module.teardown("fit")
    (record,) = caplog.records
    assert "2 images could not be used (1 missing, 1 unreadable)" in record.message


def test_the_trainer_shuffles_every_epoch(folder, tmp_path):
    folder.write()
    model = BatchRecorder()
    module = MELDataModule(str(folder.root), name="Set", batch_size=4, num_workers=0)
    make_trainer(tmp_path, max_epochs=2).fit(model, module)
    indices = [index for batch in model.batches for index in batch["index"].tolist()]
    first, second = indices[:11], indices[11:]
    assert sorted(first) == sorted(second) == list(range(11)) and first != second


def test_texts():
    entity = Entity("Q1", "{name} 100% \\1", {"desc": "d"})
    assert TextTemplate("{name}|{desc}")(entity) == "{name} 100% \\1|d"
    assert TextTemplate("{mention}/{sentence}")(Mention("1", "m", "s")) == "m/s"
    with pytest.raises(ConfigError, match="desc, id, name"):
        TextTemplate("{attr}")(entity)
    with pytest.raises(ConfigError, match="no field"):
        TextTemplate("text")


def test_left_padding_is_rejected():
    tokenizer = WordTokenizer()
    tokenizer.side = "left"
    with pytest.raises(ConfigError, match="padding_side"):
        TokenTable(["a b"], tokenizer, "texts")


def test_a_knowledge_base_and_batches_of_one(folder):
    folder.entities = folder.entities[1:2]
    folder.splits = {split: rows[1:2] for split, rows in folder.splits.items()}
    module = folder.module(batch_size=1)
    module.setup("fit")
    (batch,) = epoch_of(module, 0)
    assert batch["gold"].tolist() == [[0]] and batch["mentions"]["pixels"].shape == (1, 3, 4, 4)


def test_missing_files_and_empty_splits(folder, tmp_path):
    with pytest.raises(ConfigError, match="--data.root"):
        MELDataModule.check_root(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="The data folder '' does not exist. "):
        MELDataModule.check_root("")
    for read in (MELDataModule.read_entities, partial(MELDataModule.read_mentions, split="test")):
        with pytest.raises(ConfigError, match="nowhere' does not exist .*--data.root"):
            read(MELDataModule(str(tmp_path / "nowhere")))
    module = folder.module()
    (folder.root / "Set_dev.json").rename(folder.root / "other_dev.json")
    with pytest.raises(DataError, match="looked for Set_dev.json.*other_dev.json"):
        module.setup("validate")
    folder.splits["dev"] = []
    with pytest.raises(DataError, match="val split of .* contains no mentions"):
        folder.module().setup("validate")
    (folder.root / "kb_images").mkdir()
    with pytest.raises(DataError, match="kb_image and kb_images"):
        folder.module().setup("test")


@pytest.mark.parametrize(("side", "name"), [("entity", "kb_image"), ("mention", "mention_images")])
def test_all_images_missing_is_an_error_unless_none_are_wanted(folder, side, name):
    (folder.root / name).rename(folder.root / "elsewhere")
    with pytest.raises(DataError, match=f"All [56] {side} images are missing: .* name their folder: ") as caught:
        folder.module().setup("validate")
    # What the error recommends:
    for option in (f"{side}_image_folder {folder.root / 'elsewhere'}", f"{side}_image_folder null"):
        assert f"--data.{option.replace(str(folder.root / 'elsewhere'), 'FOLDER')}" in str(caught.value)
        key, value = option.split()
        module = folder.module(**{key: None if value == "null" else value})
        module.setup("validate")
        batches = list(module.val_dataloader()) if side == "mention" else list(module.entity_dataloader())
        inputs = [batch["mentions" if side == "mention" else "entities"] for batch in batches]
        assert any(part["has_image"].any() for part in inputs) == (value != "null")
        assert not any(batch["failures"] for batch in batches)
    folder.module(modalities="text").setup("validate")


@pytest.mark.parametrize("link", [False, True])
def test_absolute_paths_inside_the_named_folder(folder, tmp_path, link):
    elsewhere = (folder.root / "kb_image").rename(tmp_path / "elsewhere")
    if link:
        (tmp_path / "link").symlink_to(elsewhere)
    for entity in folder.entities:
        entity["image_list"] = [str(elsewhere / name) for name in entity["image_list"]]
    named = tmp_path / ("link" if link else "elsewhere")
    module = folder.module(entity_image_folder=str(named))
    module.setup("validate")
    for batch in module.entity_dataloader():
        assert batch["entities"]["has_image"].tolist() == [i % 3 > 0 for i in batch["index"].tolist()]
    for other in ("auto", str(folder.root / "mention_images")):
        with pytest.raises(DataError, match="outside the data folder.*--data.entity_image_folder FOLDER"):
            folder.module(entity_image_folder=other).setup("validate")
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        folder.module(entity_image_folder=str(tmp_path / "nowhere")).setup("validate")


def test_absolute_paths_inside_the_data_folder(folder):
    folder.splits["dev"][0]["imgPath"] = str((folder.root / "mention_images" / "dev0.jpg").absolute())
    module = folder.module()
    module.setup("validate")
    assert all(batch["mentions"]["has_image"].all() and not batch["failures"] for batch in module.val_dataloader())


def test_nil_and_unknown_golds_are_counted(folder, caplog):
    for split, nil, unknown in (("train", 2, 1), ("dev", 1, 2)):
        for i in range(nil):
            folder.splits[split][i]["answer"] = "nil"
        for i in range(nil, nil + unknown):
            folder.splits[split][i]["answer"] = ["Q98", "Q99"]
    module = folder.module()
    module.setup("fit")
    train, val = (record.message for record in caplog.records)
    assert "of 11 mentions, 2 have no gold (nil) and 1 have a gold that is not" in train
    assert "excluded from training" in train
    assert "of 5 mentions, 1 have no gold (nil) and 2 have a gold that is not" in val and "counted as not found" in val
    assert sum(len(batch["index"]) for batch in epoch_of(module, 0)) == 8
    assert torch.cat([batch["gold"] for batch in module.val_dataloader()]).flatten().tolist() == [-1, -1, -1, 3, 4]


def test_evaluation_uses_the_first_readable_image(folder):
    (folder.root / "kb_image" / "Q2_0.png").write_bytes(b"?")
    module = folder.module(entity_batch_size=6)
    module.setup("test")
    (batch,) = module.entity_dataloader()
    # Images are of one colour, (40 * entity, 100 * image, 7); Q0 and Q3 have none, and Q2's first is broken.
    assert batch["entities"]["has_image"].tolist() == [False, True, True, False, True, True]
    expected = [(0, 0, 0), (40, 0, 7), (80, 100, 7), (0, 0, 0), (160, 0, 7), (200, 0, 7)]
    assert [tuple(pixels[:, 3, 3].tolist()) for pixels in batch["entities"]["pixels"]] == expected
    assert batch["failures"] == [(str(folder.root / "kb_image" / "Q2_0.png"), "unreadable")]
    blank = module.processor.finish(batch)["entities"]["pixel_values"][[0, 3]]
    assert not blank.any()  # zeros after normalisation, not black


def test_templates_use_any_field(folder):
    for entity in folder.entities:
        entity["desc"] = f"described {entity['id']}"
    module = folder.module(entity_template="{name} : {desc}", entity_batch_size=6)
    module.setup("test")
    (batch,) = module.entity_dataloader()
    ids, _ = word_processor().tokenizer([f"name{i} : described {i}" for i in range(6)])
    assert torch.equal(batch["entities"]["input_ids"], ids)
    with pytest.raises(ConfigError, match=r"\['nowhere'\].*It has: .*desc"):
        folder.module(entity_template="{name} {nowhere}").setup("test")


def test_every_file_is_read_once(folder, monkeypatch):
    read = []
    original = folder_module.read_mentions
    monkeypatch.setattr(folder_module, "read_mentions", lambda path, *a: read.append(path.name) or original(path, *a))
    folder.splits["train"][0]["imgPath"] = "train0.png"  # stored as .jpg: the names of all images are needed
    module = folder.module()
    for stage in ("fit", "test", "predict"):
        module.setup(stage)
    list(module.test_dataloader())
    assert sorted(read) == sorted({module.split_file(split).name for split in ("train", "val", "test")})


def test_predict_file(folder, tmp_path):
    (tmp_path / "new.json").write_text('[{"id": 1, "mentions": "name1", "sentence": "s"}]')
    module = folder.module(predict_file=str(tmp_path / "new.json"))
    module.setup("predict")
    (batch,) = module.predict_dataloader()
    assert batch["gold"].shape == (1, 0) and not batch["mentions"]["has_image"].any()
