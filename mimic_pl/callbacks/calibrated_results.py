"""Probabilities and NIL in the results of a calibrated run."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from rich.markup import escape
from rich.table import Table

from mimic_pl.calibration import Calibration, ScoredLists, answer_curves, answer_metrics, answers_of
from mimic_pl.callbacks.list_collector import ListCollector
from mimic_pl.errors import ConfigError
from mimic_pl.escaping import printable
from mimic_pl.model import MIMIC
from mimic_pl.ranking import fingerprint
from mimic_pl.trainer_folder import trainer_folder

Results = dict[str, dict[str, dict[str, float]]]
"""Metrics of answers by cases (``given``, ``held_out``) and kind of confidence (``softmax``, ``calibrated``)."""

_COLUMNS = {
    "accuracy": "right",
    "ece": "ECE",
    "aurc": "AURC",
    "nil_precision": "NIL P",
    "nil_recall": "NIL R",
    "nil_f1": "NIL F1",
}
"""Titles of the metrics in the table."""

_log = logging.getLogger(__name__)


class CalibratedResults(ListCollector):
    """Reports how good the probabilities of a calibrated run are, after ``test``.

    If ``calibration.json`` is in the run's folder (see ``mimic-pl calibrate``), the answers to the test mentions, an
    entity or NIL, are evaluated as given, and with each mention once more after taking its golds out of the knowledge
    base (``held_out``); each time by the calibrated probabilities and, for comparison, by the softmax of the scores.
    :class:`~mimic_pl.callbacks.PredictionWriter` writes the results and the probabilities,
    :class:`~mimic_pl.callbacks.ResultTable` prints them. Ranks and their metrics are the same as without.

    A calibration of other weights is not used, with a warning.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calibration: Calibration | None = None
        self.results: Results | None = None
        self._curves: dict[str, dict[str, list[list[float]]]] = {}

    @staticmethod
    def of(trainer: Trainer) -> CalibratedResults | None:
        """The callback of this class of a Trainer, if it has found a calibration."""
        own = (callback for callback in trainer.callbacks if isinstance(callback, CalibratedResults))  # type: ignore[attr-defined]
        return next((callback for callback in own if callback.calibration is not None), None)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing: the validation split is what the calibration was fitted on."""
        self.calibration = self.results = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the calibration of these weights, and collect lists if there is one."""
        self.forget()
        self.results = None
        self.calibration = _calibration_of(trainer, pl_module)
        # A calibration that was fitted by hand may be that of a model that reranks.
        if self.calibration is not None and isinstance(pl_module, MIMIC) and not pl_module.matcher.reranks:
            self.top_k = self.calibration.top_k
            self.begin(trainer, pl_module, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the calibration of these weights."""
        self.calibration = _calibration_of(trainer, pl_module)
        if self.calibration is not None and isinstance(pl_module, MIMIC):
            self.keep(pl_module, self.calibration.top_k)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the answers."""
        if self.calibration is None:
            return
        lists = self.lists()
        if lists is None:
            return
        top_k = self.calibration.top_k
        self.results = evaluate(lists, self.calibration)
        kinds = {"softmax": None, "calibrated": self.calibration}
        held_out = lists.held_out(top_k)
        self._curves = {kind: answer_curves(answers_of(held_out, used, top_k)) for kind, used in kinds.items()}

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the model its own ranker back."""
        self.restore(pl_module)

    def summary(self) -> dict[str, Any]:
        """Parameters, results, and curves of the held-out cases, for ``metrics.json``."""
        if self.calibration is None or self.results is None:
            return {}
        names = ("temperature", "nil_score", "top_k")
        relative = None if self.calibration.relative is None else self.calibration.relative._asdict()
        rounded = {
            cases: {kind: {name: round(value, 7) for name, value in own.items()} for kind, own in kinds.items()}
            for cases, kinds in self.results.items()
        }
        parameters = {**{name: getattr(self.calibration, name) for name in names}, "relative": relative}
        return {"calibration": {**parameters, **rounded, "curves": self._curves}}


def evaluate(lists: ScoredLists, calibration: Calibration) -> Results:
    """Evaluate answers by the softmax and by calibrated probabilities, with golds in and out of the knowledge base."""
    top_k = calibration.top_k
    cases = {"given": lists.first(top_k), "held_out": lists.held_out(top_k)}
    kinds = {"softmax": None, "calibrated": calibration}
    return {
        name: {kind: answer_metrics(answers_of(own, used, top_k)) for kind, used in kinds.items()}
        for name, own in cases.items()
    }


def results_table(results: Results, title: str = "answers with NIL") -> Table:
    """Table of answers in percent: a section for each kind of cases, a row for each kind of confidence."""
    table = Table(
        title=escape(printable(title)),
        caption="held out: each mention once more, without its golds in the knowledge base\n"
        "softmax: of the scores as they are, never NIL; AURC: area under the risk-coverage curve",
    )
    table.add_column("answers")
    for name in _COLUMNS.values():
        table.add_column(name, justify="right")
    for cases, kinds in results.items():
        first = next(iter(kinds.values()))
        nil = f", {first['nil_mentions']:,.0f} NIL" if first["nil_mentions"] else ""
        table.add_row(f"{cases.replace('_', ' ')} ({first['mentions']:,.0f}{nil})")
        for kind, own in kinds.items():
            cells = [f"{100 * own[name]:.2f}" if name in own else "" for name in _COLUMNS]
            table.add_row(f"  {kind}", *cells, style="bold" if kind == "calibrated" else None)
        table.add_section()
    return table


def _calibration_of(trainer: Trainer, model: LightningModule) -> Calibration | None:
    if not isinstance(model, MIMIC) or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    folder = trainer_folder(trainer)
    calibration = Calibration.find(folder)
    if calibration is None:
        return None
    try:
        calibration.require_weights(fingerprint(model.encoder, model.matcher))
    except ConfigError as error:
        _log.warning("Probabilities are left out. %s", error)
        return None
    return calibration
