"""The published sets with the file and folder names of their releases."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from mimic_pl.data import RichpediaMEL, WikiDiverse, WikiMEL
from mimic_pl.data.doctor import examine
from tests.data.conftest import word_processor

LAYOUTS = [
    (WikiMEL, "WikiMEL", "WIKIMEL", "mention_images"),
    (WikiMEL, "elsewhere", "WikiMEL", "mention_image"),
    (RichpediaMEL, "RichpediaMEL", "RichpediaMEL", "mention_image"),
    (RichpediaMEL, "renamed", "RichpediaMEL", "mention_images"),
    (WikiDiverse, "wikidiverse", "wiki_diverse", "mention_images"),
    (WikiDiverse, "WikiDiverse", "WikiDiverse", "mention_image"),
]


def write_minimal_set(root, stem, mention_folder):
    """One entity and one mention per split in the format of the releases: one line, percent-encoded names."""
    for folder in ("kb_image", mention_folder):
        (root / folder).mkdir(parents=True)
    Image.new("RGB", (5, 5), "red").save(root / "kb_image" / "Q1.png")
    entity = {"id": 0, "qid": "Q1", "entity_name": "S%C3%A3o_Paulo", "attr": "", "image_list": ["Q1.png"]}
    (root / "kb_entity.json").write_text(json.dumps([entity]))
    (root / "qid2id.json").write_text('{"Q1": 0}')
    for number, split in enumerate(("train", "dev", "test")):
        Image.new("RGB", (5, 5), (9, 200, 80 * number)).save(root / mention_folder / f"{split}.jpg")
        row = {"id": number, "mentions": "S%C3%A3o", "sentence": split, "answer": "Q1", "imgPath": f"{split}.svg.png"}
        (root / f"{stem}_{split}.json").write_text(json.dumps([row]))
    return root


@pytest.mark.parametrize(("data", "folder", "stem", "mention_folder"), LAYOUTS)
def test_only_the_root_has_to_be_given(tmp_path, data, folder, stem, mention_folder):
    module = data(str(write_minimal_set(tmp_path / folder, stem, mention_folder)), num_workers=0)
    module.processor = word_processor()
    module.setup("test")
    (batch,) = module.test_dataloader()
    assert [entity.name for entity in module.entities] == ["São_Paulo"]
    assert [mention.mention for mention in module.mentions["test"]] == ["São"]
    assert batch["gold"].tolist() == [[0]] and batch["failures"] == []
    # The image that `imgPath` calls test.svg.png is stored as test.jpg, in mention_image or mention_images.
    assert torch.allclose(batch["mentions"]["pixels"][0, :, 0, 0].float(), torch.tensor([9.0, 200, 160]), atol=4)


@pytest.mark.parametrize("data", [WikiMEL, RichpediaMEL, WikiDiverse])
def test_the_doctor_compares_counts_with_the_published_ones(tmp_path, data):
    module = data(str(write_minimal_set(tmp_path / "set", data.file_stems[0], "mention_images")))
    module.processor = word_processor()
    report = examine(module)
    assert not report.has_errors
    (entities,) = [finding for finding in report.findings if finding.subject == "entities"]
    assert entities.value == f"1 (published {data.published.entities:,})"
    assert entities.verdict == "note" and entities.advice
