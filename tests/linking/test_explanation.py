"""Explanations of links, against scores, attention and gates computed pair by pair."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from mimic_pl import MIMIC, CLIPEncoder
from mimic_pl.calibration import Calibration
from mimic_pl.errors import ConfigError, DataError, MachineError
from mimic_pl.linking.explanation import explain_link
from mimic_pl.linking.shares import CONSTANT, fractions_of, shares_of
from mimic_pl.processor import BM25Lexicon, Processor
from mimic_pl.records import Entity, Mention
from mimic_pl.units import CMFU, TGLU, VDLU, GlobalCosine, Lexical, Matcher, WeightedMatcher
from tests import tiny

RED, BLUE = Image.new("RGB", (30, 20), "red"), Image.new("RGB", (20, 20), "blue")
MENTION = Mention("m1", "jaguar", "the jaguar runs in the forest", ("Q1",), RED)
ENTITIES = [
    Entity("Q0", "amazon", {"attr": "a river"}, (BLUE,)),
    Entity("Q1", "jaguar", {"attr": "a forest animal"}, (RED,)),
    Entity("Q2", "jaguar", {"attr": "a company sells shares"}),
    Entity("Q3", "phoenix", {"attr": "an animal"}),
]
UNITS = {
    "text": lambda dims: TGLU(dims, 8),
    "vision": lambda dims: VDLU(dims, 8),
    "cross_modal": lambda dims: CMFU(dims, 8),
}


def build(units=None, matcher=Matcher, processor=None) -> MIMIC:
    torch.manual_seed(0)
    return MIMIC(CLIPEncoder(**tiny.ENCODER), processor, units or UNITS, matcher).eval()


@pytest.fixture(scope="module")
def model() -> MIMIC:
    return build()


@pytest.fixture(scope="module")
def index(model):
    return model.build_index(ENTITIES)


@pytest.fixture(scope="module")
def explained(model, index):
    return explain_link(model, MENTION, ENTITIES[1], index, top_k=2, name_of=lambda id: f"name of {id}")


def features(model, side, record):
    inputs = model.processor.mentions([record]) if side == "mentions" else model.processor.entities([record])
    with torch.no_grad():
        return model.matcher.norm(model.encode(model.processor.normalize(inputs)))


def test_scores_ranks_and_competitors_are_those_of_the_ranking(model, explained):
    scores = model.score(model.encode_mentions([MENTION]), model.encode_entities(ENTITIES))
    for name, own in scores.items():
        assert explained.ranking.scores[name].score == pytest.approx(float(own[0, 1]), abs=1e-5)
    overall = scores["overall"][0].tolist()
    order = sorted(range(4), key=lambda place: -overall[place])
    assert explained.rank == order.index(1) + 1 and explained.score == pytest.approx(overall[1], abs=1e-5)
    others = [f"Q{place}" for place in order if place != 1][:2]
    assert list(explained.ranking.competitors) == others == list(explained.others)
    assert explained.names == {id: f"name of {id}" for id in others}


def test_shares_of_the_mean_add_up_to_the_score(explained):
    assert sum(explained.shares.values()) == pytest.approx(explained.score, abs=1e-5)
    for name, share in explained.shares.items():
        assert share == pytest.approx(explained.ranking.scores[name].score / 3, abs=1e-5)
    for id, shares in explained.others.items():
        assert sum(shares.values()) == pytest.approx(explained.ranking.competitors[id]["overall"], abs=1e-5)


class Greatest(Matcher):
    def combine(self, scores):
        return torch.stack(list(scores.values())).amax(dim=0)


class Shifted(Matcher):
    def combine(self, scores):
        return super().combine(scores) - 2.0


def test_shares_of_other_combinations():
    scores = {"text": 3.0, "vision": -1.0, "cross_modal": 0.5}
    weighted = build(matcher=WeightedMatcher).matcher
    weighted.set_weights(torch.tensor([2.0, 0.5, 1.0]))
    shares = shares_of(weighted, {"overall": 6.0 - 0.5 + 0.5, **scores})
    assert shares == pytest.approx({"text": 6.0, "vision": -0.5, "cross_modal": 0.5})
    fractions = fractions_of(shares)
    assert sum(map(abs, fractions.values())) == pytest.approx(1) and fractions["vision"] == pytest.approx(-0.5 / 7)
    shifted = shares_of(build(matcher=Shifted).matcher, {"overall": 2.5 / 3 - 2, **scores})
    assert shifted == pytest.approx({"text": 1.0, "vision": -1 / 3, "cross_modal": 0.5 / 3, CONSTANT: -2.0})
    assert shares_of(build(matcher=Greatest).matcher, {"overall": 3.0, **scores}) == {}
    assert fractions_of({"text": 0.0}) == {"text": 0.0}


@torch.no_grad()
def test_attention_over_words_is_that_of_the_text_unit(model, explained):
    """softmax(Q K^T / sqrt(d)) over the mention's tokens, averaged over the entity's, token by token."""
    unit = model.matcher.units["text"]
    mention, entity = features(model, "mentions", MENTION), features(model, "entities", ENTITIES[1])
    weights = []
    for token in entity.padded(model.encoder.text_length).text_local[0]:
        products = [float(unit.query(token) @ unit.key(other)) for other in mention.text_local[0]]
        exponents = [math.exp(product / math.sqrt(8)) for product in products]
        weights.append([own / sum(exponents) for own in exponents])
    expected = np.mean(weights, axis=0)
    real = int(model.processor.mentions([MENTION])["attention_mask"].sum())
    *words, padding = explained.words
    assert [token.weight for token in words] == pytest.approx(expected[:real].tolist(), abs=1e-5)
    assert padding.kind == "padding" and padding.weight == pytest.approx(expected[real:].sum(), abs=1e-5)
    assert {"jaguar", "runs", "forest"} <= {token.text for token in words}


@torch.no_grad()
def test_attention_over_patches_and_gates_are_those_of_their_units(model, explained):
    mention, entity = features(model, "mentions", MENTION), features(model, "entities", ENTITIES[1])
    cmfu, vdlu = model.matcher.units["cross_modal"], model.matcher.units["vision"]
    text, image = cmfu.text(mention.text_global)[0], cmfu.image(mention.image_local)[0]
    weights = torch.softmax(torch.stack([text @ patch for patch in image]), dim=0)
    assert explained.patches.rest == pytest.approx(float(weights[0]), abs=1e-5)  # CLS
    torch.testing.assert_close(explained.patches.grid.flatten(), weights[1:])
    assert explained.gates["cross_modal, mention"] == pytest.approx(float(torch.tanh(cmfu.gate(text))), abs=1e-5)
    gate = vdlu.entity_to_mention
    query, key = gate.global_(entity.image_global), gate.local(mention.image_local).mean(dim=1)
    expected = torch.tanh(gate.gate(gate.mix(gate.norm_sum(key + query))))
    assert explained.gates["vision, entity to mention"] == pytest.approx(float(expected), abs=1e-5)


def test_probabilities_are_those_of_the_whole_list(model, index):
    calibration = Calibration(temperature=0.3, nil_score=1.0, top_k=3)
    scores = model.score(model.encode_mentions([MENTION]), model.encode_entities(ENTITIES))["overall"][0]
    ordered, order = scores.sort(descending=True)
    probabilities, nil = calibration(ordered[None])
    for place, number in enumerate(order.tolist()):
        found = explain_link(model, MENTION, ENTITIES[number], index, 1, calibration)
        assert found.probability == pytest.approx(float(probabilities[0, place]), abs=1e-4)
        assert found.nil_probability == pytest.approx(float(nil[0]), abs=1e-4)
        assert len(found.ranking.competitors) == len(found.others) == 1
    assert found.probability == 0  # the fourth of three


def test_models_without_attention_gates_or_images(tmp_path):
    processor = Processor(modalities="text", features={"lexical": BM25Lexicon()})
    units = {"lexical": Lexical, "text": lambda dims: GlobalCosine(dims, modality="text")}
    model = build(units, processor=processor)
    model.processor = model.processor.fit(ENTITIES)
    found = explain_link(model, MENTION, ENTITIES[2], model.build_index(ENTITIES))
    assert found.words == () and found.patches is None and found.gates == {}
    assert found.mention_image is None and found.entity_image is None
    assert sum(found.shares.values()) == pytest.approx(found.score, abs=1e-5)
    assert "Attention" not in str(found) and "Gates" not in str(found)
    alone = explain_link(model, MENTION, ENTITIES[2], model.build_index(ENTITIES[2:3]))
    assert alone.rank == 1 and alone.others == {} and len(alone.figure().axes) == 1
    assert Image.open(found.save(tmp_path / "why.png")).width > 800


def test_it_prints_everything(explained):
    text = str(explained)
    assert text.splitlines()[0] == f"'jaguar' → 'jaguar' (Q1): rank {explained.rank} of 4"
    assert str(explained.ranking) in text
    for part in ("Shares of the overall score", "Attention to the mention's words", "patches", "Gates: "):
        assert part in text


def test_the_picture_shows_images_words_shares_and_gates(explained):
    figure = explained.figure()
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[0] == "mention" and titles[1].startswith("attention over patches") and titles[2] == "entity jaguar"
    words = [text.get_text() for text in figure.axes[3].texts]
    assert len(words) == len(explained.words) and "forest" in words
    shares, leads, gates = figure.axes[4:]
    widths = [bar.get_width() for bar in shares.patches]
    assert widths == pytest.approx(
        [part for row in (explained.shares, *explained.others.values()) for part in row.values()]
    )
    overall = explained.ranking.competitors
    for row, id in enumerate(overall, start=1):
        parts = [bar.get_width() for bar in leads.patches if round(bar.get_y() + 0.325) == row]
        assert sum(parts) == pytest.approx(explained.score - overall[id]["overall"], abs=1e-5) and len(parts) == 3
    assert [label.get_text() for label in shares.get_yticklabels()][0] == f"{explained.rank}. jaguar"
    assert [bar.get_width() for bar in gates.patches] == pytest.approx(list(explained.gates.values()))


def test_it_is_written_in_the_format_of_its_suffix(explained, tmp_path):
    assert explained.save(tmp_path / "why.svg").read_bytes().startswith(b"<?xml")


def test_what_cannot_be_written(explained, tmp_path):
    with pytest.raises(ConfigError, match="cannot be written as 'doc'. Choose one of:.*png"):
        explained.save(tmp_path / "why.doc")
    with pytest.raises(MachineError, match="cannot be written"):
        explained.save(tmp_path / "missing" / "why.png")
    assert not list(tmp_path.iterdir())


def test_notebooks_show_texts_and_run_nothing(model):
    harm = '<script>alert("x")</script>'
    entities = [Entity("Q0", f"amazon $x^2 {harm}", {"attr": harm}), *ENTITIES[1:]]
    mention = Mention("m", f"jaguar {harm}", f"the jaguar {harm} $\\frac$")
    found = explain_link(model, mention, entities[0], model.build_index(entities), name_of=lambda id: harm)
    tags = []

    class Page(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append(tag)

    Page().feed(found._repr_html_())
    assert tags == ["img", "pre"]


def test_an_entity_that_is_not_in_the_index(model, index):
    with pytest.raises(DataError, match="no entity 'Q9'"):
        explain_link(model, MENTION, Entity("Q9", "nobody", {"attr": "x"}), index)
