"""A linker without training over a living knowledge base: centring follows every change, exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mimic_pl import Entity, Linker, Ranker
from mimic_pl.linking.unit_totals import TOTALS
from mimic_pl.linking.zero_shot import fit_zero_shot, zero_shot_model

pytestmark = pytest.mark.own_process

WORDS = ["red", "blue", "fast", "old", "cat", "car", "pen", "tree"]


@pytest.fixture(scope="module")
def entities(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    made = []
    for number in range(40):
        path = folder / f"{number}.png"
        colour = rng.integers(0, 255, 3) // (1 + number % 3)
        Image.fromarray(np.clip(colour + rng.integers(0, 60, (24, 24, 3)), 0, 255).astype(np.uint8)).save(path)
        name, attr = " ".join(rng.choice(WORDS, 2)), " ".join(rng.choice(WORDS, rng.integers(0, 6)))
        made.append({"id": f"Q{number}", "name": name, "attr": attr, "images": [] if number % 7 == 0 else [str(path)]})
    return made


def mentions(entities):
    return [
        {"mention": row["name"], "sentence": row["attr"], "image": (row["images"] or [None])[0], "golds": row["id"]}
        for row in entities[3:33:3]
    ]


def found(linker, records):
    return [[(link.entity.id, link.score, link.units) for link in links] for links in linker.link(records, top_k=20)]


def opened(linker, entities, folder, **options):
    return linker.with_knowledge_base(linker.index(entities, folder, show_progress_bar=False, **options))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_links_after_changes_are_those_of_a_new_knowledge_base(image, entities, tmp_path, dtype):
    linker = Linker.zero_shot(image=image, image_size=32, device="cpu")
    changing = opened(linker, entities[:25], tmp_path / "changing", dtype=dtype)
    other = found(changing, mentions(entities))
    changing.add_entities(entities[25:], batch_size=4)
    changing.update_entities([{**entities[4], "name": "old pen", "images": entities[9]["images"]}])
    changing.delete_entities(["Q3", "Q30", "Q31"])
    changing.delete_entities(["Q4"])
    changing.add_entities([entities[3], entities[4]])
    left = [row for row in entities if row["id"] not in ("Q30", "Q31")]
    fresh = opened(linker, left, tmp_path / "fresh", dtype=dtype)
    kept = [dict(one.knowledge_base.statistics(TOTALS)) for one in (changing, fresh)]
    assert kept[0].keys() == kept[1].keys()
    for name in kept[0]:
        np.testing.assert_array_equal(kept[0][name], kept[1][name])
    units = [linker.model.matcher.units["image"] for linker in (changing, fresh)]
    assert torch.equal(units[0].entity_center, units[1].entity_center) and units[0].entity_center.any()
    # BM25's mean length is that of the first entities, so only the image unit is equal to the last digit.
    images = [
        {
            (number, id): own["image"]
            for number, links in enumerate(linker.link(mentions(entities), top_k=None))
            for id, own in ((link.entity.id, link.units) for link in links)
        }
        for linker in (changing, fresh)
    ]
    assert images[0] == images[1]
    assert found(changing, mentions(entities)) != other


def test_links_are_those_of_a_model_in_memory(image, entities, tmp_path):
    linker = opened(Linker.zero_shot(image=image, image_size=32, device="cpu"), entities, tmp_path / "kb")
    model = zero_shot_model(image=image, image_size=32)
    model.load_state_dict(linker.model.state_dict())

    model.processor = model.processor.fit([Entity.of(row) for row in entities])
    index = model.build_index(entities)
    ranking = Ranker(top_k=20)(model.matcher, model.encode_mentions(mentions(entities)), index)
    for links, order, scores in zip(
        found(linker, mentions(entities)), ranking.top_entities, ranking.top_scores["overall"], strict=True
    ):
        assert [id for id, _, _ in links] == index.ids_of(order)
        assert [score for _, score, _ in links] == scores.tolist()


def test_knowledge_bases_of_one_model_do_not_disturb_each_other(image, entities, tmp_path):
    linker = Linker.zero_shot(image=image, image_size=32, lexical=False, device="cpu")
    first = opened(linker, entities[:20], tmp_path / "first")
    before = found(first, mentions(entities))
    second = opened(first, entities[20:], tmp_path / "second")
    assert found(second, mentions(entities)) != before
    assert found(first, mentions(entities)) == before


def test_a_linker_that_is_made_again_opens_the_knowledge_base(entities, tmp_path):
    linker = opened(Linker.zero_shot(device="cpu"), entities, tmp_path / "kb")
    torch.rand(1)  # whatever was drawn before
    again = Linker.zero_shot(device="cpu").with_knowledge_base(tmp_path / "kb")
    assert found(again, mentions(entities)) == found(linker, mentions(entities))


def test_weights_are_fitted_without_encoding_the_knowledge_base_again(image, entities, tmp_path):
    linker = opened(Linker.zero_shot(image=image, image_size=32, device="cpu"), entities, tmp_path / "kb")
    before = found(linker, mentions(entities))
    fit_zero_shot(linker.model, mentions(entities), linker.knowledge_base.index)
    linker = linker.with_knowledge_base(tmp_path / "kb")  # the same folder is accepted
    after = found(linker, mentions(entities))
    assert after != before
    ranks = [
        [[id for id, _, _ in links].index(row["golds"]) for links, row in zip(side, mentions(entities), strict=True)]
        for side in (before, after)
    ]
    assert sum(ranks[1]) <= sum(ranks[0])


def test_totals_that_a_kill_left_behind_are_not_used(image, entities, tmp_path):
    linker = Linker.zero_shot(image=image, image_size=32, device="cpu")
    complete = opened(linker, entities, tmp_path / "complete")
    expected = complete.model.matcher.units["image"].entity_center
    killed = opened(linker, entities[:30], tmp_path / "killed")
    kb = killed.knowledge_base
    stale = dict(kb.statistics(TOTALS))
    killed.add_entities(entities[30:])
    # As if a kill had come between adding entities and keeping their totals.
    kb = killed.knowledge_base.set_statistics(TOTALS, stale)
    again = linker.with_knowledge_base(kb)
    assert torch.equal(again.model.matcher.units["image"].entity_center, expected)
