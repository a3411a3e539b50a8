"""Building an index in every storage through the Trainer."""

import os
import shutil
import time

import pytest
import torch
from lightning.pytorch import seed_everything

from mimic_pl import MIMIC, MELDataModule
from mimic_pl.data.pixels import PixelSource
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.errors import ConfigError, StoreError
from mimic_pl.processor import Processor
from mimic_pl.ranking import IndexBuilder, Ranker
from mimic_pl.units import TGLU, VDLU
from tests import tiny
from tests.launch import FORK, needs_fork
from tests.training import make_trainer

pytestmark = pytest.mark.own_process


def test_a_folder_needs_an_index_on_disk():
    with pytest.raises(ConfigError, match="on disk"):
        IndexBuilder(folder="somewhere")


def make_model(seed=0, mask_padding=False, **options):
    seed_everything(seed)
    units = {"text": lambda dims: TGLU(dims, 8, mask_padding), "vision": lambda dims: VDLU(dims, 8)}
    return MIMIC(CLIPEncoder(**tiny.ENCODER), units=units, **options)


def evaluate(tiny_set, folder, run="test", image_cache="auto", **options):
    data = MELDataModule(str(tiny_set), name="Tiny", entity_batch_size=5, num_workers=0, image_cache=image_cache)
    model = make_model(**options)
    encoded = []
    model.entity_states = lambda side: encoded.append(len(side["input_ids"])) or MIMIC.entity_states(model, side)
    metrics = getattr(make_trainer(folder), run)(model, data, verbose=False)[0]
    return metrics, encoded


def test_every_storage_gives_the_same_metrics_and_disk_encodes_once(tiny_set, tmp_path):
    expected, encoded = evaluate(tiny_set, tmp_path)
    assert encoded == [5, 5, 2]
    assert evaluate(tiny_set, tmp_path, index=IndexBuilder(storage="host"))[0] == expected
    metrics, encoded = evaluate(tiny_set, tmp_path, index=IndexBuilder(storage="disk"))
    assert metrics == expected
    assert encoded == [5, 5, 2]
    metrics, encoded = evaluate(
        tiny_set, tmp_path, index=IndexBuilder(storage="disk"), ranker=Ranker(pairs_per_block=9)
    )
    assert metrics == expected
    assert encoded == [], "the index of the same model is reused"
    metrics, encoded = evaluate(tiny_set, tmp_path, "validate", index=IndexBuilder(storage="disk"))
    assert encoded == [5, 5, 2], "validation never reuses an index"


def test_test_rejects_the_index_of_other_weights_or_data(tiny_set, tmp_path):
    on_disk = {"index": IndexBuilder(storage="disk", folder=str(tmp_path / "index"))}
    evaluate(tiny_set, tmp_path, **on_disk)
    with pytest.raises(StoreError, match="another model"):
        evaluate(tiny_set, tmp_path, seed=1, **on_disk)
    other = shutil.copytree(tiny_set, tmp_path / "other")
    evaluate(other, tmp_path, **on_disk)  # the same data elsewhere
    knowledge_base = other / "kb_entity.json"
    whole = knowledge_base.read_text()
    # The second is a field that the text does not contain; records are part of the index.
    for old, new in (("a company", "a river"), ('"type": "entity"', '"type": "thing"')):
        assert old in whole
        knowledge_base.write_text(whole.replace(old, new))
        with pytest.raises(StoreError, match="another knowledge base"):
            evaluate(other, tmp_path, **on_disk)


def differently(path):
    content = path.read_bytes()
    path.write_bytes(content[:-40] + bytes(20) + content[-20:])  # of the same size


@pytest.mark.parametrize(
    ("change", "image_cache"),
    [
        (lambda path: shutil.copy(path.with_name("Q1_0.jpg"), path), None),
        (lambda path: path.unlink(), "auto"),
        (lambda path: path.write_bytes(b"no image"), None),
        (differently, "auto"),
    ],
    ids=["replaced", "deleted", "unreadable", "same-size-and-time"],
)
def test_an_index_of_other_images_is_rejected(tiny_set, tmp_path, change, image_cache):
    """Until the images are restored. A new index gives the results of the new images."""
    root = shutil.copytree(tiny_set, tmp_path / "set")
    on_disk = {"index": IndexBuilder(storage="disk", folder=str(tmp_path / "index")), "image_cache": image_cache}
    time.sleep(0.12)  # files that may still change are not cached
    before, encoded = evaluate(root, tmp_path, **on_disk)
    assert encoded == [5, 5, 2]
    image = root / "kb_image" / "Q3_0.jpg"
    status, content = image.stat(), image.read_bytes()
    change(image)
    if image.exists():
        os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(StoreError, match="another content of entity images\\. Rebuild it in another folder, or delete"):
        evaluate(root, tmp_path, **on_disk)
    changed = {**on_disk, "index": IndexBuilder(storage="disk", folder=str(tmp_path / "changed"))}
    fresh = evaluate(root, tmp_path, image_cache=None)[0]
    assert evaluate(root, tmp_path, **changed) == (fresh, [5, 5, 2])
    image.write_bytes(content)  # at another time, as after a copy
    assert evaluate(root, tmp_path, **on_disk) == (before, [])


def test_images_that_vanish_while_they_are_encoded(tiny_set, tmp_path, monkeypatch):
    """As if their disk was lost: otherwise, the index would be valid when it is back."""
    root = shutil.copytree(tiny_set, tmp_path / "set")
    on_disk = {"index": IndexBuilder(storage="disk", folder=str(tmp_path / "index")), "image_cache": None}
    images = root / "kb_image"
    describe = MELDataModule.describe_entities

    def then_vanish(data):
        described = describe(data)
        if images.exists():
            images.rename(tmp_path / "lost")
        return described

    monkeypatch.setattr(MELDataModule, "describe_entities", then_vanish)
    with pytest.raises(StoreError, match="changed while they were encoded. Delete the folder .*index/entities"):
        evaluate(root, tmp_path, **on_disk)
    monkeypatch.undo()
    (tmp_path / "lost").rename(images)
    shutil.rmtree(tmp_path / "index" / "entities")
    assert evaluate(root, tmp_path, **on_disk) == evaluate(root, tmp_path, image_cache=None)


def test_training_hashes_the_images_of_the_knowledge_base_once(tiny_set, tmp_path, monkeypatch):
    """Not in each validation; ``test`` does so before and after it encodes them."""
    hashed = []
    digests = PixelSource.digests
    monkeypatch.setattr(PixelSource, "digests", lambda self, names: hashed.append(self) or digests(self, names))
    data = MELDataModule(str(tiny_set), name="Tiny", entity_batch_size=5, num_workers=0)
    model = make_model(index=IndexBuilder(storage="disk"))
    for fits in (1, 2):
        make_trainer(tmp_path, max_epochs=3).fit(model, data)
        assert len(hashed) == fits
    make_trainer(tmp_path).test(model, data, verbose=False)
    assert len(hashed) == 4


def test_an_index_of_otherwise_prepared_images_is_rejected(tiny_set, tmp_path):
    on_disk = {"index": IndexBuilder(storage="disk", folder=str(tmp_path / "index"))}
    evaluate(tiny_set, tmp_path, **on_disk)
    with pytest.raises(StoreError, match="another image preprocessing .*up to 700 pixels"):
        evaluate(tiny_set, tmp_path, processor=Processor(max_pixels=700), **on_disk)


def test_texts_are_encoded_by_length_where_padding_is_masked(tiny_set, tmp_path, monkeypatch):
    """The longest first, cut to the longest of each batch, without a change to the metrics."""
    lengths = []
    encode = CLIPEncoder.forward

    def forward(self, input_ids, attention_mask, pixel_values):
        lengths.append(input_ids.shape[1])
        return encode(self, input_ids, attention_mask, pixel_values)

    monkeypatch.setattr(CLIPEncoder, "forward", forward)
    full, _ = evaluate(tiny_set, tmp_path, mask_padding=True, index=IndexBuilder(storage="disk"))
    assert set(lengths) == {tiny.ENCODER["text_length"]}
    lengths.clear()
    metrics, _ = evaluate(tiny_set, tmp_path, mask_padding=True)
    assert metrics == full
    of_entities = lengths[:3]
    assert of_entities == sorted(of_entities, reverse=True)
    assert of_entities[-1] < tiny.ENCODER["text_length"]


@pytest.mark.slow
@needs_fork
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
def test_a_compiled_encoder_keeps_its_parameter_names_and_outputs():
    """In its own process: after torch.compile and a backward pass, forks of a process cannot train."""
    assert FORK is not None
    process = FORK.Process(target=compare_with_compiled_encoder)
    process.start()
    process.join()
    assert process.exitcode == 0


def compare_with_compiled_encoder():
    torch.set_num_threads(1)  # a fork has no copies of the threads of its parent
    plain, compiled = make_model().eval(), make_model(compile_encoder=True).eval()
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    side = {
        "input_ids": torch.randint(4, 20, (4, tiny.ENCODER["text_length"])),
        "attention_mask": torch.ones(4, tiny.ENCODER["text_length"], dtype=torch.int64),
        "pixel_values": torch.randn(4, 3, 16, 16),
    }
    with torch.no_grad():
        torch.testing.assert_close(compiled.encoder(**side), plain.encoder(**side))
