"""A converted published checkpoint scores as the published code did."""

import json
import shutil

import torch
from safetensors.torch import load_file
from transformers import CLIPImageProcessorPil

from mimic_pl import MIMIC
from mimic_pl.encoders.configuration_files import save_tokenizer
from mimic_pl.encoders.wordpiece import build_tokenizer
from mimic_pl.hub import convert_published
from tests.shared import SHARED, needs_shared
from tests.test_parity import SCORES, close, side

FIXTURES = SHARED / "parity" / "official_tiny"


@needs_shared("parity", "official_tiny")
def test_a_converted_checkpoint_keeps_the_published_scores(tmp_path):
    clip = shutil.copytree(FIXTURES / "clip", tmp_path / "clip")
    save_tokenizer(build_tokenizer([]), clip)  # the fixture has none, and its inputs are tokens
    CLIPImageProcessorPil().save_pretrained(clip)
    weights = FIXTURES / "official_state_dict.safetensors"
    folder = convert_published(weights, str(clip), tmp_path / "converted", license="mit")
    shutil.rmtree(clip)
    model = MIMIC.from_pretrained(folder)
    inputs, expected = load_file(FIXTURES / "inputs.safetensors"), load_file(FIXTURES / "expected.safetensors")
    with torch.no_grad():
        scores = model(side(inputs, "mention"), side(inputs, "entity"))
    for ours, theirs in SCORES.items():
        close(scores[ours], expected[f"score.{theirs}"], ours)
    direct = MIMIC.from_published(weights, str(FIXTURES / "clip")).eval()
    with torch.no_grad():
        again = direct(side(inputs, "mention"), side(inputs, "entity"))
    assert all(torch.equal(scores[name], again[name]) for name in scores)
    card = (folder / "README.md").read_text()
    assert "license: mit" in card and "It was trained with the published implementation." in card
    assert json.loads((folder / "config.json").read_text())["started_from"] == ["clip"]
