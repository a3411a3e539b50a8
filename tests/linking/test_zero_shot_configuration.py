"""Linking without training is the same model by ``cli_configs/zero_shot.yaml`` and in Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mimic_pl import Linker
from mimic_pl.cli import main
from mimic_pl.errors import ConfigError, StoreError
from mimic_pl.formats import read_entities, read_mentions
from mimic_pl.linking import fit_zero_shot, whiten, zero_shot_model
from tests import tiny

CONFIG = Path(__file__).parents[2] / "cli_configs" / "zero_shot.yaml"
SPLITS = {"train": 40, "dev": 60, "test": 30}
STAGES = [2, 3, 4]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.write_set(tmp_path_factory.mktemp("set") / "set", "EmojiMEL", SPLITS, entities=24)


@pytest.fixture
def records(root):
    entities = list(read_entities(root / "kb_entity.json"))
    return entities, {split: list(read_mentions(root / f"EmojiMEL_{split}.json")) for split in SPLITS}


def test_both_ways_give_the_same_scores(root, records, text, image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"text": text, "vision": image, "image_size": "32"}
    arguments = ["--data.root", str(root), "--data.num_workers", "0", "--trainer.accelerator", "cpu"]
    arguments += [word for name, value in options.items() for word in (f"--model.encoder.{name}", value)]
    arguments += ["--model.units.image.init_args.projection", "8"]
    main(["fit", "--config", str(CONFIG), *arguments])
    configured = Linker.from_pretrained(tmp_path / "lightning_logs" / "version_0", device="cpu").model.eval()

    entities, mentions = records
    model = zero_shot_model(text, image, image_size=32, image_stages=STAGES, image_projection=8)
    whiten(model, entities, mentions["train"])
    model.processor = model.processor.fit(entities)
    fit_zero_shot(model, mentions["dev"], model.build_index(entities))

    configured.processor = configured.processor.fit(entities)
    expected, found = (
        one.score(one.encode_mentions(mentions["test"]), one.encode_entities(entities)) for one in (configured, model)
    )
    assert found.keys() == expected.keys() == {"overall", "lexical", "text", "image"}
    for name, scores in expected.items():
        torch.testing.assert_close(found[name], scores, rtol=1e-4, atol=1e-4, msg=lambda text: f"{name}: {text}")  # noqa: B023
        assert scores.std() > 0.1, name
    assert model.matcher.weights == pytest.approx(configured.matcher.weights, rel=1e-3)


@pytest.mark.own_process
def test_a_linker_made_from_the_same_entities_opens_their_knowledge_base(root, records, image, tmp_path):
    entities, mentions = records
    options = {"image": image, "device": "cpu", "image_size": 32, "image_stages": STAGES, "image_projection": 8}
    linker = Linker.zero_shot(entities=root / "kb_entity.json", **options)
    linker = linker.with_knowledge_base(linker.index(root / "kb_entity.json", tmp_path / "kb", show_progress_bar=False))
    found = linker.link(mentions["test"])
    again = Linker.zero_shot(entities=entities, **options).with_knowledge_base(tmp_path / "kb")
    assert [[(link.entity.id, link.score) for link in links] for links in again.link(mentions["test"])] == [
        [(link.entity.id, link.score) for link in links] for links in found
    ]
    other = Linker.zero_shot(entities=entities, mentions=mentions["train"], **options)
    with pytest.raises(StoreError, match="was built for another model"):
        other.with_knowledge_base(tmp_path / "kb")


def drawn(number):
    """Records with pictures that differ in many ways, every third without one."""
    rng = np.random.default_rng(number)
    pictures = [rng.integers(0, 255, (4, 4, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1) for _ in range(24)]
    return [None if n % 3 == 2 else picture for n, picture in enumerate(pictures)]


def test_without_mentions_the_statistics_are_those_of_the_entities(image):
    """The whitened directions of the entities do not covary."""
    entities = [
        {"id": f"Q{n}", "name": "pen", "images": [] if picture is None else [picture]}
        for n, picture in enumerate(drawn(0))
    ]
    mentions = [{"mention": "pen", "sentence": "", "image": picture} for picture in drawn(1)]
    model = zero_shot_model(image=image, lexical=False, image_size=32, image_projection=3)
    whiten(model, entities, batch_size=5)
    model.build_index(entities)
    unit = model.matcher.units["image"]
    rows = model.encode_entities(entities)["image"]["direction"]
    rows = rows[rows.square().sum(dim=1) > 0]
    assert len(rows) == 16 and unit.mention_count == 0
    torch.testing.assert_close(unit.entity_center, rows.mean(dim=0), rtol=1e-4, atol=1e-4)
    covariance = (rows - rows.mean(dim=0)).T @ (rows - rows.mean(dim=0))
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-2 * covariance.diagonal().min()

    entities_alone = unit.projection.detach().clone()
    whiten(model, entities, mentions)
    assert not torch.allclose(unit.projection, entities_alone) and unit.mention_count == 16
    whiten(model, entities[:9], records=9)
    first = unit.projection.detach().clone()
    whiten(model, entities, records=9)
    assert torch.equal(unit.projection, first)


def test_what_cannot_be_whitened_says_what_to_change(records, text, image):
    entities, _ = records
    with pytest.raises(ConfigError, match="no projection to whiten"):
        whiten(zero_shot_model(text, image), entities)
    with pytest.raises(ConfigError, match="Lower the unit's projection"):
        Linker.zero_shot(image=image, image_size=32, device="cpu", entities=entities, image_stages=STAGES)
    with pytest.raises(ConfigError, match="remove image_stages"):
        zero_shot_model("clip", "clip", image_stages=STAGES)
