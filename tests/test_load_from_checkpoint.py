"""A checkpoint is enough to restore its model, and builds no class that is not trusted."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch

from mimic_pl import MIMIC, MELDataModule, Processor
from mimic_pl.checkpoints.reader import read_checkpoint
from mimic_pl.construction import build, describe
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.errors import CheckpointError, ConfigError
from mimic_pl.processor import BM25Lexicon
from mimic_pl.ranking import Ranker
from mimic_pl.units import TGLU, GlobalCosine, Lexical, WeightedMatcher
from tests import tiny
from tests.training import make_trainer


class Theirs(GlobalCosine):
    """A third-party unit."""


def make_model(units=None, kind=MIMIC, **options):
    torch.manual_seed(0)
    processor = Processor("{mention}: {sentence}", modalities="text", features={"lexical": BM25Lexicon(k1=1.2)})
    units = units or {
        "text": partial(TGLU, hidden_dim=8, mask_padding=True),
        "plain": lambda dims: GlobalCosine(dims, modality="text"),
        "lexical": Lexical,
    }
    return kind(CLIPEncoder(**tiny.ENCODER), processor, units, WeightedMatcher, ranker=Ranker(top_k=3), **options)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return str(tiny.write_set(tmp_path_factory.mktemp("load") / "set"))


def saved(model, data_root, folder):
    trainer = make_trainer(folder, max_epochs=1, limit_val_batches=0)
    trainer.fit(model, MELDataModule(data_root, name="Tiny", num_workers=0, batch_size=8))
    trainer.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt"


def test_a_checkpoint_alone_restores_the_model(data_root, tmp_path):
    model = make_model()
    path = saved(model, data_root, tmp_path)
    again = MIMIC.load_from_checkpoint(path)
    assert not again.training
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert isinstance(again.matcher, WeightedMatcher) and again.ranker.top_k == 3
    assert again.matcher.units["text"].mask_padding and again.matcher.units["plain"].modality == "text"
    assert again.processor.mention_template.template == "{mention}: {sentence}"
    assert again.processor.describe() == model.processor.describe()
    assert MIMIC.load_from_checkpoint(path, ranker=Ranker(top_k=7)).ranker.top_k == 7


def test_the_description_holds_plain_values(data_root, tmp_path):
    described = read_checkpoint(saved(make_model(), data_root, tmp_path))["mimic_pl"]

    def plain(value):
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(own) for key, own in value.items())
        return all(map(plain, value)) if isinstance(value, list) else isinstance(value, (str, int, float, type(None)))

    assert plain(described) and described["class_path"] == "mimic_pl.model.MIMIC"
    assert described["init_args"]["units"]["text"]["init_args"] == {"hidden_dim": 8, "mask_padding": True}


def test_a_class_of_another_package_needs_trust_remote_code(data_root, tmp_path):
    path = saved(make_model({"cosine": Theirs}), data_root, tmp_path)
    with pytest.raises(ConfigError, match=r"names tests\.test_load_from_checkpoint\.Theirs.*trust_remote_code=True"):
        MIMIC.load_from_checkpoint(path)
    assert type(MIMIC.load_from_checkpoint(path, trust_remote_code=True).matcher.units["cosine"]) is Theirs


@pytest.mark.slow
def test_nothing_is_imported_without_trust_remote_code(data_root, tmp_path):
    path = saved(make_model(), data_root, tmp_path)
    (tmp_path / "evil_module.py").write_text("print('executed')\nclass Unit: pass\n")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["mimic_pl"]["init_args"]["units"]["text"]["class_path"] = "evil_module.Unit"
    torch.save(checkpoint, path)
    code = f"from mimic_pl import MIMIC; MIMIC.load_from_checkpoint({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "executed" not in done.stdout and "evil_module.Unit" in done.stderr


class Wider(MIMIC):
    """A third-party model with additional arguments."""

    def __init__(self, *args, bonus=0.0, callback=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.bonus, self.callback = bonus, callback


def test_a_subclass_records_its_own_arguments(data_root, tmp_path):
    path = saved(make_model(kind=Wider, bonus=0.5), data_root, tmp_path)
    again = MIMIC.load_from_checkpoint(path, trust_remote_code=True)
    assert type(again) is Wider and again.bonus == 0.5
    path = saved(make_model(kind=Wider, callback=print), data_root, tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot contain: callback.*callback=\.\.\."):
        MIMIC.load_from_checkpoint(path, trust_remote_code=True)
    assert Wider.load_from_checkpoint(path, trust_remote_code=True, callback=print).callback is print


def test_a_checkpoint_of_another_class(data_root, tmp_path):
    path = saved(make_model(), data_root, tmp_path)
    with pytest.raises(CheckpointError, match="contains a MIMIC, not a Wider"):
        Wider.load_from_checkpoint(path)


def test_a_checkpoint_without_a_description(data_root, tmp_path):
    path = saved(make_model(), data_root, tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["mimic_pl"]
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match="load_run"):
        MIMIC.load_from_checkpoint(path)


def test_describing_and_building_is_a_round_trip():
    processor = Processor(entity_template="{name}", max_pixels=99, features={"lexical": BM25Lexicon(ngrams=3)})
    described = describe({"a": [processor, 1.5, None], "b": "text"})
    again = build(described)
    assert describe(again) == described
    assert again["a"][0].describe() == processor.describe() and again["a"][0].max_pixels == 99
