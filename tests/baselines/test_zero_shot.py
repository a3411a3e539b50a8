"""Zero-shot cosines against calling the towers directly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mimic_pl.baselines import Cosine, embed
from mimic_pl.data import MELDataModule
from mimic_pl.encoders import CLIPEncoder, TextVisionEncoder
from mimic_pl.processor import Processor
from tests import tiny


@pytest.fixture
def data(tiny_set):
    return MELDataModule(str(tiny_set), num_workers=0, eval_batch_size=4, entity_batch_size=5, image_cache=None)


def embedded(encoder, data):
    data.processor = Processor().connect(encoder.build_tokenizer, encoder.build_image_processor)
    data.setup("test")
    return embed(encoder, data, "test", "cpu")


def test_embeddings_are_those_of_the_towers(data):
    torch.manual_seed(0)
    encoder = CLIPEncoder(**tiny.ENCODER)
    projection = encoder.image_global
    mentions, entities = embedded(encoder, data)
    assert encoder.image_global is projection
    assert (mentions.with_image, entities.with_image) == (9, 8)
    assert mentions.image.shape == (9, 16)  # CLIP's own width, not that of the projection
    ids, mask = encoder.build_tokenizer()([f"{e.name} [SEP] {e.fields['attr']}" for e in data.entities])
    with torch.no_grad():
        text = encoder.clip.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
        blank = encoder.clip.get_image_features(pixel_values=torch.zeros(1, 3, 16, 16)).pooler_output
    torch.testing.assert_close(entities.text, nn.functional.normalize(text, dim=-1))
    torch.testing.assert_close(entities.image[[2, 5]], nn.functional.normalize(blank, dim=-1).expand(2, -1))
    assert not torch.equal(entities.image[0], entities.image[2])


def test_embeddings_bypass_the_text_projection(data):
    config = {"model_type": "bert", "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"vision": "test_vit", "vision_pretrained": False, "vision_args": {"img_size": 32}}
    sizes = {"text_length": 16, "image_dim": 4, "text_pooling": "mean"}
    found = []
    for text_dim in (None, 7):
        torch.manual_seed(0)
        encoder = TextVisionEncoder(
            text_config={**config, "intermediate_size": 8}, vocabulary=tiny.WORDS, text_dim=text_dim, **vision, **sizes
        )
        found.append(embedded(encoder, data)[0])
    torch.testing.assert_close(found[0].text, found[1].text)
    assert found[1].text.shape == (9, 12)


def test_cosine_is_the_mean_over_modalities_and_equal_entities_tie():
    rng = np.random.default_rng(0)
    unit = [rng.normal(size=(n, width)) for width in (48, 5) for n in (7, 20_000)]
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in unit]
    for entities in (unit[1], unit[3]):
        entities[[5, 17_001, 19_999]] = entities[0]
    sides = [torch.tensor(side, dtype=torch.float32) for side in unit]
    found = Cosine(sides[0::2], sides[1::2])(slice(2, 7))
    expected = (unit[0] @ unit[1].T + unit[2] @ unit[3].T)[2:] / 2
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (found[:, [5, 17_001, 19_999]] == found[:, [0]]).all()
