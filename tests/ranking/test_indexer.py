"""Indexes in every dtype and place, through the real Trainer and by hand."""

import shutil

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from mimic_pl import MIMIC, MELDataModule
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.errors import ConfigError, StoreError
from mimic_pl.ranking import DiskIndex, Indexer, Ranker
from mimic_pl.units import TGLU, VDLU
from tests import tiny
from tests.launch import FORK, needs_fork

CPU = torch.device("cpu")


def states(start, stop):
    """States of entities that depend on their positions alone."""
    positions = torch.arange(start, stop)
    table = torch.sin(positions[:, None] * torch.arange(1, 97)).float()
    return positions, {"text": {"query": table.view(-1, 8, 12), "mask": (table[:, :8] > 0).long()}}


def batches(total, size=10, broken_at=None):
    def encode(first):
        for start in range(first // size * size, total, size):
            if start == broken_at:
                raise KeyboardInterrupt
            yield states(start, min(start + size, total))

    return encode


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".safetensors")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_an_index_on_disk_is_the_one_in_memory(tmp_path, dtype):
    in_memory = Indexer(dtype).in_memory(95, batches(95), CPU)
    on_disk = Indexer(dtype, "disk").on_disk(tmp_path / "index", 95, batches(95), CPU, {"model": "a"})
    assert len(on_disk) == 95
    assert on_disk.bytes_per_entity == in_memory.bytes_per_entity
    positions = torch.tensor([94, 0, 33, 33])
    for size in (7, 95):
        for (where, a), (there, b) in zip(in_memory.blocks(size), on_disk.blocks(size), strict=True):
            assert torch.equal(where, there)
            assert torch.equal(a.state_hashes["text"], b.state_hashes["text"])
            assert torch.equal(a.finite, b.finite)
            for name in ("query", "mask"):
                assert torch.equal(a.states["text"][name], b.states["text"][name])
    for name in ("query", "mask"):
        assert torch.equal(
            in_memory.select(positions).states["text"][name], on_disk.select(positions).states["text"][name]
        )


def test_a_build_that_was_interrupted_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("mimic_pl.store.writer.MAX_ROWS_PER_SHARD", 16)
    whole = Indexer(storage="disk").on_disk(tmp_path / "whole", 95, batches(95), CPU, {})
    assert len(list((tmp_path / "whole" / "part-1-of-1").glob("*.safetensors"))) == 6
    for broken_at in (20, 40, 90):
        with pytest.raises(KeyboardInterrupt):
            Indexer(storage="disk").on_disk(tmp_path / "part", 95, batches(95, broken_at=broken_at), CPU, {})
        with pytest.raises(StoreError, match="unfinished"):
            DiskIndex(tmp_path / "part")
    encoded = []

    def counted(first):
        for positions, made in batches(95)(first):
            encoded.append(int(positions[0]))
            yield positions, made

    Indexer(storage="disk").on_disk(tmp_path / "part", 95, counted, CPU, {})
    # The batch that tells the sizes, and from the batch on that holds the first missing row.
    assert encoded == [0, 80, 90]
    assert files(tmp_path / "whole" / "part-1-of-1") == files(tmp_path / "part" / "part-1-of-1")
    assert len(whole) == 95


def test_another_models_index_is_refused(tmp_path):
    Indexer(storage="disk").on_disk(tmp_path, 20, batches(20), CPU, {"model": "a", "text template": "{name}"})
    with pytest.raises(StoreError, match="another model"):
        Indexer(storage="disk").on_disk(tmp_path, 20, batches(20), CPU, {"model": "b", "text template": "{name}"})
    with pytest.raises(StoreError, match="another text template"):
        Indexer(storage="disk").on_disk(tmp_path, 20, batches(20), CPU, {"model": "a", "text template": "{attr}"})
    with pytest.raises(StoreError, match="another dtype"):
        Indexer("int8", "disk").on_disk(tmp_path, 20, batches(20), CPU, {"model": "a", "text template": "{name}"})
    anew = Indexer("int8", "disk").on_disk(tmp_path, 20, batches(20), CPU, {"model": "b"}, anew=True)
    assert len(anew) == 20


def test_a_folder_is_for_an_index_on_disk():
    with pytest.raises(ConfigError, match="on disk"):
        Indexer(folder="somewhere")


def make_model(seed=0, mask_padding=False, **options):
    seed_everything(seed)
    units = {"text": lambda dims: TGLU(dims, 8, mask_padding), "vision": lambda dims: VDLU(dims, 8)}
    return MIMIC(CLIPEncoder(**tiny.ENCODER), units=units, **options)


def evaluate(tiny_set, folder, run="test", **options):
    model, data = make_model(**options), MELDataModule(str(tiny_set), name="Tiny", entity_batch_size=5, num_workers=0)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    encoded = []
    model.entity_states = lambda side: encoded.append(len(side["input_ids"])) or MIMIC.entity_states(model, side)
    metrics = getattr(trainer, run)(model, data, verbose=False)[0]
    return metrics, encoded


def test_every_place_gives_the_same_metrics_and_disk_encodes_once(tiny_set, tmp_path):
    expected, encoded = evaluate(tiny_set, tmp_path)
    assert encoded == [5, 5, 2]
    assert evaluate(tiny_set, tmp_path, indexer=Indexer(storage="host"))[0] == expected
    metrics, encoded = evaluate(tiny_set, tmp_path, indexer=Indexer(storage="disk"))
    assert metrics == expected
    assert encoded == [5, 5, 5, 2], "the first batch tells the sizes"
    metrics, encoded = evaluate(tiny_set, tmp_path, indexer=Indexer(storage="disk"), ranker=Ranker(pairs_per_block=9))
    assert metrics == expected
    assert encoded == [], "the index of this very model is there"
    metrics, encoded = evaluate(tiny_set, tmp_path, "validate", indexer=Indexer(storage="disk"))
    assert encoded == [5, 5, 5, 2], "validation never takes the index of another moment"


def test_test_refuses_the_index_of_other_weights_or_data(tiny_set, tmp_path):
    on_disk = {"indexer": Indexer(storage="disk", folder=str(tmp_path / "index"))}
    evaluate(tiny_set, tmp_path, **on_disk)
    with pytest.raises(StoreError, match="another model"):
        evaluate(tiny_set, tmp_path, seed=1, **on_disk)
    other = shutil.copytree(tiny_set, tmp_path / "other")
    knowledge_base = other / "kb_entity.json"
    knowledge_base.write_text(knowledge_base.read_text().replace("a company", "a river"))
    with pytest.raises(StoreError, match="another knowledge base"):
        evaluate(other, tmp_path, **on_disk)


def test_texts_are_encoded_by_length_where_padding_is_masked(tiny_set, tmp_path, monkeypatch):
    """The longest first, cut to the longest of their batch, and no metric is another."""
    lengths = []
    encode = CLIPEncoder.forward

    def forward(self, input_ids, attention_mask, pixel_values):
        lengths.append(input_ids.shape[1])
        return encode(self, input_ids, attention_mask, pixel_values)

    monkeypatch.setattr(CLIPEncoder, "forward", forward)
    full, _ = evaluate(tiny_set, tmp_path, mask_padding=True, indexer=Indexer(storage="disk"))
    assert set(lengths) == {tiny.ENCODER["text_length"]}
    lengths.clear()
    metrics, _ = evaluate(tiny_set, tmp_path, mask_padding=True)
    assert metrics == full
    of_entities = lengths[:3]
    assert of_entities == sorted(of_entities, reverse=True)
    assert of_entities[-1] < tiny.ENCODER["text_length"]


@needs_fork
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
def test_a_compiled_encoder_keeps_its_names_and_its_numbers():
    """In a process of its own: after torch.compile and a backward pass no fork of a process can train."""
    assert FORK is not None
    process = FORK.Process(target=compare_a_compiled_encoder)
    process.start()
    process.join()
    assert process.exitcode == 0


def compare_a_compiled_encoder():
    torch.set_num_threads(1)  # the threads of the forked process are not there
    plain, compiled = make_model().eval(), make_model(compile_encoder=True).eval()
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    side = {
        "input_ids": torch.randint(4, 20, (4, tiny.ENCODER["text_length"])),
        "attention_mask": torch.ones(4, tiny.ENCODER["text_length"], dtype=torch.int64),
        "pixel_values": torch.randn(4, 3, 16, 16),
    }
    with torch.no_grad():
        torch.testing.assert_close(compiled.encoder(**side), plain.encoder(**side))
