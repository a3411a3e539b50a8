"""Fits the weights of the units on the validation split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from mimic_pl.batch import Batch
from mimic_pl.distributed import ProcessGroup
from mimic_pl.errors import ConfigError
from mimic_pl.model import MIMIC
from mimic_pl.ranges import COUNT, SEED, in_range
from mimic_pl.ranking import EntityIndex
from mimic_pl.ranking.engine import in_float32
from mimic_pl.ranking.stored_states import gather_states, pick
from mimic_pl.units import Matcher, States, WeightedMatcher

_STAGES = ("fit", "validate")


class WeightCalibration(Callback):
    """Fits the weights of a :class:`~mimic_pl.units.WeightedMatcher` on the validation split, before each validation.

    A unit that has memorised the training mentions is perfect in training and deserves little weight; one that cannot
    overfit (such as a lexical one) is weaker there and deserves more. So the weights, one per unit, minimise

        -log softmax_e(sum over units u of w_u S_u(m, e)), w_u >= 0,

    at the golds of validation mentions, among their golds and a sample of the knowledge base. Units that have no
    part in the overall score (:class:`~mimic_pl.units.CompactVector`) have no weight, and get none. Training continues
    with them, and checkpoints contain them; ``validate`` fits them, too, and leaves them in the model. Units that are
    centred on mentions are centred on the same mentions, without looking at their golds. Note that
    validation metrics are then measured on the split that the weights were fitted on, with one parameter per unit;
    the test split is not used.

    Args:
        mentions: Number of mentions to fit on, the first ones of the split.
        entities: Number of sampled entities.
        seed: Seed of the sample.
    """

    @in_range(mentions=COUNT, entities=COUNT, seed=SEED)
    def __init__(self, mentions: int = 512, entities: int = 1024, seed: int = 0) -> None:
        self.mentions = mentions
        self.entities = entities
        self.seed = seed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the matcher has weights.

        Raises:
            ConfigError: It has none.
        """
        if stage in _STAGES and not isinstance(getattr(pl_module, "matcher", None), WeightedMatcher):
            raise ConfigError(
                "WeightCalibration fits the weights of the units, but this model averages them. Use a matcher with "
                "weights: --model.matcher mimic_pl.units.WeightedMatcher."
            )

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Fit the weights before the first batch, when the index exists and nothing was ranked yet."""
        if trainer.state.fn not in _STAGES or trainer.sanity_checking or batch_idx:
            return
        assert isinstance(pl_module, MIMIC) and isinstance(pl_module.matcher, WeightedMatcher), "checked in setup"
        scores, gold = self._scores(trainer, pl_module)
        if len(gold):
            # All processes compute the same weights, but broadcasting guarantees that they are bit-identical.
            weights = trainer.strategy.broadcast(fit_weights(scores, gold))
            pl_module.matcher.set_weights(weights)
        pl_module.log_dict({f"weight/{name}": weight for name, weight in pl_module.matcher.weights.items()})

    @torch.no_grad()
    def _scores(self, trainer: Trainer, pl_module: MIMIC) -> tuple[Tensor, Tensor]:
        """Scores by unit ``[units, mentions, entities]``, and the column of each mention's gold ``[mentions]``."""
        index = pl_module.index
        assert index is not None, "built at the start of the epoch"
        sides, golds = self._sample_mentions(trainer, pl_module, index.processes)
        if not golds:
            return torch.empty(0), torch.empty(0)
        return sampled_scores(pl_module.matcher, sides, torch.cat(golds), index, self.entities, self.seed)

    def _sample_mentions(
        self, trainer: Trainer, model: MIMIC, processes: ProcessGroup
    ) -> tuple[list[States], list[Tensor]]:
        """States and golds of the first ``mentions`` mentions in whole batches, alternating between processes."""
        sides: list[States] = []
        golds: list[Tensor] = []
        loader = trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
        for batch, states in model.batch_encoder()(loader, "mentions", model.mention_states):
            kept = (batch["gold"].ge(0).any(dim=1) & batch["index"].ge(0)).nonzero()[:, 0]
            best = batch["gold"][kept].max(dim=1).values
            for own, gold in gather_states(processes, pick(states, kept), best):
                if len(gold) and sum(map(len, golds)) < self.mentions:
                    sides.append(own)
                    golds.append(gold)
            if sum(map(len, golds)) >= self.mentions:
                break
        return sides, golds


@torch.no_grad()
def sampled_scores(
    matcher: Matcher, mentions: Sequence[States], gold: Tensor, index: EntityIndex, entities: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Score mentions against their golds and a sample of the knowledge base, for :func:`fit_weights`.

    Units that are centred on mentions are centred on these from now on.

    Args:
        matcher: Scores the pairs.
        mentions: States of the mentions in batches.
        gold: Order number of each mention's gold, int64 ``[mentions]``.
        index: The knowledge base.
        entities: Number of sampled entities.
        seed: Seed of the sample.

    Returns:
        Scores by unit ``[units, mentions, entities]``, and the column of each mention's gold, int64 ``[mentions]``.
    """
    totals = [matcher.totals(states) for states in mentions]
    matcher.set_totals("mentions", {name: torch.stack([own[name] for own in totals]).sum(dim=0) for name in totals[0]})
    generator = torch.Generator().manual_seed(seed)
    order = index.order.sort().values if index.processes.world_size == 1 else torch.arange(len(index))
    sample = order[torch.randperm(len(order), generator=generator)[:entities].to(order.device)].to(gold.device)
    columns = torch.cat([sample, gold]).unique()  # type: ignore[no-untyped-call]
    of_entities, in_full = index.gather(columns), in_float32(matcher)
    parts = []
    for states in mentions:
        scores = in_full.score(states, of_entities)
        parts.append(torch.stack([scores[name] for name in matcher.combined]))
    return torch.cat(parts, dim=1), torch.searchsorted(columns, gold)


@torch.inference_mode(False)  # validate runs in inference mode, which has no gradients
@torch.enable_grad()
def fit_weights(scores: Tensor, gold: Tensor) -> Tensor:
    """The weights that maximise the likelihood of the golds.

    Args:
        scores: Scores by unit, ``[units, mentions, entities]``.
        gold: Column of each mention's gold, int64 ``[mentions]``.

    Returns:
        One weight per unit, float64 ``[units]``, non-negative. The problem is convex in the weights.
    """
    scores = scores.detach().cpu().double().clone()
    gold = gold.cpu().clone()
    # Scores are divided by their standard deviation for the fit, since units differ in scale by orders of magnitude.
    spread = scores.std(dim=2).mean(dim=1).clamp_min(1e-6)
    scores = scores / spread[:, None, None]
    raw = torch.zeros(len(scores), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([raw], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        overall = torch.einsum("u,ume->me", nn.functional.softplus(raw), scores)
        value = nn.functional.cross_entropy(overall, gold)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return nn.functional.softplus(raw).detach() / spread
