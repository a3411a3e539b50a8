"""Cached features of frozen towers: they are computed once, are correct, and are not reused where they may differ."""

import logging
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from lightning.pytorch import seed_everything
from torchvision.transforms import v2

from mimic_pl import MIMIC, MELDataModule
from mimic_pl.encoders import CLIPEncoder, TextVisionEncoder
from mimic_pl.units import GlobalCosine
from tests import tiny
from tests.training import UNITS, make_trainer

TEXT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"intermediate_size": 16, "max_position_embeddings": 40}


def make_encoder(kind, folder, freeze=True):
    seed_everything(0)
    options = {"vocabulary": tiny.WORDS, "text_length": 14, "image_dim": 8, "freeze": freeze}
    if kind == "clip":
        return CLIPEncoder(config=tiny.ENCODER["config"], frozen_features=folder, **options)
    vision = {"vision": "resnet10t", "vision_pretrained": False, "vision_args": {}}
    return TextVisionEncoder(text_config=TEXT, frozen_features=folder, **vision, **options)


def make_model(kind, folder, freeze=True):
    encoder = make_encoder(kind, folder, freeze)
    seed_everything(1)
    return MIMIC(encoder, units=UNITS, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.05))


class RowCounter:
    """Counts the rows that each tower encodes."""

    def __init__(self, encoder):
        self.counts = Counter()
        for name in ("_text_tower", "_vision_tower"):
            setattr(encoder, name, self.counting(name, getattr(encoder, name)))

    def counting(self, name, tower):
        def count(*inputs):
            self.counts[name] += len(inputs[0])
            return tower(*inputs)

        return count


def fit(model, root, folder, **options):
    seed_everything(2)
    data = MELDataModule(str(root), name="Tiny", batch_size=8, num_workers=0, **options)
    make_trainer(folder, max_epochs=3).fit(model, data)
    return data


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.write_set(tmp_path_factory.mktemp("frozen") / "set")


@pytest.mark.parametrize("kind", ["clip", pytest.param("text_vision", marks=pytest.mark.slow)])
def test_a_run_of_several_epochs_encodes_each_record_once(root, tmp_path, kind):
    """Training gives the weights of a run that encodes in every epoch, and a second run encodes nothing."""
    plain = make_model(kind, None)
    fit(plain, root, tmp_path)
    model = make_model(kind, str(tmp_path / "kept"))
    rows = RowCounter(model.encoder)
    data = fit(model, root, tmp_path)
    texts = {model.processor.entity_text(e) for e in data.entities}
    texts |= {model.processor.mention_text(m) for split in ("train", "val") for m in data.mentions[split]}
    assert rows.counts["_text_tower"] == len(texts)
    images = {model.processor.mentions([m])["pixels"].numpy().tobytes() for m in mentions_of_images(data)}
    assert 1 < rows.counts["_vision_tower"] <= len(images) + 1, "one more for the blank image"
    for (name, own), other in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5, msg=name)
    again = make_model(kind, str(tmp_path / "kept"))
    rows = RowCounter(again.encoder)
    fit(again, root, tmp_path)
    assert not rows.counts
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


def mentions_of_images(data):
    """One mention per image of the set, with the path of the image."""
    for entity in data.entities:
        for name in entity.images:
            yield {"mention": "x", "image": data.entity_images.path(name)}
    for split in ("train", "val"):
        for mention in data.mentions[split]:
            if mention.image:
                yield {"mention": "x", "image": data.mention_images.path(mention.image)}


RECORDS = [{"mention": "jaguar", "sentence": "the jaguar runs"}, {"mention": "amazon", "sentence": "today"}]
RECORDS.append(RECORDS[0])
IMAGE = torch.arange(32 * 32 * 3).reshape(32, 32, 3).to(torch.uint8).numpy()


def test_a_missing_image_differs_from_a_black_one(tmp_path):
    model = make_model("clip", str(tmp_path))
    black = torch.zeros(32, 32, 3, dtype=torch.uint8).numpy()
    records = [{**RECORDS[0], "image": black}, RECORDS[0]]
    found = model.encode_mentions(records)["vision"]
    expected = make_model("clip", None).encode_mentions(records)["vision"]
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)
    assert not all(torch.equal(tensor[0], tensor[1]) for tensor in found.values())


def test_other_weights_and_precisions_have_their_own_cached_features(tmp_path):
    model, plain = make_model("clip", str(tmp_path)), make_model("clip", None)
    rows = RowCounter(model.encoder)

    def encode():
        before = rows.counts.total()
        states = model.encode_mentions(RECORDS)["text"]
        for name, tensor in plain.encode_mentions(RECORDS)["text"].items():
            torch.testing.assert_close(states[name], tensor)
        return rows.counts.total() - before

    assert encode() == 3  # two texts and the blank image
    assert encode() == 0
    for changed in (model, plain):
        with torch.no_grad():
            next(changed.encoder.clip.parameters()).mul_(1.5)
    assert encode() == 3
    with torch.autocast("cpu", torch.bfloat16):
        assert encode() == 3
    assert encode() == 0
    for changed in (model, plain):
        changed.double()
    assert encode() == 3
    model.encoder.clip.requires_grad_(True)  # as BackboneFinetuning does
    assert encode() >= 5, "all rows are encoded, since these weights may change"


def test_a_corrupted_value_is_computed_again(tmp_path):
    model = make_model("clip", str(tmp_path))
    expected = model.encode_mentions(RECORDS)["text"]
    (file,) = tmp_path.rglob("data.mdb")
    script = "import lmdb, sys; e = lmdb.open(sys.argv[1], max_dbs=2); t = e.begin(db=e.open_db(b'text'));"
    script += "sys.stdout.buffer.write(next(iter(t.cursor()))[1])"
    value = subprocess.run([sys.executable, "-c", script, file.parent], capture_output=True, check=True).stdout
    content = file.read_bytes()
    flipped = value[:-1] + bytes([value[-1] ^ 1])  # in the tensor values, where only a checksum detects it
    assert content.count(value), "an old page of the database may hold a copy"
    file.write_bytes(content.replace(value, flipped))
    rows = RowCounter(model.encoder)
    found = model.encode_mentions(RECORDS)["text"]
    assert rows.counts.total() == 1
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)


def test_images_that_change_every_epoch_are_not_cached(root, tmp_path):
    model = make_model("clip", str(tmp_path / "kept"))
    rows = RowCounter(model.encoder)
    fit(model, root, tmp_path, modality_dropout=0.5)
    images = rows.counts["_vision_tower"]
    mentions = 20  # of the training split, in each of three epochs
    assert images >= 3 * mentions
    assert images < 3 * (mentions + 20), "entity images are cached"


def test_versions_of_images_that_recur_are_cached(root, tmp_path):
    model = make_model("clip", str(tmp_path / "kept"))
    rows = RowCounter(model.encoder)
    options = {"augmentation": v2.RandomInvert(), "augmentation_versions": 1}
    fit(model, root, tmp_path, **options)
    assert 20 < rows.counts["_vision_tower"] < 3 * 20, "each of three epochs has 20 mentions"
    rows.counts.clear()
    fit(model, root, tmp_path, **options)
    assert not rows.counts
    plain = make_model("clip", None)
    for _ in range(2):
        fit(plain, root, tmp_path, **options)
    for (name, own), other in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5, msg=name)


def test_stages_of_other_numbers_are_cached_apart(tmp_path):
    def encoded(stages, kept):
        seed_everything(0)
        encoder = TextVisionEncoder(
            text_config=TEXT, vocabulary=tiny.WORDS, text_length=14, vision="resnet10t", vision_pretrained=False,
            freeze=True, frozen_features=kept, image_size=32, image_stages=stages,
        )  # fmt: skip
        units = {"image": lambda dims: GlobalCosine(dims, modality="image", pretrained=True)}
        return MIMIC(encoder, units=units).encode_mentions([{**RECORDS[0], "image": IMAGE}])["image"]["direction"]

    for stages in (None, [1], [2], [1, 2], [2]):
        torch.testing.assert_close(encoded(stages, str(tmp_path)), encoded(stages, None))


def test_features_are_computed_if_they_cannot_be_cached(tmp_path, caplog):
    """A file where the folder should be."""
    (tmp_path / "taken").write_text("")
    model = make_model("clip", str(tmp_path / "taken"))
    rows = RowCounter(model.encoder)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = model.encode_mentions(RECORDS)["text"]
    assert rows.counts.total() == 6
    assert [record.getMessage() for record in caplog.records if "every epoch" in record.getMessage()]
    for name, tensor in make_model("clip", None).encode_mentions(RECORDS)["text"].items():
        torch.testing.assert_close(found[name], tensor)


def test_features_of_trained_towers_are_not_cached(root, tmp_path):
    model = make_model("clip", str(tmp_path / "kept"), freeze=False)
    model.encode_mentions(RECORDS)
    assert not os.path.exists(tmp_path / "kept")
