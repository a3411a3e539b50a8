"""A model that links without training, against cosines and BM25 computed apart from it."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer

from mimic_pl import MIMIC, Entity, Ranker
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.linking.zero_shot import center_mentions, fit_zero_shot, zero_shot_model
from mimic_pl.model_description import describe_model
from mimic_pl.processor.words import content_words
from tests import reference
from tests.encoders.checkpoints import save

ENTITIES = [
    {"id": f"Q{n}", "name": name, "attr": attr}
    for n, (name, attr) in enumerate(
        [("Jordan", "a country"), ("Jordan", "scored in a match"), ("jaguar", "a fast cat"), ("pen", "it writes")]
    )
]
MENTIONS = [
    {"mention": "Jordan", "sentence": "Jordan scored again", "golds": "Q1"},
    {"mention": "jaguar", "sentence": "a fast cat", "golds": "Q2"},
    {"mention": "it", "sentence": "it writes", "golds": "Q3"},
]


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8))


def with_pictures():
    entities = [{**row, "images": [picture(n)]} for n, row in enumerate(ENTITIES)]
    return entities, [{**row, "image": picture(10 + n)} for n, row in enumerate(MENTIONS)]


def ready(model, entities):
    model.processor = model.processor.fit([Entity.of(row) for row in entities])
    return model.build_index(entities)


def cosines(mentions, entities, center):
    mentions, entities = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (mentions, entities))
    if center:
        mean = entities.mean(axis=0)
        mentions, entities = mentions - mean, entities - mean
        mentions, entities = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (mentions, entities))
    return mentions @ entities.T


def test_scores_are_bm25_and_cosines_of_the_towers(text, image):
    entities, mentions = with_pictures()
    model = zero_shot_model(text, image, image_size=32)
    ready(model, entities)
    scores = model.score(model.encode_mentions(mentions), model.encode_entities(entities))

    texts = [f"{row['name']} [SEP] {row['attr']}" for row in entities]
    queries = [f"{row['mention']} [SEP] {row['sentence']}" for row in mentions]
    documents = [content_words(row) for row in texts]
    expected = [reference.bm25(content_words(query), documents, 1.5, 0.75) for query in queries]
    np.testing.assert_allclose(scores["lexical"], expected, rtol=1e-5, atol=1e-6)

    tokenizer, bert = AutoTokenizer.from_pretrained(text), AutoModel.from_pretrained(text).eval()

    def pooled(text):  # one by one, so that there is no padding
        with torch.no_grad():
            return bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0).numpy()

    sides = np.stack([pooled(text) for text in queries]), np.stack([pooled(text) for text in texts])
    np.testing.assert_allclose(scores["text"], 2 * cosines(*sides, center=True), atol=1e-4)

    network = timm.create_model(image, pretrained=True, num_classes=0).eval()
    mean, std = (torch.tensor(network.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))

    def embedded(picture):
        pixels = torch.tensor(np.array(picture.resize((32, 32), Image.Resampling.LANCZOS))).permute(2, 0, 1) / 255
        with torch.no_grad():
            return network(((pixels - mean) / std)[None])[0].numpy()

    sides = [np.stack([embedded(picture(n)) for n in numbers]) for numbers in (range(10, 13), range(4))]
    np.testing.assert_allclose(scores["image"], 10 * cosines(*sides, center=True), atol=1e-3)
    total = scores["lexical"] + scores["text"] + scores["image"]
    torch.testing.assert_close(scores["overall"], total / 3)


def test_without_pictures_the_image_unit_says_nothing(text, image):
    model = zero_shot_model(text, image, image_size=32)
    ready(model, ENTITIES)
    scores = model.score(model.encode_mentions(MENTIONS), model.encode_entities(ENTITIES))
    assert not scores["image"].any() and scores["text"].any()


@pytest.mark.parametrize(
    ("options", "units"),
    [
        (["text"], {"lexical", "text"}),
        (["image"], {"lexical", "image"}),
        ([], {"lexical"}),
        (["image", "no bm25"], {"image"}),
    ],
)
def test_parts_can_be_left_out(options, units, text, image):
    given = {"text": text, "image": image}
    model = zero_shot_model(
        **{name: given[name] for name in options if name in given}, lexical="no bm25" not in options
    )
    entities, mentions = with_pictures()
    index = ready(model, entities)
    ranking = Ranker(top_k=2)(model.matcher, model.encode_mentions(mentions), index)
    assert set(model.matcher.units) == units
    if units == {"lexical"}:
        assert index.ids_of(ranking.top_entities[:, 0]) == ["Q1", "Q2", "Q3"]


def test_a_dual_encoder_gives_both_features(tmp_path):
    folder = str(save("clip", tmp_path))
    model = zero_shot_model(folder, folder)
    entities, mentions = with_pictures()
    ready(model, entities)
    scores = model.score(model.encode_mentions(mentions), model.encode_entities(entities))
    with torch.no_grad():
        pixels = model.processor.normalize(model.processor.entities(entities))["pixel_values"]
        of_entities = model.encoder.clip.get_image_features(pixel_values=pixels).pooler_output
        pixels = model.processor.normalize(model.processor.mentions(mentions))["pixel_values"]
        of_mentions = model.encoder.clip.get_image_features(pixel_values=pixels).pooler_output
    np.testing.assert_allclose(scores["image"], 10 * cosines(of_mentions.numpy(), of_entities.numpy(), True), atol=1e-3)


def test_it_is_saved_and_restored_like_any_model(text, image, tmp_path):
    entities, mentions = with_pictures()
    model = zero_shot_model(text, image, image_size=32, entity_template="{name}: {attr}")
    index = ready(model, entities)
    fit_zero_shot(model, mentions, index)
    torch.save({"mimic_pl": describe_model(model), "state_dict": model.state_dict()}, tmp_path / "model.ckpt")
    again = MIMIC.load_from_checkpoint(tmp_path / "model.ckpt")
    ready(again, entities)
    sides = [[one.encode_mentions(mentions), one.encode_entities(entities)] for one in (model, again)]
    for name, expected in model.score(*sides[0]).items():
        assert torch.equal(again.score(*sides[1])[name], expected), name


def test_fitted_weights_raise_the_likelihood_of_the_golds(text, image):
    entities, mentions = with_pictures()
    model = zero_shot_model(text, image, image_size=32)
    index = ready(model, entities)
    gold = torch.tensor([1, 2, 3])

    def likelihood():
        scores = model.score(model.encode_mentions(mentions), model.encode_entities(entities))["overall"]
        return -torch.nn.functional.cross_entropy(scores, gold)

    before = likelihood()
    weights = fit_zero_shot(model, [*mentions, {**mentions[0], "golds": "unknown"}], index)
    assert weights == model.matcher.weights and weights["lexical"] > 0
    assert likelihood() > before
    with pytest.raises(DataError, match="None of the 1 mentions has a gold"):
        fit_zero_shot(model, [{**mentions[0], "golds": "unknown"}], index)


def test_mentions_without_labels_give_their_mean(text):
    model = zero_shot_model(text, lexical=False)
    ready(model, ENTITIES)
    before = model.score(model.encode_mentions(MENTIONS), model.encode_entities(ENTITIES))["text"]
    unlabelled = [{name: row[name] for name in ("mention", "sentence")} for row in MENTIONS]
    center_mentions(model, unlabelled, batch_size=2)
    unit = model.matcher.units["text"]
    directions = model.encode_mentions(MENTIONS)["text"]["direction"]
    torch.testing.assert_close(unit.mention_center, directions.mean(dim=0))
    after = model.score(model.encode_mentions(MENTIONS), model.encode_entities(ENTITIES))["text"]
    assert not torch.allclose(before, after)


def test_calls_that_cannot_work_say_what_to_change(text):
    with pytest.raises(ConfigError, match="nothing to compare"):
        zero_shot_model(lexical=False)
    with pytest.raises(ConfigError, match="remove image_size"):
        zero_shot_model(text, text, image_size=32)
