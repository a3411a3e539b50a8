"""Loading checkpoints of the published implementation, completely or not at all."""

import pickle
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file

from mimic_pl.checkpoints.published import read_published
from mimic_pl.errors import CheckpointError
from mimic_pl.model import MIMIC
from tests.shared import SHARED, needs_shared

FIXTURES = SHARED / "parity" / "official_tiny"
CLIP = str(FIXTURES / "clip")


@pytest.fixture
def official():
    return load_file(FIXTURES / "official_state_dict.safetensors")


class Config:
    """Stand-in for the configuration objects that the published code pickles with its weights."""

    def __init__(self, **content):
        self._content = content


@pytest.fixture
def lightning_checkpoint(official, tmp_path, monkeypatch):
    """A Lightning checkpoint whose hyperparameters are of a class that is not installed where it is read."""
    module = types.ModuleType("absent_config_library")
    foreign = type("DictConfig", (Config,), {"__module__": "absent_config_library"})
    module.DictConfig = foreign
    monkeypatch.setitem(sys.modules, "absent_config_library", module)
    path = tmp_path / "published.ckpt"
    hyperparameters = foreign(lr=1e-5, data=foreign(batch_size=128), kind=foreign)
    torch.save({"epoch": 3, "state_dict": official, "hyper_parameters": hyperparameters}, path)
    monkeypatch.delitem(sys.modules, "absent_config_library")
    return path


@needs_shared("parity", "official_tiny")
def test_lightning_checkpoint_state_dict_and_safetensors_are_the_same_model(official, lightning_checkpoint, tmp_path):
    torch.save(official, tmp_path / "state.pt")
    expected = MIMIC.from_published(FIXTURES / "official_state_dict.safetensors", CLIP).state_dict()
    for path in (lightning_checkpoint, tmp_path / "state.pt"):
        loaded = MIMIC.from_published(path, CLIP).state_dict()
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], expected[name]) for name in expected), path


@needs_shared("parity", "official_tiny")
def test_sizes_come_from_the_tensors_and_subclasses_load_too(official):
    class Mine(MIMIC):
        """A user-defined model."""

    model = Mine.from_published(FIXTURES / "official_state_dict.safetensors", CLIP)
    assert isinstance(model, Mine)
    assert model.encoder.dims[:2] == (32, 24)
    assert model.matcher.units["text"].query.weight.shape == (24, 32)


@needs_shared("parity", "official_tiny")
def test_all_unknown_and_missing_names_and_shapes_are_listed(official, tmp_path):
    def load(state):
        save_file(state, tmp_path / "changed.safetensors")
        return MIMIC.from_published(tmp_path / "changed.safetensors", CLIP)

    with pytest.raises(CheckpointError, match=r"2 tensors .*matcher\.extra\.bias, matcher\.extra\.weight"):
        load({**official, "matcher.extra.weight": torch.ones(1), "matcher.extra.bias": torch.ones(1)})
    without = {name: t for name, t in official.items() if "gate_fc" not in name}
    with pytest.raises(CheckpointError, match=r"missing: .*cross_modal\.gate\.bias.*vision.*gate\.weight"):
        load(without)
    with pytest.raises(CheckpointError, match=r"another shape: .*text\.norm\.weight \(checkpoint \(7,\), "):
        load({**official, "matcher.tglu.layer_norm.weight": torch.ones(7)})
    with pytest.raises(CheckpointError, match="unknown: encoder.clip.text_model.new"):
        load({**official, "encoder.clip.text_model.new": torch.ones(7)})


class Bomb:
    """Creates a file when it is unpickled by an unsafe loader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    fuse = tmp_path / "exploded"
    torch.save({"state_dict": {}, "payload": Bomb(fuse)}, tmp_path / "bomb.ckpt")
    assert read_published(tmp_path / "bomb.ckpt") == {}
    assert not fuse.exists()
    torch.load(tmp_path / "bomb.ckpt", weights_only=False)
    assert fuse.exists(), "an unsafe loader does run the code"


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", pickle.dumps([1, 2, 3])], ids=["empty", "text", "another pickle"]
)
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_other_files_are_rejected(tmp_path, content, suffix):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="file"):
        read_published(path)


def test_truncated_files_are_rejected(tmp_path):
    torch.save({"a": torch.randn(1000)}, tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="half.pt"):
        read_published(tmp_path / "half.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere.ckpt"):
        read_published(tmp_path / "nowhere.ckpt")
