"""Training of a cross-encoder on the first stage's candidate lists."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from mimic_pl.bootstrap import interval, resampled_means
from mimic_pl.callbacks.weight_calibration import fit_weights
from mimic_pl.distributed import ProcessGroup
from mimic_pl.ranges import FRACTION, Range, in_range
from mimic_pl.retrieval.cross_encoder import CrossEncoder
from mimic_pl.retrieval.list_data import ListBatch


def default_optimizer(parameters: Any) -> torch.optim.Optimizer:
    """AdamW with a learning rate for a small text model."""
    return torch.optim.AdamW(parameters, lr=5e-5, weight_decay=0.01)


class CrossEncoderModule(LightningModule):
    """Trains a cross-encoder with the cross-entropy of the gold within its list.

    With logits z and the first stage's scores s of a list's candidates, and its gold g,

        L = -log softmax(z + a s)_g.

    With a = 0 (BLINK) the cross-encoder learns to link by itself; with a = 1 it learns what the first stage does not
    know: lists that it is sure of, and right, have no gradient.

    Each validation fits the weight alpha of the first stage's score anew, by the likelihood of the golds in the lists
    that are read, and logs
    ``val/hits@1`` and ``val/mrr`` of the lists reranked with it, ``val/first_hits@1`` of the first stage, and
    ``val/gain``, the difference of both, with its 95 % interval by paired bootstrap over the mentions.

    Args:
        cross_encoder: The cross-encoder; it is trained in place.
        optimizer: Builds the optimizer.
        warmup: Part of the training in which the learning rate rises; then it falls linearly to 0.
        first_stage_weight: The weight a of the first stage's scores in the loss.

    Raises:
        ConfigError: An argument is out of range.
    """

    @in_range(warmup=FRACTION, first_stage_weight=Range(0, whole=False))
    def __init__(
        self,
        cross_encoder: CrossEncoder,
        optimizer: OptimizerCallable = default_optimizer,
        warmup: float = 0.1,
        first_stage_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.cross_encoder = cross_encoder
        self.model: nn.Module = cross_encoder.model
        self.optimizer = optimizer
        self.warmup = warmup
        self.first_stage_weight = first_stage_weight
        self.alpha: Tensor
        self.register_buffer("alpha", torch.tensor(cross_encoder.first_stage_weight, dtype=torch.float64))
        self._evaluated: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def logits(self, batch: ListBatch) -> Tensor:
        """The cross-encoder's logits, float32 ``[lists, k]``, 0 in lists that it does not read."""
        unread = torch.zeros_like(batch.scores)
        if not batch.inputs:
            return unread
        logits = torch.cat([self.cross_encoder.forward(inputs).float() for _, inputs in batch.inputs])
        place = torch.cat([rows for rows, _ in batch.inputs]).argsort()
        return unread.masked_scatter(batch.read[:, None], logits[place])

    def on_train_epoch_start(self) -> None:
        """Switch dropout on; transformers returns models in evaluation mode."""
        self.model.train()

    def training_step(self, batch: ListBatch, batch_idx: int) -> Tensor:
        """The loss of a batch of lists."""
        scores = self.logits(batch) + self.first_stage_weight * batch.scores
        loss = list_loss(scores, batch.gold)
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=True, batch_size=len(scores))
        return loss

    def validation_step(self, batch: ListBatch, batch_idx: int) -> None:
        """Score a batch of lists."""
        self._evaluated.append((self.logits(batch).cpu(), batch.scores.cpu(), batch.gold.cpu(), batch.read.cpu()))

    def test_step(self, batch: ListBatch, batch_idx: int) -> None:
        """Score a batch of lists."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Fit the weight of the first stage's score, and log the metrics of the reranked lists."""
        logits, scores, gold, read = self._gathered()
        alpha = fit_first_stage_weight(logits[read], scores[read], gold[read])
        if alpha is not None:
            self.alpha.fill_(alpha)
        self._log("val", logits, scores, gold)

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the reranked lists."""
        logits, scores, gold, _ = self._gathered()
        self._log("test", logits, scores, gold)

    def trained(self) -> CrossEncoder:
        """The cross-encoder with the fitted weight, in evaluation mode."""
        self.cross_encoder.first_stage_weight = float(self.alpha)
        self.model.eval()
        return self.cross_encoder

    def configure_optimizers(self) -> Any:
        """The optimizer, with a learning rate that rises and then falls linearly."""
        optimizer = self.optimizer(self.parameters())
        steps = int(self.trainer.estimated_stepping_batches)
        rising = max(1, round(self.warmup * steps))

        def factor(step: int) -> float:
            return min((step + 1) / rising, max(0.0, (steps - step) / max(1, steps - rising)))

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    def _gathered(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits, first scores and golds of all lists, and which were read, from all processes."""
        parts = [part for own in ProcessGroup().gather_objects(self._evaluated) for part in own]
        self._evaluated = []
        logits, scores, gold, read = (torch.cat(column) for column in zip(*parts, strict=True))
        return logits, scores, gold, read

    def _log(self, stage: str, logits: Tensor, scores: Tensor, gold: Tensor) -> None:
        combined = logits.double() + self.alpha.cpu() * scores.double()
        both = reranked_metrics(combined, gold)
        first = reranked_metrics(scores.double(), gold)
        own = reranked_metrics(logits.double(), gold)
        self.log_dict({f"{stage}/{name}": value for name, value in both.items()}, prog_bar=True)
        self.log_dict({f"{stage}/first_{name}": value for name, value in first.items()})
        self.log_dict({f"{stage}/alone_{name}": value for name, value in own.items()})
        self.log(f"{stage}/alpha", self.alpha)
        difference = first_hits(combined, gold) - first_hits(scores, gold)
        low, high = interval(resampled_means(difference[None].numpy())[0])
        gain = {"gain": float(difference.mean()), "gain_low": low, "gain_high": high}
        self.log_dict({f"{stage}/{name}": value for name, value in gain.items()})


def list_loss(scores: Tensor, gold: Tensor) -> Tensor:
    """Mean cross-entropy of the golds within their lists: the negative log of the probability of any gold.

    Args:
        scores: ``[lists, k]``.
        gold: Bool ``[lists, k]``, at least one in each list.
    """
    return (scores.logsumexp(dim=1) - scores.masked_fill(~gold, -torch.inf).logsumexp(dim=1)).mean()


def fit_first_stage_weight(logits: Tensor, scores: Tensor, gold: Tensor) -> float | None:
    """The weight alpha of the first stage's scores by which z + alpha s, at its best scale, makes the golds likeliest.

    Args:
        logits: The cross-encoder's, z, ``[lists, k]``.
        scores: The first stage's, s, ``[lists, k]``.
        gold: Bool ``[lists, k]``; lists without a gold do not count.

    Returns:
        The weight, or ``None`` if no list has a gold.
    """
    rows = gold.any(dim=1).nonzero()[:, 0]
    if not len(rows) or gold.shape[1] < 2:
        return None
    weights = fit_weights(torch.stack([logits[rows], scores[rows]]), gold[rows].int().argmax(dim=1))
    return float(weights[1] / weights[0].clamp_min(1e-9))


def reranked_metrics(scores: Tensor, gold: Tensor) -> dict[str, Tensor]:
    """H@1, H@3 and MRR of reranked lists; a list without its gold is a miss, and ties keep their order.

    Args:
        scores: Final scores, ``[lists, k]``.
        gold: Bool ``[lists, k]``.
    """
    found = gold.gather(1, scores.argsort(dim=1, descending=True, stable=True)).double()
    rank = found.argmax(dim=1) + 1
    hit = found.any(dim=1)
    return {
        "hits@1": (hit & rank.eq(1)).float().mean(),
        "hits@3": (hit & rank.le(3)).float().mean(),
        "mrr": torch.where(hit, 1 / rank, 0).mean(),
    }


def first_hits(scores: Tensor, gold: Tensor) -> Tensor:
    """Whether a gold is first in each list, float64 ``[lists]``; see :func:`reranked_metrics`."""
    return gold.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0].double()
