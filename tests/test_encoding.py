"""Encoding records: the same states with and without a Trainer, for any batch size and any form of an image."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimic_pl import MIMIC, Entity, MELDataModule, Mention, Processor
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.features import FeatureDims, Features
from mimic_pl.processor import BM25Lexicon, RecordArrays
from mimic_pl.ranking import Ranker
from mimic_pl.units import GlobalCosine, Lexical, State, Unit
from mimic_pl.units.states import flat
from tests import tiny
from tests.training import UNITS, make_trainer

SENTENCES = [
    {"mention": "jaguar", "sentence": "the jaguar runs in the forest today"},
    {"mention": "amazon", "sentence": "the amazon sells its shares"},
]
ENTITIES = [
    {"id": "Q1", "name": "jaguar", "attr": "a animal"},
    {"id": "Q2", "name": "amazon", "attr": "a company"},
    {"id": "Q3", "name": "amazon", "attr": "a river"},
]


def make_model(processor=None, units=None, seed=0):
    torch.manual_seed(seed)
    return MIMIC(CLIPEncoder(**tiny.ENCODER), processor, units or UNITS)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.write_set(tmp_path_factory.mktemp("encoding") / "set", entities=40)


def test_two_sentences_against_three_entities_in_three_lines():
    model = make_model()
    mentions, entities = model.encode_mentions(SENTENCES), model.encode_entities(ENTITIES)
    scores = model.score(mentions, entities)
    assert set(scores) == {"overall", "text", "vision", "cross_modal"}
    assert all(score.shape == (2, 3) for score in scores.values())
    assert model.training, "the training mode is restored"
    # The same as from all inputs in one batch.
    sides = model.processor.mentions(SENTENCES), model.processor.entities(ENTITIES)
    model.eval()
    with torch.no_grad():
        direct = model(*(model.processor.normalize(side) for side in sides))
    for name, score in direct.items():
        torch.testing.assert_close(scores[name], score, rtol=1e-5, atol=1e-5)


def test_records_and_dictionaries_are_equivalent():
    model = make_model()
    records = [Entity(e["id"], e["name"], {"attr": e["attr"]}) for e in ENTITIES]
    for one, other in zip(
        flat(model.encode_entities(ENTITIES)).values(), flat(model.encode_entities(records)).values(), strict=True
    ):
        assert torch.equal(one, other)
    mentions = [Mention("", m["mention"], m["sentence"]) for m in SENTENCES]
    for one, other in zip(
        flat(model.encode_mentions(SENTENCES)).values(), flat(model.encode_mentions(mentions)).values(), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("threads", [1, 5])
def test_a_batch_has_the_images_of_its_records_whatever_the_number_of_threads(tmp_path, monkeypatch, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: threads)
    processor = make_model().processor
    names = [f"{number % 9}.png" for number in range(24)]
    for number in range(7):  # of nine
        Image.new("RGB", (30, 20), (30 * number, 90, 200 - 20 * number)).save(tmp_path / f"{number}.png")
    records = [{"id": "Q", "name": "n", "attr": "", "images": [str(tmp_path / name)]} for name in names]
    records += [{"id": "Q", "name": "n", "attr": "", "images": [str(tmp_path / own) for own in ("8.png", "2.png")]}]
    batch = processor.entities(records)
    assert [Path(name).name for name in processor.report.failures] == ["7.png", "8.png"]
    for row, record in enumerate(records):
        alone = processor.entities([record])
        assert torch.equal(batch["pixels"][row], alone["pixels"][0])
        assert batch["has_image"][row] == alone["has_image"][0] == (row == 24 or row % 9 < 7)
    assert len({tuple(own.flatten().tolist()) for own in batch["pixels"]}) == 8


def test_an_image_may_be_a_path_bytes_an_image_or_an_array(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    forms = [
        tmp_path / "x.png",
        str(tmp_path / "x.png"),
        (tmp_path / "x.png").read_bytes(),
        Image.fromarray(pixels),
        pixels,
    ]
    model = make_model()
    # One at a time: the rows of a matrix product may be rounded differently.
    first, *others = [flat(model.encode_mentions([{**SENTENCES[0], "image": image}])) for image in forms]
    for states in others:
        assert all(torch.equal(tensor, first[name]) for name, tensor in states.items())
    blank = flat(model.encode_mentions([SENTENCES[0]]))
    assert any(not torch.allclose(states[name][0], tensor[0]) for name, tensor in blank.items())


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"sentence": "no mention"}, "has no 'mention'"),
        ({"mention": "x", "sentence": ["a"]}, "'sentence' of the mention is list"),
        ({"mention": "x", "sentence": "s", "speaker": 3}, "'speaker' of the mention 'x' is not text"),
        ({"mention": "x", "sentence": "s", "image": "a.jpg", "images": ["b.jpg"]}, "'image' and 'images'"),
    ],
)
def test_a_malformed_record_is_an_error(record, message):
    with pytest.raises(DataError, match=message):
        make_model().encode_mentions([record])


def test_the_image_policy_applies_to_records(tmp_path, caplog):
    record = {**SENTENCES[0], "image": tmp_path / "nowhere.jpg"}
    make_model().encode_mentions([record])
    assert "1 image could not be used (1 missing)" in caplog.text
    with pytest.raises(DataError, match=r"nowhere.jpg is missing"):
        make_model(Processor(image_policy="error")).encode_mentions([record])


def test_states_equal_those_of_the_trainer_for_any_batch_size(root, tmp_path):
    """The Trainer ranks the batches of the data module, which read the same files."""
    model = make_model()
    data = MELDataModule(str(root), name="Tiny", num_workers=0, entity_batch_size=7, image_cache=None)
    found = []
    model.on_test_batch_end = lambda outputs, *_: found.append(outputs["ranking"])
    make_trainer(tmp_path).test(model, data, verbose=False)
    entities = [
        Entity(e.id, e.name, e.fields, tuple(str(root / "kb_image" / name) for name in e.images)) for e in data.entities
    ]
    mentions = [
        Mention(m.id, m.mention, m.sentence, m.golds, str(root / "mention_images" / str(m.image)))
        for m in data.mentions["test"]
    ]
    gold = torch.tensor([[data.entities.positions[m.golds[0]]] for m in mentions])
    expected = {name: torch.cat([ranking.ranks[name] for ranking in found]) for name in found[0].ranks}
    for batch_size in (1, 3, 64, None):
        if batch_size is None:  # or with known image folders, as in a loaded run
            model.processor.mention_images, model.processor.entity_images = data.mention_images, data.entity_images
            entities, mentions, batch_size = data.entities, data.mentions["test"], 64
        index = model.build_index(entities, batch_size)
        ranking = Ranker()(model.matcher, model.encode_mentions(mentions, batch_size), index, gold)
        for name, ranks in expected.items():
            assert torch.equal(ranking.ranks[name], ranks), (name, batch_size)


class TypeMatch(Unit):
    """A third-party unit: the product of the type embeddings of both sides."""

    def mention(self, features: Features) -> State:
        return {"type": features.extra["type.values"]}

    def entity(self, features: Features) -> State:
        return {"type": features.extra["type.values"]}

    def score(self, mentions: State, entities: State) -> torch.Tensor:
        return mentions["type"] @ entities["type"].T


def with_types(root, to, dims=3):
    """Copy the data set and add an array to every record: the one-hot type of the entity."""
    shutil.copytree(root, to)
    records = json.loads((to / "kb_entity.json").read_text())
    of = {}
    for record in records:
        of[record["qid"]] = record["kind_vector"] = [float(record["id"] % dims == i) for i in range(dims)]
    (to / "kb_entity.json").write_text(json.dumps(records))
    for split in ("train", "dev", "test"):
        file = to / f"Tiny_{split}.json"
        mentions = json.loads(file.read_text())
        for mention in mentions:
            mention["kind_vector"] = of[mention["answer"]]
        file.write_text(json.dumps(mentions))
    return to


def test_arrays_reach_a_custom_unit(root, tmp_path):
    """Through processor, batch, features, training and ranking, without changes to any other file."""
    processor = Processor(features={"type": RecordArrays(entity="kind_vector", mention="kind_vector")})
    model = make_model(processor, {"kind": TypeMatch, "cosine": GlobalCosine})
    data = MELDataModule(str(with_types(root, tmp_path / "set")), name="Tiny", num_workers=0, image_cache=None)
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(model, data)
    model.on_test_batch_end = lambda outputs, *_: found.append(outputs["ranking"])
    found = []
    trainer.test(model, data, verbose=False)
    for ranking in found:
        assert set(ranking.top_scores["kind"].flatten().tolist()) <= {0.0, 1.0}
        # A third of the entities have the mention's type and are ranked before all others by this score.
        assert (ranking.ranks["kind"] <= -(-len(data.entities) // 3)).all()
    # Without a Trainer, arrays are given with the record.
    entity = {"id": "Q", "name": "jaguar", "attr": "", "arrays": {"kind_vector": [0.5, 0.0, 2.0]}}
    states = model.encode_entities([entity])
    assert states["kind"]["type"].tolist() == [[0.5, 0.0, 2.0]]


def test_a_record_without_its_array_is_named():
    model = make_model(Processor(features={"type": RecordArrays(entity="kind_vector")}), {"cosine": GlobalCosine})
    with pytest.raises(DataError, match=r"'Q1' has no array 'kind_vector'"):
        model.encode_entities(ENTITIES)


def test_a_lexicon_is_fitted_to_a_knowledge_base():
    model = make_model(Processor(features={"lexical": BM25Lexicon()}), {"lexical": Lexical, "cosine": GlobalCosine})
    with pytest.raises(ConfigError, match=r"model\.processor\.fit"):
        model.encode_entities(ENTITIES)
    model.processor = model.processor.fit([Entity.of(record) for record in ENTITIES])
    scores = model.score(model.encode_mentions(SENTENCES), model.encode_entities(ENTITIES))["lexical"]
    assert scores[0].argmax() == 0 and (scores[1, 1:] > scores[1, 0]).all()


def test_a_custom_encoder_may_add_extra_features():
    class Wider(CLIPEncoder):
        def forward(self, input_ids, attention_mask, pixel_values):
            features = super().forward(input_ids, attention_mask, pixel_values)
            return features._replace(extra={"length": attention_mask.sum(dim=1)})

    class Length(Unit):
        def mention(self, features):
            return {"length": features.extra["length"].float()}

        entity = mention

        def score(self, mentions, entities):
            return -(mentions["length"][:, None] - entities["length"][None]).abs()

    model = MIMIC(Wider(**tiny.ENCODER), units={"length": Length})
    assert model.encoder.dims == FeatureDims(16, 8, 16, 16)
    assert model.score(model.encode_mentions(SENTENCES), model.encode_entities(ENTITIES))["length"].shape == (2, 3)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (SENTENCES[0], r"a list of records, not a single dict"),
        ([], "no records to encode"),
        (["Jordan"], "'Jordan' is a str, not a dictionary that describes the mention"),
        ([{"sentence": "Jordan scored."}], "The mention has no 'mention'. Its keys: sentence."),
    ],
)
def test_calls_that_cannot_work_name_the_mistake(records, message):
    with pytest.raises(DataError, match=message):
        make_model().encode_mentions(records)


def test_records_may_come_from_a_generator():
    model = make_model()
    together = flat(model.encode_mentions(SENTENCES))
    for name, tensor in flat(model.encode_mentions(record for record in SENTENCES)).items():
        assert torch.equal(tensor, together[name])
    with pytest.raises(ConfigError, match="batch_size is 0"):
        model.encode_mentions(SENTENCES, batch_size=0)
