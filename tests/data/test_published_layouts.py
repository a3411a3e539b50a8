"""The published sets with the file and folder names of their releases, and the same folders in other formats."""

from __future__ import annotations

import csv
import io
import json

import pyarrow.parquet
import pytest
import torch
from PIL import Image

from mimic_pl.data import Mention, RichpediaMEL, WikiDiverse, WikiMEL
from mimic_pl.data.doctor import examine
from mimic_pl.data.reader import read_mentions
from mimic_pl.errors import DataError
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


MELBENCH = {
    "7": {"sentence": "Adams wrote for radio.", "mentions": "Adams", "entities": "Douglas Adams", "answer": "Q42"},
    "9": {"sentence": "Wales spoke.", "mentions": "Wales", "answer": "Q181", "imgPath": "Q181.jpg", "brief": "founder"},
}
"""The layout of MELBench's Richpedia-MEL.json: an object of mentions."""

ANNOTATED = [
    [
        "The Lions versus the Packers (2007).",
        "https://upload.wikimedia.org/wikipedia/commons/0/06/DetroitLionsRunningPlay-2007.jpg",
        "sports",
        [
            ["Lions", "Organization", 4, 9, "https://en.wikipedia.org/wiki/Detroit_Lions"],
            ["Packers", "Organization", 21, 28, "https://en.wikipedia.org/wiki/Green_Bay_Packers"],
        ],
    ]
]
"""The layout of the train.json of WikiDiverse's authors; with candidates, there are more elements."""
WITH_CANDIDATES = [
    [ANNOTATED[0][0], ANNOTATED[0][1], "Lions", "Org", "The", "versus", "https://en...", [], "sports", 4, 9]
]


def test_melbench_as_published_is_read_as_mentions_but_has_no_knowledge_base(tmp_path):
    root = tmp_path / "RichpediaMEL"
    root.mkdir()
    (root / "Richpedia-MEL.json").write_text(json.dumps(MELBENCH))
    with pytest.raises(DataError, match="no knowledge base.*found 'Richpedia-MEL.json'.*cleaned archive"):
        RichpediaMEL(str(root)).read_entities()
    first, second = RichpediaMEL(str(root), predict_file=str(root / "Richpedia-MEL.json")).read_mentions("predict")
    assert (first.id, first.mention, first.golds, first.image) == ("7", "Adams", ("Q42",), None)
    assert (second.id, second.image, second.fields) == ("9", "Q181.jpg", {"brief": "founder"})


@pytest.mark.parametrize("content", [ANNOTATED, WITH_CANDIDATES])
def test_wikidiverse_as_annotated_is_recognised(tmp_path, content):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match="is WikiDiverse as its authors annotated it.*write one record per mention: "
    ) as e:
        read_mentions(path)
    # The layout that the error recommends:
    record = str(e.value).rpartition("mention: ")[2].rstrip(".")
    record = record.replace("...", '"The Lions versus"').replace("ID", '"Q1"').replace("FILE", '"x.jpg"')
    path.write_text(f"[{record}]")
    assert read_mentions(path) == [Mention("7-0", "Lions", "The Lions versus", ("Q1",), "x.jpg")]


def as_csv(rows):
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, list(rows[0]))
    writer.writeheader()
    for row in rows:
        writer.writerow({key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()})
    return sink.getvalue().encode()


def as_parquet(rows):
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


WRITERS = {
    ".jsonl": lambda rows: b"".join(json.dumps(row).encode() + b"\n" for row in rows),
    ".csv": as_csv,
    ".parquet": as_parquet,
}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_files_of_a_folder_in_other_formats(folder, suffix):
    module = folder.module()
    entities = module.read_entities()
    mentions = {split: module.read_mentions(split) for split in ("train", "val", "test")}
    for path in folder.root.glob("*.json"):
        if path.stem != "qid2id":
            path.with_suffix(suffix).write_bytes(WRITERS[suffix](json.loads(path.read_text())))
            path.unlink()
    assert module.read_entities() == entities
    assert {split: module.read_mentions(split) for split in mentions} == mentions
    module.setup("test")
    assert sum(len(batch["index"]) for batch in module.test_dataloader()) == 7


def test_the_json_file_comes_first_and_two_others_are_ambiguous(folder):
    module = folder.module()
    entities = module.read_entities()
    for suffix in (".csv", ".jsonl"):
        (folder.root / f"KB_entity{suffix}").write_text("not read")
    assert module.read_entities() == entities
    (folder.root / "kb_entity.json").unlink()
    with pytest.raises(DataError, match="has 'KB_entity.jsonl', 'KB_entity.csv': which one is meant"):
        module.read_entities()
