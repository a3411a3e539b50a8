"""Monitors training for known failure signatures; logs curves and explains problems in warnings."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from mimic_pl.callbacks.diagnostics import (
    AgreementCount,
    CollapseWatch,
    Finding,
    GateWatch,
    GradientWatch,
    LossWatch,
    StallWatch,
    StartWatch,
    gradient_norms,
)
from mimic_pl.callbacks.diagnostics.loss import BatchPosition
from mimic_pl.callbacks.results import metrics_by_score
from mimic_pl.data.protocol import Records, data_of
from mimic_pl.distributed import ProcessGroup
from mimic_pl.encoders import Encoder
from mimic_pl.errors import NonFiniteLossError
from mimic_pl.model import MIMIC
from mimic_pl.ranges import COUNT, NOT_NEGATIVE, Range, in_range

_LOG = logging.getLogger(__name__)

_GATE_SAMPLE = 64
"""Maximum number of mentions and of entities whose gates are sampled: 4,096 pairs estimate a fraction to a percent."""

_TERM = "train/loss_"


class FailureMonitor(Callback):
    """Monitors ``fit`` for typical problems of such models, and warns at most once per epoch about each.

    A warning contains the values and what to try; curves are logged as ``monitor/...``. It detects

    - a unit that ranks no better than chance while the overall score does, and an overall ranking determined by one
      unit (``monitor/mrr_to_chance/...``, ``monitor/agreement/...``, after each validation);
    - gates near zero, in each unit with gates (``monitor/gates_near_zero/...``, on a part of one training batch at each
      validation);
    - H@1 that stalls while MRR rises (``monitor/hits@1_rise``, ``monitor/mrr_rise``);
    - a unit that training has made worse than it was (``monitor/mrr_to_start/...``, after each validation), if the run
      was validated before its first step: ``num_sanity_val_steps=-1`` of the Trainer. That costs one validation, and is
      worth it for a run that starts from pretrained units;
    - a loss that rises above its initial value or explodes (``monitor/loss_to_start``, every ``log_every_n_steps``
      optimizer steps), and one that is not finite: the first such batch and loss terms are named;
    - a unit, or the encoder, with no gradient or a vanishing one (``monitor/gradient_share/...``, every
      ``log_every_n_steps`` steps, before clipping). A frozen encoder whose projections no unit reads is left out.

    With several processes, values are computed over all of them and the first one logs. Checkpoints store the initial
    loss, the initial metrics and the history of validations.

    Args:
        enabled: Enable the monitor.
        chance_margin: An MRR at most this far above that of a random ranking is at chance (as is any MRR within three
            standard deviations of it).
        agreement: Fraction of mentions with the same rank overall and by one unit, from which on that unit alone
            determines the ranking; mentions whose gold is first by both are not counted.
        collapse_validations: Number of consecutive validations in which these two must be observed.
        near_zero: A gate below this absolute value is near zero.
        closed_share: Fraction of a gate's values near zero, from which on the gate is closed.
        stall_validations: Number of validations over which H@1 is compared with MRR.
        stall_mrr: Minimum rise of MRR over these validations.
        stall_share: H@1 stalls if it rises by less than this fraction of the rise of MRR.
        start_margin: A unit has become worse than before training if its MRR is lower by more than this (and by more
            than two standard deviations of it).
        divergence: Multiple of the initial loss (the mean of the first five batches) above which the loss has risen.
        divergence_batches: Number of consecutive batches for which it must stay above.
        explosion: Multiple of the initial loss that counts as an explosion at once.
        stop_on_non_finite: Stop at a loss that is not finite instead of only warning. With loss scaling (``16-mixed``),
            which skips such steps, there is only a warning.
        vanishing_share: Fraction of the whole model's gradient norm below which a part's gradient has vanished.
        gradient_looks: Number of consecutive checks in which it must have vanished.

    Raises:
        ConfigError: A threshold is negative, or a number of checks or validations too small.
        NonFiniteLossError: The loss is not finite, and ``stop_on_non_finite`` is set.

    Example:
        >>> trainer = Trainer(callbacks=[FailureMonitor(closed_share=0.95)])  # doctest: +SKIP
    """

    @in_range(
        chance_margin=NOT_NEGATIVE,
        agreement=NOT_NEGATIVE,
        collapse_validations=COUNT,
        near_zero=NOT_NEGATIVE,
        closed_share=NOT_NEGATIVE,
        stall_validations=Range(2),
        stall_mrr=NOT_NEGATIVE,
        stall_share=NOT_NEGATIVE,
        start_margin=NOT_NEGATIVE,
        divergence=NOT_NEGATIVE,
        divergence_batches=COUNT,
        explosion=NOT_NEGATIVE,
        vanishing_share=NOT_NEGATIVE,
        gradient_looks=COUNT,
    )
    def __init__(
        self,
        enabled: bool = True,
        chance_margin: float = 0.01,
        agreement: float = 0.9,
        collapse_validations: int = 2,
        near_zero: float = 0.05,
        closed_share: float = 0.9,
        stall_validations: int = 4,
        stall_mrr: float = 0.02,
        stall_share: float = 0.1,
        start_margin: float = 0.02,
        divergence: float = 1.2,
        divergence_batches: int = 100,
        explosion: float = 5.0,
        stop_on_non_finite: bool = True,
        vanishing_share: float = 1e-4,
        gradient_looks: int = 3,
    ) -> None:
        self.enabled = enabled
        self.near_zero = near_zero
        self.stop_on_non_finite = stop_on_non_finite
        self._loss = LossWatch(divergence, divergence_batches, explosion)
        self._gradients = GradientWatch(vanishing_share, gradient_looks)
        self._gates = GateWatch(closed_share, near_zero)
        self._collapse = CollapseWatch(chance_margin, agreement, collapse_validations)
        self._stall = StallWatch(stall_validations, stall_mrr, stall_share)
        self._start = StartWatch(start_margin)
        self._agreement = AgreementCount()
        self._sample: dict[str, dict[str, Tensor]] | None = None
        self._position = BatchPosition(0, 0, 0)
        self._warned: set[tuple[int, str]] = set()

    # ---- training -----------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep a part of the first batch since the last validation, to check the gates on it."""
        self._position = BatchPosition(trainer.global_step, trainer.current_epoch, batch_idx)
        if self.enabled and self._sample is None and isinstance(pl_module, MIMIC):
            self._sample = {
                side: {name: tensor[:_GATE_SAMPLE].clone() for name, tensor in batch[side].items()}
                for side in ("mentions", "entities")
            }

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Check the accumulated gradients, before clipping."""
        if not self.enabled or not isinstance(pl_module, MIMIC) or trainer.global_step % _every(trainer):
            return
        parts: dict[str, nn.Module] = dict(pl_module.matcher.units.items())
        if not _frozen(pl_module.encoder):
            parts["encoder"] = pl_module.encoder
        shares, findings = self._gradients.check(gradient_norms(pl_module, parts))
        self._log(trainer, {f"gradient_share/{name}": share for name, share in shares.items()})
        self._warn(trainer, findings)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the loss, and check it periodically."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not self.enabled or not isinstance(loss, Tensor):
            return
        accumulated = trainer.accumulate_grad_batches
        # Lightning passes the loss divided by the number of accumulated batches.
        scale = accumulated if pl_module.automatic_optimization else 1
        self._loss.add(self._position, loss * scale, _terms(trainer))
        if len(self._loss) >= _every(trainer) * accumulated:
            summaries = self._non_finite(trainer, pl_module)
            figures, findings = self._loss.check(summaries)
            self._log(trainer, figures)
            self._warn(trainer, findings)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the last batches for a loss that is not finite."""
        self._sample = None
        if self.enabled and len(self._loss):
            self._non_finite(trainer, pl_module)

    def _non_finite(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        """Warn or raise if the loss was not finite since the last check; collective.

        Returns:
            The processes' summaries of the loss, on the CPU, ``[processes, 3 + terms]``.
        """
        processes = ProcessGroup()
        everyone = processes.gather([self._loss.summary()[None]], [1] * processes.world_size)
        summaries = torch.cat([summary for (summary,) in everyone]).cpu()
        finding = self._loss.non_finite(summaries)
        if finding is not None:
            skipped = getattr(trainer.precision_plugin, "scaler", None) is not None
            if self.stop_on_non_finite and not skipped:
                raise NonFiniteLossError(finding.text)
            self._warn(trainer, [finding])
        return summaries

    # ---- validation ---------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the gates; also report a loss that is not finite before ranking fails because of the weights."""
        self._agreement = AgreementCount()
        if not self._watches(trainer):
            return
        if len(self._loss):
            self._non_finite(trainer, pl_module)
        if self._sample is None or not isinstance(pl_module, MIMIC):
            return
        sample, self._sample = self._sample, None
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            sides = [pl_module.encode(sample[side]) for side in ("mentions", "entities")]
            gates = pl_module.matcher.gates(*sides)
        values = {f"{unit}/{name}": gate for unit, named in gates.items() for name, gate in named.items()}
        if not values:
            return
        near = torch.stack([value.float().abs().lt(self.near_zero).float().mean() for value in values.values()])
        shares = dict(zip(values, trainer.strategy.reduce(near, reduce_op="mean").tolist(), strict=True))
        self._log(trainer, {f"gates_near_zero/{name}": share for name, share in shares.items()})
        self._warn(trainer, self._gates.check(shares))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Count where the overall rank equals a unit's."""
        if self._watches(trainer) and isinstance(outputs, Mapping) and "ranking" in outputs:
            ranks: Mapping[str, Tensor] = outputs["ranking"].ranks
            apart = {*pl_module.matcher.units} - {*pl_module.matcher.combined} if isinstance(pl_module, MIMIC) else ()
            self._agreement.add({name: rank for name, rank in ranks.items() if name not in apart})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check ranks and metrics; before the first step, keep them if all mentions were ranked."""
        before_training = trainer.sanity_checking and math.isinf(trainer.num_sanity_val_steps)
        if not self._watches(trainer) and not (self.enabled and before_training):
            return
        scores = metrics_by_score(trainer.callback_metrics, "val")
        mrr = {name: metrics["mrr"] for name, metrics in scores.items() if "mrr" in metrics}
        hits = {name: metrics["hits@1"] for name, metrics in scores.items() if "hits@1" in metrics}
        if before_training:
            self._start.keep(mrr, hits)
            return
        if self._agreement.names:
            counts = trainer.strategy.reduce(self._agreement.summary().to(pl_module.device), reduce_op="sum").tolist()
            pairs = zip(self._agreement.names, zip(counts[1::2], counts[2::2], strict=True), strict=True)
            entities = len(data_of(trainer, Records).entities)
            if "overall" in mrr:
                figures, findings = self._collapse.check(mrr, hits, dict(pairs), entities, counts[0])
                self._log(trainer, figures)
                self._warn(trainer, findings)
            figures, findings = self._start.check(mrr, hits, counts[0])
            self._log(trainer, figures)
            self._warn(trainer, findings)
        if "overall" in mrr and "overall" in hits:
            figures, findings = self._stall.check(hits["overall"], mrr["overall"])
            self._log(trainer, figures)
            self._warn(trainer, findings)

    # ---- state and logging --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state for a resumed run."""
        return {
            "start": self._loss.start,
            "history": [list(pair) for pair in self._stall.history],
            "streaks": dict(self._collapse.streaks),
            "before_training": {name: list(pair) for name, pair in self._start.metrics.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state."""
        self._loss.start = state_dict["start"]
        self._stall.history = [(hits, mrr) for hits, mrr in state_dict["history"]]
        self._collapse.streaks = dict(state_dict["streaks"])
        before_training = state_dict.get("before_training", {})  # not in checkpoints of older versions
        self._start.metrics = {name: (mrr, hits) for name, (mrr, hits) in before_training.items()}

    def _watches(self, trainer: Trainer) -> bool:
        return self.enabled and trainer.state.fn == "fit" and not trainer.sanity_checking

    def _log(self, trainer: Trainer, figures: Mapping[str, float]) -> None:
        for logger in trainer.loggers:  # they write on the first process only
            logger.log_metrics({f"monitor/{name}": value for name, value in figures.items()}, trainer.global_step)

    def _warn(self, trainer: Trainer, findings: list[Finding]) -> None:
        for finding in findings:
            once = trainer.current_epoch, finding.signature
            if once not in self._warned and trainer.is_global_zero:
                _LOG.warning("Epoch %d: %s", trainer.current_epoch, finding.text)
            self._warned.add(once)


def _frozen(encoder: Encoder) -> bool:
    """Whether an encoder is not meant to learn: its towers are frozen, and no unit reads the projections on top."""
    return encoder.frozen and all(parameter.grad is None for parameter in encoder.parameters())


def _every(trainer: Trainer) -> int:
    """Optimizer steps between two checks."""
    return trainer.log_every_n_steps or 50  # type: ignore[attr-defined]


def _terms(trainer: Trainer) -> dict[str, Tensor]:
    """The loss terms that the model logged for this batch."""
    return {
        name.removeprefix(_TERM): value
        for name, value in trainer.callback_metrics.items()
        if name.startswith(_TERM) and name not in (f"{_TERM}step", f"{_TERM}epoch")
    }
