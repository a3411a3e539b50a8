"""Models for linkers: a trained and tested run, and a vision model for those without training."""

import json

import pytest
import timm
import torch
from timm.models import save_for_hf
from transformers import BertConfig, BertModel

from mimic_pl.encoders.wordpiece import build_tokenizer
from tests import tiny
from tests.launch import run


@pytest.fixture(scope="session")
def tested_run(tmp_path_factory):
    """Folder of a run whose test split has 50 mentions and 40 entities, some of which are equal, hence ties.

    Beside the units of the paper, it has priors of an alias table.
    """
    folder = tmp_path_factory.mktemp("tested")
    tiny.write_set(folder / "Tiny", entities=40, splits={"train": 20, "dev": 7, "test": 50})
    config = tiny.config(folder / "Tiny", folder)
    rows = [f"{word},Q{n},0.{n}" for word in ("jaguar", "amazon") for n in (3, 5)]
    (folder / "aliases.csv").write_text("\n".join(["alias,id,prior", *rows]))
    aliases = {"class_path": "mimic_pl.processor.AliasTable", "init_args": {"path": str(folder / "aliases.csv")}}
    model = config["model"]["init_args"]
    model["processor"] = {"class_path": "mimic_pl.Processor", "init_args": {"features": {"aliases": aliases}}}
    prior = {"class_path": "mimic_pl.units.Lexical", "init_args": {"feature": "aliases", "scale": 9.0}}
    model["units"]["prior"] = prior
    (folder / "config.json").write_text(json.dumps(config))
    run(["fit", "--config", str(folder / "config.json")], folder)
    found = folder / "lightning_logs" / "version_0"
    run(["test", "--run", str(found), "--predictions.top_k", "15", "--model.ranker.top_k", "15"], folder)
    return found


@pytest.fixture(scope="session")
def image(tmp_path_factory):
    """Name of a vision model in a folder."""
    folder = tmp_path_factory.mktemp("image")
    torch.manual_seed(0)
    save_for_hf(timm.create_model("test_efficientnet", num_classes=3), str(folder))
    return f"local-dir:{folder}"


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """Folder of a text model."""
    folder = tmp_path_factory.mktemp("text")
    torch.manual_seed(0)
    tokenizer = build_tokenizer(tiny.WORDS)
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    return str(folder)
