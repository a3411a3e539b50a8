"""Panels of sample mentions, read back from TensorBoard's event files."""

from __future__ import annotations

import io

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image, ImageFont
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mimic_pl.callbacks import SamplePanels
from mimic_pl.callbacks.panels import TILE, image_strip
from tests.reference import ranking


def events(folder) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def texts(accumulator: EventAccumulator) -> list[str]:
    return [event.tensor_proto.string_val[0].decode() for event in accumulator.Tensors("samples/text_summary")]


def test_the_same_samples_each_epoch(make_trainer, given_scores, records, tmp_path):
    model = given_scores()
    panels = SamplePanels(num_samples=2, num_candidates=3, seed=1)
    make_trainer(panels, logger=TensorBoardLogger(tmp_path, "runs"), max_epochs=3).fit(model, records)
    accumulator = events(tmp_path / "runs" / "version_0")
    shown = texts(accumulator)
    assert len(shown) == 3  # after each epoch, and not in the sanity check
    assert len(set(shown)) == 1  # the scores are fixed, so the panels must not differ
    assert set(accumulator.Tags()["images"]) == {"sample/0", "sample/1"}
    image = Image.open(io.BytesIO(accumulator.Images("sample/0")[0].encoded_image_string))
    assert image.width == 5 * TILE  # mention, gold, three candidates

    sample = next(i for i in range(11) if f"**mention {i}** in:" in shown[0])
    best = ranking(model.scores["overall"][sample])[:3]
    for place, entity in enumerate(best, start=1):
        assert f"| {place} | entity {entity} (Q{entity})" in shown[0]
    assert f"a \\| sentence {sample}" in shown[0]  # the bar is escaped in the table


def test_all_samples_with_ranks_and_missing_gold(make_trainer, given_scores, records, tmp_path):
    model = given_scores()
    logger = TensorBoardLogger(tmp_path, "runs")
    make_trainer(SamplePanels(num_samples=99), logger=logger).validate(model, records, verbose=False)
    (text,) = texts(events(tmp_path / "runs" / "version_0"))
    for index in range(11):
        gold = "not in the knowledge base" if index == 4 else f"entity {index % 8} (Q{index % 8}), rank"
        assert f"**mention {index}** in: a \\| sentence {index}\n\nGold: {gold}" in text
        if index != 4:
            assert f"{gold} {model.rank('overall', index)}\n" in text


def test_tensorboard_accepts_the_metric_names(make_trainer, given_scores, records, tmp_path):
    make_trainer(logger=TensorBoardLogger(tmp_path, "runs"), max_epochs=1).fit(given_scores(), records)
    assert {"val/hits@1", "val/mrr", "val/text/hits@20"} <= set(
        events(tmp_path / "runs").Tags()["scalars"] or ()
    ) | set(events(tmp_path / "runs" / "version_0").Tags()["scalars"])


@pytest.mark.parametrize("logger", [False, "csv"])
def test_without_tensorboard_there_is_nothing_to_do(make_trainer, given_scores, records, tmp_path, logger):
    logger = CSVLogger(tmp_path) if logger == "csv" else False
    make_trainer(SamplePanels(), logger=logger, max_epochs=1).fit(given_scores(), records)


def test_no_samples(make_trainer, given_scores, records, tmp_path):
    logger = TensorBoardLogger(tmp_path, "runs")
    make_trainer(SamplePanels(num_samples=0), logger=logger).validate(given_scores(), records, verbose=False)
    assert events(tmp_path / "runs" / "version_0").Tags()["images"] == []


def test_strip_shows_images_in_their_tiles():
    red, wide = Image.new("RGB", (20, 20), (255, 0, 0)), Image.new("RGB", (1000, 200), (0, 0, 255))
    strip = np.asarray(image_strip([(red, ["a"]), (None, ["b", "c"]), (wide, ["a very long name " * 20])]))
    middle = strip[TILE // 2]
    assert tuple(middle[TILE // 2]) == (255, 0, 0)
    assert tuple(middle[TILE + TILE // 2]) == (225, 225, 225)
    assert tuple(middle[2 * TILE + TILE // 2]) == (0, 0, 255)
    assert (strip[TILE:, : 3 * TILE] < 128).any()  # the captions


@pytest.mark.parametrize("length", [2_000, 1_000_000])
def test_the_work_for_a_caption_does_not_depend_on_the_length_of_a_name(monkeypatch, length):
    measured = []
    measure = ImageFont.FreeTypeFont.getlength
    monkeypatch.setattr(
        ImageFont.FreeTypeFont, "getlength", lambda font, text: measured.append(len(text)) or measure(font, text)
    )
    strip = image_strip([(None, ["m" * length, "two\nlines\x1b[31m"])])
    assert strip.width == TILE and sum(measured) < 5_000
