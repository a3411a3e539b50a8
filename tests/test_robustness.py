"""Robustness: each grade equals a normal evaluation, shares one index, and leaves other modalities alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from mimic_pl import MIMIC, MELDataModule
from mimic_pl.callbacks.results import metrics_by_score
from mimic_pl.data.degradation import KINDS, Degradation, MissingSentence, Occlusion, OtherImage, Typos
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.errors import ConfigError
from mimic_pl.ranking import IndexBuilder
from mimic_pl.robustness import Grade, grades_of, measure, robustness_table, write_grades
from tests import tiny
from tests.training import UNITS, make_trainer


class RankRecorder(MIMIC):
    """A subclass that overrides ``rank`` and records the ranks."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.recorded: list[dict[str, torch.Tensor]] = []

    def on_test_epoch_start(self):
        super().on_test_epoch_start()
        self.recorded = []

    def rank(self, batch, split):
        ranking = super().rank(batch, split)
        self.recorded.append(ranking.ranks)
        return ranking

    def ranks(self) -> dict[str, list[int]]:
        return {name: torch.cat([ranks[name] for ranks in self.recorded]).tolist() for name in self.recorded[0]}


class CountingBuilder(IndexBuilder):
    """Counts how often the knowledge base is encoded."""

    builds = 0

    def in_memory(self, *args):
        self.builds += 1
        return super().in_memory(*args)


def make_model(**options) -> RankRecorder:
    torch.manual_seed(0)
    return RankRecorder(CLIPEncoder(**tiny.ENCODER), units=UNITS, **options)


def make_data(root: Path, **options) -> MELDataModule:
    return MELDataModule(str(root), name="Tiny", **{"num_workers": 0, **options})


def test_a_grade_equals_a_test_with_that_degradation(tiny_set, tmp_path):
    strengths = (Occlusion, (0, 0.5)), (Typos, (0, 0.4)), (OtherImage, (1,))
    degradations = [kind(strength, seed=1) for kind, grades in strengths for strength in grades]
    model = make_model(index=(builder := CountingBuilder()))
    data = make_data(tiny_set, eval_batch_size=4, degradation=(own := Typos(0.1)))
    grades = list(measure(make_trainer(tmp_path), model, data, degradations))
    assert builder.builds == 1 and model.index_builder is builder and data.degradation is own
    assert [(grade.kind, grade.strength) for grade in grades] == [(d.kind, d.strength) for d in degradations]
    assert len({json.dumps(grade.metrics) for grade in grades}) == 4
    for grade, degradation in zip(grades, degradations, strict=True):
        # On its own: a new model with the same weights, a new index, another batch size, one worker.
        trainer = make_trainer(tmp_path)
        alone = make_data(tiny_set, eval_batch_size=9, num_workers=1 if degradation.strength == 1 else 0)
        alone.degradation = degradation
        trainer.test(make_model(), alone, verbose=False)
        assert grade.metrics == metrics_by_score(trainer.callback_metrics, "test")


@pytest.mark.parametrize(
    ("degradation", "untouched"),
    [(OtherImage(1), "text"), (Occlusion(1), "text"), (MissingSentence(1), "vision"), (Typos(0.4), "vision")],
)
def test_an_undegraded_modality_keeps_its_ranks(tiny_set, tmp_path, degradation, untouched):
    model, data, trainer = make_model(), make_data(tiny_set), make_trainer(tmp_path)
    ranks = []
    for _ in measure(trainer, model, data, [type(degradation)(0), degradation]):
        ranks.append(model.ranks())  # from the overridden rank, in the order of the split
    clean, degraded = ranks
    assert degraded[untouched] == clean[untouched]
    assert degraded["cross_modal"] != clean["cross_modal"]
    assert any(degraded[name] != clean[name] for name in {"text", "vision"} - {untouched})


def test_the_validation_split(tiny_set, tmp_path):
    (grade,) = measure(make_trainer(tmp_path), make_model(), make_data(tiny_set), [Typos(0.4)], split="val")
    trainer = make_trainer(tmp_path)
    trainer.validate(make_model(), make_data(tiny_set, degradation=Typos(0.4)), verbose=False)
    assert grade.metrics == metrics_by_score(trainer.callback_metrics, "val")


@pytest.mark.own_process
def test_an_index_on_disk_is_reused_unchanged(tiny_set, tmp_path):
    def model() -> RankRecorder:
        return make_model(index=IndexBuilder(storage="disk", folder=str(tmp_path / "index")))

    trainer = make_trainer(tmp_path)
    trainer.test(model(), make_data(tiny_set), verbose=False)
    expected = metrics_by_score(trainer.callback_metrics, "test")

    def files() -> dict[Path, str]:
        found = (path for path in (tmp_path / "index").rglob("*") if path.is_file())
        return {path: f"{path.stat().st_mtime_ns} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in found}

    before = files()
    grades = list(measure(make_trainer(tmp_path), model(), make_data(tiny_set), [Occlusion(0), Occlusion(0.5)]))
    assert grades[0].metrics == expected and files() == before and len(before) > 1


def test_a_failure_restores_model_and_data(tiny_set, tmp_path):
    class Broken(Degradation):
        kind, side = "broken", "text"

        def mention(self, mention, split, rng):
            raise RuntimeError("broken")

    model, data = make_model(), make_data(tiny_set)
    builder = model.index_builder
    with pytest.raises(RuntimeError, match="broken"):
        list(measure(make_trainer(tmp_path), model, data, [Broken(0.5)]))
    assert model.index_builder is builder and data.degradation is None


def test_every_kind_starts_at_strength_zero():
    grades = grades_of(",".join(kind.kind for kind in KINDS), seed=3)
    for kind in KINDS:
        strengths = [d.strength for d in grades if type(d) is kind]
        assert strengths[0] == 0 and strengths == sorted({*strengths}) and len(strengths) >= 4
    assert {d.seed for d in grades} == {3}
    for wrong in ("blur,sharpness", "", " , "):
        with pytest.raises(ConfigError, match=r"--kinds: unknown kind .*Choose from: blur, jpeg"):
            grades_of(wrong, seed=3)


def test_file_and_table(tmp_path):
    metrics = {"overall": {"hits@1": 0.5, "mrr": 0.6}, "text": {"hits@1": 0.25, "mrr": 0.3}}
    grades = [Grade("blur", "image", 0.0, metrics), Grade("blur", "image", 2.0, metrics)]
    path = write_grades(tmp_path, grades)
    assert json.loads(path.read_text())[1] == {"kind": "blur", "side": "image", "strength": 2.0, "metrics": metrics}
    assert [file.name for file in tmp_path.iterdir()] == ["robustness.json"]
    table = robustness_table(grades)
    cells = [list(column.cells) for column in table.columns]
    assert cells == [["blur", ""], ["0", "2"], ["50.00", "50.00"], ["25.00", "25.00"]]
