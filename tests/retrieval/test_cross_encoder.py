"""The cross-encoder: scores, texts, files, and damage to them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel

from mimic_pl.construction import build
from mimic_pl.encoders.wordpiece import build_tokenizer
from mimic_pl.errors import CheckpointError, ConfigError
from mimic_pl.links import Link, Links
from mimic_pl.records import Entity, Mention
from mimic_pl.retrieval import CrossEncoder, rerank
from mimic_pl.retrieval.pair_text import marked_mention

WORDS = ["jaguar", "amazon", "river", "company", "animal", "runs", "flows", "sells", "the", "a", "to", "sea", "forest"]
CONFIG = {
    "model_type": "bert",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,  # at the default, all scores of so small a model are nearly equal
}


def cross_encoder(**kwargs) -> CrossEncoder:
    torch.manual_seed(1)
    return CrossEncoder(**{"config": CONFIG, "vocabulary": WORDS, "mention_tokens": 12, "max_tokens": 40, **kwargs})


def mention(text: str = "the jaguar runs to the forest", word: str = "jaguar", **kwargs) -> Mention:
    return Mention("m", word, text, **kwargs)


def candidates(count: int = 9) -> list[Link]:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=1 + 5 * i % 23)) for i in range(count)]
    return [Link(Entity(f"Q{i}", "jaguar", {"attr": text}), 3.0 - i) for i, text in enumerate(texts)]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_scores_are_those_of_transformers_pair_by_pair(batch_size):
    """Independent of batches and padding: each pair alone, through tokenizer and model themselves."""
    own = cross_encoder(batch_size=batch_size, first_stage_weight=0.7)
    expected = []
    for link in candidates():
        texts = "the [ jaguar ] runs to the forest", f"jaguar [SEP] {link.entity.fields['attr']}"
        inputs = own.tokenizer(*texts, truncation=True, max_length=40, return_tensors="pt")
        with torch.no_grad():
            expected.append(own.model(**inputs).logits.item() + 0.7 * link.score)
    assert len(set(expected)) == 9
    assert own(mention(), candidates()) == pytest.approx(expected, abs=1e-5)


def test_batches_are_of_similar_lengths():
    own = cross_encoder(batch_size=3)
    pairs = [(mention(), link.entity) for link in candidates(20)]
    batches = [(rows.tolist(), inputs["attention_mask"].sum(dim=1)) for rows, inputs in own.batches(pairs)]
    assert sorted(row for rows, _ in batches for row in rows) == list(range(20))
    assert all(len(rows) <= 3 and lengths.max() <= 1.2 * lengths.min() for rows, lengths in batches)
    assert any(len(rows) == 3 for rows, _ in batches)
    assert list(own.batches([])) == []


def test_scores_do_not_depend_on_the_other_candidates():
    own, links = cross_encoder(), candidates()
    together = own(mention(), links)
    shuffled = own(mention(), links[::-1])
    assert shuffled == pytest.approx(together[::-1], abs=1e-5)
    assert own(mention(), []) == []


@pytest.mark.parametrize("weight", [0.0, 0.3, 2.0])
def test_candidates_below_top_k_keep_their_places(weight):
    few, all_of_them = cross_encoder(top_k=4, first_stage_weight=weight), cross_encoder(first_stage_weight=weight)
    links = candidates()
    scores = few(mention(), links)
    assert scores[:4] == pytest.approx(all_of_them(mention(), links)[:4], abs=1e-5)
    below = rerank(few, Links(mention(), tuple(links)))[4:]
    assert [link.entity.id for link in below] == ["Q4", "Q5", "Q6", "Q7", "Q8"]


def test_several_mentions_at_once():
    own = cross_encoder()
    entities = [link.entity for link in candidates(3)]
    others = [mention(), mention("the amazon flows", "amazon")]
    together = own.logits([(one, entity) for one in others for entity in entities])
    alone = torch.cat([own.logits([(one, entity) for entity in entities]) for one in others])
    assert torch.allclose(together, alone, atol=1e-5) and not torch.allclose(alone[:3], alone[3:], atol=1e-3)


def test_the_model_is_left_in_the_mode_it_was_in():
    own = cross_encoder()
    own.model.train()
    first, second = own(mention(), candidates(2)), own(mention(), candidates(2))
    assert first == second, "without dropout" and own.model.training


# ---- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (Mention("", "Ada", "Then Ada met Ada."), "Then [ Ada ] met Ada."),
        (Mention("", "Ada", "Then Ada met Ada.", span=(13, 16)), "Then Ada met [ Ada ]."),
        (Mention("", "Ada L.", "Then ada met her."), "[ Ada L. ] Then ada met her."),
        (Mention("", "Ada", ""), "[ Ada ] "),
        (Mention("", "", "Nobody."), "[  ] Nobody."),
    ],
)
def test_marks(record, text):
    marked, start, end = marked_mention(record)
    assert marked == text and marked[start:end].startswith("[ ") and marked[start:end].endswith(" ]")


@pytest.mark.parametrize("place", [0, 1, 30, 99, 100])
def test_of_a_long_sentence_the_part_around_the_mention_is_kept(place):
    words = ["the"] * 100
    words.insert(place, "jaguar")
    own = cross_encoder()
    text = own.text.mention(mention(" ".join(words)))
    ids = own.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "[ jaguar ]" in text and len(ids) == 12
    before = text.split("[")[0].count("the")
    assert before == {0: 0, 1: 1, 30: 4, 99: 8, 100: 9}[place], "as much on both sides as there is"


def test_a_long_mention_is_cut_at_its_end():
    own = cross_encoder()
    text = own.text.mention(mention("sea " + "jaguar amazon " * 20 + "sea", "jaguar amazon " * 20))
    assert text.startswith("[ jaguar") and len(own.tokenizer(text, add_special_tokens=False)["input_ids"]) == 12


def test_the_entity_is_cut_and_not_the_sentence():
    own = cross_encoder()
    long = Entity("Q1", "jaguar", {"attr": "animal " * 100})
    [ids] = own.encode([(mention("the " * 50 + "jaguar"), long)])["input_ids"]
    tokens = own.tokenizer.convert_ids_to_tokens(ids)
    assert len(ids) == 40 and tokens.count("the") == 9 and tokens[:13].count("jaguar") == 1


def test_a_very_long_text_costs_no_more():
    own = cross_encoder()
    huge = mention("the " * 1_000_000 + "jaguar " + "the " * 1_000_000)
    assert "[ jaguar ]" in own.text.mention(huge)
    [ids] = own.encode([(huge, Entity("Q1", "a" * 5_000_000, {"attr": ""}))])["input_ids"]
    assert len(ids) <= 40


def test_templates():
    own = cross_encoder(mention_template="{mention}: {sentence}", entity_template="{name}, {desc}")
    assert own.text.mention(mention()) == "jaguar: the [ jaguar ] runs to the forest"
    assert own.text.entity(Entity("Q1", "Jaguar", {"desc": "animal"})) == "Jaguar, animal"
    with pytest.raises(ConfigError, match=r"uses \['desc'\], which the record 'Q2' does not have"):
        own(mention(), [Link(Entity("Q2", "Jaguar", {"attr": ""}), 1.0)])


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    own = cross_encoder(first_stage_weight=0.25, entity_template="{name}: {attr}")
    own.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_round_trip_is_bit_identical(saved):
    before = cross_encoder(first_stage_weight=0.25, entity_template="{name}: {attr}")
    after = CrossEncoder.from_pretrained(saved)
    for (name, tensor), (other, same) in zip(
        before.model.state_dict().items(), after.model.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(tensor, same)
    assert after(mention(), candidates()) == pytest.approx(before(mention(), candidates()), abs=1e-5)
    assert (after.text.mention_tokens, after.text.max_tokens, after.first_stage_weight) == (12, 40, 0.25)
    assert after.top_k == 16


def test_an_interrupted_save_over_an_earlier_one_leaves_no_mix(saved, monkeypatch):
    """Killed before any rename: a file of the new one in place of one of the earlier would be of another model."""
    folders = {"earlier": saved, "new": saved.parent / "new"}
    new = cross_encoder(first_stage_weight=0.75, mention_template="{mention}: {sentence}")
    with torch.no_grad():
        new.model.classifier.weight += 1
    new.save_pretrained(folders["new"])
    scores = {name: CrossEncoder.from_pretrained(path)(mention(), candidates()) for name, path in folders.items()}
    files = len(list(saved.iterdir()))
    rename, outcomes = os.replace, []
    for allowed in range(2 * files + 1):
        folder = saved.parent / f"killed after {allowed}"
        shutil.copytree(saved, folder)
        calls = itertools.count()

        def dying(source, target, calls=calls, allowed=allowed):
            if next(calls) == allowed:
                raise KeyboardInterrupt
            rename(source, target)

        with monkeypatch.context() as context:
            context.setattr("os.replace", dying)
            with contextlib.suppress(KeyboardInterrupt):
                new.save_pretrained(folder)
        try:
            found = CrossEncoder.from_pretrained(folder)(mention(), candidates())
            outcomes.append(next(name for name, own in scores.items() if own == found))
        except CheckpointError as error:
            outcomes.append("none")
            assert "config.json cannot be read" in str(error)
    assert outcomes == ["earlier"] * files + ["none"] * files + ["new"]


def test_arguments_override_saved_ones(saved):
    assert CrossEncoder.from_pretrained(saved, first_stage_weight=0.0, batch_size=3).first_stage_weight == 0.0


def test_it_is_rebuilt_from_its_description():
    own = cross_encoder()
    torch.manual_seed(1)
    again = build(own.description)
    assert isinstance(again, CrossEncoder) and again(mention(), candidates()) == own(mention(), candidates())


def test_a_cross_encoder_of_transformers_itself(saved):
    """As sentence-transformers saves them: without our settings."""
    (saved / "cross_encoder.json").unlink()
    own = CrossEncoder.from_pretrained(saved, max_tokens=64, mention_tokens=20)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    inputs = tokenizer("the [ jaguar ] runs to the forest", "jaguar [SEP] animal", return_tensors="pt")
    expected = model.eval()(**inputs).logits.item() + 2.0
    assert own(mention(), [Link(Entity("", "jaguar", {"attr": "animal"}), 2.0)]) == pytest.approx([expected], abs=1e-6)


def test_a_text_model_gets_a_new_head(tmp_path):
    tokenizer = build_tokenizer(WORDS)
    tokenizer.save_pretrained(tmp_path)
    sizes = {key: value for key, value in CONFIG.items() if key != "model_type"}
    text_model = BertModel(BertConfig(**sizes, vocab_size=len(tokenizer)))
    text_model.save_pretrained(tmp_path)
    own = CrossEncoder(str(tmp_path), max_tokens=64, mention_tokens=20)
    assert own.model.config.num_labels == 1
    loaded = own.model.base_model.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in text_model.state_dict().items())


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: flip_a_byte(folder / "model.safetensors"), "model.safetensors is damaged: its checksum is"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json is damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors cannot be read"),
        (lambda folder: (folder / "cross_encoder.json").write_text("{"), "cross_encoder.json cannot be read"),
        (lambda folder: (folder / "cross_encoder.json").write_text('{"a": 1}'), "must have checksums and the settings"),
    ],
)
def test_damaged_files_are_refused(saved, damage, message):
    damage(saved)
    with pytest.raises(CheckpointError, match=message):
        CrossEncoder.from_pretrained(saved)


def test_a_setting_out_of_range_is_refused(saved):
    path = saved / "cross_encoder.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "first_stage_weight": -1}))
    with pytest.raises(ConfigError, match="first_stage_weight is -1; it must be a finite number of at least 0"):
        CrossEncoder.from_pretrained(saved)


def test_a_classifier_of_several_labels_is_refused(saved):
    config = BertConfig(**{**CONFIG, "vocab_size": len(build_tokenizer(WORDS))}, num_labels=3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(saved)
    (saved / "cross_encoder.json").unlink()
    with pytest.raises(CheckpointError, match="its weights have other shapes than its config.json says"):
        CrossEncoder.from_pretrained(saved, max_tokens=64, mention_tokens=20)


def test_weights_that_are_missing_are_refused(saved):
    config = BertConfig(**{**CONFIG, "num_hidden_layers": 3, "vocab_size": len(build_tokenizer(WORDS))})
    config.save_pretrained(saved)
    (saved / "cross_encoder.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks \d+ weights of its model, such as bert.encoder.layer.2"):
        CrossEncoder.from_pretrained(saved, max_tokens=64, mention_tokens=20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mention_tokens": 30}, "mention_tokens is 30, more than half of max_tokens, 40"),
        ({"max_tokens": 65}, "max_tokens is 65, but the model has positions for 64 tokens"),
        ({"config": {**CONFIG, "model_type": "vit"}}, "is a vision model"),
        ({"largest_margin": 0.0}, "largest_margin is 0.0; it must be a finite number above 0"),
        ({"config": None}, "CrossEncoder needs either a checkpoint or a configuration"),
        ({"entity_template": "name"}, "names no field"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        cross_encoder(**arguments)


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        CrossEncoder.from_pretrained(tmp_path / "nowhere")


def test_saving_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    from mimic_pl.errors import StoreError

    with pytest.raises(StoreError, match="cannot be written"):
        cross_encoder().save_pretrained(tmp_path / "file")
