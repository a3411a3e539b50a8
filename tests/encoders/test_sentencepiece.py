"""A SigLIP with the tokenizer that its checkpoints have, which needs the package sentencepiece."""

from __future__ import annotations

import io

import pytest
import torch
from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipTokenizer

from mimic_pl import CLIPEncoder

TEXTS = ["Jordan scored thirty points.", "Jordan is a country.", "x", "the sabre " * 80]
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.slow
def test_text_features_equal_those_of_the_model_with_its_own_tokenizer(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=28, pad_id=0, eos_id=1, unk_id=2, bos_id=-1
    )
    (tmp_path / "own.model").write_bytes(model.getvalue())
    tokenizer = SiglipTokenizer(vocab_file=str(tmp_path / "own.model"))
    text = {**TOWER, "vocab_size": 64, "max_position_embeddings": 64, "projection_size": 32}
    siglip = SiglipModel(SiglipConfig(text_config=text, vision_config={**TOWER, "image_size": 32, "patch_size": 8}))
    image_processor = SiglipImageProcessor(size={"height": 32, "width": 32})
    for part in (siglip, tokenizer, image_processor):
        part.save_pretrained(tmp_path / "siglip")

    encoder = CLIPEncoder(str(tmp_path / "siglip")).eval()
    input_ids, mask = encoder.build_tokenizer()(TEXTS)
    expected = tokenizer(TEXTS, padding="max_length", max_length=64, truncation=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        own = siglip.eval().get_text_features(input_ids=expected).pooler_output
        features = encoder(input_ids, mask, torch.zeros(len(TEXTS), 3, 32, 32))
    assert torch.equal(input_ids, expected)
    torch.testing.assert_close(features.text_global, torch.nn.functional.normalize(own, dim=-1))
    lengths = [len(tokenizer(text)["input_ids"]) for text in TEXTS]
    assert mask.sum(dim=1).tolist() == [min(length, 64) for length in lengths] and lengths[-1] > 64
