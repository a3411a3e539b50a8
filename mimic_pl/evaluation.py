"""Evaluation: ranks the whole knowledge base for every mention, with the model's current weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from mimic_pl.batch import Batch, Inputs
from mimic_pl.data.protocol import RankedData, Records, data_of
from mimic_pl.distributed import ProcessGroup
from mimic_pl.errors import NonFiniteScoreError, StoreError
from mimic_pl.metrics import GoldMetrics, rank_metrics
from mimic_pl.ranking import EntityIndex, IndexBuilder, Ranker, Ranking, Shard, fingerprint, index_totals
from mimic_pl.ranking.engine import in_float32
from mimic_pl.trainer_folder import trainer_folder
from mimic_pl.units import Matcher, States
from mimic_pl.units.check import require_independent_pairs

if TYPE_CHECKING:
    from mimic_pl.model import MIMIC

_CHECKED = 16
"""Number of entities on which scores are checked before all are ranked."""


class RankingEvaluation(LightningModule):
    """Hooks of validation, test and prediction, which rank the whole knowledge base of the data module exactly.

    Attributes:
        matcher: Scores pairs.
        ranker: Ranks the entities of an index.
        index_builder: Builds the index.
        metrics: A collection over ranks for each stage and score, of :meth:`configure_metrics`.
        gold_metrics: Metrics of several golds per mention, for each stage.
        index: The knowledge base during an evaluation.
    """

    matcher: Matcher
    ranker: Ranker
    index_builder: IndexBuilder
    metrics: nn.ModuleDict
    gold_metrics: nn.ModuleDict
    index: EntityIndex | None = None
    _keep_index = False
    _pairs_checked = False

    def mention_states(self, inputs: Inputs) -> States:
        """Encode mentions for ranking."""
        raise NotImplementedError

    def configure_metrics(self) -> nn.ModuleDict:
        """Create the metrics: a collection over ranks for each score, for ``val`` and ``test``."""
        return nn.ModuleDict(
            {
                stage: nn.ModuleDict(
                    {
                        name: rank_metrics(f"{stage}/" if name == "overall" else f"{stage}/{name}/")
                        for name in self.ranker.ranked(self.matcher)
                    }
                )
                for stage in ("val", "test")
            }
        )

    def on_validation_epoch_start(self) -> None:
        """Encode the knowledge base with the current weights."""
        self._start_ranking()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Rank the whole knowledge base for a batch of mentions."""
        return self._evaluation_step(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all mentions."""
        self._log_metrics("val")

    def on_test_epoch_start(self) -> None:
        """Encode the knowledge base with the current weights."""
        self._start_ranking()

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Rank the whole knowledge base for a batch of mentions."""
        return self._evaluation_step(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of all mentions."""
        self._log_metrics("test")

    def on_predict_epoch_start(self) -> None:
        """Encode the knowledge base with the current weights."""
        self._start_ranking()

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Rank the whole knowledge base for a batch of mentions, with or without golds."""
        ranking = self.rank(batch, "predict")
        counted = batch["index"].ge(0).nonzero()[:, 0]
        return {"ranking": ranking.at(counted), "index": batch["index"][counted]}

    def on_predict_epoch_end(self) -> None:
        """Release the index."""
        self._end_ranking()

    @contextmanager
    def one_index(self) -> Iterator[None]:
        """Build the index only once, in the first evaluation within this context.

        For evaluations between which neither the weights nor the knowledge base change.
        """
        self._keep_index = True
        try:
            yield
        finally:
            self._keep_index = False
            self.index = None

    def _start_ranking(self) -> None:
        if self.index is None or not self._keep_index:
            with torch.no_grad():
                self.index = evaluation_index(cast("MIMIC", self), self.trainer, self.index_builder)
                self.matcher.set_totals("entities", index_totals(self.matcher, self.index))
                self._pairs_checked = False

    def _end_ranking(self) -> None:
        if not self._keep_index:
            self.index = None

    def rank(self, batch: Batch, split: str) -> Ranking:
        """Rank the whole knowledge base for a batch of mentions; with several processes, each passes its own batch.

        Args:
            batch: Mentions, their golds and their positions in the split.
            split: ``val``, ``test`` or ``predict``.

        Raises:
            NonFiniteScoreError: A score is NaN or infinite; the message names the mention.
        """
        assert self.index is not None, "the index is filled at the start of the epoch"
        states = self.mention_states(batch["mentions"])
        if not self._pairs_checked:
            self.index.processes.run_together(lambda: self._check_pairs(states), self.device)
            self._pairs_checked = True
        try:
            return self.ranker(self.matcher, states, self.index, batch["gold"])
        except NonFiniteScoreError as error:
            mentions = [
                index for local in self.index.processes.gather_objects(batch["index"].tolist()) for index in local
            ]
            raise NonFiniteScoreError(self._explain(error, mentions, split)) from error

    @torch.no_grad()
    def _check_pairs(self, mentions: States) -> None:
        """Check on a few pairs of this process that scores can be ranked."""
        assert self.index is not None
        few = self.index.order[:_CHECKED]
        if len(few):
            require_independent_pairs(in_float32(self.matcher), mentions, self.index.select(few).states)

    def _evaluation_step(self, batch: Batch, stage: str) -> dict[str, Any]:
        assert self.index is not None, "the index is filled at the start of the epoch"
        counted = batch["index"].ge(0).nonzero()[:, 0]  # without padding that evens out the batches of processes
        ranking = self.rank(batch, stage).at(counted)
        for name, metrics in self._metrics(stage):
            metrics.update(ranking.ranks[name], num_entities=len(self.index))
        count = batch["gold_count"][counted] if "gold_count" in batch else None
        seen = batch["seen"][counted] if "seen" in batch else None
        gold_metrics = self._gold_metrics(stage)
        gold_metrics.update(ranking.ranks, ranking.gold_ranks, count, seen, num_entities=len(self.index))
        return {"ranking": ranking, "index": batch["index"][counted]}

    def _explain(self, error: NonFiniteScoreError, ranked: list[int], split: str) -> str:
        """Message that names the mention and entity with the non-finite score."""
        data = data_of(self.trainer, Records)
        mention = data.mentions[split][ranked[error.mention]]
        entity = data.entities[error.entity]
        return (
            f"The {error.score!r} score of mention {mention.id!r} ({mention.mention!r}) with entity {entity.id} "
            f"({entity.name!r}) is {error.value}. The weights have diverged, or features overflow in this precision. "
            "Lower the learning rate, clip gradients (--trainer.gradient_clip_val 1.0), or evaluate with "
            "--trainer.precision 32-true."
        )

    def _log_metrics(self, stage: str) -> None:
        for _, metrics in self._metrics(stage):
            self.log_dict(metrics.compute())
            metrics.reset()
        on_any_process = partial(self.trainer.strategy.reduce_boolean_decision, all=False)
        self.log_dict(self._gold_metrics(stage).compute(on_any_process))
        self._gold_metrics(stage).reset()
        self._end_ranking()

    def _metrics(self, stage: str) -> Iterator[tuple[str, MetricCollection]]:
        for name, metrics in cast(nn.ModuleDict, self.metrics[stage]).items():
            yield name, cast(MetricCollection, metrics)

    def _gold_metrics(self, stage: str) -> GoldMetrics:
        return cast(GoldMetrics, self.gold_metrics[stage])


def evaluation_index(model: MIMIC, trainer: Trainer, builder: IndexBuilder) -> EntityIndex:
    """Encode the knowledge base, or this process's shard of it, or open the index on disk.

    Args:
        model: The model that encodes.
        trainer: Its Trainer, with a data module.
        builder: Dtype and storage of the index.

    Raises:
        ConfigError: The Trainer was given data loaders instead of a data module.
        StoreError: The index on disk was built by another model or from other data, or is damaged; or images
            changed while they were encoded.
    """
    data = data_of(trainer, RankedData)
    num_entities = len(data.entities)
    on_disk = builder.storage == "disk"
    # If texts need not be padded to a fixed length, those of similar length are batched together.
    padded = on_disk or model.matcher.reads_padding or model.encoder.reads_padding
    loader = data.entity_dataloader(by_length=not padded)
    shard = _shard_of(loader, num_entities)
    description: dict[str, object] = {}
    if on_disk or shard.processes.world_size > 1:
        description = {
            "model": fingerprint(model.encoder, model.matcher, of_entities=True),
            "precision": str(trainer.precision),
            **data.describe_entities(),
        }
    if not on_disk:
        provenance = repr(description)
        return builder.in_memory(data.entities, lambda _: _encoded(model, loader), model.device, shard, provenance)
    validating = trainer.state.fn in ("fit", "validate")

    def encoded(first: int) -> Iterator[tuple[Tensor, States]]:
        yield from _encoded(model, data.entity_dataloader(first=first))
        if not validating and not description.items() >= data.describe_entities().items():
            raise StoreError(
                "Images of the knowledge base changed while they were encoded. Delete the folder "
                f"{_folder(builder, trainer, validating)}, and start again when they are complete."
            )

    return builder.on_disk(
        _folder(builder, trainer, validating),
        data.entities,
        encoded,
        model.device,
        description,
        # During fit, the stored index is of an earlier epoch's weights.
        rebuild=validating,
        shard=shard,
    )


def _shard_of(loader: DataLoader[Batch], num_entities: int) -> Shard:
    """The shard given by the sampler of the entity loader, or all entities."""
    positions = getattr(loader.sampler, "positions", None)
    if positions is None:
        return Shard.whole(num_entities)
    return Shard(torch.as_tensor(positions), num_entities, ProcessGroup())


def _folder(builder: IndexBuilder, trainer: Trainer, validating: bool) -> Path:
    folder = Path(builder.folder or trainer_folder(trainer) / "index")
    return folder / ("validation" if validating else "entities")


def _encoded(model: MIMIC, loader: DataLoader[Batch]) -> Iterator[tuple[Tensor, States]]:
    """Positions and states of the entities of each batch."""
    run = model.batch_encoder()
    for batch, states in run(loader, "entities", model.entity_states, "Encoding the knowledge base"):
        yield batch["index"], states
